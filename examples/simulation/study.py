"""The client's side: divide a study into parts, enqueue them at once, gather, print.

    python -m examples.simulation.study --paths 20000000 --parts 40

The price of this option is known in closed form (Black and Scholes, "The Pricing of Options and
Corporate Liabilities", 1973), so that everybody can see whether the simulation is right.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterable
from statistics import NormalDist

from examples.simulation.tasks import Moments, Part, simulate
from orchestrator import Client, Task


def parts(n_paths: int, n_parts: int, seed: int) -> list[Part]:
    """Divide the paths into parts that differ by one at most."""
    least, more = divmod(n_paths, n_parts)
    return [Part(paths=least + (i < more), seed=seed) for i in range(n_parts)]


def enqueue(client: Client, wanted: list[Part], tag: str) -> list[Task[Moments]]:
    """Enqueue all parts in one transaction; `tag` finds them again."""
    return client.enqueue_many(simulate, wanted, tags=[tag])


def gathered(found: Iterable[Moments]) -> Moments:
    """Put the moments of parts together.

    Chan, Golub and LeVeque, "Algorithms for Computing the Sample Variance", 1983: sums of squares
    would lose the digits that the variance needs.
    """
    n, mean, squares = 0, 0.0, 0.0
    for part in found:
        delta = part.mean - mean
        n_both = n + part.n
        mean += delta * part.n / n_both
        squares += part.squares + delta**2 * n * part.n / n_both
        n = n_both
    return Moments(n, mean, squares)


def standard_error(moments: Moments) -> float:
    """Return the standard error of the mean."""
    return math.sqrt(moments.squares / (moments.n - 1) / moments.n)


def closed_form(option: Part) -> float:
    """Return the price by the formula of Black and Scholes."""
    spread = option.volatility * math.sqrt(option.years)
    d1 = math.log(option.spot / option.strike) + option.rate * option.years
    d1 = d1 / spread + spread / 2
    normal = NormalDist()
    discount = math.exp(-option.rate * option.years)
    return option.spot * normal.cdf(d1) - option.strike * discount * normal.cdf(d1 - spread)


def main() -> int:
    """Run the study; 1 when it misses the closed form by more than 5 standard errors."""
    parser = argparse.ArgumentParser(description="Price an option by simulation.")
    parser.add_argument("--paths", type=int, default=20_000_000)
    parser.add_argument("--parts", type=int, default=40)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    wanted = parts(given.paths, given.parts, given.seed)
    with Client.from_config() as client:
        tasks = enqueue(client, wanted, f"study-{given.seed}")
        print(f"{len(tasks)} tasks of about {wanted[0].paths} paths")
        total = gathered(client.result(task) for task in tasks)
    error, exact = standard_error(total), closed_form(wanted[0])
    print(f"price {total.mean:.5f} +- {error:.5f} from {total.n} paths; closed form {exact:.5f}")
    return 0 if abs(total.mean - exact) < 5 * error else 1


if __name__ == "__main__":
    sys.exit(main())
