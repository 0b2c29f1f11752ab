"""Errors and exit codes of `orchestratorctl`: one line on standard error, never a traceback.

  0  done
  1  what was asked for failed: no such task, not succeeded with --wait, unhealthy, the schema
  2  wrong use of the command line, or a payload or option that breaks a rule
 69  the database cannot be reached
 78  the configuration is wrong
130  interrupted by Ctrl-C; a verb for many tasks says how many are done
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import IO, Any, TypeVar

import click
import psycopg2

from orchestrator.errors import (
    ConfigError,
    DatabaseUnavailable,
    OrchestratorError,
    PayloadError,
)

T = TypeVar("T")
Key = TypeVar("Key")

EXIT_FAILED, EXIT_USAGE, EXIT_UNAVAILABLE, EXIT_CONFIGURATION, EXIT_INTERRUPTED = 1, 2, 69, 78, 130


class CommandFailed(click.ClickException):
    """Ends the command with a message and an exit code."""

    def __init__(self, message: str, exit_code: int = EXIT_FAILED) -> None:
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc]  # click reads the instance's

    def show(self, file: IO[Any] | None = None) -> None:
        click.echo(f"orchestratorctl: {self.message}", err=True, file=file)


class Group(click.Group):
    """A group whose commands' errors become messages and exit codes."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ConfigError as error:
            # All that is wrong, one line each.
            raise CommandFailed(str(error), EXIT_CONFIGURATION) from error
        except DatabaseUnavailable as error:
            lost = " (it may have been carried out)" if error.unknown else ""
            raise CommandFailed(_one_line(error) + lost, EXIT_UNAVAILABLE) from error
        except PayloadError as error:
            raise CommandFailed(_one_line(error), EXIT_USAGE) from error
        except (OrchestratorError, TimeoutError, psycopg2.Error) as error:
            raise CommandFailed(_one_line(error)) from error
        except KeyboardInterrupt as error:
            raise CommandFailed("interrupted", EXIT_INTERRUPTED) from error


class Failures:
    """The messages of those of several ids for which a command did not do what it was asked."""

    def __init__(self) -> None:
        self._messages: list[str] = []

    def add(self, message: str) -> None:
        self._messages.append(message)

    def raise_any(self) -> None:
        """End the command with exit code 1 if there are any, one line each."""
        if self._messages:
            for message in self._messages[:-1]:
                click.echo(f"orchestratorctl: {message}", err=True)
            raise CommandFailed(self._messages[-1])


def each(keys: Iterable[Key], operation: Callable[[Key], T]) -> tuple[list[T], Failures]:
    """Do something for each of several ids; the others go on when one fails."""
    done: list[T] = []
    failures = Failures()
    for key in keys:
        try:
            done.append(operation(key))
        except (ConfigError, DatabaseUnavailable):
            raise
        except OrchestratorError as error:
            failures.add(_one_line(error))
    return done, failures


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
