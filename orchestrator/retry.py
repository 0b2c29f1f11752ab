"""The delay before the next attempt: exponential back-off with full jitter."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from orchestrator.durations import seconds


@dataclass(frozen=True)
class Retry:
    """How often and how soon a failed task is tried again.

    `base` and `cap` are durations ("5s", seconds or timedelta) and are kept in seconds.
    An exception that is an instance of one of `dead_on` sends the task to the dead letter
    queue at once. The defaults give a task about 21 minutes (median) until it is dead.
    """

    max_attempts: int = 10
    base: str | float | timedelta = 5.0
    cap: str | float | timedelta = 3600.0
    dead_on: tuple[type[BaseException], ...] = ()

    def __post_init__(self) -> None:
        is_integer = isinstance(self.max_attempts, int) and not isinstance(self.max_attempts, bool)
        if not is_integer or not 1 <= self.max_attempts <= 32767:
            raise ValueError(
                f"Retry(max_attempts={self.max_attempts!r}): must be 1..32767; 1 means no retry"
            )
        given: Any = self.dead_on
        kinds = tuple(given) if isinstance(given, Iterable) else (given,)
        if not all(isinstance(kind, type) and issubclass(kind, BaseException) for kind in kinds):
            raise ValueError(
                f"Retry(dead_on={self.dead_on!r}): must be classes of exceptions, such as "
                "(ValueError,)"
            )
        object.__setattr__(self, "base", seconds(self.base))
        object.__setattr__(self, "cap", seconds(self.cap))
        object.__setattr__(self, "dead_on", kinds)


def delay(
    n: int,
    *,
    base: float,
    cap: float,
    uniform: Callable[[float, float], float] = random.uniform,
) -> float:
    """Draw the seconds to wait before the attempt after the n-th charged end, n from 1.

    uniform(0, min(cap, base * 2^(n-1))): "full jitter" of the AWS Architecture Blog,
    "Exponential Backoff And Jitter". n counts failures and crashes, so attempts that cost
    nothing do not stretch the delay.
    """
    # 2.0 ** 1024 overflows; no cap is ever as large as 2^64 seconds.
    return uniform(0.0, min(cap, base * 2.0 ** min(n - 1, 64)))
