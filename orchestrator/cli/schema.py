"""`orchestratorctl migrate`: bring the schema up to date, check it, or print the SQL."""

from __future__ import annotations

import click

from orchestrator.cli.access import Access
from orchestrator.db import migrate as schema


@click.command()
@click.option("--check", is_flag=True, help="Change nothing; exit code 1 if something is to do.")
@click.option("--print-sql", is_flag=True, help="Print the SQL that would install the schema.")
@click.option(
    "--since",
    type=click.IntRange(0),
    default=0,
    metavar="VERSION",
    help="With --print-sql: from this version on.  [default: 0, nothing is there]",
)
@click.pass_obj
def migrate(access: Access, check: bool, print_sql: bool, since: int) -> None:
    """Install the schema, or apply the migrations that it lacks.

    May be run at any time, by several at once, and while daemons run.
    """
    if check and print_sql:
        raise click.UsageError("--check and --print-sql exclude each other")
    name = access.settings.database.schema
    if print_sql:
        click.echo(schema.print_sql(name, since=since), nl=False)
        return
    session = access.direct_session
    if check:
        schema.check(session)
        click.echo(f'schema "{name}" is up to date (version {schema.VERSION})')
        return
    done = schema.migrate(session)
    for step in done:
        click.echo(f"applied {step}")
    if not done:
        click.echo(f'schema "{name}" is up to date (version {schema.VERSION})')
