"""`orchestratorctl handlers`: the task types that are served, and with which options."""

from __future__ import annotations

import click
import msgspec

from orchestrator import loading
from orchestrator.cli.access import Access, output_option
from orchestrator.cli.output import show
from orchestrator.store.workers import nodes


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
