"""`orchestratorctl queue ...`: what waits in each, and whether it is claimed from."""

from __future__ import annotations

from typing import Any

import click

from orchestrator.cli import verbs
from orchestrator.cli.access import Access, output_option
from orchestrator.cli.bulk import Request, bulk_options, perform
from orchestrator.cli.failures import Failures
from orchestrator.cli.filters import QUEUE
from orchestrator.cli.output import Format, show
from orchestrator.store.pause import pause_queues, resume_queues
from orchestrator.store.queues import queues
from orchestrator.store.tasks import Filters


@click.group()
def queue() -> None:
    """Look at queues, pause and empty them."""


@queue.command("list")
@output_option
@click.pass_obj
def list_queues(access: Access) -> None:
    """List the queues, what waits in them, and who serves them."""
    _show(access, _found(access))


@queue.command()
@click.argument("names", nargs=-1, required=True, type=QUEUE, metavar="NAME...")
@output_option
@click.pass_obj
def pause(access: Access, names: tuple[str, ...]) -> None:
    """Stop claiming from queues. What runs goes on; what waits stays ready."""
    _show_changed(access, names, pause_queues(access.session, names=names))


@queue.command()
@click.argument("names", nargs=-1, required=True, type=QUEUE, metavar="NAME...")
@output_option
@click.pass_obj
def resume(access: Access, names: tuple[str, ...]) -> None:
    """Claim from queues again."""
    _show_changed(access, names, resume_queues(access.session, names=names))


@queue.command()
@click.argument("name", type=QUEUE)
@bulk_options
@output_option
@click.pass_obj
def purge(access: Access, name: str, request: Request) -> None:
    """Delete the tasks that wait in a queue: ready, scheduled and held ones."""
    filters = Filters(states=verbs.WAITING, queue=name)
    perform(access, verbs.delete(verbs.WAITING), request, filters=filters, is_filtered=True)


def _found(access: Access) -> list[dict[str, Any]]:
    return [entry._asdict() for entry in queues(access.session, alive_within=access.alive_within)]


def _show(access: Access, found: list[dict[str, Any]]) -> None:
    show(
        access.format,
        found,
        id="name",
        columns=("name", "is_paused", "ready", "scheduled", "held", "running", "dead",
                 "oldest_seconds", "served_by"),
        empty="no queues yet: the first enqueue makes one",
    )  # fmt: skip
    for entry in found:
        if access.format is Format.TABLE and not entry["served_by"] and _waiting(entry):
            click.echo(f"note: no running node serves queue {entry['name']!r}", err=True)


def _waiting(entry: dict[str, Any]) -> int:
    return int(entry["ready"] + entry["scheduled"] + entry["held"])


def _show_changed(access: Access, names: tuple[str, ...], changed: list[str]) -> None:
    if changed:
        _show(access, [entry for entry in _found(access) if entry["name"] in changed])
    failures = Failures()
    for name in names:
        if name not in changed:
            failures.add(f"there is no queue {name!r}: the first enqueue to it makes it")
    failures.raise_any()
