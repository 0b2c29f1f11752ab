"""The client: enqueue tasks, look at them, wait for them, cancel and redrive them.

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
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar, Unpack, overload

import psycopg2
import psycopg2.extensions

from orchestrator import config
from orchestrator import payload as json
from orchestrator.db.connection import Session, connect, translated_errors
from orchestrator.db.pool import Pool
from orchestrator.durations import seconds
from orchestrator.enqueueing import EnqueueOptions, Options, check_key, normalise
from orchestrator.errors import (
    ConfigError,
    DatabaseUnavailable,
    NotDead,
    PayloadError,
    TaskFailed,
    TaskNotFound,
)
from orchestrator.store import tasks as stored
from orchestrator.store.cancel import cancel
from orchestrator.store.enqueue import Enqueued, enqueue, max_payload_bytes
from orchestrator.store.redrive import redrive
from orchestrator.store.ring import ring
from orchestrator.task import State, Task
from orchestrator.tasktype import PayloadOf, TaskType

P = TypeVar("P")
R = TypeVar("R")
T = TypeVar("T")

# Tasks and bytes of one statement of `enqueue_many`.
_CHUNK_TASKS, _CHUNK_BYTES = 1000, 8 * 1024 * 1024
_PAGE = 500
_FIRST_PAUSE, _LAST_PAUSE = 0.05, 1.0
# How long `wait` bears a server that is away: a restart, a failover.
_PATIENCE_SECONDS = 30.0
_LARGEST_ID = 2**63 - 1


class Client:
    """Enqueues tasks into one schema and looks at them. Thread-safe; works on after a fork.

    `url` is a libpq URL or DSN (`postgresql+driver://` is accepted) and may be left out where
    every call passes `conn`. Nothing is connected before the first call. At most `pool_size`
    sessions are opened; further threads wait for one.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        schema: str = "orchestrator",
        pool_size: int = 4,
        connect_timeout: float = 5.0,
    ) -> None:
        if pool_size < 1:
            raise ConfigError(f"Client(pool_size={pool_size}): must be at least 1")
        if url == config.EMBEDDED:
            raise ConfigError(
                'Client("embedded"): the place of the embedded server stands in the settings: use '
                "Client.from_config()"
            )
        self.schema = schema
        self._url = url
        self._pool_size = pool_size
        self._connect_timeout = connect_timeout
        self._pool = self._new_pool()

    @classmethod
    def from_config(cls, path: str | None = None, *, pool_size: int = 4) -> Client:
        """Make a client of the database that the daemon uses with the same settings.

        `path` is found as for `orchestratord -c`. The embedded server is reached while a daemon
        (or a command) runs it; the client does not start it.

        Raises:
            ConfigError: the settings are wrong.
        """
        # It needs what only Unix has, and the rest of the client does not.
        from orchestrator.db import embedded

        settings = config.load(path)
        return cls(
            embedded.resolve(settings),
            schema=settings.database.schema,
            pool_size=pool_size,
            connect_timeout=settings.database.connect_timeout,
        )

    def close(self) -> None:
        """Close the sessions; a later call opens new ones."""
        pool, self._pool = self._pool, self._new_pool()
        if pool.pid == os.getpid():
            pool.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @overload
    def enqueue(
        self,
        type: TaskType[P, R],
        payload: PayloadOf[P],
        *,
        idempotency_key: str | None = None,
        conn: Any = None,
        **options: Unpack[Options],
    ) -> Task[R]: ...
    @overload
    def enqueue(
        self,
        type: str,
        payload: Any = None,
        *,
        idempotency_key: str | None = None,
        conn: Any = None,
        **options: Unpack[Options],
    ) -> Task[Any]: ...
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
        conn: Any = None,
    ) -> Task[Any]:
        """Enqueue one task and return it, as far as it is known without reading it back.

        Larger `priority` runs first. `run_at` (aware) or `delay` postpones it; `ttl`, counted from
        there, lets it expire unstarted. While a task with the same `idempotency_key` is live in
        the queue, that one is returned, with `existing` true. `conn` is a psycopg2 connection:
        the task becomes visible with the caller's commit, and a worker finds it at its next poll
        unless `ring` is called after it.

        Raises:
            PayloadError: the payload or an option breaks a rule; it names the JSON path.
            DatabaseUnavailable: nothing was enqueued; with `unknown`, perhaps it was.
            SchemaError: the schema is not installed.
        """
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
        batch = _Batch(type, options, [payload], None)

        def write(session: Session) -> list[Task[Any]]:
            return batch.write(session, self._found)

        if conn is not None:
            return write(self._joined(conn))[0]
        tasks = self._run(write, is_repeatable=idempotency_key is not None)
        self._ring_for(tasks)
        return tasks[0]

    @overload
    def enqueue_many(
        self,
        type: TaskType[P, R],
        payloads: Iterable[PayloadOf[P]],
        *,
        conn: Any = None,
        on_progress: Callable[[int, int], None] | None = None,
        idempotency_keys: Iterable[str | None] | None = None,
        **options: Unpack[Options],
    ) -> list[Task[R]]: ...
    @overload
    def enqueue_many(
        self,
        type: str,
        payloads: Iterable[Any],
        *,
        conn: Any = None,
        on_progress: Callable[[int, int], None] | None = None,
        idempotency_keys: Iterable[str | None] | None = None,
        **options: Unpack[Options],
    ) -> list[Task[Any]]: ...
    def enqueue_many(
        self,
        type: TaskType[Any, Any] | str,
        payloads: Iterable[Any],
        *,
        conn: Any = None,
        on_progress: Callable[[int, int], None] | None = None,
        idempotency_keys: Iterable[str | None] | None = None,
        **options: Unpack[Options],
    ) -> list[Task[Any]]:
        """Enqueue one task per payload: all of them or, after an error, none.

        Options are those of `enqueue`, for all tasks alike, except that there is one idempotency
        key (or None) per payload. Returns the tasks in the order of the payloads; they are also
        run in it, unless there are keys and more than 1,000 payloads: those enter in the order of
        the keys, lest two callers wait for each other. Sends 1,000 at a time;
        `on_progress(done, total)` is called after each thousand, before the commit.

        Raises:
            PayloadError: as for `enqueue`; the path begins with `payloads[i]`.
            DatabaseUnavailable: as for `enqueue`.
        """
        if "idempotency_key" in options:
            raise PayloadError(
                "enqueue_many(idempotency_key=...) would make all tasks one: give "
                "idempotency_keys, a list with one key per payload"
            )
        batch = _Batch(type, normalise(type, **options), list(payloads), idempotency_keys)
        if not batch.bodies:
            return []

        def write(session: Session) -> list[Task[Any]]:
            return batch.write(session, self._found, on_progress)

        if conn is not None:
            session = self._joined(conn)
            with _own_transaction(conn):
                return write(session)
        if len(batch.chunks) == 1:
            tasks = self._run(write, is_repeatable=batch.is_keyed)
        else:
            tasks = self._run(_in_transaction(write), is_repeatable=batch.is_keyed)
        self._ring_for(tasks)
        return tasks

    @overload
    def get(self, task: Task[R]) -> Task[R]: ...
    @overload
    def get(self, task: int) -> Task[Any]: ...
    def get(self, task: Task[R] | int) -> Task[R]:
        """Return a task as it is now, with its attempts.

        Asked for by a Task that was enqueued with a TaskType, its result is of that type's result
        type; asked for by id, it is plain JSON.

        Raises:
            TaskNotFound: there is none with this id.
            PayloadError: the result does not fit the type.
        """
        task_id = _id(task)
        found = self._run(lambda session: stored.get(session, task_id=task_id), is_repeatable=True)
        if found is None:
            raise _not_found(task_id)
        return _typed(found, task)

    def tasks(
        self,
        *,
        state: State | str | Sequence[State | str] | None = None,
        type: TaskType[Any, Any] | str | None = None,
        queue: str | None = None,
        tag: str | None = None,
        limit: int | None = None,
    ) -> Iterator[Task[Any]]:
        """Iterate over tasks, newest first, without their attempts.

        None matches everything. Read in pages of 500: what changes meanwhile may or may not show.
        """
        states = None if state is None else _states(state)
        name = type.name if isinstance(type, TaskType) else type
        before: int | None = None
        left = limit
        while left is None or left > 0:
            size = _PAGE if left is None else min(_PAGE, left)
            found = self._run(_page(states, name, queue, tag, before, size), is_repeatable=True)
            yield from found
            if len(found) < size:
                return
            before = found[-1].id
            left = None if left is None else left - len(found)

    def ring(self) -> bool:
        """Wake a sleeping worker: after the commit of an enqueue with `conn`. True if one slept.

        Without it the task is found at the next poll (`claim_interval`).
        """
        return self._run(ring, is_repeatable=True)

    @overload
    def wait(self, task: Task[R], timeout: str | float | timedelta | None = None) -> Task[R]: ...
    @overload
    def wait(self, task: int, timeout: str | float | timedelta | None = None) -> Task[Any]: ...
    def wait(self, task: Task[R] | int, timeout: str | float | timedelta | None = None) -> Task[R]:
        """Wait until a task has ended, in whatever way, and return it.

        Polls, every 50 ms at first and every second later; a server that is away for less than
        30 s is waited for.

        Raises:
            TimeoutError: it has not ended within `timeout`.
            TaskNotFound: there is none with this id.
        """
        task_id = _id(task)
        limit = None if timeout is None else seconds(timeout)
        deadline = None if limit is None else time.monotonic() + limit
        pause, last_answer = _FIRST_PAUSE, time.monotonic()
        seen: State | str | None = "out of reach"
        while True:
            try:
                seen = self._run(
                    lambda session: stored.state(session, task_id=task_id), is_repeatable=True
                )
                if seen is None:
                    raise _not_found(task_id)
                if seen.is_end:
                    return self.get(task)
                last_answer = time.monotonic()
            except DatabaseUnavailable:
                if time.monotonic() - last_answer > _PATIENCE_SECONDS:
                    raise
            left = pause if deadline is None else deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"task {task_id} is still {seen} after {limit} s")
            time.sleep(min(pause, left))
            pause = min(pause * 1.5, _LAST_PAUSE)

    @overload
    def result(self, task: Task[R], timeout: str | float | timedelta | None = None) -> R: ...
    @overload
    def result(self, task: int, timeout: str | float | timedelta | None = None) -> Any: ...
    def result(self, task: Task[R] | int, timeout: str | float | timedelta | None = None) -> R:
        """Wait for the result of a task; of its TaskType's result type, if `task` carries one.

        Raises:
            TaskFailed: it ended otherwise than by success; `.task` is the task.
            PayloadError: the result does not fit the type.
            TimeoutError, TaskNotFound: as for `wait`.
        """
        ended = self.wait(task, timeout)
        if ended.state is not State.SUCCEEDED:
            reason = f": {ended.error}" if ended.error else ""
            raise TaskFailed(f"task {ended.id} ({ended.type}) is {ended.state}{reason}", ended)
        return ended.result  # type: ignore[return-value]

    @overload
    def cancel(self, task: Task[R]) -> Task[R]: ...
    @overload
    def cancel(self, task: int) -> Task[Any]: ...
    def cancel(self, task: Task[R] | int) -> Task[R]:
        """Cancel a task and return it.

        A waiting task is cancelled at once. A running one is flagged: it ends as cancelled unless
        it succeeds first. One that has ended stays as it is.

        Raises:
            TaskNotFound: there is none with this id.
        """
        task_id = _id(task)
        # Sending it twice changes nothing.
        state = self._run(lambda session: cancel(session, task_id=task_id), is_repeatable=True)
        if state is None:
            raise _not_found(task_id)
        return self.get(task)

    @overload
    def redrive(self, task: Task[R]) -> Task[R]: ...
    @overload
    def redrive(self, task: int) -> Task[Any]: ...
    def redrive(self, task: Task[R] | int) -> Task[R]:
        """Put a dead task back into line, with new budgets, and return it.

        Raises:
            NotDead: it is in another state.
            IdempotencyConflict: another live task has its idempotency key.
            TaskNotFound: there is none with this id.
        """
        task_id = _id(task)
        is_done = self._run(lambda session: redrive(session, task_id=task_id), is_repeatable=False)
        found = self.get(task)
        if not is_done:
            raise NotDead(f"task {task_id} is {found.state}: only dead tasks can be redriven")
        self._ring_for([found])
        return found

    def _run(self, operation: Callable[[Session], T], *, is_repeatable: bool) -> T:
        """Run an operation on a session of the pool, once more where that is safe."""
        pool = self._pool
        if pool.pid != os.getpid():
            # Two threads may both do this; what one of them opens in vain is closed when collected.
            pool = self._pool = self._new_pool()
        session = pool.take()
        try:
            with pool.lent(session):
                return operation(session)
        except DatabaseUnavailable as error:
            if error.unknown and not is_repeatable:
                raise
            first = error
        try:
            session = pool.take()
        except DatabaseUnavailable:
            raise first from None
        try:
            with pool.lent(session):
                return operation(session)
        except DatabaseUnavailable as error:
            error.unknown = error.unknown or first.unknown
            raise

    def _ring_for(self, tasks: Iterable[Task[Any]]) -> None:
        if any(task.state is State.READY and not task.existing for task in tasks):
            # The tasks are there; without the bell the next poll finds them.
            with suppress(DatabaseUnavailable):
                self.ring()

    def _found(self, session: Session, ids: Sequence[int]) -> dict[int, Task[Any]]:
        return {task.id: task for task in stored.get_many(session, task_ids=ids)}

    def _joined(self, conn: Any) -> Session:
        if not isinstance(conn, psycopg2.extensions.connection):
            raise TypeError(
                f"conn = {conn!r}: must be a psycopg2 connection; SQLAlchemy's is "
                "session.connection().connection.driver_connection"
            )
        return Session(conn, self.schema)

    def _new_pool(self) -> Pool:
        return Pool(self._open, size=self._pool_size)

    def _open(self) -> Session:
        if self._url is None:
            raise ConfigError(
                "Client() was made without url: give it one, or pass conn= to every call"
            )
        return connect(
            self._url,
            schema=self.schema,
            application_name="orchestrator client",
            connect_timeout=self._connect_timeout,
        )


class _Batch:
    """The payloads of one call, encoded, and the tasks that come of them."""

    def __init__(
        self,
        type: TaskType[Any, Any] | str,
        options: EnqueueOptions,
        payloads: list[Any],
        keys: Iterable[str | None] | None,
    ) -> None:
        self.options = options
        self.payloads = payloads
        self.result_type = type.result if isinstance(type, TaskType) else None
        is_single = keys is None and len(payloads) == 1
        self.roots = ["payload"] if is_single else [f"payloads[{i}]" for i in range(len(payloads))]
        self.bodies = [
            _body(type, payload, root) for payload, root in zip(payloads, self.roots, strict=True)
        ]
        self.keys = _keys(keys, options, n=len(payloads))
        self.chunks = _chunks(self.bodies, self.keys)

    @property
    def is_keyed(self) -> bool:
        """True when every task has a key, so that sending it again makes no second one."""
        return self.keys is not None and None not in self.keys

    def write(
        self,
        session: Session,
        found: Callable[[Session, Sequence[int]], dict[int, Task[Any]]],
        on_progress: Callable[[int, int], None] | None = None,
    ) -> list[Task[Any]]:
        self._check_sizes(session)
        entries: list[Enqueued | None] = [None] * len(self.bodies)
        n_done = 0
        for chunk in self.chunks:
            keys = None if self.keys is None else [self.keys[i] for i in chunk]
            written = enqueue(session, self.options, [self.bodies[i] for i in chunk], keys=keys)
            for i, entry in zip(chunk, written, strict=True):
                entries[i] = entry
            n_done += len(chunk)
            if on_progress is not None:
                on_progress(n_done, len(self.bodies))
        complete = [entry for entry in entries if entry is not None]
        existing = {entry.id for entry in complete if entry.existing}
        known = found(session, sorted(existing)) if existing else {}
        return [self._task(i, entry, known) for i, entry in enumerate(complete)]

    def _check_sizes(self, session: Session) -> None:
        """Refuse what the database would refuse, before that breaks the caller's transaction."""
        largest = max(range(len(self.bodies)), key=lambda i: len(self.bodies[i]))
        size = len(self.bodies[largest])
        # The limit is the database's, and asking for it is a round trip.
        if size <= json.DEFAULT_MAX_BYTES or size <= (limit := max_payload_bytes(session)):
            return
        raise PayloadError(
            f"{self.roots[largest]}: has {size} bytes as JSON, more than the limit of {limit}: "
            "pass a reference to the data, or raise max_payload_bytes in "
            f'"{session.schema}".setting'
        )

    def _task(self, i: int, entry: Enqueued, known: dict[int, Task[Any]]) -> Task[Any]:
        options = self.options
        if entry.existing and entry.id in known:
            return replace(known[entry.id], existing=True, result_type=self.result_type)
        is_due = not options.delay and (
            options.run_at is None or options.run_at <= datetime.now(UTC)
        )
        return Task(
            id=entry.id,
            type=options.type,
            queue=options.queue,
            state=State.READY if is_due else State.SCHEDULED,
            priority=options.priority,
            max_attempts=options.max_attempts,
            payload=self.payloads[i],
            tags=options.tags,
            headers=json.decode(options.headers),
            idempotency_key=None if self.keys is None else self.keys[i],
            run_at=options.run_at,
            existing=entry.existing,
            result_type=self.result_type,
        )


def _body(type: TaskType[Any, Any] | str, payload: Any, root: str) -> bytes:
    body = json.encode(payload, root=root)
    # A dict for a dataclass, say: a mistake in it should not wait for the worker.
    if isinstance(type, TaskType) and not json.fits(payload, type.payload):
        json.decode(body, type.payload, root=root)
    return body


def _keys(
    keys: Iterable[str | None] | None, options: EnqueueOptions, *, n: int
) -> list[str | None] | None:
    if keys is None:
        return None if options.idempotency_key is None else [options.idempotency_key] * n
    if isinstance(keys, str | bytes):
        raise PayloadError(f"idempotency_keys = {keys!r}: must be a list with one key per payload")
    checked = [check_key(key) for key in keys]
    if len(checked) != n:
        raise PayloadError(f"idempotency_keys: {len(checked)} keys for {n} payloads")
    return checked if any(key is not None for key in checked) else None


def _chunks(bodies: list[bytes], keys: list[str | None] | None) -> list[list[int]]:
    """Divide the indexes of `bodies` into statements of bearable size."""
    order = list(range(len(bodies)))
    if keys is not None and len(bodies) > _CHUNK_TASKS:
        order.sort(key=lambda i: keys[i] or "")
    chunks: list[list[int]] = []
    n_bytes = 0
    for i in order:
        n_bytes += len(bodies[i])
        if not chunks or len(chunks[-1]) == _CHUNK_TASKS or n_bytes > _CHUNK_BYTES:
            chunks.append([])
            n_bytes = len(bodies[i])
        chunks[-1].append(i)
    return chunks


def _in_transaction(operation: Callable[[Session], T]) -> Callable[[Session], T]:
    def run(session: Session) -> T:
        is_complete = False
        try:
            with session.transaction():
                done = operation(session)
                is_complete = True
            return done
        except DatabaseUnavailable as error:
            # Before the commit was sent, nothing can have been carried out.
            error.unknown = error.unknown and is_complete
            raise

    return run


@contextmanager
def _own_transaction(conn: Any) -> Iterator[None]:
    """Make one transaction on a connection in autocommit mode that has none open."""
    is_idle = conn.get_transaction_status() == psycopg2.extensions.TRANSACTION_STATUS_IDLE
    if not (conn.autocommit and is_idle):
        yield
        return
    with translated_errors(), conn.cursor() as cursor:
        cursor.execute("begin")
    try:
        yield
    except BaseException:
        with suppress(psycopg2.Error), conn.cursor() as cursor:
            cursor.execute("rollback")
        raise
    with translated_errors(), conn.cursor() as cursor:
        cursor.execute("commit")


def _page(
    states: list[State] | None,
    type: str | None,
    queue: str | None,
    tag: str | None,
    before: int | None,
    limit: int,
) -> Callable[[Session], list[Task[Any]]]:
    return lambda session: stored.page(
        session, states=states, type=type, queue=queue, tag=tag, before=before, limit=limit
    )


def _states(state: State | str | Sequence[State | str]) -> list[State]:
    given = [state] if isinstance(state, str) else list(state)
    known = ", ".join(State)
    try:
        return [State(name) for name in given]
    except ValueError as error:
        raise PayloadError(f"state = {state!r}: must be one or several of {known}") from error


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
