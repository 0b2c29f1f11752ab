"""The caller's connection, where it is awaited: `joining` for psycopg 3 and SQLAlchemy's asyncio.

The rules and the way of the bell are those of `joining`.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from orchestrator.db.async_connection import AsyncSession
from orchestrator.db.joining import Bell, check_dialect, connecting, fetched, hang, of

KINDS = (
    "an AsyncConnection of psycopg 3, or an AsyncSession, async_scoped_session or AsyncConnection "
    "of SQLAlchemy"
)


class AsyncJoined(AsyncSession):
    """A session on a connection of the caller's, who commits. This kind: psycopg 3."""

    @property
    def driver_connection(self) -> Any:
        """The connection of psycopg 3 below it all."""
        return self.connection

    @property
    def is_at_rest(self) -> bool:
        """True where no transaction is open, so that what was written is committed."""
        return bool(self.driver_connection.info.transaction_status == 0)

    def at_commit(self, bell: Bell) -> None:
        """Ring once the open transaction is committed, and not if it is rolled back."""

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[None]:
        """Join the open transaction; make one on a connection in autocommit mode without one."""
        if not (self.driver_connection.autocommit and self.is_at_rest):
            yield
            return
        async with super().transaction():
            yield


class _SQLAlchemy(AsyncJoined):
    """On an AsyncConnection of SQLAlchemy: past its compiler, but not past its transaction."""

    @property
    def driver_connection(self) -> Any:
        return self.connection.sync_connection.connection.driver_connection

    def at_commit(self, bell: Bell) -> None:
        hang(bell, self.connection.sync_connection)

    async def _rows(self, sql: str, parameters: dict[str, Any]) -> list[Any]:
        return fetched(await self.connection.exec_driver_sql(sql, parameters or None))


async def join(conn: Any, schema: str) -> AsyncJoined:
    """Return a session on the caller's connection.

    Raises:
        TypeError: it is of no kind that is known, or leads to another database.
    """
    if isinstance(conn, of("psycopg", "AsyncConnection")):
        return AsyncJoined(conn, schema)
    if isinstance(conn, of("sqlalchemy.ext.asyncio", "async_scoped_session")):
        conn = conn()
    if isinstance(conn, of("sqlalchemy.ext.asyncio", "AsyncSession")):
        with connecting():
            conn = await conn.connection()
    if isinstance(conn, of("sqlalchemy.ext.asyncio", "AsyncConnection")):
        check_dialect(conn)
        return _SQLAlchemy(conn, schema)
    raise TypeError(
        f"conn = {conn!r}: must be {KINDS}; orchestrator.Client takes those that are not awaited"
    )
