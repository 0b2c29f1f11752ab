"""What a command works on: settings, database, client; opened when first used.

With `url = "embedded"` and no daemon, the embedded server runs for as long as the command does.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import click

from orchestrator import config
from orchestrator.cli.output import Format
from orchestrator.config import Settings
from orchestrator.db.connection import Session, connect, translated_errors
from orchestrator.db.statements import quoted
from orchestrator.errors import ConfigError

if TYPE_CHECKING:
    from orchestrator.client import Client

F = TypeVar("F", bound=Callable[..., Any])

_FORMAT = f"{__name__}.format"


class Access:
    """The settings and connections of one invocation; closed with its click context."""

    def __init__(self, context: click.Context, path: str | None) -> None:
        self._context = context
        self._path = path

    @property
    def format(self) -> Format:
        return Format(self._context.meta.get(_FORMAT, Format.TABLE))

    @cached_property
    def settings(self) -> Settings:
        return config.load(self._path)

    @cached_property
    def url(self) -> str:
        """The URL of a server that takes connections."""
        if not self.settings.database.is_embedded:
            return self.settings.database.url
        # It needs what only Unix has; a database elsewhere is reached from everywhere.
        from orchestrator.db import embedded

        return self._context.with_resource(embedded.serving(self.settings))

    @cached_property
    def ready_url(self) -> str:
        """Like `url`; the embedded database, which is nobody else's, has its schema by then."""
        if self.settings.database.is_embedded:
            from orchestrator.db.migrate import migrate

            migrate(self.direct_session)
        return self.url

    @cached_property
    def session(self) -> Session:
        return self._connect(self.ready_url)

    @cached_property
    def direct_session(self) -> Session:
        """A session that passes by a pooler, where one is in the way."""
        return self._connect(self.settings.database.direct_url or self.url)

    @cached_property
    def client(self) -> Client:
        # A fifth of the time that a list takes, and lists need none.
        from orchestrator.client import Client

        database = self.settings.database
        client = Client(
            self.ready_url,
            schema=database.schema,
            connect_timeout=database.connect_timeout,
            pool_size=1,
        )
        return self._context.with_resource(client)

    @property
    def alive_within(self) -> float:
        """The seconds of silence after which a node no longer counts."""
        return self.settings.node.worker_timeout

    def names(self, table: str) -> list[str]:
        """Return what is interned in `type` or `queue`, of a database that runs already.

        Raises:
            OrchestratorError: the settings are wrong, or the database cannot be reached.
        """
        if self.settings.database.is_embedded:
            # Nobody waits for a server to start while he types.
            raise ConfigError('[database] url = "embedded": not started for this')
        session = self._connect(self.url)
        place = f"{quoted(session.schema)}.{quoted(table)}"
        with translated_errors(), session.connection.cursor() as cursor:
            cursor.execute(f"select name from {place} order by name")
            return [str(name) for (name,) in cursor.fetchall()]

    def _connect(self, url: str) -> Session:
        database = self.settings.database
        session = connect(
            url,
            schema=database.schema,
            application_name="orchestratorctl",
            connect_timeout=database.connect_timeout,
        )
        self._context.call_on_close(session.close)
        return session


def _set_format(context: click.Context, _: click.Parameter, value: str | None) -> None:
    if value is not None:
        # Shared by a context and those below it.
        context.meta[_FORMAT] = value


def output_option(command: F) -> F:
    """Give a command `-o`; behind the command it wins over the one before it."""
    return click.option(
        "-o",
        "--output",
        type=click.Choice([str(format) for format in Format]),
        callback=_set_format,
        expose_value=False,
        help="How to print: a table (default), JSON, or one id per line.",
    )(command)
