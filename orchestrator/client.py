"""The client that waits: enqueue tasks, look at them, wait for them, cancel and redrive them.

What its verbs do is written in `verbs`, for it and for `AsyncClient`, and there it is also said
what a lost connection means. What is here is the surface, and the sessions below it: a pool for
threads (`db/pool.py`), or a connection of the caller's (`db/joining.py`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, TypeVar, Unpack, overload

from orchestrator import config
from orchestrator.config_rules import redacted
from orchestrator.db.channel import (
    Blocking,
    BlockingJoined,
    BlockingLender,
    at_once,
    each_at_once,
)
from orchestrator.db.connection import Session, connect
from orchestrator.db.joining import join
from orchestrator.db.pool import Pool
from orchestrator.enqueueing import Options
from orchestrator.errors import ConfigError
from orchestrator.task import State, Task
from orchestrator.tasktype import PayloadOf, TaskType
from orchestrator.verbs import Verbs

_LONGEST_CONNECT_TIMEOUT = 86400.0

P = TypeVar("P")
R = TypeVar("R")


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
        check_place(
            "Client", url, schema=schema, pool_size=pool_size, connect_timeout=connect_timeout
        )
        self.schema = schema
        self._database = _Database(url, schema, pool_size, connect_timeout)
        self._verbs: Verbs[Blocking] = Verbs(self._database, bell=self._ring_quietly)

    @classmethod
    def from_config(cls, path: str | None = None, *, pool_size: int = 4) -> Client:
        """Make a client of the database that the daemon uses with the same settings.

        `path` is found as for `orchestratord -c`. The embedded server is reached while a daemon
        (or a command) runs it; the client does not start it.

        Raises:
            ConfigError: the settings are wrong.
        """
        return cls(**place_from_config(path), pool_size=pool_size)

    def close(self) -> None:
        """Close the sessions; a later call opens new ones."""
        self._database.close()

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
        the queue, that one is returned, with `existing` true.

        `conn` is a psycopg2 or psycopg 3 connection, a SQLAlchemy Session, scoped_session or
        Connection, or Django's connection: the task becomes visible with the caller's commit, and
        never if that transaction is rolled back. After a commit by SQLAlchemy or Django the
        doorbell rings by itself. After others a worker finds the task at its next poll, unless
        `ring` is called. In autocommit mode the task is committed at once.

        Raises:
            PayloadError: the payload or an option breaks a rule; it names the JSON path.
            DatabaseUnavailable: nothing was enqueued; with `unknown`, perhaps it was.
            SchemaError: the schema is not installed.
            TypeError: `conn` is none that can be joined.
        """
        return at_once(
            self._verbs.enqueue(
                type,
                payload,
                conn=conn,
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
        )

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
        return at_once(
            self._verbs.enqueue_many(
                type,
                payloads,
                conn=conn,
                on_progress=on_progress,
                idempotency_keys=idempotency_keys,
                **options,
            )
        )

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
        return at_once(self._verbs.get(task))

    def tasks(
        self,
        *,
        state: State | str | Sequence[State | str] | None = None,
        type: TaskType[Any, Any] | str | None = None,
        queue: str | None = None,
        tag: str | None = None,
        error: str | None = None,
        older_than: str | float | timedelta | None = None,
        newer_than: str | float | timedelta | None = None,
        limit: int | None = None,
    ) -> Iterator[Task[Any]]:
        """Iterate over tasks, newest first, without their attempts.

        None matches everything. A `type` that ends in ":" is a prefix; `error` is a part of what a
        task shows as its error, in whatever case; the ages count from when it was created. Read in
        pages of 500: what changes meanwhile may or may not show.
        """
        return each_at_once(
            self._verbs.tasks(
                state=state,
                type=type,
                queue=queue,
                tag=tag,
                error=error,
                older_than=older_than,
                newer_than=newer_than,
                limit=limit,
            )
        )

    def ring(self) -> bool:
        """Wake a sleeping worker: after the commit of an enqueue with `conn`. True if one slept.

        Without it the task is found at the next poll (`claim_interval`).
        """
        return at_once(self._verbs.ring())

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
        return at_once(self._verbs.wait(task, timeout))

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
        return at_once(self._verbs.result(task, timeout))

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
        return at_once(self._verbs.cancel(task))

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
        return at_once(self._verbs.redrive(task))

    def _ring_quietly(self) -> None:
        at_once(self._verbs.ring_quietly())


class _Database:
    """The sessions of a client: a pool per process, and those of callers."""

    def __init__(
        self, url: str | None, schema: str, pool_size: int, connect_timeout: float
    ) -> None:
        self._url = url
        self._schema = schema
        self._pool_size = pool_size
        self._connect_timeout = connect_timeout
        self._pool = self._new_pool()

    @property
    def is_reachable(self) -> bool:
        return self._url is not None

    def lender(self) -> BlockingLender:
        pool = self._pool
        if pool.pid != os.getpid():
            # Two threads may both do this; what one of them opens in vain is closed when collected.
            pool = self._pool = self._new_pool()
        return BlockingLender(pool)

    async def join(self, conn: Any) -> BlockingJoined:
        return BlockingJoined(join(conn, self._schema))

    async def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def close(self) -> None:
        pool, self._pool = self._pool, self._new_pool()
        if pool.pid == os.getpid():
            pool.close()

    def _new_pool(self) -> Pool:
        return Pool(self._open, size=self._pool_size)

    def _open(self) -> Session:
        return connect(
            required(self._url),
            schema=self._schema,
            application_name="orchestrator client",
            connect_timeout=self._connect_timeout,
        )


def check_place(
    client: str, url: Any, *, schema: Any, pool_size: Any, connect_timeout: Any
) -> None:
    """Judge what a client is made with.

    Raises:
        ConfigError: it breaks a rule.
    """
    if isinstance(pool_size, bool) or not isinstance(pool_size, int) or pool_size < 1:
        raise ConfigError(f"{client}(pool_size={pool_size!r}): must be an integer, at least 1")
    if not isinstance(schema, str) or not schema:
        raise ConfigError(f"{client}(schema={schema!r}): must be the name of a schema")
    is_number = isinstance(connect_timeout, int | float) and not isinstance(connect_timeout, bool)
    if not is_number or not 0 < connect_timeout < _LONGEST_CONNECT_TIMEOUT:
        raise ConfigError(
            f"{client}(connect_timeout={connect_timeout!r}): must be a number of seconds, above 0"
        )
    if url is not None and not isinstance(url, str):
        raise ConfigError(
            f"{client}({type(url).__qualname__}): the url must be text; a connection is given to "
            "each call, as conn="
        )
    scheme, separator, _ = (url or "").partition("://")
    if separator and scheme.split("+")[0] not in ("postgresql", "postgres"):
        raise ConfigError(f"{client}({redacted(str(url))!r}): must begin with postgresql://")
    if url == config.EMBEDDED:
        raise ConfigError(
            f'{client}("embedded"): the place of the embedded server stands in the settings: use '
            f"{client}.from_config()"
        )


def place_from_config(path: str | None) -> dict[str, Any]:
    """Return what the settings say about the database, as a client is made with it.

    Raises:
        ConfigError: the settings are wrong.
    """
    # It needs what only Unix has, and the rest of the client does not.
    from orchestrator.db import embedded

    settings = config.load(path)
    return {
        "url": embedded.resolve(settings),
        "schema": settings.database.schema,
        "connect_timeout": settings.database.connect_timeout,
    }


def required(url: str | None) -> str:
    """Return the URL of a client, which it needs once it opens sessions of its own.

    Raises:
        ConfigError: it has none.
    """
    if url is None:
        raise ConfigError(
            "the client was made without url: give it one, or pass conn= to every call"
        )
    return url
