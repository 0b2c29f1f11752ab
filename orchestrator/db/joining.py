"""The caller's connection: statements in its transaction, whatever library it belongs to.

A joined session runs the functions of the store as every `Session` does. What is here is what
differs between the libraries: how a statement is run, whether a transaction is open, and how to
hear of its commit, after which the doorbell should ring:

    psycopg2, psycopg 3    there is nothing to hear: the caller rings
    SQLAlchemy             the dialect of the engine, which every commit passes
                           (docs/decisions/0017-the-bell-hangs-at-the-dialect.md)
    Django                 transaction.on_commit

Nothing is committed or rolled back here that was not begun here. None of the libraries is
imported: an object of one of its classes shows that it is loaded, and nothing else needs it. What
is awaited is `async_joining`'s.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from datetime import timezone
from typing import Any

import psycopg2.extensions

from orchestrator.db.connection import Session, named, named_rows, translated_errors
from orchestrator.errors import DatabaseUnavailable

# Rings the doorbell and never raises. Two bells of one client are equal.
Bell = Callable[[], object]

# Of libpq, for both drivers: the connection is between two transactions.
_IDLE = 0
# Where SQLAlchemy and Django keep our bells: on the connection, which belongs to one thread.
_BELLS = "orchestrator.bells"

KINDS = (
    "a psycopg2 or psycopg 3 connection, a SQLAlchemy Session, scoped_session or Connection, or "
    "Django's connection"
)


class Joined(Session):
    """A session on a connection of the caller's, who commits. This kind: psycopg2."""

    @property
    def driver_connection(self) -> Any:
        """The connection of psycopg2 or psycopg 3 below it all."""
        return self.connection

    @property
    def is_at_rest(self) -> bool:
        """True where no transaction is open, so that what was written is committed."""
        return bool(self.driver_connection.info.transaction_status == _IDLE)

    def at_commit(self, bell: Bell) -> None:
        """Ring once the open transaction is committed, and not if it is rolled back."""

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Join the open transaction; make one on a connection in autocommit mode without one."""
        if not (self.driver_connection.autocommit and self.is_at_rest):
            yield
            return
        self._command("begin")
        try:
            yield
        except BaseException:
            # The connection may be what failed.
            with contextlib.suppress(Exception):
                self._command("rollback")
            raise
        self._command("commit")

    def _command(self, sql: str) -> None:
        with translated_errors():
            self._rows(sql, {})


class _Psycopg(Joined):
    """On a connection of psycopg 3."""

    def _rows(self, sql: str, parameters: dict[str, Any]) -> list[Any]:
        with plain_cursor("Cursor", self.connection) as cursor:
            cursor.execute(sql, parameters)
            return named_rows(cursor)


class _SQLAlchemy(Joined):
    """On a Connection of SQLAlchemy: past its compiler, but not past its transaction."""

    @property
    def driver_connection(self) -> Any:
        return self.connection.connection.driver_connection

    def at_commit(self, bell: Bell) -> None:
        hang(bell, self.connection)

    def _rows(self, sql: str, parameters: dict[str, Any]) -> list[Any]:
        return fetched(self.connection.exec_driver_sql(sql, parameters or None))


class _Django(Joined):
    """On a DatabaseWrapper of Django."""

    @property
    def driver_connection(self) -> Any:
        self.connection.ensure_connection()
        return self.connection.connection

    def at_commit(self, bell: Bell) -> None:
        # All enqueues up to the next ring share one ticket: the first hook that runs rings for
        # those of its transaction, and the hooks of what was rolled back never run.
        tickets = vars(self.connection).setdefault(_BELLS, {})
        ticket = tickets.setdefault(bell, object())

        def ring_once() -> None:
            if tickets.get(bell) is ticket:
                del tickets[bell]
                bell()

        transaction = sys.modules["django.db.transaction"]
        # Who commits by hand, outside atomic(), rings by hand.
        with contextlib.suppress(transaction.TransactionManagementError):
            transaction.on_commit(ring_once, using=self.connection.alias)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        with connecting():
            self.connection.ensure_connection()
        if self.connection.in_atomic_block or not self.connection.get_autocommit():
            yield
            return
        # Django must know of it, or what else uses the connection meanwhile fails.
        atomic = sys.modules["django.db.transaction"].atomic
        with translated_errors(), atomic(using=self.connection.alias):
            yield

    def _rows(self, sql: str, parameters: dict[str, Any]) -> list[Any]:
        with self.connection.cursor() as cursor:
            _read_aware_times(cursor.cursor)
            cursor.execute(sql, parameters or None)
            return named_rows(cursor)


def join(conn: Any, schema: str) -> Joined:
    """Return a session on the caller's connection.

    Raises:
        TypeError: it is of no kind that is known, is to be awaited, or leads to another database.
    """
    if isinstance(conn, psycopg2.extensions.connection):
        return Joined(conn, schema)
    if isinstance(conn, of("psycopg", "Connection")):
        return _Psycopg(conn, schema)
    if isinstance(conn, of("sqlalchemy.orm", "scoped_session")):
        conn = conn()
    if isinstance(conn, of("sqlalchemy.orm", "Session")):
        with connecting():
            conn = conn.connection()
    if isinstance(conn, of("sqlalchemy", "Connection")):
        check_dialect(conn)
        return _SQLAlchemy(conn, schema)
    if isinstance(conn, of("django.utils.connection", "ConnectionProxy")):
        conn = sys.modules["django.db"].connections[conn.alias]
    if isinstance(conn, of("django.db.backends.base.base", "BaseDatabaseWrapper")):
        if conn.vendor != "postgresql":
            raise TypeError(
                f"conn: Django's connection {conn.alias!r} leads to {conn.vendor}: it must be one "
                "to the PostgreSQL that holds the tasks (django.db.connections[alias])"
            )
        return _Django(conn, schema)
    if is_awaited(conn):
        raise TypeError(
            f"conn = {conn!r}: is to be awaited, and Client does not: use orchestrator.AsyncClient"
        )
    raise TypeError(f"conn = {conn!r}: must be {KINDS}")


@contextlib.contextmanager
def connecting() -> Iterator[None]:
    """Raise our errors while a library opens a connection: nothing has been sent on it."""
    try:
        with translated_errors():
            yield
    except DatabaseUnavailable as error:
        error.unknown = False
        raise


def of(module: str, name: str) -> Any:
    """Return a class of a library for `isinstance`; one of which nothing is, if not loaded."""
    return getattr(sys.modules.get(module), name, ())


def is_awaited(conn: Any) -> bool:
    """Return whether this is a connection that AsyncClient takes."""
    return isinstance(conn, of("psycopg", "AsyncConnection")) or any(
        isinstance(conn, of("sqlalchemy.ext.asyncio", name))
        for name in ("AsyncSession", "AsyncConnection", "async_scoped_session")
    )


def check_dialect(connection: Any) -> None:
    """Refuse an engine of SQLAlchemy that our statements cannot be run with.

    Raises:
        TypeError: of another database, or of a driver that takes other placeholders.
    """
    dialect = connection.dialect
    if dialect.name != "postgresql" or not dialect.driver.startswith("psycopg"):
        raise TypeError(
            f"conn: its engine is {dialect.name}+{dialect.driver}: it must be "
            "postgresql+psycopg2 or postgresql+psycopg, to the database that holds the tasks"
        )


def plain_cursor(kind: str, connection: Any) -> Any:
    """Return a Cursor or AsyncCursor of psycopg 3, whatever the connection makes by default."""
    psycopg = sys.modules["psycopg"]
    cursor = getattr(psycopg, kind)(connection, row_factory=psycopg.rows.tuple_row)
    _read_aware_times(cursor)
    return cursor


def _read_aware_times(cursor: Any) -> None:
    """Have a cursor give times with their zone; Django, for one, may drop it."""
    if hasattr(cursor, "adapters"):
        loader = sys.modules["psycopg.types.datetime"].TimestamptzLoader
        cursor.adapters.register_loader("timestamptz", loader)
    else:
        cursor.tzinfo_factory = timezone


def fetched(result: Any) -> list[Any]:
    """Return the rows of a result of SQLAlchemy as named tuples."""
    if not result.returns_rows:
        return []
    return named(result.keys(), result.all())


def hang(bell: Bell, connection: Any) -> None:
    """Ring a bell after the next commit of a Connection of SQLAlchemy, if no rollback comes first.

    Every commit and rollback of a transaction passes the dialect of the engine, that of a Session
    too; a savepoint does not.
    """
    connection.info.setdefault(_BELLS, set()).add(bell)
    dialect = connection.dialect
    if _BELLS in vars(dialect):
        return
    commit, rollback = dialect.do_commit, dialect.do_rollback

    def do_commit(pooled: Any) -> None:
        commit(pooled)
        for bell in _taken_bells(pooled):
            bell()

    def do_rollback(pooled: Any) -> None:
        _taken_bells(pooled)
        rollback(pooled)

    vars(dialect).update({_BELLS: True, "do_commit": do_commit, "do_rollback": do_rollback})


def _taken_bells(pooled: Any) -> set[Bell]:
    # A connection that is no pool's yet has no such dictionary.
    notes = pooled.info
    return notes.pop(_BELLS, set()) if isinstance(notes, dict) else set()
