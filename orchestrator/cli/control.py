"""orchestratorctl: enqueue, look, cancel, redrive, migrate. One file of this folder per group.

Works on the database alone, whether a daemon runs or not. What is printed is `output`'s, errors
and exit codes are `failures`'.
"""

from __future__ import annotations

import click

from orchestrator import __version__
from orchestrator.cli.access import Access, output_option
from orchestrator.cli.dead import dead
from orchestrator.cli.failures import Group
from orchestrator.cli.health import health
from orchestrator.cli.nodes import handlers, leader, queue, stats, worker
from orchestrator.cli.schema import migrate
from orchestrator.cli.tasks import enqueue, task


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "-c",
    "--config",
    "path",
    metavar="FILE",
    help="The configuration. Without it: $ORCHESTRATOR_CONFIG, ./orchestrator.toml, "
    "./conf/orchestrator.toml, /etc/orchestrator/orchestrator.toml, else the defaults.",
)
@output_option
@click.version_option(__version__, prog_name="orchestratorctl", message="%(prog)s %(version)s")
@click.pass_context
def main(context: click.Context, path: str | None) -> None:
    """Enqueue tasks, look at them, and look after the database of an orchestrator.

    Exit codes: 0 done, 1 what was asked for failed, 2 usage, 69 database not available,
    78 configuration error.
    """
    context.obj = Access(context, path)


for command in (
    enqueue, task, dead, queue, worker, handlers, leader, stats, migrate, health
):  # fmt: skip
    main.add_command(command)


if __name__ == "__main__":
    main(prog_name="orchestratorctl")
