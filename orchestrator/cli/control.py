"""orchestratorctl: enqueue, look, cancel, redrive, migrate. One file of this folder per group.

Works on the database alone, whether a daemon runs or not. What is printed is `output`'s, errors
and exit codes are `failures`'. A command's file is imported when the command is called: what the
others need would be a quarter of the time that a list takes.
"""

from __future__ import annotations

import importlib
from typing import Any

import click

from orchestrator import __version__
from orchestrator.cli.access import Access, output_option
from orchestrator.cli.failures import Group

# Command -> file of this folder, and the name in it where that is another.
_COMMANDS = {
    "enqueue": "enqueue",
    "task": "tasks",
    "dead": "dead",
    "queue": "queues",
    "type": "types:task_type",
    "worker": "nodes",
    "handlers": "handlers",
    "leader": "nodes",
    "stats": "stats",
    "migrate": "schema",
    "health": "health",
    "completion": "completion",
}


class _Commands(Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        place = _COMMANDS.get(cmd_name)
        if place is None:
            return None
        file, _, name = place.partition(":")
        module = importlib.import_module(f"orchestrator.cli.{file}")
        command: Any = getattr(module, name or cmd_name)
        return command  # type: ignore[no-any-return]


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
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
    78 configuration error, 130 interrupted.
    """
    context.obj = Access(context, path)


if __name__ == "__main__":
    main(prog_name="orchestratorctl")
