"""The handler: simulates one part with numpy. Imported by workers only.

numpy is imported here, at module level: once, in the fork server, and all workers share its pages.

The random numbers of a part follow from the seed of the study and the id of the task. So a part
that is run again, after a crash say, gives the same numbers, and no two parts give the same.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from examples.simulation.tasks import Part, simulate
from orchestrator import Context, Dead, Mux, Snooze

mux = Mux()

# As many paths at a time as keep their arrays below some MB, and a drain waiting for milliseconds.
_CHUNK = 200_000


@mux.handler(simulate, timeout="10m")
def simulate_part(ctx: Context[None], payload: Part) -> dict[str, Any]:
    """Return number, mean and squared deviations of the discounted payoffs, as numpy has them."""
    if payload.paths < 1:
        raise Dead(f"paths = {payload.paths}: must be at least 1")
    random = np.random.default_rng(
        np.random.SeedSequence(entropy=payload.seed, spawn_key=(ctx.task_id,))
    )
    payoffs = np.empty(payload.paths)
    for begin in range(0, payload.paths, _CHUNK):
        if ctx.stopping:
            # The node is ending. This one begins anew elsewhere, at no cost to the task.
            raise Snooze(0)
        part = payoffs[begin : begin + _CHUNK]
        part[:] = _payoffs(payload, random.standard_normal(len(part)))
    mean = payoffs.mean()
    # np.int64 and np.float64: the runner unwraps them by `.item()`.
    return {"n": np.int64(len(payoffs)), "mean": mean, "squares": ((payoffs - mean) ** 2).sum()}


def _payoffs(option: Part, normal: np.ndarray[Any, np.dtype[np.float64]]) -> Any:
    """Return what the option pays at the end of each path, discounted to today."""
    drift = (option.rate - option.volatility**2 / 2) * option.years
    final = option.spot * np.exp(drift + option.volatility * option.years**0.5 * normal)
    return np.maximum(final - option.strike, 0.0) * np.exp(-option.rate * option.years)
