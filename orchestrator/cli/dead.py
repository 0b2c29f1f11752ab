"""`orchestratorctl dead ...`: the dead letter queue."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import click

from orchestrator.cli.access import Access, output_option
from orchestrator.cli.failures import each
from orchestrator.cli.output import Format
from orchestrator.cli.tasks import show_tasks
from orchestrator.store import tasks as stored
from orchestrator.store.dead import dead as dead_ids
from orchestrator.task import State, Task

_BATCH = 500


@click.group()
def dead() -> None:
    """Look at the dead letter queue and put tasks back into line."""


@dead.command("list")
@click.option("--type", help="Only tasks of this type.")
@click.option("--queue", help="Only tasks of this queue.")
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True)
@click.option("--before", type=int, metavar="ID", help="Go on after a page that ended with ID.")
@output_option
@click.pass_obj
def list_dead(access: Access, /, limit: int, **filters: Any) -> None:
    """List dead tasks, newest first."""
    found = stored.page(
        access.session,
        states=[State.DEAD],
        limit=limit,
        with_attempts=access.format is Format.JSON,
        **filters,
    )
    show_tasks(access, found, empty="no dead tasks")


@dead.command("redrive")
@click.argument("ids", nargs=-1, type=int, metavar="[ID...]")
@click.option(
    "--all", "is_all", is_flag=True, help="All dead tasks; with --type or --queue, of those."
)
@click.option("--type", help="With --all: only tasks of this type.")
@click.option("--queue", help="With --all: only tasks of this queue.")
@click.option("--limit", type=click.IntRange(1), help="With --all: at most so many, oldest first.")
@output_option
@click.pass_obj
def redrive(
    access: Access,
    ids: tuple[int, ...],
    is_all: bool,
    type: str | None,
    queue: str | None,
    limit: int | None,
) -> None:
    """Put dead tasks back into line, with new budgets; their attempts go on counting.

    Each by itself: what cannot be redriven is named, and the others are.
    """
    if bool(ids) == is_all:
        raise click.UsageError("give the IDs of dead tasks, or --all")
    if not is_all and (type or queue or limit):
        raise click.UsageError("--type, --queue and --limit need --all")
    chosen = islice(_dead(access, type, queue), limit) if is_all else iter(ids)
    done: list[Task[Any]]
    done, failures = each(chosen, access.client.redrive)
    show_tasks(access, done, empty="no such dead tasks" if is_all else "")
    failures.raise_any()


def _dead(access: Access, type: str | None, queue: str | None) -> Iterator[int]:
    after = 0
    while ids := dead_ids(access.session, type=type, queue=queue, after=after, limit=_BATCH):
        yield from ids
        after = ids[-1]
