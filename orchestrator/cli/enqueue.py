"""`orchestratorctl enqueue`."""

from __future__ import annotations

import sys
from datetime import datetime
from typing import Any

import click
import msgspec

from orchestrator.cli.access import Access, output_option
from orchestrator.cli.failures import CommandFailed
from orchestrator.cli.output import Format, show_json, show_tasks, task_json
from orchestrator.durations import seconds
from orchestrator.options import match
from orchestrator.store.workers import nodes
from orchestrator.task import State, Task


@click.command()
@click.argument("type")
@click.argument("payload", metavar="[JSON|-]", default="null")
@click.option("--queue", help="The queue.  [default: default]")
@click.option("--priority", type=int, help="-32768 to 32767; larger runs first.  [default: 0]")
@click.option("--run-at", metavar="TIME", help="Not before, ISO 8601 with a time zone.")
@click.option("--delay", metavar="DURATION", help="Not before this has passed: 30s, 1h 30m.")
@click.option("--idempotency-key", "--key", metavar="KEY", help="One live task per queue and key.")
@click.option("--max-attempts", type=int, help="In place of the handler's.")
@click.option("--timeout", metavar="DURATION", help="Per attempt, in place of the handler's.")
@click.option("--ttl", metavar="DURATION", help="Expires if it has not started by then.")
@click.option("--tag", "tags", multiple=True, metavar="TAG", help="May be repeated.")
@click.option("--headers", metavar="JSON", help="An object that the handler sees as ctx.headers.")
@click.option("--wait", is_flag=True, help="Wait for its end; exit code 1 if it does not succeed.")
@click.option("--wait-timeout", metavar="DURATION", help="With --wait: no longer than this.")
@output_option
@click.pass_obj
def enqueue(
    access: Access,
    /,
    type: str,
    payload: str,
    run_at: str | None,
    headers: str | None,
    wait: bool,
    wait_timeout: str | None,
    **options: Any,
) -> None:
    """Enqueue a task of TYPE and print it.

    The payload is JSON, or - for JSON on standard input; null without it.
    """
    if wait_timeout is not None and not wait:
        raise click.UsageError("--wait-timeout needs --wait")
    text = sys.stdin.read() if payload == "-" else payload
    if wait:
        _refuse_to_wait_for_nobody(access)
    limit = None if wait_timeout is None else _duration("--wait-timeout", wait_timeout)
    task = access.client.enqueue(
        type,
        _json("the payload", text),
        run_at=_moment("--run-at", run_at),
        headers=None if headers is None else _json("--headers", headers),
        **options,
    )
    existing = task.existing
    task = access.client.wait(task, limit) if wait else access.client.get(task)
    _show_enqueued(access, task, existing=existing)
    if not wait:
        _note_when_unserved(access, task)
    elif task.state is not State.SUCCEEDED:
        raise CommandFailed(f"task {task.id} is {task.state}: {task.error or 'no error recorded'}")


def _show_enqueued(access: Access, task: Task[Any], *, existing: bool) -> None:
    if access.format is Format.JSON:
        show_json({**task_json(task), "existing": existing})
        return
    show_tasks(access.format, [task_json(task)], empty="")
    if existing:
        click.echo("note: a live task had this idempotency key; this is that task", err=True)


def _refuse_to_wait_for_nobody(access: Access) -> None:
    # Our own embedded server ends with this command: nobody could run the task meanwhile.
    if access.settings.database.is_embedded:
        access.url  # noqa: B018 - starts it
        if not nodes(access.session, alive_within=access.alive_within):
            raise CommandFailed(
                "--wait: no daemon runs on the embedded database, so nothing would run the task: "
                "start orchestratord first"
            )


def _note_when_unserved(access: Access, task: Task[Any]) -> None:
    if task.state.is_end:
        return
    alive = nodes(access.session, alive_within=access.alive_within)
    note = ""
    if not alive:
        note = "no node is running: the task waits until one starts"
    elif not any({"*", task.queue} & set(node.queues) for node in alive):
        note = f"no running node serves queue {task.queue!r}: the task waits for one that does"
    elif not any(match(node.handlers, task.type) for node in alive):
        note = f"no running node has a handler for {task.type!r}: the task will be held"
    if note:
        click.echo(f"note: {note}", err=True)


def _json(what: str, text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except (ValueError, RecursionError) as error:
        raise click.UsageError(f"{what} is no JSON: {error}") from error


def _moment(option: str, text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        return datetime.fromisoformat(text)
    except ValueError as error:
        raise click.UsageError(
            f"{option} = {text!r}: must be ISO 8601 with a time zone, as 2030-01-31T08:00:00Z"
        ) from error


def _duration(option: str, text: str) -> float:
    try:
        return seconds(text)
    except ValueError as error:
        raise click.UsageError(f"{option}: {error}") from error
