"""`orchestratorctl queue list`, `worker list`, `handlers`, `leader`, `stats`: who does what."""

from __future__ import annotations

from typing import Any

import click
import msgspec

from orchestrator import loading
from orchestrator.cli.access import Access, output_option
from orchestrator.cli.output import Format, cell, show, show_fields, show_json
from orchestrator.store.queues import queues
from orchestrator.store.types import types
from orchestrator.store.workers import leader as leader_of
from orchestrator.store.workers import nodes, workers


@click.group()
def queue() -> None:
    """Look at queues."""


@queue.command("list")
@output_option
@click.pass_obj
def list_queues(access: Access) -> None:
    """List the queues, what waits in them, and who serves them."""
    found = [entry._asdict() for entry in queues(access.session, alive_within=access.alive_within)]
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


@click.group()
def worker() -> None:
    """Look at workers."""


@worker.command("list")
@output_option
@click.pass_obj
def list_workers(access: Access) -> None:
    """List the workers of all running nodes and what they do."""
    found = workers(access.session, alive_within=access.alive_within)
    show(
        access.format,
        [entry._asdict() for entry in found],
        id=lambda entry: f"{entry['node']}/{entry['slot']}",
        columns=("node", "slot", "pid", "state", "task", "type", "attempt", "seconds"),
        empty="no node is running",
    )


@click.command()
@click.option("--load", is_flag=True, help="Load the modules of [handlers] here, and show options.")
@output_option
@click.pass_obj
def handlers(access: Access, load: bool) -> None:
    """List the patterns of task types that running nodes serve.

    With --load: those of the configured modules, without asking the database.
    """
    if load:
        mux = loading.load(access.settings.handlers, access.settings.base_directory)
        policies = mux.policies(access.settings.defaults.policy())
        found = [
            {"pattern": pattern, **msgspec.structs.asdict(policy)}
            for pattern, policy in sorted(policies.items())
        ]
        columns = ("pattern", "max_attempts", "backoff_base", "backoff_cap", "timeout",
                   "max_crashes", "max_losses")  # fmt: skip
        show(access.format, found, id="pattern", columns=columns, empty="no handlers")
        return
    alive = nodes(access.session, alive_within=access.alive_within)
    served: dict[str, list[str]] = {}
    for node in alive:
        for pattern in node.handlers:
            served.setdefault(pattern, []).append(node.name)
    show(
        access.format,
        [{"pattern": pattern, "nodes": names} for pattern, names in sorted(served.items())],
        id="pattern",
        columns=("pattern", "nodes"),
        empty="no running node serves any task type" if alive else "no node is running",
    )


@click.command()
@output_option
@click.pass_obj
def leader(access: Access) -> None:
    """Show which node leads."""
    found = leader_of(access.session)
    shape = {
        "is_held": found.is_held,
        "node": found.node if found.is_held else None,
        "node_id": found.node_id if found.is_held else None,
        "term": found.term,
        "acquired_at": found.acquired_at,
        "renewed_at": found.renewed_at,
        "renewed_seconds": found.renewed_seconds,
    }
    if access.format is Format.JSON:
        show_json(shape)
    elif not found.is_held:
        click.echo("nobody leads", err=True)
    elif access.format is Format.IDS:
        click.echo(str(found.node_id))
    else:
        show_fields(
            (name.replace("_", " "), cell(name, value))
            for name, value in shape.items()
            if name not in ("is_held", "renewed_at")
        )


@click.command()
@output_option
@click.pass_obj
def stats(access: Access) -> None:
    """Count the tasks of each type by state.

    `enqueued` counts all that ever were, as far as the leader has counted; the other numbers are
    of tasks that are still kept.
    """
    found = [entry._asdict() for entry in types(access.session)]
    columns = ("type", "enqueued", "ready", "scheduled", "held", "running", "succeeded",
               "cancelled", "expired", "dead")  # fmt: skip
    if access.format is Format.TABLE and len(found) > 1:
        totals = {name: sum(entry[name] for entry in found) for name in columns[1:]}
        found.append({"type": "(all)", **totals})
    show(access.format, found, id="type", columns=columns, empty="no tasks yet")
