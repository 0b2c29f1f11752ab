"""Exponential back-off with full jitter."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest

from orchestrator.retry import Retry, delay

BASE, CAP = 5.0, 3600.0


def distance_from_uniform(values: Sequence[float], high: float) -> float:
    """Return the Kolmogorov-Smirnov distance of a sample from uniform(0, high)."""
    ordered, n = sorted(values), len(values)
    return max(
        max((index + 1) / n - value / high, value / high - index / n)
        for index, value in enumerate(ordered)
    )


def critical_distance(n: int) -> float:
    """Return the distance that one of a thousand true samples of this size exceeds.

    Asymptotic Kolmogorov distribution: sqrt(-ln(alpha / 2) / 2n) with alpha = 0.001.
    """
    return math.sqrt(-math.log(0.001 / 2) / (2 * n))


def drawn(n: int, count: int, seed: int) -> list[float]:
    uniform = random.Random(seed).uniform
    return [delay(n, base=BASE, cap=CAP, uniform=uniform) for _ in range(count)]


@pytest.mark.parametrize("n", range(1, 13))
def test_delays_of_10_000_attempts_are_uniform_up_to_the_doubled_base(n: int) -> None:
    ceiling = min(CAP, BASE * 2 ** (n - 1))

    delays = drawn(n, 10_000, seed=n)

    assert min(delays) >= 0.0
    assert max(delays) <= ceiling
    assert distance_from_uniform(delays, ceiling) < critical_distance(10_000)


def test_the_check_tells_half_jitter_from_full_jitter() -> None:
    # The measure itself must be able to fail: equal jitter, and a ceiling that is 5 % off.
    uniform = random.Random(1).uniform
    half = [ceiling / 2 + uniform(0, ceiling / 2) for ceiling in [BASE] * 10_000]

    assert distance_from_uniform(half, BASE) > critical_distance(10_000)
    assert distance_from_uniform(drawn(1, 10_000, seed=1), BASE * 1.05) > critical_distance(10_000)


def test_ceiling_is_reached_by_the_ninth_delay_and_kept() -> None:
    widest = [delay(n, base=BASE, cap=CAP, uniform=lambda low, high: high) for n in range(1, 13)]

    assert widest == [5, 10, 20, 40, 80, 160, 320, 640, 1280, 2560, 3600, 3600]


def test_delay_of_a_very_old_task_does_not_overflow() -> None:
    assert delay(100_000, base=BASE, cap=CAP) <= CAP


def test_base_above_the_cap_is_cut_to_it() -> None:
    assert delay(1, base=10.0, cap=2.0, uniform=lambda low, high: high) == 2.0


def test_draws_differ_without_a_given_source() -> None:
    assert len({delay(5, base=BASE, cap=CAP) for _ in range(20)}) > 1


def test_defaults_need_about_21_minutes_until_dead() -> None:
    # The sum of the nine delays between ten attempts, in the median.
    uniform = random.Random(7).uniform
    totals = sorted(
        sum(delay(n, base=BASE, cap=CAP, uniform=uniform) for n in range(1, 10))
        for _ in range(2_000)
    )

    assert 19 * 60 < totals[1_000] < 23 * 60


def test_base_and_cap_are_kept_in_seconds() -> None:
    retry = Retry(base="500ms", cap=timedelta(minutes=2))

    assert (retry.base, retry.cap) == (0.5, 120.0)


@pytest.mark.parametrize("max_attempts", [0, -1, 32768])
def test_number_of_attempts_fits_the_column_and_is_at_least_one(max_attempts: int) -> None:
    with pytest.raises(ValueError, match=r"must be 1\.\.32767"):
        Retry(max_attempts=max_attempts)


def test_base_that_is_no_duration_is_refused() -> None:
    with pytest.raises(ValueError, match="is not a duration"):
        Retry(base="soon")


def test_exceptions_that_end_a_task_may_be_given_as_a_list() -> None:
    retry = Retry(dead_on=[ValueError])  # type: ignore[arg-type]

    assert retry.dead_on == (ValueError,)
    assert hash(retry) == hash(Retry(dead_on=(ValueError,)))


@pytest.mark.parametrize("wrong", ["5", 2.5, True, None], ids=repr)
def test_number_of_attempts_of_another_kind_is_refused(wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"^Retry\(max_attempts="):
        Retry(max_attempts=wrong)


def test_one_class_will_do_for_dead_on() -> None:
    assert Retry(dead_on=ValueError).dead_on == (ValueError,)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [5, "ValueError", [ValueError("x")], (int,)], ids=repr)
def test_dead_on_of_what_is_no_exception_class_is_refused(wrong: Any) -> None:
    with pytest.raises(ValueError, match="must be classes of exceptions"):
        Retry(dead_on=wrong)
