"""`orchestratorctl type ...`: task types, and whether they are run."""

from __future__ import annotations

from typing import Any

import click

from orchestrator.cli.access import Access, output_option
from orchestrator.cli.failures import Failures
from orchestrator.cli.filters import TYPE
from orchestrator.cli.output import show
from orchestrator.options import match
from orchestrator.store.pause import pause_types, resume_types
from orchestrator.store.types import types


@click.group("type")
def task_type() -> None:
    """Look at task types, and pause them."""


@task_type.command("list")
@output_option
@click.pass_obj
def list_types(access: Access) -> None:
    """List the task types, their tasks by state, and the nodes that have a handler for them."""
    _show(access, _found(access))


@task_type.command()
@click.argument("names", nargs=-1, required=True, type=TYPE, metavar="NAME...")
@output_option
@click.pass_obj
def pause(access: Access, names: tuple[str, ...]) -> None:
    """Stop running task types; `email:` pauses all that begin so.

    What runs goes on. What is ready stays so until a worker meets it, and is held from then on.
    """
    _show_changed(access, names, pause_types(access.session, patterns=names))


@task_type.command()
@click.argument("names", nargs=-1, required=True, type=TYPE, metavar="NAME...")
@output_option
@click.pass_obj
def resume(access: Access, names: tuple[str, ...]) -> None:
    """Run task types again; what was held goes back to its place in line."""
    _show_changed(access, names, resume_types(access.session, patterns=names))


def _found(access: Access) -> list[dict[str, Any]]:
    return [entry._asdict() for entry in types(access.session, alive_within=access.alive_within)]


def _show(access: Access, found: list[dict[str, Any]]) -> None:
    shown = [{"name": entry.pop("type"), **entry} for entry in found]
    columns = ("name", "is_paused", "ready", "scheduled", "held", "running", "succeeded",
               "cancelled", "expired", "dead", "served_by")  # fmt: skip
    show(access.format, shown, id="name", columns=columns, empty="no tasks yet")


def _show_changed(access: Access, names: tuple[str, ...], changed: list[str]) -> None:
    if changed:
        _show(access, [entry for entry in _found(access) if entry["type"] in changed])
    failures = Failures()
    for name in names:
        if not any(match([name], type) for type in changed):
            failures.add(f"there is no task type {name!r}: the first enqueue of one makes it")
    failures.raise_any()
