"""The tests on docs/testing.md pass, as its reader would write them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.plugin import PLUGIN_OPTIONS

pytest_plugins = ["pytester"]

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "testing.md"
HANDLERS = "# myapp/handlers.py\n"


def test_the_tests_of_the_page_pass(
    pytester: pytest.Pytester, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = PAGE.read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S)
    ini = re.search(r"^ {4}\[pytest\]\n(?: {4}.*\n)+", text, re.M)
    assert ini is not None
    [handlers] = [block for block in blocks if block.startswith(HANDLERS)]
    others = [block for block in blocks if block != handlers]
    pytester.makefile(".ini", pytest=re.sub(r"^ {4}", "", ini[0], flags=re.M))
    pytester.mkpydir("myapp").joinpath("handlers.py").write_text(handlers)
    pytester.makepyfile(test_page="\n".join(others))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))

    result = pytester.runpytest_subprocess(
        *PLUGIN_OPTIONS, f"--orchestrator-database-url={dsn}", "-p", "no:cacheprovider"
    )

    result.assert_outcomes(passed=text.count("\ndef test_"))
    assert text.count("\ndef test_") >= 8
