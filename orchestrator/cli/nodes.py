"""`orchestratorctl worker list` and `leader`: who does what."""

from __future__ import annotations

import click

from orchestrator.cli.access import Access, output_option
from orchestrator.cli.output import Format, cell, show, show_fields, show_json
from orchestrator.store.workers import leader as leader_of
from orchestrator.store.workers import workers


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
