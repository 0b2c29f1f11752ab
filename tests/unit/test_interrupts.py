"""Interruptions: they reach the handler alone, once, and leave the worker whole at any instant."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import FrameType
from typing import Any

import pytest

from orchestrator.context import Context
from orchestrator.errors import Cancelled, Interrupted, SoftTimeout
from orchestrator.interrupts import Interrupts
from orchestrator.mux import Handler, Mux
from orchestrator.options import Policy
from orchestrator.outcome import Ending, Outcome
from orchestrator.runner import Runner
from tests.unit.test_runner import claim

DEFAULTS = Policy(max_attempts=4, timeout=30.0)

CANCELLED = Cancelled("now")


@pytest.fixture
def interrupts() -> Interrupts:
    interrupts = Interrupts()
    interrupts.open()
    return interrupts


# -- where they reach


def test_interruption_is_raised_where_the_handler_is(interrupts: Interrupts) -> None:
    with pytest.raises(Cancelled) as raised:
        interrupts.interrupt(CANCELLED)

    assert raised.value is interrupts.delivered is CANCELLED


def test_interruption_before_the_handler_begins_waits_for_it() -> None:
    interrupts = Interrupts()
    interrupts.interrupt(CANCELLED)
    before = interrupts.delivered

    with pytest.raises(Cancelled):
        interrupts.open()

    assert before is None


def test_interruption_after_the_handler_has_ended_is_not_delivered(interrupts: Interrupts) -> None:
    interrupts.close()

    interrupts.interrupt(CANCELLED)

    assert interrupts.delivered is None


def test_handler_that_went_on_is_not_interrupted_again(interrupts: Interrupts) -> None:
    with pytest.raises(Cancelled):
        interrupts.interrupt(CANCELLED)

    interrupts.interrupt(SoftTimeout("late"))
    interrupts.interrupt(Cancelled("again"))
    with interrupts.shield():
        pass

    assert interrupts.delivered is CANCELLED


def test_first_of_two_that_wait_is_delivered() -> None:
    interrupts = Interrupts()
    interrupts.interrupt(CANCELLED)
    interrupts.interrupt(SoftTimeout("late"))

    with pytest.raises(Cancelled):
        interrupts.open()


# -- the shield


def test_shield_has_it_wait_until_the_outermost_block_ends(interrupts: Interrupts) -> None:
    steps = []

    with pytest.raises(Cancelled), interrupts.shield():
        with interrupts.shield():
            interrupts.interrupt(CANCELLED)
            steps.append("inner")
        steps.append("outer")

    assert steps == ["inner", "outer"]


def test_error_that_ends_a_shield_is_the_context_of_the_interruption(
    interrupts: Interrupts,
) -> None:
    with pytest.raises(Cancelled) as raised, interrupts.shield():
        interrupts.interrupt(CANCELLED)
        raise KeyError("mine")

    assert isinstance(raised.value.__context__, KeyError)


def test_shield_that_outlives_the_handler_opens_nothing(interrupts: Interrupts) -> None:
    with interrupts.shield():
        interrupts.close()

    interrupts.interrupt(CANCELLED)

    assert interrupts.delivered is None


def test_shield_in_another_thread_neither_delays_nor_takes_the_interruption(
    interrupts: Interrupts,
) -> None:
    is_in, may_leave = threading.Event(), threading.Event()
    raised: list[BaseException] = []

    def shield() -> None:
        try:
            with interrupts.shield():
                is_in.set()
                may_leave.wait(10)
        except BaseException as error:  # noqa: BLE001 - the test looks at it
            raised.append(error)

    thread = threading.Thread(target=shield)
    thread.start()
    is_in.wait(10)

    with pytest.raises(Cancelled):
        interrupts.interrupt(CANCELLED)

    may_leave.set()
    thread.join()
    assert raised == []


# -- coroutines


def test_interruption_of_a_coroutine_cancels_its_task() -> None:
    interrupts = Interrupts()

    async def handler() -> None:
        task = asyncio.current_task()
        assert task is not None
        interrupts.of_task(task)
        interrupts.open()
        interrupts.interrupt(CANCELLED)
        await asyncio.sleep(10)

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(handler())
    assert interrupts.delivered is CANCELLED


def test_interruption_on_a_closed_loop_is_nothing() -> None:
    interrupts = Interrupts()

    async def handler() -> None:
        task = asyncio.current_task()
        assert task is not None
        interrupts.of_task(task)
        interrupts.open()

    asyncio.run(handler())

    interrupts.interrupt(CANCELLED)


# -- the runner, interrupted between any two instructions


def plain(ctx: Context[Any], payload: Any) -> int:
    total = 0
    for number in range(3):
        total += number
    return total


def cleaning(ctx: Context[Any], payload: Any) -> int:
    try:
        with ctx.shield():
            ctx.enqueue("b", 1)
        ctx.progress(1, 2, "half")
    finally:
        len("cleaned")
    return 3


def swallowing(ctx: Context[Any], payload: Any) -> int:
    try:
        sum(range(5))
        time.sleep(0)
    except Interrupted:
        return -1
    return 3


def failing(ctx: Context[Any], payload: Any) -> int:
    try:
        raise ValueError("mine")
    finally:
        sum(range(3))


async def waiting(ctx: Context[Any], payload: Any) -> int:
    for _ in range(2):
        await asyncio.sleep(0)
    with ctx.shield():
        await asyncio.sleep(0)
    return 3


def returning_a_coroutine(ctx: Context[Any], payload: Any) -> Any:
    sum(range(3))
    return waiting(ctx, payload)


@contextmanager
def at_instruction(
    number: int, of: Callable[[FrameType], bool], act: Callable[[], None]
) -> Iterator[list[int]]:
    """Call `act` between two instructions, as a signal does: before the `number`-th.

    Counted are the instructions of frames that `of` chooses. What `act` raises comes up there.
    """
    n_seen = [0]

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        if not of(frame):
            return None
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        if event == "opcode":
            n_seen[0] += 1
            if n_seen[0] == number:
                sys.settrace(None)
                act()
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield n_seen
    finally:
        sys.settrace(before)


OURS = ("runner.py", "interrupts.py", "context.py", "contextlib.py", "test_interrupts.py")
# Of asyncio what starts a loop, runs and ends a coroutine on it.
LOOP = (*OURS, "runners.py", "base_events.py", "events.py")
# What the runner does before and after the handler, where interruptions wait.
CLOSED = ("policy", "_prepare", "_context", "_succeeded", "_ended", "_failed", "_flush_output")


@pytest.mark.skipif(
    sys.version_info >= (3, 12), reason="newer Pythons trace instructions of new frames only"
)
@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
@pytest.mark.parametrize(
    "stride", [13, pytest.param(1, marks=pytest.mark.slow)], ids=["some", "every one"]
)
@pytest.mark.parametrize(
    "handler",
    [plain, cleaning, swallowing, failing, waiting, returning_a_coroutine],
    ids=lambda handler: handler.__name__,
)
def test_attempt_interrupted_at_any_instruction_ends_as_one_and_leaves_the_next_alone(
    handler: Handler, stride: int
) -> None:
    with ThreadPoolExecutor(1) as thread:
        # A trace function raises at places where no signal does, also where an exception is just
        # being put away: then its thread has it at hand for ever.
        seen = thread.submit(interrupted_everywhere, handler, stride).result()

    assert seen["undisturbed"] > 5
    assert seen["cut"] > 5


def interrupted_everywhere(handler: Handler, stride: int) -> Counter[str]:
    """Interrupt a handler at one instruction after the other; return how often it ended how."""
    files = LOOP if handler in (waiting, returning_a_coroutine) else OURS
    mux = Mux()
    mux.handle("a", handler)
    seen: Counter[str] = Counter()

    def is_ours(frame: FrameType) -> bool:
        code = frame.f_code
        return code.co_filename.rpartition("/")[2] in files and code.co_name not in CLOSED

    with Runner(mux, defaults=DEFAULTS) as runner:
        undisturbed = told(runner.run(claim()))
        number = reached = seed() % stride
        while number == reached:
            number += stride
            with at_instruction(
                number, is_ours, lambda: runner.interrupts.interrupt(CANCELLED)
            ) as n_seen:
                outcome = told(runner.run(claim()))
            (reached,) = n_seen
            after = told(runner.run(claim()))

            assert outcome in (undisturbed, CUT, SWALLOWED), f"at instruction {number}: {outcome}"
            assert after == undisturbed, f"after an interruption at instruction {number}"
            seen["undisturbed" if outcome == undisturbed else "cut" if outcome == CUT else ""] += 1
    return seen


def seed() -> int:
    seed = int(os.environ.get("ORCHESTRATOR_TEST_SEED") or random.randrange(10**6))
    print(f"ORCHESTRATOR_TEST_SEED={seed}")
    return seed


def told(outcome: Outcome) -> tuple[Any, ...]:
    return outcome.ending, outcome.result, len(outcome.enqueues)


CUT = (Ending.CANCELLED, None, 0)
SWALLOWED = (Ending.SUCCEEDED, b"-1", 0)


def test_interruption_that_python_swallowed_is_delivered_once_more(interrupts: Interrupts) -> None:
    with pytest.raises(Cancelled):
        interrupts.interrupt(CANCELLED)

    is_lost = interrupts.is_lost(CANCELLED)

    assert is_lost
    with pytest.raises(Cancelled):
        interrupts.interrupt(Cancelled("again"))
    assert not interrupts.is_lost(ValueError())


# A signal may come while a finalizer runs, where Python reports what is raised and goes on.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_attempt_interrupted_by_a_signal_at_moments_of_chance_ends_as_one() -> None:
    chance = random.Random(seed())
    mux = Mux()
    mux.handle("a", cleaning)
    mux.handle("b", waiting)
    seen: Counter[str] = Counter()

    with Runner(mux, defaults=DEFAULTS, cancelled=lambda claim: claim.token == 2) as runner:
        runner.run(claim("b"))
        now = claim()
        before = signal.signal(signal.SIGALRM, lambda signum, frame: runner.stop(now))
        try:
            for _ in range(400):
                # As of now nobody has cancelled it; when the signal comes, somebody has.
                now = claim(chance.choice("ab"), token=1)
                signal.setitimer(signal.ITIMER_REAL, chance.uniform(1e-6, 6e-4))
                running, now = now, claim(token=2)
                seen[runner.run(running).ending] += 1
                signal.setitimer(signal.ITIMER_REAL, 0)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        after = [told(runner.run(claim(type))) for type in "ab"]

    assert set(seen) == {Ending.SUCCEEDED, Ending.CANCELLED}
    assert after == [(Ending.SUCCEEDED, b"3", 1), (Ending.SUCCEEDED, b"3", 0)]


def test_cancel_before_the_attempt_has_its_interrupts_is_not_missed() -> None:
    mux = Mux()
    mux.handle("a", plain)

    with Runner(mux, defaults=DEFAULTS, cancelled=lambda claim: True) as runner:
        outcome = runner.run(claim())

    assert outcome.ending is Ending.CANCELLED


def test_stop_of_an_attempt_that_is_not_cancelled_is_nothing() -> None:
    mux = Mux()

    @mux.handler("a")
    def handler(ctx: Context[Any], payload: Any) -> str:
        runner.stop(claim())
        return "went on"

    with Runner(mux, defaults=DEFAULTS) as runner:
        outcome = runner.run(claim())

    assert outcome.result == b'"went on"'


def test_async_handler_of_a_process_worker_meets_a_cancel_at_its_await() -> None:
    mux = Mux()
    steps: list[str] = []

    @mux.handler("a")
    async def handler(ctx: Context[Any], payload: Any) -> None:
        runner.interrupts.interrupt(CANCELLED)
        steps.append("until the next await")
        try:
            await asyncio.sleep(10)
        finally:
            steps.append("cleaned up")
        steps.append("went on")

    with Runner(mux, defaults=DEFAULTS) as runner:
        outcome = runner.run(claim())

    assert outcome.ending is Ending.CANCELLED
    assert outcome.failure is not None
    assert outcome.failure.message == "now"
    assert steps == ["until the next await", "cleaned up"]


def test_async_handler_in_a_shield_meets_it_when_the_shield_ends() -> None:
    mux = Mux()
    steps: list[str] = []

    @mux.handler("a")
    async def handler(ctx: Context[Any], payload: Any) -> None:
        with ctx.shield():
            runner.interrupts.interrupt(CANCELLED)
            await asyncio.sleep(0.01)
            steps.append("whole")
        await asyncio.sleep(10)
        steps.append("went on")

    with Runner(mux, defaults=DEFAULTS) as runner:
        outcome = runner.run(claim())

    assert (outcome.ending, steps) == (Ending.CANCELLED, ["whole"])
