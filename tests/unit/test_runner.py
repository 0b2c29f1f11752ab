"""The runner: every way in which a handler can end, and what follows from it."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from orchestrator import logs
from orchestrator.context import Context
from orchestrator.errors import (
    Cancelled,
    ConfigError,
    Dead,
    Interrupted,
    PayloadError,
    RetryAfter,
    Snooze,
    SoftTimeout,
)
from orchestrator.interrupts import Interrupts
from orchestrator.mux import Handler, Mux
from orchestrator.options import Policy
from orchestrator.outcome import Budget, Ending, Outcome
from orchestrator.retry import Retry
from orchestrator.runner import Runner, refused
from orchestrator.task import Claim

DEFAULTS = Policy(max_attempts=4, timeout=30.0)


def claim(type: str = "a", payload: str = "null", **fields: Any) -> Claim:
    return Claim(
        **{
            "task_id": 17,
            "token": 1,
            "attempt": 1,
            "type": type,
            "queue": "default",
            "priority": 0,
            "payload": payload,
            "headers": "{}",
            "max_attempts": None,
            "timeout": None,
            "failures": 0,
            "crashes": 0,
            "losses": 0,
            "is_alone": False,
            "created_at": datetime.now(UTC),
            **fields,
        }
    )


def run(function: Handler, *, payload: str = "null", **options: Any) -> Outcome:
    """Run one attempt of `function` and return its outcome."""
    mux = Mux()
    mux.handle("a", function, **options)
    with Runner(mux, defaults=DEFAULTS) as runner:
        return runner.run(claim(payload=payload))


def raising(error: BaseException) -> Handler:
    def handler(ctx: Context[Any], payload: Any) -> None:
        raise error

    return handler


# -- success ---------------------------------------------------------------------------------


def test_return_value_is_the_result() -> None:
    outcome = run(lambda ctx, payload: {"got": payload}, payload='{"x": 1}')

    assert outcome.ending is Ending.SUCCEEDED
    assert outcome.result == b'{"got":{"x":1}}'


def test_async_handler_runs_to_its_end() -> None:
    async def handler(ctx: Context[Any], payload: Any) -> int:
        await asyncio.sleep(0)
        return 5

    assert run(handler).result == b"5"


def test_async_handlers_of_one_worker_share_a_loop() -> None:
    mux = Mux()
    loops: list[Any] = []

    @mux.handler("a")
    async def handler(ctx: Context[Any], payload: Any) -> None:
        loops.append(asyncio.get_running_loop())

    with Runner(mux, defaults=DEFAULTS) as runner:
        endings = [runner.run(claim()).ending for _ in range(2)]

    assert endings == [Ending.SUCCEEDED] * 2
    assert loops[0] is loops[1]


def test_worker_outlives_a_handler_that_closes_the_loop() -> None:
    mux = Mux()

    @mux.handler("a")
    async def handler(ctx: Context[Any], payload: Any) -> int:
        if payload:
            loop = asyncio.get_running_loop()
            loop.call_soon(loop.stop)
            await asyncio.sleep(5)
        return 1

    with Runner(mux, defaults=DEFAULTS) as runner:
        broken = runner.run(claim(payload="true"))
        runner._loop.get_loop().close()  # type: ignore[union-attr]
        healthy = runner.run(claim())

    assert broken.ending is Ending.FAILED
    assert healthy.ending is Ending.SUCCEEDED


def test_result_that_is_no_json_is_dead_at_once() -> None:
    outcome = run(lambda ctx, payload: {"x": object()})

    assert outcome.ending is Ending.FAILED
    assert outcome.dead_reason is not None
    assert outcome.dead_reason.startswith("the result cannot be kept: PayloadError: result.x")


def test_result_that_the_database_refuses_is_dead_at_once() -> None:
    success = run(lambda ctx, payload: "large")

    outcome = refused(claim(), success, DEFAULTS, PayloadError("a result is too large"))

    assert outcome.ending is Ending.FAILED
    assert outcome.dead_reason == "the result cannot be kept: PayloadError: a result is too large"
    assert outcome.usage == success.usage


def test_enqueues_go_with_a_success_in_their_order() -> None:
    def handler(ctx: Context[Any], payload: Any) -> None:
        ctx.enqueue("b", 1)
        ctx.enqueue("c", 2)

    assert [enqueue.type for enqueue in run(handler).enqueues] == ["b", "c"]


@pytest.mark.parametrize("error", [ValueError(), Snooze(1), Dead(), Cancelled()])
def test_attempt_that_does_not_succeed_enqueues_nothing(error: BaseException) -> None:
    def handler(ctx: Context[Any], payload: Any) -> None:
        ctx.enqueue("b")
        raise error

    assert run(handler).enqueues == []


def test_what_an_async_handler_left_running_is_cancelled_when_the_worker_ends() -> None:
    notes: list[str] = []
    mux = Mux()
    leftovers: list[Any] = []

    async def linger() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            notes.append("cancelled")

    @mux.handler("a")
    async def handler(ctx: Context[Any], payload: Any) -> None:
        leftovers.append(asyncio.ensure_future(linger()))
        await asyncio.sleep(0)

    with Runner(mux, defaults=DEFAULTS) as runner:
        runner.run(claim())
        notes.append("run")

    assert notes == ["run", "cancelled"]


# -- failure ---------------------------------------------------------------------------------


class Boom(BaseException):
    pass


@pytest.mark.parametrize(
    "error",
    [
        ValueError("x"),
        MemoryError(),
        SystemExit(3),
        KeyboardInterrupt(),
        GeneratorExit(),
        asyncio.CancelledError(),
        Interrupted("x"),
        Boom("x"),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("is_async", [False, True], ids=["def", "async def"])
def test_every_exception_is_an_ordinary_failure(error: BaseException, is_async: bool) -> None:
    async def handler(ctx: Context[Any], payload: Any) -> None:
        raise error

    outcome = run(handler if is_async else raising(error))

    assert outcome.ending is Ending.FAILED
    assert (outcome.budget, outcome.limit) == (Budget.FAILURES, 4)
    assert outcome.dead_reason is None


def test_next_task_runs_after_an_async_handler_raised_keyboard_interrupt() -> None:
    mux = Mux()

    @mux.handler("a")
    async def handler(ctx: Context[Any], payload: Any) -> None:
        if payload:
            raise KeyboardInterrupt

    with Runner(mux, defaults=DEFAULTS) as runner:
        endings = [runner.run(claim(payload=text)).ending for text in ("true", "null")]

    assert endings == [Ending.FAILED, Ending.SUCCEEDED]


def test_delay_before_the_next_attempt_grows_with_failures_and_crashes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn: list[tuple[int, float, float]] = []
    monkeypatch.setattr(
        "orchestrator.options.delay", lambda n, *, base, cap: drawn.append((n, base, cap)) or 7.0
    )
    mux = Mux()
    mux.handle("a", raising(ValueError()), retry=Retry(max_attempts=9, base=2, cap=60))

    with Runner(mux, defaults=DEFAULTS) as runner:
        outcome = runner.run(claim(attempt=8, failures=3, crashes=2, losses=1))

    assert drawn == [(6, 2.0, 60.0)]
    assert (outcome.delay, outcome.limit) == (7.0, 9)


def test_wishes_of_the_enqueuer_go_before_those_of_the_handler() -> None:
    mux = Mux()
    mux.handle("a", raising(ValueError()), retry=Retry(max_attempts=9), timeout=60)
    runner = Runner(mux, defaults=DEFAULTS)

    asked = runner.policy(claim(max_attempts=2, timeout=1.5))
    silent = runner.policy(claim())

    assert (asked.max_attempts, asked.timeout) == (2, 1.5)
    assert (silent.max_attempts, silent.timeout) == (9, 60.0)


def test_undecodable_payload_is_dead_at_once_and_the_handler_is_not_called() -> None:
    calls: list[Any] = []

    def handler(ctx: Context[Any], payload: dict[str, int]) -> None:
        calls.append(payload)

    outcome = run(handler, payload='{"x": "y"}')

    assert outcome.ending is Ending.FAILED
    assert outcome.dead_reason is not None
    assert outcome.dead_reason.startswith("the payload cannot be decoded: PayloadError: payload")
    assert calls == []


def test_dead_ends_the_task_with_its_reason() -> None:
    outcome = run(raising(Dead("no such customer\0")))

    assert outcome.ending is Ending.FAILED
    assert outcome.dead_reason == "no such customer�"
    assert outcome.budget is Budget.FAILURES


def test_exception_in_dead_on_ends_the_task() -> None:
    outcome = run(raising(FileNotFoundError("x")), retry=Retry(dead_on=(OSError,)))

    assert outcome.dead_reason == "dead_on: FileNotFoundError: x"


def test_retry_after_fails_the_attempt_with_its_own_delay() -> None:
    outcome = run(raising(RetryAfter("5m", "rate limit")))

    assert outcome.ending is Ending.FAILED
    assert (outcome.budget, outcome.delay) == (Budget.FAILURES, 300.0)
    assert outcome.failure is not None
    assert outcome.failure.message == "rate limit"


def test_snooze_costs_nothing() -> None:
    outcome = run(raising(Snooze(timedelta(seconds=9))))

    assert outcome.ending is Ending.SNOOZED
    assert (outcome.budget, outcome.delay, outcome.failure) == (Budget.NOTHING, 9.0, None)


@pytest.mark.parametrize("signal", [Snooze, RetryAfter])
def test_delay_that_is_none_is_an_ordinary_failure(signal: Callable[[Any], BaseException]) -> None:
    outcome = run(raising(signal("soon")))

    assert outcome.ending is Ending.FAILED
    assert outcome.failure is not None
    assert "'soon' is not a duration" in outcome.failure.message


def test_cancelled_ends_as_cancelled() -> None:
    outcome = run(raising(Cancelled("by the user")))

    assert outcome.ending is Ending.CANCELLED
    assert outcome.budget is Budget.NOTHING


def test_soft_timeout_is_charged_as_a_failure() -> None:
    outcome = run(raising(SoftTimeout()))

    assert (outcome.ending, outcome.budget, outcome.limit) == (
        Ending.TIMED_OUT,
        Budget.FAILURES,
        4,
    )


@pytest.mark.parametrize("interruption", [Cancelled, SoftTimeout])
def test_interruption_passes_through_a_loop_that_swallows_errors(
    interruption: type[Interrupted],
) -> None:
    swallowed: list[BaseException] = []

    def handler(ctx: Context[Any], payload: Any) -> None:
        for _ in range(3):
            try:
                raise interruption
            except Exception as error:  # noqa: BLE001 - what is tested
                swallowed.append(error)

    outcome = run(handler)

    assert swallowed == []
    assert outcome.ending in (Ending.CANCELLED, Ending.TIMED_OUT)


def test_type_without_a_handler_comes_back_later_and_costs_nothing() -> None:
    with Runner(Mux(), defaults=DEFAULTS) as runner:
        outcome = runner.run(claim("unknown"))

    assert (outcome.ending, outcome.budget) == (Ending.SNOOZED, Budget.NOTHING)
    assert outcome.delay > 0


# -- what is told about a failure ------------------------------------------------------------


def test_traceback_begins_in_the_handler() -> None:
    def handler(ctx: Context[Any], payload: Any) -> None:
        {}["missing"]

    async def asynchronous(ctx: Context[Any], payload: Any) -> None:
        {}["missing"]

    for function in (handler, asynchronous):
        failure = run(function).failure
        assert failure is not None
        assert failure.traceback is not None
        lines = failure.traceback.splitlines()

        assert (failure.type, failure.message) == ("KeyError", "'missing'")
        assert lines[0] == "Traceback (most recent call last):"
        assert f"in {function.__name__}" in lines[1]
        assert lines[-1] == "KeyError: 'missing'"


def test_usage_is_that_of_the_attempt() -> None:
    def handler(ctx: Context[Any], payload: Any) -> None:
        end = time.process_time() + 0.05
        while time.process_time() < end:
            pass

    usage = run(handler).usage

    assert 0.04 < usage.cpu_seconds < 1
    assert 0.04 < usage.wall_seconds < 10


def test_cpu_of_children_counts() -> None:
    code = "import time\nwhile time.process_time() < 0.2: pass"

    usage = run(lambda ctx, payload: subprocess.call([sys.executable, "-c", code])).usage

    assert usage.cpu_seconds >= 0.2


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux resets the peak")
def test_peak_memory_is_that_of_the_attempt() -> None:
    mux = Mux()
    mux.handle("a", lambda ctx, payload: len(b"x" * payload))

    with Runner(mux, defaults=DEFAULTS) as runner:
        large = runner.run(claim(payload=str(200 * 2**20))).usage.max_rss_bytes
        small = runner.run(claim(payload="0")).usage.max_rss_bytes

    assert large - small > 150 * 2**20


# -- surroundings ----------------------------------------------------------------------------


def test_context_tells_about_the_attempt() -> None:
    seen: list[Context[Any]] = []
    mux = Mux()
    mux.handle("a:", lambda ctx, payload: seen.append(ctx))

    with Runner(mux, defaults=DEFAULTS, stopping=lambda: True) as runner:
        before = datetime.now(UTC)
        runner.run(claim("a:b", attempt=3, queue="q", headers='{"trace": "t"}', max_attempts=7))

    (ctx,) = seen
    assert (ctx.task_id, ctx.type, ctx.attempt, ctx.max_attempts) == (17, "a:b", 3, 7)
    assert (ctx.queue, ctx.headers, ctx.stopping, ctx.cancelled) == (
        "q", {"trace": "t"}, True, False,
    )  # fmt: skip
    assert ctx.deadline is not None
    assert 29 < (ctx.deadline - before).total_seconds() < 31


def test_context_without_a_time_limit_has_no_deadline() -> None:
    seen: list[Any] = []

    run(lambda ctx, payload: seen.append(ctx.deadline), timeout=None)

    assert seen == [None]


def test_wait_of_the_context_is_the_workers() -> None:
    mux = Mux()
    mux.handle("a", lambda ctx, payload: ctx.wait(5))

    with Runner(mux, defaults=DEFAULTS, wake=lambda seconds: seconds == 5) as runner:
        outcome = runner.run(claim())

    assert outcome.result == b"true"


def test_context_variables_end_with_the_attempt() -> None:
    variable: contextvars.ContextVar[int] = contextvars.ContextVar("variable", default=0)
    mux = Mux()

    @mux.handler("a")
    def handler(ctx: Context[Any], payload: Any) -> int:
        before = variable.get()
        variable.set(before + 1)
        return before

    with Runner(mux, defaults=DEFAULTS) as runner:
        results = [runner.run(claim()).result for _ in range(2)]

    assert results == [b"0", b"0"]


@pytest.mark.parametrize("is_async", [False, True], ids=["def", "async def"])
def test_log_lines_of_a_handler_carry_the_task(is_async: bool) -> None:
    seen: list[Any] = []

    async def asynchronous(ctx: Context[Any], payload: Any) -> None:
        seen.append(dict(logs.task_fields.get()))

    def handler(ctx: Context[Any], payload: Any) -> None:
        seen.append(dict(logs.task_fields.get()))

    run(asynchronous if is_async else handler)

    assert seen == [{"task_id": 17, "type": "a", "attempt": 1}]
    assert not logs.task_fields.get()


def test_output_is_flushed_with_the_attempt_that_printed_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    flushed: list[str] = []

    class Stream:
        def flush(self) -> None:
            flushed.append("flushed")
            raise ValueError("closed")

    monkeypatch.setattr(sys, "stdout", Stream())

    outcome = run(lambda ctx, payload: None)

    assert outcome.ending is Ending.SUCCEEDED
    assert flushed == ["flushed"]


# -- lifespans -------------------------------------------------------------------------------


def lifespan(notes: list[str], state: str) -> Any:
    def generator() -> Iterator[str]:
        notes.append(f"open {state}")
        yield state
        notes.append(f"close {state}")

    return generator


def test_state_is_that_of_the_nearest_mux_with_a_lifespan() -> None:
    outer, inner, bare = Mux(), Mux(), Mux()
    outer.lifespan(lifespan([], "outer"))
    inner.lifespan(lifespan([], "inner"))
    outer.mount(inner)
    inner.mount(bare)
    plain = Mux()
    outer.mount(plain)
    for name, mux in {"outer": outer, "inner": inner, "bare": bare, "plain": plain}.items():
        mux.handle(name, lambda ctx, payload: ctx.state)

    with Runner(outer, defaults=DEFAULTS) as runner:
        states = {name: runner.run(claim(name)).result for name in outer.patterns()}

    assert states == {
        "outer": b'"outer"',
        "inner": b'"inner"',
        "bare": b'"inner"',
        "plain": b'"outer"',
    }


def test_lifespans_open_from_outside_in_and_close_in_reverse() -> None:
    notes: list[str] = []
    outer, inner = Mux(), Mux()
    outer.lifespan(lifespan(notes, "outer"))
    inner.lifespan(lifespan(notes, "inner"))
    outer.mount(inner)

    with Runner(outer, defaults=DEFAULTS):
        notes.append("run")

    assert notes == ["open outer", "open inner", "run", "close inner", "close outer"]


def test_lifespan_that_raises_closes_those_before_it() -> None:
    notes: list[str] = []
    outer, inner = Mux(), Mux()
    outer.lifespan(lifespan(notes, "outer"))
    outer.mount(inner)

    @inner.lifespan
    def broken() -> Iterator[None]:
        raise OSError("no such host")
        yield

    with pytest.raises(OSError, match="no such host"), Runner(outer, defaults=DEFAULTS):
        pass

    assert notes == ["open outer", "close outer"]


def test_lifespan_that_fails_to_close_is_logged_and_the_others_are_closed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    notes: list[str] = []
    outer, inner = Mux(), Mux()
    outer.lifespan(lifespan(notes, "outer"))
    outer.mount(inner)

    @inner.lifespan
    def broken() -> Iterator[None]:
        yield
        raise OSError("gone")

    with caplog.at_level(logging.ERROR), Runner(outer, defaults=DEFAULTS):
        pass

    assert notes == ["open outer", "close outer"]
    assert "lifespan.failed" in caplog.text


def test_lifespan_without_a_yield_at_run_time_is_an_error() -> None:
    mux = Mux()

    @mux.lifespan
    def empty() -> Iterator[None]:
        yield from ()

    with pytest.raises(ConfigError, match=r"empty yielded nothing"), Runner(mux, defaults=DEFAULTS):
        pass


def test_given_state_replaces_the_lifespans() -> None:
    notes: list[str] = []
    mux = Mux()
    mux.lifespan(lifespan(notes, "real"))
    mux.handle("a", lambda ctx, payload: ctx.state)

    with Runner(mux, defaults=DEFAULTS, state="fake") as runner:
        outcome = runner.run(claim())

    assert outcome.result == b'"fake"'
    assert notes == []


# -- middleware ------------------------------------------------------------------------------


@dataclass
class Order:
    number: int


def test_middleware_sees_the_context_and_the_decoded_payload() -> None:
    seen: list[Any] = []
    mux = Mux()

    @mux.use
    def middleware(next: Handler) -> Handler:
        def call(ctx: Context[Any], payload: Any) -> Any:
            seen.append((ctx.task_id, payload))
            return next(ctx, payload)

        return call

    @mux.handler("a")
    def handler(ctx: Context[Any], payload: Order) -> int:
        return payload.number

    with Runner(mux, defaults=DEFAULTS) as runner:
        outcome = runner.run(claim(payload='{"number": 5}'))

    assert outcome.result == b"5"
    assert seen == [(17, Order(5))]


def test_delays_are_drawn_anew_for_each_attempt() -> None:
    random.seed(5)

    delays = {run(raising(ValueError())).delay for _ in range(20)}

    assert len(delays) == 20
    assert all(0 <= delay <= 5 for delay in delays)


def test_generator_exit_of_a_coroutine_beside_others_is_a_failure_like_any_other() -> None:
    async def handler(ctx: Context[Any], payload: Any) -> None:
        raise GeneratorExit

    async def worker(runner: Runner) -> Outcome:
        # One coroutine round it, as in a worker: such a one was closed and never heard of the end.
        return await runner.run_beside(claim(), Interrupts())

    mux = Mux()
    mux.handle("a", handler)
    with Runner(mux, defaults=DEFAULTS) as runner:
        outcome = asyncio.run(worker(runner))

    assert outcome.ending is Ending.FAILED
    assert outcome.failure is not None
    assert outcome.failure.type == "GeneratorExit"
