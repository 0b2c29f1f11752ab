"""Durations, sizes and instants, as users write them."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.durations import seconds, size_bytes, spell, utc


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("500ms", 0.5),
        ("30s", 30.0),
        ("1.5m", 90.0),
        ("1m", 60.0),
        ("2h", 7200.0),
        ("7d", 604800.0),
        ("1w", 604800.0),
        ("1h 30m", 5400.0),
        ("1h30m", 5400.0),
        ("1m0s", 60.0),
        (" 5 s ", 5.0),
        ("0s", 0.0),
        (90, 90.0),
        (0.25, 0.25),
        (timedelta(minutes=2, milliseconds=5), 120.005),
    ],
)
def test_duration_is_read_in_seconds(written: str | float | timedelta, expected: float) -> None:
    assert seconds(written) == pytest.approx(expected)


@pytest.mark.parametrize(
    "written",
    [
        "", " ", "5", "s", "5x", "-5s", "5s-", "1h banana", "1h,30m", "1e3s", "5S", "5 min",
        -1, -0.001, math.nan, math.inf, True, None, [], timedelta(seconds=-1),
    ],
)  # fmt: skip
def test_what_is_no_duration_is_refused(written: object) -> None:
    with pytest.raises(ValueError, match="is not a duration"):
        seconds(written)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (0.0, "0ms"), (0.0005, "0.5ms"), (0.5, "500ms"), (1, "1s"), (1.5, "1.5s"), (90, "1m 30s"),
        (3600, "1h"), (5400, "1h 30m"), (604800, "7d"), (86400 + 0.5, "1d 0.5s"),
    ],
)  # fmt: skip
def test_duration_is_spelled_as_people_do(number: float, expected: str) -> None:
    assert spell(number) == expected


@given(st.integers(min_value=0, max_value=10**8))
def test_spelled_duration_reads_as_itself(milliseconds: int) -> None:
    number = milliseconds / 1000

    assert seconds(spell(number)) == pytest.approx(number, rel=1e-5)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("10B", 10),
        ("256KiB", 262_144),
        ("1GiB", 1_073_741_824),
        ("1.5MiB", 1_572_864),
        ("2TiB", 2 * 2**40),
        ("10MB", 10_000_000),
        ("1kB", 1000),
        ("1KB", 1000),
        (" 3 MiB ", 3 * 2**20),
        (1024, 1024),
        (0, 0),
    ],
)
def test_size_is_read_in_bytes(written: str | int, expected: int) -> None:
    assert size_bytes(written) == expected


@pytest.mark.parametrize(
    "written", ["", "5", "5 bytes", "-1MiB", "1mib", "MiB", -1, 1.5, True, None]
)
def test_what_is_no_size_is_refused(written: object) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        size_bytes(written)  # type: ignore[arg-type]


def test_instant_is_turned_to_utc() -> None:
    local = datetime(2026, 1, 31, 12, 0, tzinfo=timezone(timedelta(hours=2)))

    converted = utc(local)

    assert converted == local
    assert converted.tzinfo is UTC
    assert converted.hour == 10


def test_time_without_zone_names_no_instant() -> None:
    with pytest.raises(ValueError, match="has no time zone"):
        utc(datetime(2026, 1, 31, 12, 0))  # noqa: DTZ001 - the point of the test
