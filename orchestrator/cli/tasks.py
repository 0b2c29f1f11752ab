"""`orchestratorctl task ...`."""

from __future__ import annotations

from typing import Any

import click

from orchestrator.cli import verbs
from orchestrator.cli.access import Access, output_option
from orchestrator.cli.bulk import Request, bulk_options, ids_argument, perform
from orchestrator.cli.failures import each
from orchestrator.cli.filters import filter_options
from orchestrator.cli.output import Format, show_json, show_task, show_tasks, task_json
from orchestrator.store import tasks as stored
from orchestrator.store.tasks import Filters
from orchestrator.task import State, Task


@click.group()
def task() -> None:
    """Look at tasks; cancel, redrive and delete them."""


@task.command("list")
@filter_options(tuple(State))
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True)
@click.option("--before", type=int, metavar="ID", help="Go on after a page that ended with ID.")
@output_option
@click.pass_obj
def list_tasks(
    access: Access, /, limit: int, before: int | None, filters: Filters, is_filtered: bool
) -> None:
    """List tasks, newest first."""
    list_page(access, filters, before=before, limit=limit, empty="no such tasks")


def list_page(
    access: Access, filters: Filters, *, before: int | None, limit: int, empty: str
) -> None:
    """Print one page of tasks."""
    found = stored.page(
        access.session,
        filters,
        before=before,
        limit=limit,
        with_attempts=access.format is Format.JSON,
    )
    show_tasks(access.format, [task_json(task) for task in found], empty=empty)


@task.command("show")
@click.argument("ids", nargs=-1, required=True, type=int, metavar="ID...")
@output_option
@click.pass_obj
def show_command(access: Access, ids: tuple[int, ...]) -> None:
    """Show tasks with their payload, result, progress and attempts.

    JSON is an object for one ID and a list for several.
    """
    found: list[Task[Any]]
    found, failures = each(ids, access.client.get)
    if access.format is Format.JSON:
        shapes = [task_json(task) for task in found]
        if shapes:
            show_json(shapes[0] if len(ids) == 1 else shapes)
    elif access.format is Format.IDS:
        show_tasks(access.format, [task_json(task) for task in found], empty="")
    else:
        for number, task in enumerate(found):
            if number:
                click.echo()
            show_task(task)
    failures.raise_any()


@task.command()
@ids_argument
@filter_options(verbs.ALIVE)
@bulk_options
@output_option
@click.pass_obj
def cancel(
    access: Access,
    ids: tuple[int | str, ...],
    filters: Filters,
    is_filtered: bool,
    request: Request,
) -> None:
    """Cancel tasks, by ID or by filters.

    Waiting ones are cancelled at once. A running one is flagged and ends as cancelled, unless it
    succeeds first.
    """
    verb = verbs.cancel(filters.states or verbs.ALIVE)
    perform(access, verb, request, ids=ids, filters=filters, is_filtered=is_filtered)


@task.command()
@ids_argument
@filter_options([State.DEAD])
@bulk_options
@output_option
@click.pass_obj
def redrive(
    access: Access,
    ids: tuple[int | str, ...],
    filters: Filters,
    is_filtered: bool,
    request: Request,
) -> None:
    """Put dead tasks back into line, by ID or by filters.

    They get new budgets; their attempts go on counting. What cannot be redriven is named, and the
    others are.
    """
    perform(access, verbs.redrive(), request, ids=ids, filters=filters, is_filtered=is_filtered)


@task.command()
@ids_argument
@filter_options(verbs.DELETABLE)
@bulk_options
@output_option
@click.pass_obj
def delete(
    access: Access,
    ids: tuple[int | str, ...],
    filters: Filters,
    is_filtered: bool,
    request: Request,
) -> None:
    """Delete tasks with all that is known of them, by ID or by filters.

    Running ones are refused: cancel them first. Nothing brings a deleted task back.
    """
    verb = verbs.delete(filters.states or verbs.DELETABLE)
    perform(access, verb, request, ids=ids, filters=filters, is_filtered=is_filtered)
