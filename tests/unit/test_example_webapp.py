"""The example: the invoice, and what the web process loads."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from examples.webapp import handlers
from examples.webapp.tasks import Ordered
from orchestrator import Dead

ROOT = Path(__file__).parents[2]


def worked_out(cents: list[int]) -> tuple[int, int]:
    return handlers.worked_out(Ordered(order_id=17, customer="Ada", cents=cents))


@pytest.mark.parametrize(("cents", "tax"), [([250, 400], 130), ([1], 0), ([3], 1), ([2, 1], 1)])
def test_tax_is_rounded_to_the_cent(cents: list[int], tax: int) -> None:
    assert worked_out(cents) == (sum(cents), tax)


def test_order_without_items_has_no_invoice() -> None:
    with pytest.raises(Dead, match="order 17 has no items"):
        worked_out([])


def test_web_process_loads_no_handler() -> None:
    program = "import examples.webapp.app, sys; print('examples.webapp.handlers' in sys.modules)"

    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    )

    assert done.stdout == "False\n"
