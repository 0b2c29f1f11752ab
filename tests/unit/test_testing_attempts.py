"""`context` and `run` of orchestrator.testing: a handler is tested without PostgreSQL."""

from __future__ import annotations

import asyncio
import functools
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from orchestrator import (
    Cancelled,
    ConfigError,
    Context,
    Dead,
    Mux,
    PayloadError,
    Retry,
    RetryAfter,
    Snooze,
    State,
    TaskType,
)
from orchestrator.options import Policy
from orchestrator.testing import context, run

ROOT = Path(__file__).parents[2]


@dataclass
class Resize:
    url: str
    width: int = 800


@dataclass
class Resized:
    width: int


resize = TaskType("image:resize", Resize, Resized, queue="cpu", priority=3)


def mux_of(function: Any, type: TaskType[Any, Any] | str = "a", **options: Any) -> Mux:
    mux = Mux()
    mux.handle(type, function, **options)
    return mux


def raising(error: BaseException) -> Any:
    def handler(ctx: Context[Any], payload: Any) -> None:
        raise error

    return handler


def test_importing_it_loads_no_driver() -> None:
    code = "import sys, orchestrator.testing as t; t.run, t.capture; print(*sys.modules)"

    loaded = subprocess.check_output([sys.executable, "-c", code], text=True, cwd=ROOT).split()

    assert not {"psycopg2", "psycopg", "orchestrator.slots", "pytest"} & set(loaded)


# -- context


def test_a_context_has_the_fields_it_was_given() -> None:
    ctx = context(
        task_id=7, type=resize, attempt=3, max_attempts=5, queue="q", headers={"a": 1}, state="s"
    )

    fields = (ctx.task_id, ctx.type, ctx.attempt, ctx.max_attempts, ctx.queue, ctx.headers)
    assert fields == (7, "image:resize", 3, 5, "q", {"a": 1})
    assert ctx.state == "s"


def test_a_context_without_fields_can_be_given_to_a_handler() -> None:
    def handler(ctx: Context[Any], payload: Resize) -> int:
        ctx.log.info("image.resized", width=payload.width)
        return payload.width * ctx.attempt

    assert handler(context(), Resize("u", 5)) == 5


def test_a_handler_sees_that_it_is_to_stop() -> None:
    looks = iter([False, False, True])
    ctx = context(stopping=lambda: next(looks), cancelled=True)

    assert [ctx.stopping, ctx.stopping, ctx.stopping] == [False, False, True]
    assert ctx.cancelled


def test_waiting_takes_no_time_and_is_recorded() -> None:
    ctx = context()

    was_stopped = [ctx.wait("10h"), ctx.wait(2)]

    assert was_stopped == [False, False]
    assert ctx.waits == [36000.0, 2.0]


def test_an_async_handler_does_not_sleep_either() -> None:
    ctx = context(stopping=lambda: len(ctx.waits) > 1)

    async def handler() -> list[bool]:
        return [await ctx.sleep("10h"), await ctx.sleep("10h"), await ctx.sleep("10h")]

    assert asyncio.run(handler()) == [False, True, True]
    assert ctx.waits == [36000.0, 36000.0]


def test_progress_is_recorded() -> None:
    ctx = context()

    ctx.progress(1, 10, "one")
    ctx.progress(2)

    assert ctx.said == [(1.0, 10.0, "one"), (2.0, None, "")]


def test_without_a_connection_a_handler_is_told_so() -> None:
    with pytest.raises(RuntimeError, match="connection"):
        context().connection()


def test_what_a_handler_enqueues_on_a_context_can_be_looked_at() -> None:
    ctx = context()

    ctx.enqueue(resize, Resize("u", 1), tags=["feed"], delay="2m")

    [task] = ctx.enqueued
    assert (task.type, task.payload, task.queue) == (
        "image:resize",
        {"url": "u", "width": 1},
        "cpu",
    )
    assert (task.tags, task.state) == (("feed",), State.SCHEDULED)


# -- run


def test_a_payload_goes_through_json_and_the_result_comes_back_typed() -> None:
    seen = []

    def handler(ctx: Context[Any], payload: Resize) -> dict[str, int]:
        seen.append(payload)
        return {"width": payload.width}

    outcome = run(mux_of(handler, resize), resize, {"url": "u", "width": 7, "unknown": 1})

    assert seen == [Resize("u", 7)]
    assert outcome.value == Resized(7)
    assert outcome.state is State.SUCCEEDED


def test_an_async_handler_runs_too() -> None:
    async def handler(ctx: Context[Any], payload: Any) -> int:
        await asyncio.sleep(0)
        return 5

    assert run(mux_of(handler), "a").value == 5


def test_it_can_be_called_by_an_async_test() -> None:
    async def handler(ctx: Context[Any], payload: Any) -> int:
        await asyncio.sleep(0)
        return 5

    async def test() -> Any:
        return run(mux_of(handler), "a").value

    assert asyncio.run(test()) == 5


def test_middleware_and_lifespan_are_round_the_handler() -> None:
    order = []
    mux = mux_of(lambda ctx, payload: order.append(f"handler {ctx.state}"))

    @mux.use
    def middleware(next: Any) -> Any:
        @functools.wraps(next)
        def call(ctx: Context[Any], payload: Any) -> Any:
            order.append(f"middleware {payload}")
            return next(ctx, payload)

        return call

    @mux.lifespan
    def lifespan() -> Iterator[str]:
        order.append("open")
        yield "state"
        order.append("close")

    run(mux, "a", 1)

    assert order == ["open", "middleware 1", "handler state", "close"]


def test_a_state_takes_the_place_of_the_lifespans() -> None:
    mux = mux_of(lambda ctx, payload: ctx.state)

    @mux.lifespan
    def lifespan() -> Iterator[str]:
        raise AssertionError("no database here")
        yield ""

    assert run(mux, "a", state="fake").value == "fake"


def test_the_outcome_tells_what_was_enqueued_with_the_success() -> None:
    mux = mux_of(lambda ctx, payload: ctx.enqueue("b", {"x": 1}))

    assert [(task.type, task.payload) for task in run(mux, "a").enqueued] == [("b", {"x": 1})]


def test_a_failing_attempt_enqueues_nothing() -> None:
    def handler(ctx: Context[Any], payload: Any) -> None:
        ctx.enqueue("b")
        raise ValueError

    assert run(mux_of(handler), "a").enqueued == []


@pytest.mark.parametrize(
    ("error", "state", "delay"),
    [
        (Dead("enough"), State.DEAD, 0.0),
        (RetryAfter("90s"), State.SCHEDULED, 90.0),
        (Snooze("8h"), State.SCHEDULED, 28800.0),
        (Snooze(0), State.READY, 0.0),
        (Cancelled(), State.CANCELLED, 0.0),
    ],
)
def test_what_a_handler_raises_decides_what_follows(
    error: BaseException, state: State, delay: float
) -> None:
    outcome = run(mux_of(raising(error)), "a")

    assert (outcome.state, outcome.delay) == (state, delay)


def test_the_delay_is_that_of_the_retry() -> None:
    mux = mux_of(raising(ValueError("no")), retry=Retry(max_attempts=9, base="10s", cap="20s"))

    delays = [run(mux, "a", attempt=5).delay for _ in range(50)]

    assert min(delays) >= 0
    assert 10 < max(delays) <= 20  # the first could not be above 10


def test_the_last_attempt_ends_in_the_dead_letter_queue() -> None:
    mux = mux_of(raising(ValueError("no")), retry=Retry(max_attempts=3))

    states = [run(mux, "a", attempt=attempt).state for attempt in (1, 2, 3)]

    assert states == [State.SCHEDULED, State.SCHEDULED, State.DEAD]


def test_the_enqueuer_and_the_settings_have_their_say() -> None:
    mux = mux_of(raising(ValueError("no")))

    assert run(mux, "a", max_attempts=1).state is State.DEAD
    assert run(mux, "a", defaults=Policy(max_attempts=1)).state is State.DEAD


def test_a_payload_that_cannot_be_decoded_is_dead_and_tells_the_path() -> None:
    mux = mux_of(lambda ctx, payload: None, resize)

    outcome = run(mux, "image:resize", {"url": 5})

    assert outcome.state is State.DEAD
    assert outcome.dead_reason is not None
    assert "payload.url" in outcome.dead_reason


def test_a_result_that_cannot_be_kept_is_dead() -> None:
    outcome = run(mux_of(lambda ctx, payload: object()), "a")

    assert outcome.state is State.DEAD


def test_asking_a_failed_attempt_for_its_value_shows_the_traceback() -> None:
    outcome = run(mux_of(raising(ValueError("the reason"))), "a")

    with pytest.raises(AssertionError, match=r"(?s)attempt 1 .* failed, .*line \d+.*the reason"):
        _ = outcome.value


def test_a_type_that_the_mux_does_not_serve_is_an_error_that_names_those_it_does() -> None:
    with pytest.raises(ConfigError, match=r"run\(mux, 'b'\): .* only a:"):
        run(mux_of(lambda ctx, payload: None), "b")


def test_a_payload_that_could_not_be_enqueued_is_refused() -> None:
    with pytest.raises(PayloadError, match=r"payload\.url"):
        run(mux_of(lambda ctx, payload: None, resize), resize, {"url": 5})


def test_ctrl_c_in_a_handler_ends_the_test_run_and_not_the_attempt() -> None:
    with pytest.raises(KeyboardInterrupt):
        run(mux_of(raising(KeyboardInterrupt())), "a")


def test_handlers_do_not_sleep_in_wait() -> None:
    outcome = run(mux_of(lambda ctx, payload: ctx.wait("10h")), "a")

    assert outcome.value is False
    assert outcome.usage.wall_seconds < 60


def test_the_outcome_tells_the_progress() -> None:
    outcome = run(mux_of(lambda ctx, payload: ctx.progress(3, 4, "three")), "a")

    assert outcome.said == [(3.0, 4.0, "three")]


def once_begun() -> Any:
    """Give what is false before the handler begins, and true afterwards."""
    answers = iter([False])
    return lambda: next(answers, True)


def test_a_handler_sees_that_it_is_cancelled() -> None:
    assert run(mux_of(lambda ctx, payload: ctx.cancelled), "a", cancelled=once_begun()).value


def test_a_task_that_is_cancelled_before_does_not_begin() -> None:
    called = []

    outcome = run(mux_of(lambda ctx, payload: called.append(1)), "a", cancelled=True)

    assert (outcome.state, called) == (State.CANCELLED, [])


@pytest.mark.parametrize("is_async", [False, True])
def test_a_handler_is_interrupted_where_it_waits(is_async: bool) -> None:
    cleaned = []

    def handler(ctx: Context[Any], payload: Any) -> None:
        try:
            ctx.wait("10h")
        finally:
            cleaned.append(1)

    async def async_handler(ctx: Context[Any], payload: Any) -> None:
        try:
            await ctx.sleep("10h")
        finally:
            cleaned.append(1)

    mux = mux_of(async_handler if is_async else handler)

    outcome = run(mux, "a", cancelled=once_begun())

    assert (outcome.state, cleaned) == (State.CANCELLED, [1])


def test_a_handler_that_is_to_stop_sees_it() -> None:
    mux = mux_of(lambda ctx, payload: [ctx.stopping, ctx.wait("10h")])

    assert run(mux, "a", stopping=True).value == [True, True]
