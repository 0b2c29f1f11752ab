"""Durations, sizes and points in time as users write them, turned into plain numbers."""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime, timedelta

_UNIT_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_UNIT_BYTES = {
    "B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40,
    "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
}  # fmt: skip
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d|w)")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kKMGT]i?B|B)")


def seconds(value: str | float | timedelta) -> float:
    """Return a duration in seconds: "500ms", "1m", "1h 30m", a number of seconds, a timedelta.

    Raises:
        ValueError: not a duration, negative, or not finite.
    """
    if isinstance(value, timedelta):
        number = value.total_seconds()
    elif isinstance(value, str):
        number = _parse_duration(value)
    elif isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(
            f"{value!r} is not a duration: give '30s', a number of seconds or a timedelta"
        )
    else:
        number = float(value)
    if not math.isfinite(number) or number < 0:
        raise ValueError(f"{value!r} is not a duration: it must be finite and not negative")
    return number


def _parse_duration(text: str) -> float:
    total, end = 0.0, 0
    stripped = text.strip()
    for found in _DURATION.finditer(stripped):
        if stripped[end : found.start()].strip():
            break
        total += float(found[1]) * _UNIT_SECONDS[found[2]]
        end = found.end()
    if not stripped or end != len(stripped):
        raise ValueError(
            f"{text!r} is not a duration: write '500ms', '30s', '1m', '1h 30m' or '7d'"
        )
    return total


def size_bytes(value: str | int) -> int:
    """Return a size in bytes: "256KiB", "1GiB", "10MB", or a number of bytes.

    Raises:
        ValueError: not a size, or negative.
    """
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError(f"{value!r} is not a size: give '256KiB', '1GiB' or a number of bytes")
    if isinstance(value, str):
        found = _SIZE.fullmatch(value.strip())
        if found is None:
            raise ValueError(f"{value!r} is not a size: write '256KiB', '1GiB' or '10MB'")
        unit = found[2].replace("K", "k") if found[2] == "KB" else found[2].replace("ki", "Ki")
        return int(float(found[1]) * _UNIT_BYTES[unit])
    if value < 0:
        raise ValueError(f"{value!r} is not a size: it must not be negative")
    return value


def utc(value: datetime) -> datetime:
    """Return the same instant in UTC.

    Raises:
        ValueError: the datetime has no time zone, so it names no instant.
    """
    if value.tzinfo is None or value.utcoffset() is None:
        raise ValueError(
            f"{value!r} has no time zone: give an aware datetime, such as one with tzinfo=UTC"
        )
    return value.astimezone(UTC)


def spell(number: float) -> str:
    """Write seconds as people do: 0.5 is "500ms", 90 is "1m 30s"."""
    if number < 1:
        return f"{number * 1000:g}ms"
    parts, rest = [], number
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if rest >= size:
            parts.append(f"{int(rest // size)}{unit}")
            rest %= size
    if rest or not parts:
        parts.append(f"{rest:g}s")
    return " ".join(parts)
