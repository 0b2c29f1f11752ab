"""What a handler sees of its task and of the world: the first argument of every handler.

Made by `runner` for one attempt and closed with it. What the worker knows and can do (is a drain
on, wait until it is, keep what the handler says, connect) comes in as functions, so that a test can
make a context without a worker.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime, timedelta
from typing import Any, Generic, NamedTuple, TypeVar, Unpack, overload

import msgspec

from orchestrator import logs
from orchestrator.durations import seconds as in_seconds
from orchestrator.enqueueing import Options, encode_payload, normalise
from orchestrator.errors import PayloadError
from orchestrator.failure import cleaned
from orchestrator.interrupts import Interrupts
from orchestrator.outcome import Enqueue
from orchestrator.tasktype import PayloadOf, TaskType

P = TypeVar("P")
S = TypeVar("S")


MAX_PROGRESS_BYTES = 500
# How often a sleep that nothing can wake looks whether a drain has begun.
_LOOK_SECONDS = 0.25


class Said(NamedTuple):
    """What a handler says about how far it is."""

    done: float
    total: float | None
    message: str


def _never() -> bool:
    return False


def _keep_nothing(said: Said) -> None:
    """Stand in where nobody looks."""


def _sleep(seconds: float) -> bool:
    time.sleep(seconds)
    return False


class Context(Generic[S]):
    """One attempt at one task.

    `attempt` counts from 1 and rises with every run, also with those that cost nothing.
    `deadline` is the UTC time at which the attempt is killed, None without a time limit.
    `state` is what the lifespan yielded. `log` writes with the task's fields.
    """

    def __init__(
        self,
        *,
        task_id: int,
        type: str,
        attempt: int = 1,
        max_attempts: int = 10,
        queue: str = "default",
        headers: Mapping[str, Any] | None = None,
        deadline: datetime | None = None,
        state: S = None,  # type: ignore[assignment]
        log: logs.Logger | None = None,
        is_stopping: Callable[[], bool] = _never,
        is_cancelled: Callable[[], bool] = _never,
        wake: Callable[[float], bool] | None = None,
        nap: Callable[[float], Awaitable[bool]] | None = None,
        keep_progress: Callable[[Said], None] = _keep_nothing,
        connect: Callable[[], Any] | None = None,
        interrupts: Interrupts | None = None,
    ) -> None:
        self.task_id = task_id
        self.type = type
        self.attempt = attempt
        self.max_attempts = max_attempts
        self.queue = queue
        self.headers: Mapping[str, Any] = headers if headers is not None else {}
        self.deadline = deadline
        self.state: S = state
        self.log = log if log is not None else logs.get("handler")
        self._is_stopping = is_stopping
        self._is_cancelled = is_cancelled
        self._wake = wake if wake is not None else _sleep
        self._nap = nap if nap is not None else self._look_while_asleep
        self._keep_progress = keep_progress
        self._connect = connect
        self._interrupts = interrupts if interrupts is not None else Interrupts()
        self._enqueues: list[Enqueue] = []
        self._has_ended = False

    @property
    def stopping(self) -> bool:
        """True once a drain has begun: finish soon, or leave the rest to another attempt."""
        return self._is_stopping()

    @property
    def cancelled(self) -> bool:
        """True once somebody asked to cancel the task: clean up and raise `Cancelled`."""
        return self._is_cancelled()

    def wait(self, seconds: str | float | timedelta) -> bool:
        """Sleep, and wake early when a drain begins; True when stopping.

        It blocks the thread: an `async def` handler awaits `sleep`.

        Raises:
            RuntimeError: called on the event loop of an async pool, where it would stop all tasks.
        """
        if self.stopping:
            return True
        return self._wake(in_seconds(seconds)) or self.stopping

    async def sleep(self, seconds: str | float | timedelta) -> bool:
        """Like `wait`, for `async def` handlers: it lets the event loop go on."""
        if self.stopping:
            return True
        return await self._nap(in_seconds(seconds)) or self.stopping

    def progress(self, done: float, total: float | None = None, message: str = "") -> None:
        """Say how far this attempt is; seen at once by `Client.get` and `orchestratorctl`.

        Counts in whatever unit the handler likes. Call it as often as you like, from any thread:
        more than ten at once, or two a second for long, are left out, but for the last one of the
        attempt, and what cannot be kept (no database) is dropped. A message of more than 500 bytes
        loses its middle.

        Raises:
            PayloadError: `done` or `total` is no finite number, or less than zero.
        """
        said = Said(
            _count("done", done),
            None if total is None else _count("total", total),
            cleaned(str(message), MAX_PROGRESS_BYTES),
        )
        with self.shield():
            if not self._has_ended:
                self._keep_progress(said)

    def connection(self) -> Any:
        """Return a psycopg2 connection whose work is committed together with the success.

        Opened at the first call, then the same for the whole attempt. The runner commits it in one
        transaction with success, result and what `enqueue` asked for, after the handler has
        returned: what is written through it happened exactly once. An exception, a crash or a lost
        claim rolls it back. Do not keep it beyond the handler.

        Raises:
            RuntimeError: there is none here (an async pool, a context without a worker), or the
                attempt has ended. The connection's `commit` and `close` raise it as well.
            DatabaseUnavailable: the server cannot be reached.
        """
        if self._has_ended:
            raise RuntimeError(
                f"ctx.connection(): attempt {self.attempt} of task {self.task_id} has ended, so "
                "nothing would be committed: join your threads before the handler returns"
            )
        if self._connect is None:
            raise RuntimeError(
                'ctx.connection(): is there in workers of pools with mode = "process" only, since '
                "it blocks: run this handler in such a pool, or write with a connection of your "
                "own, in a way that can be repeated"
            )
        with self.shield():
            return self._connect()

    def shield(self) -> AbstractContextManager[None]:
        """Have `Cancelled` wait until the block ends: for steps that must not be left half done.

        It delays the exception, not the kill that follows when the handler takes too long.
        """
        return self._interrupts.shield()

    @overload
    def enqueue(
        self,
        type: TaskType[P, Any],
        payload: PayloadOf[P],
        *,
        idempotency_key: str | None = None,
        **options: Unpack[Options],
    ) -> None: ...
    @overload
    def enqueue(
        self,
        type: str,
        payload: Any = None,
        *,
        idempotency_key: str | None = None,
        **options: Unpack[Options],
    ) -> None: ...
    def enqueue(
        self,
        type: TaskType[Any, Any] | str,
        payload: Any = None,
        *,
        queue: str | None = None,
        priority: int | None = None,
        run_at: datetime | None = None,
        delay: str | float | timedelta | None = None,
        idempotency_key: str | None = None,
        max_attempts: int | None = None,
        timeout: str | float | timedelta | None = None,
        ttl: str | float | timedelta | None = None,
        tags: Sequence[str] = (),
        headers: Mapping[str, Any] | None = None,
    ) -> None:
        """Enqueue a task if, and only if, this attempt succeeds: both are one transaction.

        The options are those of `Client.enqueue`. The task does not exist before the success
        is recorded, so there is nothing to return.

        Raises:
            PayloadError: the payload or an option breaks a rule.
            RuntimeError: the attempt has ended (a thread that outlived its handler).
        """
        if self._has_ended:
            raise RuntimeError(
                f"ctx.enqueue({type!r}): attempt {self.attempt} of task {self.task_id} has ended, "
                "so nothing would be enqueued: join your threads before the handler returns"
            )
        options = normalise(
            type,
            queue=queue,
            priority=priority,
            run_at=run_at,
            delay=delay,
            idempotency_key=idempotency_key,
            max_attempts=max_attempts,
            timeout=timeout,
            ttl=ttl,
            tags=tags,
            headers=headers,
        )
        fields = msgspec.structs.asdict(options)
        self._enqueues.append(
            Enqueue(type=fields.pop("type"), payload=encode_payload(type, payload), options=fields)
        )

    async def _look_while_asleep(self, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while not self.stopping:
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            await asyncio.sleep(min(left, _LOOK_SECONDS))
        return True

    def _end(self) -> list[Enqueue]:
        """Close the context and return what was enqueued on it, in order."""
        self._has_ended = True
        return self._enqueues


def _count(name: str, number: Any) -> float:
    try:
        value = math.nan if isinstance(number, str | bytes | bytearray) else float(number)
    except (TypeError, ValueError, OverflowError):
        value = math.nan
    if not math.isfinite(value) or value < 0:
        raise PayloadError(f"ctx.progress({name}={number!r}): must be a number, zero or more")
    return value
