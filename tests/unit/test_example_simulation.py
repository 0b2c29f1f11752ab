"""The example: parts that can be run again, and moments that can be put together."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from examples.simulation import handlers, study
from examples.simulation.tasks import Moments, Part
from orchestrator import Context, Dead, Snooze
from orchestrator.payload import clean_result


def simulated(part: Part, *, task_id: int = 17, **fields: Any) -> Moments:
    """Run the handler, and the result on its way through JSON."""
    ctx: Context[None] = Context(task_id=task_id, type="simulation:part", **fields)
    return msgspec.json.decode(clean_result(handlers.simulate_part(ctx, part)), type=Moments)


def test_second_attempt_gives_the_very_same_numbers() -> None:
    assert simulated(Part(paths=1000)) == simulated(Part(paths=1000), attempt=2)


def test_chunks_do_not_show_in_the_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = simulated(Part(paths=1000))
    monkeypatch.setattr(handlers, "_CHUNK", 300)

    assert simulated(Part(paths=1000)) == whole


@pytest.mark.parametrize("other", [{"task_id": 18}, {"seed": 2}])
def test_other_parts_and_other_studies_give_other_numbers(other: dict[str, int]) -> None:
    task_id, seed = other.get("task_id", 17), other.get("seed", 1)

    assert simulated(Part(paths=10, seed=seed), task_id=task_id) != simulated(Part(paths=10))


def test_result_is_numpys_own_and_becomes_plain_numbers() -> None:
    ctx: Context[None] = Context(task_id=1, type="simulation:part")

    result = handlers.simulate_part(ctx, Part(paths=10))

    assert isinstance(result["mean"], np.float64)
    assert msgspec.json.decode(clean_result(result)) == {
        "n": 10,
        "mean": float(result["mean"]),
        "squares": float(result["squares"]),
    }


def test_price_is_that_of_the_closed_form() -> None:
    found = [simulated(Part(paths=50_000), task_id=task_id) for task_id in (1, 2, 3)]

    total = study.gathered(found)

    distance = abs(total.mean - study.closed_form(Part(paths=1)))
    assert distance < 4 * study.standard_error(total)
    assert total.n == 150_000


def test_moments_put_together_are_those_of_all_values() -> None:
    values = np.random.default_rng(1).exponential(size=1000) + 1e6
    pieces = np.split(values, [1, 10, 500])

    total = study.gathered(
        Moments(len(p), float(p.mean()), float(((p - p.mean()) ** 2).sum())) for p in pieces
    )

    assert total.mean == pytest.approx(values.mean(), rel=1e-14)
    assert total.squares == pytest.approx(values.var() * len(values), rel=1e-6)


def test_paths_are_divided_without_a_rest() -> None:
    assert [part.paths for part in study.parts(10, 4, seed=1)] == [3, 3, 2, 2]


def test_no_paths_are_dead() -> None:
    with pytest.raises(Dead, match="at least 1"):
        simulated(Part(paths=0))


def test_part_makes_room_when_the_node_drains() -> None:
    with pytest.raises(Snooze):
        simulated(Part(paths=10), is_stopping=lambda: True)
