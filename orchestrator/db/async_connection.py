"""Connections that are awaited: psycopg 3 in place of psycopg2, the same in all else.

An `AsyncSession` runs the functions of the store, which are written for a `Session`, by `call`. It
carries the parameters of libpq and translates the errors of `connection`. psycopg 3 is an extra
(`async`), so it is imported when the first AsyncClient is made.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import AsyncIterator, Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

from orchestrator.db.connection import (
    Session,
    connection_parameters,
    libpq_url,
    named,
    translated_errors,
    unreachable,
)
from orchestrator.db.joining import plain_cursor
from orchestrator.db.statements import statement
from orchestrator.errors import ConfigError

A = ParamSpec("A")
T = TypeVar("T")


class AsyncSession:
    """A connection of psycopg 3 that is awaited, in autocommit mode, bound to one schema."""

    def __init__(self, connection: Any, schema: str) -> None:
        self.connection = connection
        self.schema = schema

    async def call(
        self, function: Callable[Concatenate[Session, A], T], *args: A.args, **kwargs: A.kwargs
    ) -> T:
        """Run a function of the store and return its answer.

        The function is called until it has asked all: what it asks for stops it, is awaited, and
        is there when it is called again. So there is one function, for those who wait and for
        those who await.

        Raises:
            OrchestratorError: as `Session.all`.
        """
        answers: list[list[Any]] = []
        while True:
            try:
                return function(_Answered(self.schema, answers), *args, **kwargs)
            except _Asked as asked:
                with translated_errors(self.schema):
                    answers.append(
                        await self._rows(statement(asked.name, self.schema), asked.parameters)
                    )

    async def _rows(self, sql: str, parameters: dict[str, Any]) -> list[Any]:
        async with plain_cursor("AsyncCursor", self.connection) as cursor:
            await cursor.execute(sql, parameters)
            if cursor.description is None:
                return []
            return named((column[0] for column in cursor.description), await cursor.fetchall())

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[None]:
        """Make the calls inside one transaction; an exception rolls it back."""
        await self._command("BEGIN")
        try:
            yield
        except BaseException:
            # The connection may be what failed; who owns it closes it then.
            with contextlib.suppress(Exception):
                await self._command("ROLLBACK")
            raise
        await self._command("COMMIT")

    async def _command(self, sql: str) -> None:
        with translated_errors():
            await self._rows(sql, {})

    @property
    def is_closed(self) -> bool:
        return bool(self.connection.closed)

    @property
    def is_at_rest(self) -> bool:
        """True where no transaction is open."""
        return bool(self.connection.info.transaction_status == 0)

    def fileno(self) -> int:
        return int(self.connection.fileno())

    def close(self) -> None:
        """Close the connection, at once; never raises."""
        # As `AsyncConnection.close`, which awaits nothing, but cannot be called without a loop.
        self.connection.pgconn.finish()


class _Asked(Exception):
    """A function of the store asks for a statement to be run."""

    def __init__(self, name: str, parameters: dict[str, Any]) -> None:
        super().__init__(name)
        self.name = name
        self.parameters = parameters


class _Answered(Session):
    """Gives the answers that are there already, in their order; then asks."""

    def __init__(self, schema: str, answers: list[list[Any]]) -> None:
        super().__init__(None, schema)
        self._answers = iter(answers)

    def all(self, name: str, /, **parameters: Any) -> list[Any]:
        for answer in self._answers:
            return answer
        raise _Asked(name, parameters)


def require_psycopg() -> Any:
    """Import psycopg 3 and return it.

    Raises:
        ConfigError: it is not installed, or finds no libpq; with the remedy.
    """
    try:
        return importlib.import_module("psycopg")
    except ImportError as error:
        raise ConfigError(
            f"AsyncClient needs psycopg 3, which cannot be imported ({error}): "
            "pip install 'task-orchestrator[async]'"
        ) from error


async def connect(
    url: str, *, schema: str, application_name: str, connect_timeout: float = 5.0
) -> AsyncSession:
    """Open a session. Times are in seconds.

    Raises:
        DatabaseUnavailable: the server cannot be reached or refuses us.
    """
    psycopg = require_psycopg()
    parameters = connection_parameters(
        application_name=application_name, connect_timeout=connect_timeout
    )
    try:
        connection = await psycopg.AsyncConnection.connect(
            libpq_url(url),
            autocommit=True,
            # As psycopg2, which prepares nothing: a pooler may be in between.
            prepare_threshold=None,
            **parameters,
        )
    except psycopg.Error as error:
        raise unreachable(url, error) from error
    return AsyncSession(connection, schema)
