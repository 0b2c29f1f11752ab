"""`orchestratorctl stats`: how many tasks of each type are in which state."""

from __future__ import annotations

import sys
import time
from datetime import UTC, datetime

import click

from orchestrator.cli.access import Access, output_option
from orchestrator.cli.filters import SECONDS
from orchestrator.cli.output import Format, show
from orchestrator.store.types import types

_COLUMNS = ("type", "enqueued", "ready", "scheduled", "held", "running", "succeeded", "cancelled",
            "expired", "dead")  # fmt: skip


@click.command()
@click.option(
    "--watch",
    type=SECONDS,
    is_flag=False,
    flag_value="2",
    metavar="[SECONDS]",
    help="Again every 2 s, or as often as said, until Ctrl-C.",
)
@output_option
@click.pass_obj
def stats(access: Access, watch: float | None) -> None:
    """Count the tasks of each type by state.

    `enqueued` counts all that ever were; the other numbers are of tasks that are still kept.
    """
    if watch is None:
        _show(access)
        return
    try:
        while True:
            _begin(access)
            _show(access)
            sys.stdout.flush()
            time.sleep(max(0.1, watch))
    except KeyboardInterrupt:
        # That is how it ends.
        return


def _begin(access: Access) -> None:
    if sys.stdout.isatty():
        click.clear()
    if access.format is Format.TABLE:
        click.echo(f"{datetime.now(UTC):%Y-%m-%d %H:%M:%SZ}")


def _show(access: Access) -> None:
    found = [entry._asdict() for entry in types(access.session, alive_within=access.alive_within)]
    if access.format is Format.TABLE and len(found) > 1:
        totals = {name: sum(entry[name] for entry in found) for name in _COLUMNS[1:]}
        found.append({"type": "(all)", **totals})
    show(access.format, found, id="type", columns=_COLUMNS, empty="no tasks yet")
