"""Connections: how they are opened, what they carry, and what their errors mean.

A `Session` is one psycopg2 connection bound to one schema. The store's functions run the
statements of `store/sql/` on it, by name; they neither commit nor reconnect. Who owns the session
decides what a lost connection means: `reconnecting` with jittered back-off is the processes' job.
"""

from __future__ import annotations

import contextlib
import random
from collections import namedtuple
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple

import psycopg2
import psycopg2.extensions
from psycopg2 import errorcodes

from orchestrator.config_rules import redacted
from orchestrator.db.statements import statement
from orchestrator.errors import (
    DatabaseUnavailable,
    IdempotencyConflict,
    NodeRefused,
    OrchestratorError,
    PayloadError,
    SchemaError,
)

# SQLSTATEs of our own functions (schema/*.sql).
_OURS: dict[str, type[OrchestratorError]] = {
    "OR001": NodeRefused,
    "OR002": PayloadError,
    "OR003": IdempotencyConflict,
}
# What PostgreSQL refuses about a value: class 22 (data), too deep, too large.
_VALUE_STATES = {"54001", "54000", "53400", "21000"}
# What a statement of ours meets in a database where the schema is missing or older.
_SCHEMA_STATES = {
    errorcodes.INVALID_SCHEMA_NAME,
    errorcodes.UNDEFINED_TABLE,
    errorcodes.UNDEFINED_FUNCTION,
    errorcodes.UNDEFINED_COLUMN,
}
# The time limit of a statement or of a wait for a lock.
_TIMEOUT_STATES = {errorcodes.QUERY_CANCELED, errorcodes.LOCK_NOT_AVAILABLE}
# What only a new connection cures: read-only after a failover, shutdown, cannot connect now.
_CONNECTION_STATES = {errorcodes.READ_ONLY_SQL_TRANSACTION, "57P01", "57P02", "57P03", "57P05"}


class StatementTimeout(DatabaseUnavailable):
    """A statement took longer than the session allows; it was rolled back."""


class Keepalives(NamedTuple):
    """TCP keepalives in seconds: a cut link is noticed after idle + interval * n_probes."""

    idle: int
    interval: int
    n_probes: int

    @property
    def total(self) -> int:
        return self.idle + self.interval * self.n_probes


# With psycopg2's defaults a cut link was still unnoticed after 60 s; with these it takes about 5 s.
SHORT_KEEPALIVES = Keepalives(2, 1, 3)


def libpq_url(url: str) -> str:
    """Return a DSN that libpq takes: `postgresql+driver://` loses its driver."""
    scheme, separator, rest = url.partition("://")
    return scheme.split("+")[0] + separator + rest if separator else url


class Session:
    """A connection in autocommit mode, bound to one schema; not thread-safe."""

    def __init__(self, connection: Any, schema: str) -> None:
        self.connection = connection
        self.schema = schema

    def all(self, name: str, /, **parameters: Any) -> list[Any]:
        """Run `store/sql/<name>.sql` and return its rows as named tuples.

        Raises:
            DatabaseUnavailable: the connection is gone; `unknown` tells that the statement may
                have been carried out.
            PayloadError: a value is refused by the database.
            NodeRefused, IdempotencyConflict: as the functions of the schema say.
            SchemaError: the schema is not installed.
        """
        with translated_errors(self.schema):
            return self._rows(statement(name, self.schema), parameters)

    def one(self, name: str, /, **parameters: Any) -> Any:
        """Like `all`, for statements of at most one row: that row, or None."""
        rows = self.all(name, **parameters)
        return rows[0] if rows else None

    def value(self, name: str, /, **parameters: Any) -> Any:
        """Like `one`: the first column of the row, or None."""
        row = self.one(name, **parameters)
        return row[0] if row is not None else None

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Make the statements inside one transaction; an exception rolls it back."""
        with translated_errors():
            self.connection.autocommit = False
        try:
            yield
        except BaseException:
            # The connection may be what failed; closing it rolls back as well.
            with contextlib.suppress(psycopg2.Error):
                self.connection.rollback()
                self.connection.autocommit = True
            raise
        with translated_errors():
            self.connection.commit()
            self.connection.autocommit = True

    def _rows(self, sql: str, parameters: dict[str, Any]) -> list[Any]:
        # A caller's connection may make rows of another kind by default.
        with self.connection.cursor(cursor_factory=psycopg2.extensions.cursor) as cursor:
            cursor.execute(sql, parameters)
            return named_rows(cursor)

    @property
    def is_closed(self) -> bool:
        return bool(self.connection.closed)

    def fileno(self) -> int:
        return int(self.connection.fileno())

    def close(self) -> None:
        """Close the connection; never raises."""
        with contextlib.suppress(psycopg2.Error):
            self.connection.close()


def named_rows(cursor: Any) -> list[Any]:
    """Return the rows of a cursor, whose rows are plain tuples, as named tuples."""
    if cursor.description is None:
        return []
    return named((column[0] for column in cursor.description), cursor.fetchall())


def named(columns: Iterable[str], rows: Iterable[Sequence[Any]]) -> list[Any]:
    """Return rows as named tuples."""
    row_type = _row_type(tuple(columns))
    return [row_type(*row) for row in rows]


@cache
def _row_type(columns: tuple[str, ...]) -> Any:
    return namedtuple("Row", columns, rename=True)


@contextlib.contextmanager
def translated_errors(schema: str | None = None) -> Iterator[None]:
    """Raise our errors in place of a driver's, with the cause kept.

    The driver is psycopg2 or psycopg 3, alone or below SQLAlchemy or Django. With `schema`, what
    shows that it is not installed is a SchemaError.
    """
    try:
        yield
    except Exception as error:
        ours = _translated(_driver_error(error), schema)
        if ours is None:
            raise
        raise ours from error


def _driver_error(error: Exception) -> BaseException:
    """Return the driver's own error: SQLAlchemy wraps it as `orig`, Django as the cause."""
    kind = type(error)
    if kind.__module__ == "sqlalchemy.exc":
        return getattr(error, "orig", None) or error
    if kind.__module__ == "django.db.utils":
        return error.__cause__ or error
    return error


def _translated(error: BaseException, schema: str | None) -> OrchestratorError | None:
    """Return our error for a driver's; None for what is none, or was not foreseen."""
    # Both drivers build the tree of PEP 249, each its own.
    kinds = {
        kind.__name__
        for kind in type(error).__mro__
        if kind.__module__.partition(".")[0] in ("psycopg2", "psycopg")
    }
    if "Error" not in kinds:
        return None
    state: str = getattr(error, "pgcode", None) or getattr(error, "sqlstate", None) or ""
    diagnosis = getattr(error, "diag", None)
    message = (getattr(diagnosis, "message_primary", None) or str(error)).strip()
    ours = _OURS.get(state)
    if ours is not None:
        return ours(message)
    if schema is not None and state in _SCHEMA_STATES:
        return SchemaError(
            f'schema "{schema}" is not installed in this database, or is older than this program: '
            f"run `orchestratorctl migrate` ({message})"
        )
    if state in _TIMEOUT_STATES:
        return StatementTimeout(message)
    # Class 40: a deadlock or a serialisation failure, rolled back; the whole call may be repeated.
    if state in _CONNECTION_STATES or state.startswith(("08", "40", "53", "58")):
        return DatabaseUnavailable(message)
    if state.startswith("22") or state in _VALUE_STATES:
        return PayloadError(f"the database refuses a value: {message}")
    is_link = bool(kinds & {"OperationalError", "InterfaceError"})
    if not state and (is_link or type(error).__name__ == "DatabaseError"):
        # No SQLSTATE: the link broke, perhaps after the statement was sent.
        return DatabaseUnavailable(message, unknown=True)
    return None


def connection_parameters(
    *,
    application_name: str,
    connect_timeout: float = 5.0,
    statement_timeout: float | None = None,
    client_keepalives: Keepalives = SHORT_KEEPALIVES,
    server_keepalives: Keepalives = SHORT_KEEPALIVES,
) -> dict[str, Any]:
    """Return what every connection of ours carries, as parameters of libpq. Times in seconds."""
    options = {
        "tcp_keepalives_idle": server_keepalives.idle,
        "tcp_keepalives_interval": server_keepalives.interval,
        "tcp_keepalives_count": server_keepalives.n_probes,
        "tcp_user_timeout": server_keepalives.total * 1000,
        "timezone": "UTC",
    }
    if statement_timeout is not None:
        options["statement_timeout"] = int(statement_timeout * 1000)
    return {
        "application_name": application_name,
        "connect_timeout": max(2, round(connect_timeout)),  # libpq takes 1 for 2
        "keepalives": 1,
        "keepalives_idle": client_keepalives.idle,
        "keepalives_interval": client_keepalives.interval,
        "keepalives_count": client_keepalives.n_probes,
        "tcp_user_timeout": client_keepalives.total * 1000,
        "options": " ".join(f"-c {name}={value}" for name, value in options.items()),
    }


def unreachable(url: str, error: Exception) -> DatabaseUnavailable:
    """Say that nothing could be done, since no connection came about."""
    return DatabaseUnavailable(f"cannot connect to {redacted(url)}: {str(error).strip()}")


def connect(
    url: str,
    *,
    schema: str,
    application_name: str,
    connect_timeout: float = 5.0,
    statement_timeout: float | None = None,
    client_keepalives: Keepalives = SHORT_KEEPALIVES,
    server_keepalives: Keepalives = SHORT_KEEPALIVES,
    kind: type[Any] | None = None,
) -> Session:
    """Open a session. Times are in seconds; `kind` is a class of connections, which
    decides about transactions itself; without it every statement is one.

    Raises:
        DatabaseUnavailable: the server cannot be reached or refuses us.
    """
    parameters = connection_parameters(
        application_name=application_name,
        connect_timeout=connect_timeout,
        statement_timeout=statement_timeout,
        client_keepalives=client_keepalives,
        server_keepalives=server_keepalives,
    )
    try:
        connection = psycopg2.connect(libpq_url(url), connection_factory=kind, **parameters)
    except psycopg2.Error as error:
        raise unreachable(url, error) from error
    if kind is None:
        connection.autocommit = True
    return Session(connection, schema)


class Backoff:
    """The pauses between tries to connect: full jitter, 50 ms doubling to `cap` seconds."""

    def __init__(self, cap: float = 1.0) -> None:
        self.cap = cap
        self.tries = 0

    def next(self) -> float:
        """Return the seconds to wait before the next try."""
        self.tries += 1
        return random.uniform(0.02, min(self.cap, 0.05 * 2.0 ** min(self.tries, 16)))

    def reset(self) -> None:
        self.tries = 0
