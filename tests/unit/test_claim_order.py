"""The order in which a worker's next claim walks the queues of its pool."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

from orchestrator.config import PoolSettings
from orchestrator.processes.claimant import Claimant


def queues(pool: PoolSettings) -> list[str]:
    # The order is a matter of the pool alone.
    return list(Claimant.queues(SimpleNamespace(pool=pool)))  # type: ignore[arg-type]


def test_queues_without_weights_come_in_their_order_every_time() -> None:
    pool = PoolSettings(queues=("a", "b", "*"))

    assert {tuple(queues(pool)) for _ in range(100)} == {("a", "b", "*")}


def test_queue_with_a_weight_comes_first_as_often_as_its_share() -> None:
    pool = PoolSettings(queues=("a", "b", "*"), weights=(6, 3, 1))

    firsts = Counter(queues(pool)[0] for _ in range(10_000))

    # Six standard deviations: by chance alone less than once in a million runs.
    for queue, share in (("a", 0.6), ("b", 0.3), ("*", 0.1)):
        assert abs(firsts[queue] / 10_000 - share) < 0.03


def test_every_queue_is_in_every_order() -> None:
    pool = PoolSettings(queues=("a", "b", "c"), weights=(1000, 1, 1))

    assert {tuple(sorted(queues(pool))) for _ in range(100)} == {("a", "b", "c")}
