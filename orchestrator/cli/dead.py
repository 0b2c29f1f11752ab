"""`orchestratorctl dead ...`: the dead letter queue."""

from __future__ import annotations

from dataclasses import replace

import click

from orchestrator.cli import verbs
from orchestrator.cli.access import Access, output_option
from orchestrator.cli.bulk import Request, bulk_options, ids_argument, perform
from orchestrator.cli.filters import QUEUE, TYPE, filter_options
from orchestrator.cli.output import show
from orchestrator.cli.tasks import list_page
from orchestrator.store.dead import dead_summary
from orchestrator.store.tasks import Filters
from orchestrator.task import State

_DEAD = (State.DEAD,)


@click.group()
def dead() -> None:
    """Look at the dead letter queue, and put tasks back into line."""


@dead.command("list")
@filter_options(_DEAD)
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True)
@click.option("--before", type=int, metavar="ID", help="Go on after a page that ended with ID.")
@output_option
@click.pass_obj
def list_dead(
    access: Access, /, limit: int, before: int | None, filters: Filters, is_filtered: bool
) -> None:
    """List dead tasks, newest first."""
    list_page(access, filters, before=before, limit=limit, empty="no dead tasks")


@dead.command()
@click.option("--type", type=TYPE, help="Only tasks of this type; email: for all that begin so.")
@click.option("--queue", type=QUEUE, help="Only tasks of this queue.")
@output_option
@click.pass_obj
def summary(access: Access, type: str | None, queue: str | None) -> None:
    """Say of what tasks died: by type and error, the most frequent first.

    Errors that differ only in numbers, in words with numbers in them and in what stands in quotes
    are one. `sample` is the id of the newest of them.
    """
    found = [
        {
            "type": cause.type,
            "count": cause.n_tasks,
            "error": cause.error,
            "first_at": cause.first_at,
            "last_at": cause.last_at,
            "sample": cause.sample,
        }
        for cause in dead_summary(access.session, type=type, queue=queue)
    ]
    show(
        access.format,
        found,
        id="sample",
        columns=("type", "count", "error", "first_at", "last_at", "sample"),
        empty="no dead tasks",
    )


@dead.command()
@ids_argument
@click.option("--all", "is_all", is_flag=True, help="All that the filters let through; not asked.")
@filter_options(_DEAD)
@bulk_options
@output_option
@click.pass_obj
def redrive(
    access: Access,
    ids: tuple[int | str, ...],
    is_all: bool,
    filters: Filters,
    is_filtered: bool,
    request: Request,
) -> None:
    """Put dead tasks back into line, with new budgets; their attempts go on counting.

    What cannot be redriven is named, and the others are.
    """
    if is_all:
        request = replace(request, is_sure=True)
    perform(
        access, verbs.redrive(), request,
        ids=ids, filters=filters, is_filtered=is_filtered, is_all=is_all,
    )  # fmt: skip


@dead.command()
@ids_argument
@click.option("--all", "is_all", is_flag=True, help="Every dead task.")
@filter_options(_DEAD)
@bulk_options
@output_option
@click.pass_obj
def purge(
    access: Access,
    ids: tuple[int | str, ...],
    is_all: bool,
    filters: Filters,
    is_filtered: bool,
    request: Request,
) -> None:
    """Delete dead tasks with all that is known of them."""
    perform(
        access, verbs.delete(_DEAD), request,
        ids=ids, filters=filters, is_filtered=is_filtered, is_all=is_all,
    )  # fmt: skip
