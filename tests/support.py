"""What tests of every folder share, besides the fixtures of conftest.py."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def eventually(
    condition: Callable[[], T], *, timeout: float = 10.0, interval: float = 0.02, message: str = ""
) -> T:
    """Call `condition` until it returns something true, and return that.

    A failing assertion inside counts as "not yet". Times are in seconds. The error names the last
    thing seen, since "timed out" alone explains nothing.
    """
    deadline = time.monotonic() + timeout
    while True:
        seen: object
        try:
            value = condition()
            if value:
                return value
            seen = value
        except AssertionError as error:
            seen = error
        if time.monotonic() > deadline:
            raise AssertionError(
                f"{message or 'it never became true'} within {timeout:g} s; last seen: {seen!r}"
            )
        time.sleep(interval)


def never(condition: Callable[[], object], *, during: float, interval: float = 0.02) -> None:
    """Assert that `condition` stays false for `during` seconds."""
    deadline = time.monotonic() + during
    while time.monotonic() < deadline:
        value = condition()
        assert not value, f"it should have stayed false, and became {value!r}"
        time.sleep(interval)
