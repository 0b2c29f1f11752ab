"""The context: what a handler may ask of it, without a worker and without a database."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.context import Context
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
