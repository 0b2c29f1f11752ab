"""What the program that enqueues and the workers have in common: one part of a simulation.

Light on purpose: importing it loads neither numpy nor a database driver.
"""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator import TaskType


@dataclass(frozen=True)
class Part:
    """Some of the paths of a European call option under geometric Brownian motion.

    `rate` and `volatility` are per year, `years` the time until it is exercised. `seed` is that of
    the whole study.
    """

    paths: int
    seed: int = 1
    spot: float = 100.0
    strike: float = 105.0
    rate: float = 0.03
    volatility: float = 0.2
    years: float = 1.0


@dataclass(frozen=True)
class Moments:
    """What a part found: number, mean, and sum of the squared deviations from the mean."""

    n: int
    mean: float
    squares: float


simulate = TaskType("simulation:part", Part, Moments, queue="cpu")
