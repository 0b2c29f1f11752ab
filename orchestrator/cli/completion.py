"""`orchestratorctl completion`: what a shell needs to complete our commands and names."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

_PROGRAM = "orchestratorctl"


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the completion of a shell.

    bash: eval "$(orchestratorctl completion bash)" in ~/.bashrc; zsh alike in ~/.zshrc; fish:
    orchestratorctl completion fish > ~/.config/fish/completions/orchestratorctl.fish
    """
    kind = get_completion_class(shell)
    if kind is None:
        raise click.UsageError(f"no completion for {shell}")
    root = context.find_root().command
    click.echo(kind(root, {}, _PROGRAM, f"_{_PROGRAM.upper()}_COMPLETE").source())
