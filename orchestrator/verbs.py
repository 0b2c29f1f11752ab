"""What both clients do, written once: coroutines over a database that is waited for or awaited.

`Client` runs them at once, `AsyncClient` on the event loop; which sessions there are is theirs.
Options are checked in `enqueueing`, payloads in `payload`, and what the statements do is written
in `store`. What is decided here is what a lost connection means:

    the server cannot be reached                    DatabaseUnavailable, nothing was done
    the server ended the session while it waited    noticed before use (`db/pool.py`): a new one
    the server refused the statement because it
      stops or became read-only                     not carried out: sent once more
    the reply was lost                              a read, a cancel, an enqueue with idempotency
                                                    key: sent once more; everything else:
                                                    DatabaseUnavailable(unknown=True)

An enqueue with a key that is sent again may report `existing` for the task of its own first try.
On a connection of the caller's nothing is ever sent again: it is the caller's transaction.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any, Generic, Protocol, TypeVar

from orchestrator import payload as json
from orchestrator.batch import Batch
from orchestrator.db.channel import C, Channel, JoinedChannel, Lender
from orchestrator.db.joining import Bell
from orchestrator.durations import seconds
from orchestrator.enqueueing import check_names, listed, normalise
from orchestrator.errors import (
    DatabaseUnavailable,
    NotDead,
    PayloadError,
    TaskFailed,
    TaskNotFound,
)
from orchestrator.store import tasks as stored
from orchestrator.store.cancel import cancel
from orchestrator.store.redrive import redrive
from orchestrator.store.ring import ring
from orchestrator.task import State, Task
from orchestrator.tasktype import TaskType

R = TypeVar("R")
T = TypeVar("T")

_PAGE = 500
_FIRST_PAUSE, _LAST_PAUSE = 0.05, 1.0
# How long `wait` bears a server that is away: a restart, a failover.
_PATIENCE_SECONDS = 30.0
_LARGEST_ID = 2**63 - 1


class Database(Protocol[C]):
    """The sessions of one client."""

    @property
    def is_reachable(self) -> bool:
        """True where it has sessions of its own, besides those that callers bring."""

    def lender(self) -> Lender[C]:
        """Return the pool of this process (and event loop).

        Raises:
            ConfigError: the client was made without a URL.
        """

    async def join(self, conn: Any) -> JoinedChannel:
        """Return a channel on a connection of the caller's.

        Raises:
            TypeError: it is none that can be joined.
        """

    async def sleep(self, seconds: float) -> None: ...


class Verbs(Generic[C]):
    """The verbs of one client; `bell` calls `ring_quietly`, from wherever a commit is heard of."""

    def __init__(self, database: Database[C], *, bell: Bell) -> None:
        self._database = database
        self._bell = bell

    async def enqueue(
        self, type: TaskType[Any, Any] | str, payload: Any, *, conn: Any, **options: Any
    ) -> Task[Any]:
        batch = Batch(type, normalise(type, **options), [payload], None)
        (task,) = await self._write(batch, conn)
        return task

    async def enqueue_many(
        self,
        type: TaskType[Any, Any] | str,
        payloads: Iterable[Any],
        *,
        conn: Any,
        on_progress: Callable[[int, int], None] | None,
        idempotency_keys: Iterable[str | None] | None,
        **options: Any,
    ) -> list[Task[Any]]:
        check_names("enqueue_many", options)
        batch = Batch(type, normalise(type, **options), listed(payloads), idempotency_keys)
        return await self._write(batch, conn, on_progress) if batch.bodies else []

    async def _write(
        self,
        batch: Batch,
        conn: Any,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> list[Task[Any]]:
        async def write(channel: Channel) -> list[Task[Any]]:
            return await batch.write(channel, on_progress)

        if conn is not None:
            return await self._write_joined(await self._database.join(conn), write)
        # What `on_progress` raises undoes the batch, so it is asked before the commit.
        is_one_statement = len(batch.chunks) == 1 and on_progress is None
        operation = write if is_one_statement else _in_transaction(write)
        tasks = await self._run(operation, is_repeatable=batch.is_keyed)
        if _can_run_now(tasks):
            await self.ring_quietly()
        return tasks

    async def _write_joined(
        self, channel: JoinedChannel, write: Callable[[Channel], Awaitable[list[Task[Any]]]]
    ) -> list[Task[Any]]:
        async with channel.transaction():
            tasks = await write(channel)
        if _can_run_now(tasks) and self._database.is_reachable:
            if channel.is_at_rest:
                await self.ring_quietly()
            else:
                channel.at_commit(self._bell)
        return tasks

    async def get(self, task: Task[R] | int) -> Task[R]:
        task_id = _id(task)
        found = await self._run(
            lambda channel: channel.call(stored.get, task_id=task_id), is_repeatable=True
        )
        if found is None:
            raise _not_found(task_id)
        return _typed(found, task)

    async def tasks(
        self,
        *,
        state: State | str | Sequence[State | str] | None,
        type: TaskType[Any, Any] | str | None,
        queue: str | None,
        tag: str | None,
        error: str | None,
        older_than: str | float | timedelta | None,
        newer_than: str | float | timedelta | None,
        limit: int | None,
    ) -> AsyncGenerator[Task[Any], None]:
        filters = stored.Filters(
            states=None if state is None else _states(state),
            type=type.name if isinstance(type, TaskType) else _text("type", type),
            queue=_text("queue", queue),
            tag=_text("tag", tag),
            error=_text("error", error),
            older_than=None if older_than is None else seconds(older_than),
            newer_than=None if newer_than is None else seconds(newer_than),
        )
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int)):
            raise PayloadError(f"limit = {limit!r}: must be an integer, or None for all tasks")
        before: int | None = None
        left = limit
        while left is None or left > 0:
            size = _PAGE if left is None else min(_PAGE, left)
            found = await self._page(filters, before=before, limit=size)
            for task in found:
                yield task
            if len(found) < size:
                return
            before = found[-1].id
            left = None if left is None else left - len(found)

    async def _page(
        self, filters: stored.Filters, *, before: int | None, limit: int
    ) -> list[Task[Any]]:
        return await self._run(
            lambda channel: channel.call(stored.page, filters, before=before, limit=limit),
            is_repeatable=True,
        )

    async def ring(self) -> bool:
        return await self._run(lambda channel: channel.call(ring), is_repeatable=True)

    async def ring_quietly(self) -> None:
        """Ring after a commit, whose success this must not call into question."""
        try:
            await self.ring()
        except Exception:  # noqa: BLE001 - the tasks are there; the next poll finds them
            return

    async def wait(self, task: Task[R] | int, timeout: str | float | timedelta | None) -> Task[R]:
        task_id = _id(task)
        limit = None if timeout is None else seconds(timeout)
        deadline = None if limit is None else time.monotonic() + limit
        pause, last_answer = _FIRST_PAUSE, time.monotonic()
        seen: State | str | None = "out of reach"
        while True:
            try:
                seen = await self._run(
                    lambda channel: channel.call(stored.state, task_id=task_id), is_repeatable=True
                )
                if seen is None:
                    raise _not_found(task_id)
                if seen.is_end:
                    return await self.get(task)
                last_answer = time.monotonic()
            except DatabaseUnavailable:
                if time.monotonic() - last_answer > _PATIENCE_SECONDS:
                    raise
            left = pause if deadline is None else deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"task {task_id} is still {seen} after {limit} s")
            await self._database.sleep(min(pause, left))
            pause = min(pause * 1.5, _LAST_PAUSE)

    async def result(self, task: Task[R] | int, timeout: str | float | timedelta | None) -> R:
        ended = await self.wait(task, timeout)
        if ended.state is not State.SUCCEEDED:
            reason = f": {ended.error}" if ended.error else ""
            raise TaskFailed(f"task {ended.id} ({ended.type}) is {ended.state}{reason}", ended)
        return ended.result  # type: ignore[return-value]

    async def cancel(self, task: Task[R] | int) -> Task[R]:
        task_id = _id(task)
        # Sending it twice changes nothing.
        state = await self._run(
            lambda channel: channel.call(cancel, task_id=task_id), is_repeatable=True
        )
        if state is None:
            raise _not_found(task_id)
        return await self.get(task)

    async def redrive(self, task: Task[R] | int) -> Task[R]:
        task_id = _id(task)
        is_done = await self._run(
            lambda channel: channel.call(redrive, task_id=task_id), is_repeatable=False
        )
        found = await self.get(task)
        if not is_done:
            raise NotDead(f"task {task_id} is {found.state}: only dead tasks can be redriven")
        if _can_run_now([found]):
            await self.ring_quietly()
        return found

    async def _run(self, operation: Callable[[C], Awaitable[T]], *, is_repeatable: bool) -> T:
        """Run an operation on a session of the pool, once more where that is safe."""
        lender = self._database.lender()
        channel = await lender.take()
        try:
            async with _lent(lender, channel):
                return await operation(channel)
        except DatabaseUnavailable as error:
            if error.unknown and not is_repeatable:
                raise
            first = error
        try:
            channel = await lender.take()
        except DatabaseUnavailable:
            raise first from None
        try:
            async with _lent(lender, channel):
                return await operation(channel)
        except DatabaseUnavailable as error:
            error.unknown = error.unknown or first.unknown
            raise


@asynccontextmanager
async def _lent(lender: Lender[C], channel: C) -> AsyncIterator[None]:
    """Give a channel back at the end; closed after an error that only a new one cures."""
    try:
        yield
    except DatabaseUnavailable:
        channel.close()
        raise
    finally:
        lender.give_back(channel)


def _in_transaction(
    operation: Callable[[Channel], Awaitable[T]],
) -> Callable[[Channel], Awaitable[T]]:
    async def run(channel: Channel) -> T:
        is_complete = False
        try:
            async with channel.transaction():
                done = await operation(channel)
                is_complete = True
            return done
        except DatabaseUnavailable as error:
            # Before the commit was sent, nothing can have been carried out.
            error.unknown = error.unknown and is_complete
            raise

    return run


def _can_run_now(tasks: Iterable[Task[Any]]) -> bool:
    """Return whether there is something new for a worker that sleeps."""
    return any(task.state is State.READY and not task.existing for task in tasks)


def _states(state: State | str | Sequence[State | str]) -> list[State]:
    known = ", ".join(State)
    try:
        return [State(name) for name in ([state] if isinstance(state, str) else state)]
    except (TypeError, ValueError) as error:
        raise PayloadError(f"state = {state!r}: must be one or several of {known}") from error


def _text(option: str, value: Any) -> str | None:
    if value is not None and (not isinstance(value, str) or "\0" in value):
        raise PayloadError(f"{option} = {value!r}: must be text without NUL, or None for all tasks")
    return value


def _id(task: Task[Any] | int) -> int:
    if isinstance(task, Task):
        return task.id
    if isinstance(task, bool) or not isinstance(task, int):
        raise TypeError(f"task = {task!r}: must be a Task or its id")
    if not 0 < task <= _LARGEST_ID:
        raise _not_found(task)
    return task


def _not_found(task_id: int) -> TaskNotFound:
    return TaskNotFound(
        f"no task has the id {task_id}: never enqueued, rolled back, or removed by retention"
    )


def _typed(found: Task[Any], asked: Task[Any] | int) -> Task[Any]:
    result_type = asked.result_type if isinstance(asked, Task) else None
    if result_type is None or found.state is not State.SUCCEEDED:
        return replace(found, result_type=result_type)
    encoded = json.encode(found.result, root="result")
    result = json.decode(encoded, result_type, root="result")
    return replace(found, result=result, result_type=result_type)
