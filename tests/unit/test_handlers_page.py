"""The Python on docs/handlers.md runs, from top to bottom, as its reader would type it."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "handlers.md"


def test_python_of_the_page_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.M | re.S)
    # Dataclasses look up their module by name.
    page = types.ModuleType("handlers_page")
    monkeypatch.setitem(sys.modules, page.__name__, page)

    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), page.__dict__)

    # The last block asserts; this says that it was there.
    assert len(blocks) >= 8
    assert page.outcome.state == "dead"
