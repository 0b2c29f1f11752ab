"""Connections: how they are opened, what they carry, and what their errors mean.

A `Session` is one psycopg2 connection bound to one schema. The store's functions run the
statements of `store/sql/` on it, by name; they neither commit nor reconnect. Who owns the session
decides what a lost connection means: `reconnecting` with jittered back-off is the processes' job.
"""

from __future__ import annotations

import contextlib
import random
from collections import namedtuple
from collections.abc import Iterator
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
        # A caller's connection may make rows of another kind by default.
        plain = psycopg2.extensions.cursor
        try:
            with translated_errors(), self.connection.cursor(cursor_factory=plain) as cursor:
                cursor.execute(statement(name, self.schema), parameters)
                return _rows(cursor)
        except psycopg2.Error as error:
            if error.pgcode in _SCHEMA_STATES:
                raise SchemaError(
                    f'schema "{self.schema}" is not installed in this database, or is older than '
                    f"this program: run `orchestratorctl migrate` ({error.diag.message_primary})"
                ) from error
            raise

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

    @property
    def is_closed(self) -> bool:
        return bool(self.connection.closed)

    def fileno(self) -> int:
        return int(self.connection.fileno())

    def close(self) -> None:
        """Close the connection; never raises."""
        with contextlib.suppress(psycopg2.Error):
            self.connection.close()


def _rows(cursor: Any) -> list[Any]:
    if cursor.description is None:
        return []
    row_type = _row_type(tuple(column[0] for column in cursor.description))
    return [row_type(*row) for row in cursor.fetchall()]


@cache
def _row_type(columns: tuple[str, ...]) -> Any:
    return namedtuple("Row", columns, rename=True)


@contextlib.contextmanager
def translated_errors() -> Iterator[None]:
    """Raise our errors in place of psycopg2's, with the cause kept."""
    try:
        yield
    except psycopg2.Error as error:
        raise _translated(error) from error


def _translated(error: psycopg2.Error) -> Exception:
    state: str = error.pgcode or ""
    message = (error.diag.message_primary or str(error)).strip()
    ours = _OURS.get(state)
    if ours is not None:
        return ours(message)
    if state in _TIMEOUT_STATES:
        return StatementTimeout(message)
    # Class 40: a deadlock or a serialisation failure, rolled back; the whole call may be repeated.
    if state in _CONNECTION_STATES or state.startswith(("08", "40", "53", "58")):
        return DatabaseUnavailable(message)
    if state.startswith("22") or state in _VALUE_STATES:
        return PayloadError(f"the database refuses a value: {message}")
    is_link = isinstance(error, psycopg2.OperationalError | psycopg2.InterfaceError)
    if not state and (is_link or type(error) is psycopg2.DatabaseError):
        # No SQLSTATE: the link broke, perhaps after the statement was sent.
        return DatabaseUnavailable(message, unknown=True)
    unforeseen: Exception = error
    return unforeseen


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
    options = {
        "tcp_keepalives_idle": server_keepalives.idle,
        "tcp_keepalives_interval": server_keepalives.interval,
        "tcp_keepalives_count": server_keepalives.n_probes,
        "tcp_user_timeout": server_keepalives.total * 1000,
        "timezone": "UTC",
    }
    if statement_timeout is not None:
        options["statement_timeout"] = int(statement_timeout * 1000)
    try:
        connection = psycopg2.connect(
            libpq_url(url),
            connection_factory=kind,
            application_name=application_name,
            connect_timeout=max(2, round(connect_timeout)),  # libpq takes 1 for 2
            keepalives=1,
            keepalives_idle=client_keepalives.idle,
            keepalives_interval=client_keepalives.interval,
            keepalives_count=client_keepalives.n_probes,
            tcp_user_timeout=client_keepalives.total * 1000,
            options=" ".join(f"-c {name}={value}" for name, value in options.items()),
        )
    except psycopg2.Error as error:
        raise DatabaseUnavailable(
            f"cannot connect to {redacted(url)}: {str(error).strip()}"
        ) from error
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
