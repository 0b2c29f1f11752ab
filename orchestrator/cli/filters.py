"""Which tasks: the options that lists and the verbs for many tasks share."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

from orchestrator.cli.access import Access
from orchestrator.durations import seconds
from orchestrator.errors import OrchestratorError
from orchestrator.store.tasks import Filters
from orchestrator.task import State

F = TypeVar("F", bound=Callable[..., Any])


class Duration(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.4
    """A duration as everywhere, in seconds."""

    name = "duration"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        try:
            return seconds(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class Seconds(Duration):
    """A duration, or a plain number of seconds."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        is_number = isinstance(value, str) and value.replace(".", "", 1).isdecimal()
        return super().convert(float(value) if is_number else value, param, ctx)


class Name(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.4
    """The name of a task type or a queue; the shell completes those that the database has."""

    def __init__(self, of: str) -> None:
        self.name = of

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return str(value)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        root = ctx.find_root()
        access = Access(root, root.params.get("path"))
        try:
            names = access.names(self.name)
        except OrchestratorError:
            # Without a database nothing is completed; the command itself will say why.
            return []
        return [CompletionItem(name) for name in names if name.startswith(incomplete)]


DURATION, SECONDS = Duration(), Seconds()
TYPE, QUEUE = Name("type"), Name("queue")


def filter_options(states: Sequence[State]) -> Callable[[F], F]:
    """Give a command the options that say which tasks, and their sum as `filters`.

    `states` are those that the command is about, and what `filters` names without `--state`; all
    of them stand for any.
    """

    def decorate(command: F) -> F:
        @functools.wraps(command)
        def with_filters(*args: Any, **options: Any) -> Any:
            given = [State(name) for name in options.pop("states", ())]
            default = None if len(states) == len(State) else states
            named = {name: options.pop(name) for name in _NAMED}
            is_filtered = bool(given) or any(value is not None for value in named.values())
            filters = Filters(states=given or default, **named)
            return command(*args, filters=filters, is_filtered=is_filtered, **options)

        decorated: Any = with_filters
        for option in _options(states):
            decorated = option(decorated)
        return decorated  # type: ignore[no-any-return]

    return decorate


_NAMED = ("type", "queue", "tag", "older_than", "newer_than", "error")


def _options(states: Sequence[State]) -> list[Callable[[Any], Any]]:
    options = [
        click.option("--error", metavar="TEXT", help="Only where this is part of the error."),
        click.option(
            "--newer-than", type=DURATION, metavar="DURATION", help="Only created since: 15m, 7d."
        ),
        click.option(
            "--older-than", type=DURATION, metavar="DURATION", help="Only created before that."
        ),
        click.option("--tag", help="Only tasks with this tag."),
        click.option("--queue", type=QUEUE, help="Only tasks of this queue."),
        click.option(
            "--type", type=TYPE, help="Only tasks of this type; email: for all that begin so."
        ),
    ]
    if len(states) > 1:
        options.append(
            click.option(
                "--state",
                "states",
                multiple=True,
                type=click.Choice([str(state) for state in states]),
                help="Only tasks in this state; may be repeated.",
            )
        )
    return options
