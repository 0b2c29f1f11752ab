"""The client that is awaited: `Client`, verb by verb, on psycopg 3.

What the verbs do is written in `verbs`, for both. What is here is the surface, and the sessions
below it: a pool per event loop (`db/async_pool.py`), or a connection of the caller's
(`db/async_joining.py`). `asyncio` and psycopg 3 are loaded by this module and those below it only.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, TypeVar, Unpack, overload

from orchestrator.client import check_place, place_from_config, required
from orchestrator.db.async_connection import AsyncSession, connect, require_psycopg
from orchestrator.db.async_joining import AsyncJoined, join
from orchestrator.db.async_pool import AsyncPool
from orchestrator.enqueueing import Options
from orchestrator.task import State, Task
from orchestrator.tasktype import PayloadOf, TaskType
from orchestrator.verbs import Verbs

P = TypeVar("P")
R = TypeVar("R")


class AsyncClient:
    """Enqueues tasks into one schema and looks at them, for programs on asyncio.

    Its verbs are those of `Client`, awaited; what they do, return and raise is written there. It
    needs the extra `async` (psycopg 3). Nothing is connected before the first call. At most
    `pool_size` sessions are opened; further tasks of the loop wait for one. It serves one event
    loop at a time, and goes on in the next one and after a fork.

    A call that is cancelled may have been carried out, as with a lost reply.

    Raises:
        ConfigError: psycopg 3 cannot be imported; the message names the remedy.
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
            "AsyncClient", url, schema=schema, pool_size=pool_size, connect_timeout=connect_timeout
        )
        require_psycopg()
        self.schema = schema
        self._database = _Database(url, schema, pool_size, connect_timeout)
        self._verbs: Verbs[AsyncSession] = Verbs(self._database, bell=self._ring_in_greenlet)

    @classmethod
    def from_config(cls, path: str | None = None, *, pool_size: int = 4) -> AsyncClient:
        """Make a client of the database that the daemon uses; see `Client.from_config`.

        Raises:
            ConfigError: the settings are wrong, or psycopg 3 cannot be imported.
        """
        return cls(**place_from_config(path), pool_size=pool_size)

    async def close(self) -> None:
        """Close the sessions; a later call opens new ones."""
        self._database.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @overload
    async def enqueue(
        self,
        type: TaskType[P, R],
        payload: PayloadOf[P],
        *,
        idempotency_key: str | None = None,
        conn: Any = None,
        **options: Unpack[Options],
    ) -> Task[R]: ...
    @overload
    async def enqueue(
        self,
        type: str,
        payload: Any = None,
        *,
        idempotency_key: str | None = None,
        conn: Any = None,
        **options: Unpack[Options],
    ) -> Task[Any]: ...
    async def enqueue(
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
        """Enqueue one task and return it; see `Client.enqueue`.

        `conn` is an AsyncConnection of psycopg 3, or an AsyncSession, async_scoped_session or
        AsyncConnection of SQLAlchemy, whose transaction it joins. After a commit by SQLAlchemy the
        doorbell rings by itself.
        """
        return await self._verbs.enqueue(
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

    @overload
    async def enqueue_many(
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
    async def enqueue_many(
        self,
        type: str,
        payloads: Iterable[Any],
        *,
        conn: Any = None,
        on_progress: Callable[[int, int], None] | None = None,
        idempotency_keys: Iterable[str | None] | None = None,
        **options: Unpack[Options],
    ) -> list[Task[Any]]: ...
    async def enqueue_many(
        self,
        type: TaskType[Any, Any] | str,
        payloads: Iterable[Any],
        *,
        conn: Any = None,
        on_progress: Callable[[int, int], None] | None = None,
        idempotency_keys: Iterable[str | None] | None = None,
        **options: Unpack[Options],
    ) -> list[Task[Any]]:
        """Enqueue one task per payload, all or none; see `Client.enqueue_many`.

        All payloads are encoded before the first is sent, and the loop waits meanwhile: about
        0.2 s for 100,000 small ones. `on_progress` is a plain function.
        """
        return await self._verbs.enqueue_many(
            type,
            payloads,
            conn=conn,
            on_progress=on_progress,
            idempotency_keys=idempotency_keys,
            **options,
        )

    @overload
    async def get(self, task: Task[R]) -> Task[R]: ...
    @overload
    async def get(self, task: int) -> Task[Any]: ...
    async def get(self, task: Task[R] | int) -> Task[R]:
        """Return a task as it is now, with its attempts; see `Client.get`."""
        return await self._verbs.get(task)

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
    ) -> AsyncIterator[Task[Any]]:
        """Iterate (`async for`) over tasks, newest first; see `Client.tasks`."""
        return self._verbs.tasks(
            state=state,
            type=type,
            queue=queue,
            tag=tag,
            error=error,
            older_than=older_than,
            newer_than=newer_than,
            limit=limit,
        )

    async def ring(self) -> bool:
        """Wake a sleeping worker after the caller's commit; see `Client.ring`."""
        return await self._verbs.ring()

    @overload
    async def wait(
        self, task: Task[R], timeout: str | float | timedelta | None = None
    ) -> Task[R]: ...
    @overload
    async def wait(
        self, task: int, timeout: str | float | timedelta | None = None
    ) -> Task[Any]: ...
    async def wait(
        self, task: Task[R] | int, timeout: str | float | timedelta | None = None
    ) -> Task[R]:
        """Wait until a task has ended, in whatever way, and return it; see `Client.wait`."""
        return await self._verbs.wait(task, timeout)

    @overload
    async def result(self, task: Task[R], timeout: str | float | timedelta | None = None) -> R: ...
    @overload
    async def result(self, task: int, timeout: str | float | timedelta | None = None) -> Any: ...
    async def result(
        self, task: Task[R] | int, timeout: str | float | timedelta | None = None
    ) -> R:
        """Wait for the result of a task; see `Client.result`."""
        return await self._verbs.result(task, timeout)

    @overload
    async def cancel(self, task: Task[R]) -> Task[R]: ...
    @overload
    async def cancel(self, task: int) -> Task[Any]: ...
    async def cancel(self, task: Task[R] | int) -> Task[R]:
        """Cancel a task and return it; see `Client.cancel`."""
        return await self._verbs.cancel(task)

    @overload
    async def redrive(self, task: Task[R]) -> Task[R]: ...
    @overload
    async def redrive(self, task: int) -> Task[Any]: ...
    async def redrive(self, task: Task[R] | int) -> Task[R]:
        """Put a dead task back into line, with new budgets; see `Client.redrive`."""
        return await self._verbs.redrive(task)

    def _ring_in_greenlet(self) -> None:
        # SQLAlchemy commits in a greenlet of its own, from which this awaits on the caller's loop.
        sys.modules["sqlalchemy.util"].await_only(self._verbs.ring_quietly())


class _Database:
    """The sessions of a client: a pool for the running loop, and those of callers."""

    def __init__(
        self, url: str | None, schema: str, pool_size: int, connect_timeout: float
    ) -> None:
        self._url = url
        self._schema = schema
        self._pool_size = pool_size
        self._connect_timeout = connect_timeout
        self._pool: AsyncPool | None = None
        self._inherited: list[AsyncPool] = []

    @property
    def is_reachable(self) -> bool:
        return self._url is not None

    def lender(self) -> AsyncPool:
        pool = self._pool
        if pool is not None and pool.pid == os.getpid():
            if pool.loop is asyncio.get_running_loop():
                return pool
            pool.close()
        elif pool is not None:
            # The parent's connections: kept, since even to collect them would be heard of.
            self._inherited.append(pool)
        self._pool = AsyncPool(self._open, size=self._pool_size)
        return self._pool

    async def join(self, conn: Any) -> AsyncJoined:
        return await join(conn, self._schema)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def close(self) -> None:
        pool, self._pool = self._pool, None
        if pool is not None and pool.pid == os.getpid():
            pool.close()

    async def _open(self) -> AsyncSession:
        return await connect(
            required(self._url),
            schema=self._schema,
            application_name="orchestrator client",
            connect_timeout=self._connect_timeout,
        )
