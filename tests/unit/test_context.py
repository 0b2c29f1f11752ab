"""The context: what a handler may ask of it, without a worker and without a database."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from orchestrator.context import Context, Said
from orchestrator.errors import PayloadError
from orchestrator.tasktype import TaskType


def test_enqueue_is_recorded_with_its_options_completed() -> None:
    ctx: Context[Any] = Context(task_id=1, type="a")
    shared: TaskType[Any, Any] = TaskType("b", dict, queue="cpu")

    ctx.enqueue(shared, {"x": 1}, delay="1m", tags=["t"])

    (enqueued,) = ctx._end()
    assert (enqueued.type, enqueued.payload) == ("b", b'{"x":1}')
    assert enqueued.options["queue"] == "cpu"
    assert enqueued.options["delay"] == 60.0
    assert enqueued.options["tags"] == ("t",)


def test_enqueue_of_what_is_no_json_is_refused_in_the_handler() -> None:
    ctx: Context[Any] = Context(task_id=1, type="a")

    with pytest.raises(PayloadError, match=r"payload\.x"):
        ctx.enqueue("b", {"x": float("nan")})

    assert ctx._end() == []


def test_enqueue_of_what_does_not_fit_its_type_is_refused_in_the_handler() -> None:
    ctx: Context[None] = Context(task_id=1, type="a")

    with pytest.raises(PayloadError, match=r"payload\[0\]: Expected `int`, got `str`"):
        ctx.enqueue(TaskType("b", list[int]), ["one"])  # type: ignore[list-item]


def test_enqueue_after_the_end_of_the_attempt_is_an_error() -> None:
    ctx: Context[Any] = Context(task_id=17, type="a", attempt=3)
    ctx._end()

    with pytest.raises(RuntimeError, match="attempt 3 of task 17 has ended"):
        ctx.enqueue("b")


def test_wait_returns_at_once_when_a_drain_has_begun() -> None:
    asked: list[float] = []
    ctx: Context[Any] = Context(
        task_id=1, type="a", is_stopping=lambda: True, wake=lambda s: bool(asked.append(s))
    )

    assert ctx.wait("1h") is True
    assert asked == []


def test_wait_tells_whether_a_drain_began_meanwhile() -> None:
    asked: list[float] = []

    def wake(seconds: float) -> bool:
        asked.append(seconds)
        return len(asked) > 1

    ctx: Context[Any] = Context(task_id=1, type="a", wake=wake)

    assert [ctx.wait(0.5), ctx.wait("2s")] == [False, True]
    assert asked == [0.5, 2.0]


# -- progress


@pytest.mark.parametrize(
    "number",
    [
        float("nan"),
        float("inf"),
        -1,
        -0.001,
        "7",
        b"7",
        None,
        [],
        10**400,
        Decimal("NaN"),
        object(),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["done", "total"])
def test_progress_that_is_no_number_is_refused_by_name(name: str, number: Any) -> None:
    said: list[Said] = []
    ctx: Context[Any] = Context(task_id=1, type="a", keep_progress=said.append)
    if (name, number) == ("total", None):
        pytest.skip("None is a total that is not known")

    with pytest.raises(PayloadError, match=rf"ctx.progress\({name}=.*: must be a number"):
        ctx.progress(**{"done": 1, name: number})

    assert said == []


@pytest.mark.parametrize("number", [0, 1, 0.5, True, Decimal("1.5"), 10**300])
def test_progress_counts_in_any_number(number: Any) -> None:
    said: list[Said] = []

    Context(task_id=1, type="a", keep_progress=said.append).progress(number, number)

    assert said == [Said(float(number), float(number), "")]


@pytest.mark.parametrize(
    ("message", "kept"),
    [("a\0b", "a\ufffdb"), ("\ud800", "\ufffd"), ("x" * 500, "x" * 500), (5, "5")],
)
def test_message_of_progress_is_made_fit_for_the_database(message: Any, kept: str) -> None:
    said: list[Said] = []

    Context(task_id=1, type="a", keep_progress=said.append).progress(1, message=message)

    assert said == [Said(1.0, None, kept)]


def test_message_of_progress_that_is_too_long_loses_its_middle() -> None:
    said: list[Said] = []

    Context(task_id=1, type="a", keep_progress=said.append).progress(1, message="ä" * 2**20 + "end")

    assert len(said[0].message.encode()) <= 500
    assert said[0].message.startswith("ää")
    assert said[0].message.endswith("äend")


def test_progress_after_the_end_of_the_attempt_is_dropped() -> None:
    said: list[Said] = []
    ctx: Context[Any] = Context(task_id=1, type="a", keep_progress=said.append)
    ctx._end()

    ctx.progress(1)

    assert said == []
