"""Runs handlers: one claimed task in, one `Outcome` out, whatever the handler does.

A worker has one `Runner`, entered after the fork. It decodes the payload, calls the handler
inside its middleware and puts how that ended into numbers: ending, budget, delay. `run` does so
one after the other; `run_beside`, in async pools, for many at once on the caller's event loop.
Recording the outcome, hard deadlines and signals are the worker's; deaths of the process are the
supervisor's and the steward's. Nothing here knows a database.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import inspect
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Self

import msgspec

from orchestrator import logs
from orchestrator.context import Context, Said
from orchestrator.errors import (
    Cancelled,
    ConfigError,
    Dead,
    PayloadError,
    RetryAfter,
    Snooze,
    SoftTimeout,
)
from orchestrator.failure import MAX_MESSAGE_BYTES, cleaned, describe
from orchestrator.interrupts import Interrupts
from orchestrator.meter import Meter
from orchestrator.mux import Mux, Route
from orchestrator.options import Policy, after
from orchestrator.outcome import Budget, Ending, Enqueue, Failure, Outcome, Usage
from orchestrator.payload import clean_result, decode
from orchestrator.task import Claim
from orchestrator.tasktype import check_seconds

# A type without a route cannot be claimed; should it happen, the task must not come back at once.
_UNROUTED_DELAY_SECONDS = 60.0

_log = logs.get("runner")


def _never() -> bool:
    return False


def _never_of(claim: Claim) -> bool:
    return False


def _keep_nothing(claim: Claim, said: Said) -> None:
    """Stand in where nobody looks."""


class Runner:
    """Runs the tasks of one process; a context manager round its lifespans.

    `stopping` tells whether a drain has begun. `wake` sleeps up to the given seconds, returns
    early when one begins, and tells whether it has; without it `ctx.wait` sleeps in full; `nap` is
    the same, awaited. `cancelled` tells whether somebody cancelled a claimed task, `progress` keeps
    what its handler says, and `connect` opens the connection that its effects go through.
    `state`, where given, is every handler's `ctx.state`, and no lifespan is run.
    """

    def __init__(
        self,
        mux: Mux,
        *,
        defaults: Policy,
        state: Any = None,
        stopping: Callable[[], bool] = _never,
        wake: Callable[[float], bool] | None = None,
        nap: Callable[[float], Awaitable[bool]] | None = None,
        cancelled: Callable[[Claim], bool] = _never_of,
        progress: Callable[[Claim, Said], None] = _keep_nothing,
        connect: Callable[[Claim], Any] | None = None,
    ) -> None:
        self._mux = mux
        self._defaults = defaults
        self._state = state
        self._stopping = stopping
        self._wake = wake
        self._nap = nap
        self._cancelled = cancelled
        self._progress = progress
        self._connect = connect
        # Of the attempt that `run` runs, or ran last.
        self.interrupts = Interrupts()
        self._states: dict[Mux, Any] = {}
        self._meter = Meter()
        self._loop: asyncio.Runner | None = None
        self._open = contextlib.ExitStack()

    def __enter__(self) -> Self:
        """Run the first part of each lifespan, outer muxes first.

        Raises:
            ConfigError: the mux has faults, or a lifespan yielded nothing.
            BaseException: what a lifespan raised; those entered before it are closed.
        """
        self._mux.check()
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._meter)
            stack.callback(self._close_loop)
            if self._state is None:
                for mux, lifespan in self._mux.lifespans():
                    generator = lifespan()
                    self._states[mux] = _enter(generator, lifespan)
                    stack.callback(_leave, generator, lifespan)
            self._open = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        """Run the last part of each lifespan, in reverse; what they raise is logged."""
        self._open.close()
        self._states.clear()

    def policy(self, claim: Claim) -> Policy:
        """Return what holds for a task: its own wishes, then its handler's, then the defaults."""
        route = self._mux.resolve(claim.type)
        policy = self._defaults if route is None else route.options.policy(self._defaults)
        return policy.of_task(max_attempts=claim.max_attempts, timeout=claim.timeout)

    def run(self, claim: Claim) -> Outcome:
        """Run one attempt and return how it ended; never raises.

        Every exception ends the attempt and no more than that, `SystemExit` and
        `KeyboardInterrupt` too: they come from the handler, since signals to the worker do not
        raise. What `self.interrupts` delivers does raise, in the handler.
        """
        self.interrupts = Interrupts()
        # Whoever called `stop` a moment ago met the interrupts of the attempt before.
        self.stop(claim)
        self._meter.begin()
        try:
            # In a copy of the context, so that what a handler sets in it ends with the attempt.
            outcome = contextvars.copy_context().run(self._attempt, claim, self.interrupts)
        except BaseException as error:  # noqa: BLE001 - the worker outlives its tasks
            # An interruption may come just when the handler has ended.
            self.interrupts.close()
            outcome = _ended(claim, self.policy(claim), error, ())
        _flush_output()
        return msgspec.structs.replace(outcome, usage=self._meter.end())

    def stop(self, claim: Claim) -> None:
        """Interrupt the attempt that `run` runs, if it is cancelled. For signal handlers.

        Raises:
            Cancelled: in the handler.
        """
        if self._cancelled(claim):
            self.interrupts.interrupt(Cancelled("the task was cancelled"))

    async def run_beside(self, claim: Claim, interrupts: Interrupts) -> Outcome:
        """Run one attempt beside others on this event loop; never raises.

        The soft time limit is kept here, by cancelling the handler's asyncio task. Of what it
        used only the wall time is known. To be called in a task whose context is its own.
        """
        began = time.monotonic()
        try:
            outcome = await self._attempt_beside(claim, interrupts)
        except BaseException as error:  # noqa: BLE001 - the worker outlives its tasks
            outcome = _ended(claim, self.policy(claim), error, ())
        _flush_output()
        usage = Usage(wall_seconds=time.monotonic() - began)
        return msgspec.structs.replace(outcome, usage=usage)

    def _attempt(self, claim: Claim, interrupts: Interrupts) -> Outcome:
        prepared = self._prepare(claim, interrupts)
        if isinstance(prepared, Outcome):
            return prepared
        policy, route, payload, ctx = prepared
        try:
            if not route.is_async:
                interrupts.open()
            value = route.call(ctx, payload)
            if inspect.isawaitable(value):
                # Not in the middle of starting the loop.
                interrupts.close()
                value = self._await(value, interrupts)
            interrupts.close()
        except BaseException as error:  # noqa: BLE001 - every end of a handler is an outcome
            interrupts.close()
            return _ended(claim, policy, _told(error, interrupts), _dead_on(route))
        finally:
            enqueues = ctx._end()
        return _succeeded(claim, policy, value, enqueues)

    async def _attempt_beside(self, claim: Claim, interrupts: Interrupts) -> Outcome:
        prepared = self._prepare(claim, interrupts)
        if isinstance(prepared, Outcome):
            return prepared
        policy, route, payload, ctx = prepared

        async def attempt() -> tuple[Any, BaseException | None]:
            interrupts.open()
            try:
                return await route.call(ctx, payload), None
            except (SystemExit, KeyboardInterrupt, GeneratorExit) as error:
                # The first two asyncio would let through, and with them end the loop of all tasks.
                # The third, thrown into what awaits us, closes it instead of telling it the end.
                return None, error

        # A task of its own: cancelling it must not reach what is done here afterwards.
        handler = asyncio.create_task(attempt())
        interrupts.of_task(handler)
        timer = None
        if policy.timeout is not None:
            late = SoftTimeout(f"the attempt took longer than {policy.timeout:g} s")
            timer = asyncio.get_running_loop().call_later(
                policy.timeout, interrupts.interrupt, late
            )
        try:
            value, exit = await handler
        except BaseException as error:  # noqa: BLE001 - every end of a handler is an outcome
            return _ended(claim, policy, _told(error, interrupts), _dead_on(route))
        finally:
            interrupts.close()
            if timer is not None:
                timer.cancel()
            enqueues = ctx._end()
        if exit is not None:
            return _ended(claim, policy, exit, _dead_on(route))
        return _succeeded(claim, policy, value, enqueues)

    def _prepare(
        self, claim: Claim, interrupts: Interrupts
    ) -> tuple[Policy, Route, Any, Context[Any]] | Outcome:
        """Find the handler, decode its payload, make its context; an outcome where that ends it."""
        policy = self.policy(claim)
        route = self._mux.resolve(claim.type)
        if route is None:
            _log.error("task.unrouted", task_id=claim.task_id, type=claim.type)
            return Outcome(ending=Ending.SNOOZED, delay=_UNROUTED_DELAY_SECONDS)
        logs.task_fields.set(
            {"task_id": claim.task_id, "type": claim.type, "attempt": claim.attempt}
        )
        try:
            payload = route.decode(claim.payload)
        except PayloadError as error:
            return _dead(claim, policy, error, "the payload cannot be decoded")
        return policy, route, payload, self._context(claim, policy, route, interrupts)

    def _context(
        self, claim: Claim, policy: Policy, route: Route, interrupts: Interrupts
    ) -> Context[Any]:
        deadline = None
        if policy.timeout is not None:
            deadline = datetime.now(UTC) + timedelta(seconds=policy.timeout)
        state = self._state
        if state is None and route.mux is not None:
            state = self._states.get(route.mux)
        connect = self._connect
        return Context(
            task_id=claim.task_id,
            type=claim.type,
            attempt=claim.attempt,
            max_attempts=policy.max_attempts,
            queue=claim.queue,
            headers=decode(claim.headers, root="headers"),
            deadline=deadline,
            state=state,
            log=logs.get(f"handler.{route.pattern}"),
            is_stopping=self._stopping,
            is_cancelled=lambda: self._cancelled(claim),
            wake=self._wake,
            nap=self._nap,
            keep_progress=lambda said: self._progress(claim, said),
            connect=None if connect is None else lambda: connect(claim),
            interrupts=interrupts,
        )

    def _await(self, awaitable: Any, interrupts: Interrupts) -> Any:
        """Run an async handler on the worker's one event loop, which shared clients may live on."""
        if self._loop is not None and self._loop.get_loop().is_closed():
            self._loop = None  # by the handler before
        if self._loop is None:
            self._loop = asyncio.Runner()

        async def attempt() -> Any:
            task = asyncio.current_task()
            assert task is not None
            interrupts.of_task(task)
            interrupts.open()
            return await awaitable

        return self._loop.run(attempt(), context=contextvars.copy_context())

    def _close_loop(self) -> None:
        if self._loop is not None and not self._loop.get_loop().is_closed():
            self._loop.close()
        self._loop = None


def _succeeded(claim: Claim, policy: Policy, value: Any, enqueues: list[Enqueue]) -> Outcome:
    try:
        result = clean_result(value)
    except Exception as error:  # noqa: BLE001 - `model_dump` and `item` are the user's code
        return _dead(claim, policy, error, "the result cannot be kept")
    return Outcome(ending=Ending.SUCCEEDED, result=result, enqueues=enqueues)


def _told(error: BaseException, interrupts: Interrupts) -> BaseException:
    """Return the interruption that reached a handler as asyncio's CancelledError."""
    if isinstance(error, asyncio.CancelledError) and interrupts.delivered is not None:
        return interrupts.delivered
    return error


def _dead_on(route: Route) -> tuple[type[BaseException], ...]:
    return route.options.retry.dead_on if route.options.retry else ()


def undone(claim: Claim, outcome: Outcome, policy: Policy, error: Exception) -> Outcome:
    """Return what becomes of a success whose effects could not be committed: a failure."""
    return msgspec.structs.replace(_ended(claim, policy, error, ()), usage=outcome.usage)


def refused(claim: Claim, outcome: Outcome, policy: Policy, error: PayloadError) -> Outcome:
    """Return what becomes of a success whose result the database refuses: dead at once.

    To run it again would only give the same result.
    """
    dead = _dead(claim, policy, error, "the result cannot be kept")
    return msgspec.structs.replace(dead, usage=outcome.usage)


def _ended(
    claim: Claim, policy: Policy, error: BaseException, dead_on: tuple[type[BaseException], ...]
) -> Outcome:
    """Decide what follows an exception of the handler."""
    match error:
        case Dead():
            return _dead(claim, policy, error)
        case RetryAfter() | Snooze():
            try:
                delay = check_seconds("delay", error.delay, is_zero_allowed=True)
            except PayloadError as mistake:
                return _failed(claim, policy, mistake)
            if isinstance(error, Snooze):
                return Outcome(ending=Ending.SNOOZED, delay=delay)
            return msgspec.structs.replace(_failed(claim, policy, error), delay=delay)
        case Cancelled():
            return Outcome(ending=Ending.CANCELLED, failure=_describe(error))
        case SoftTimeout():
            return _failed(claim, policy, error, ending=Ending.TIMED_OUT)
        case _ if isinstance(error, dead_on):
            return _dead(claim, policy, error, "dead_on")
        case _:
            return _failed(claim, policy, error)


def _failed(
    claim: Claim, policy: Policy, error: BaseException, *, ending: Ending = Ending.FAILED
) -> Outcome:
    limit, delay = after(policy, Budget.FAILURES, failures=claim.failures, crashes=claim.crashes)
    return Outcome(
        ending=ending,
        failure=_describe(error),
        budget=Budget.FAILURES,
        limit=limit,
        delay=delay,
    )


def _dead(claim: Claim, policy: Policy, error: BaseException, why: str = "") -> Outcome:
    outcome = _failed(claim, policy, error)
    reason = f"{why}: {outcome.failure}" if why else cleaned(str(error), MAX_MESSAGE_BYTES)
    return msgspec.structs.replace(outcome, delay=0.0, dead_reason=reason)


def _describe(error: BaseException) -> Failure:
    return describe(error, caller=__file__)


def _enter(generator: Iterator[Any], lifespan: Callable[[], Any]) -> Any:
    try:
        return next(generator)
    except StopIteration:
        raise ConfigError(
            f"lifespan {lifespan.__qualname__} yielded nothing: it must `yield` the state once"
        ) from None


def _leave(generator: Iterator[Any], lifespan: Callable[[], Any]) -> None:
    try:
        next(generator)
    except StopIteration:
        return
    except (Exception, SystemExit):  # noqa: BLE001 - the other lifespans are closed all the same
        _log.exception("lifespan.failed", lifespan=lifespan.__qualname__)
    else:
        _log.error("lifespan.yielded_twice", lifespan=lifespan.__qualname__)


def _flush_output() -> None:
    # What was printed belongs to the attempt that printed it. Handlers may have closed or
    # replaced the streams.
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
