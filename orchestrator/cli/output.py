"""How results are printed: a table for people, JSON or bare ids for programs.

The JSON is a promise (docs/cli.md): fields are added, never renamed or removed. Colour is for
states and errors, on a terminal, unless NO_COLOR is set.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

import click
import msgspec

from orchestrator.durations import spell
from orchestrator.task import Attempt, Progress, Task

_CELL = 60
_TASK_COLUMNS = ("id", "type", "queue", "state", "priority", "attempt", "created_at", "error")
_STATE_COLOURS = {"dead": "red", "held": "yellow", "running": "green"}


class Format(StrEnum):
    """What `-o` names."""

    TABLE = "table"
    JSON = "json"
    IDS = "ids"


def show(
    format: Format,
    items: Sequence[dict[str, Any]],
    *,
    id: str | Callable[[dict[str, Any]], str],
    columns: Sequence[str],
    empty: str,
) -> None:
    """Print a list: `id` names the field (or makes the text) of `-o ids`, `columns` the table's."""
    if format is Format.JSON:
        show_json(list(items))
    elif format is Format.IDS:
        for item in items:
            click.echo(str(item[id]) if isinstance(id, str) else id(item))
    elif not items:
        if empty:
            click.echo(empty, err=True)
    else:
        rows = [[cell(column, item.get(column)) for column in columns] for item in items]
        show_rows([_heading(column) for column in columns], rows)


def _heading(column: str) -> str:
    return column.removeprefix("is_").removesuffix("_seconds").replace("_", " ")


def show_json(value: Any) -> None:
    """Print one JSON document, indented."""
    encoded = msgspec.json.encode(value, enc_hook=str)
    click.echo(msgspec.json.format(encoded, indent=2).decode())


def show_tasks(format: Format, items: Sequence[dict[str, Any]], *, empty: str) -> None:
    """Print a list of tasks in their documented shape."""
    show(format, items, id="id", columns=_TASK_COLUMNS, empty=empty)


def show_rows(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table; on a terminal its lines are cut at the edge."""
    lines = [[name.upper() for name in header], *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    edge = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    is_coloured = has_colour()
    for number, line in enumerate(lines):
        shown, left = [], edge
        for name, text, width in zip(header, line, widths, strict=True):
            padded = text.ljust(width)[:left]
            left = None if left is None else max(0, left - width - 2)
            shown.append(_painted(name, padded) if is_coloured and number else padded)
        click.echo("  ".join(shown).rstrip()[: None if is_coloured else edge])


def has_colour() -> bool:
    """Tell whether the output is a terminal whose user wants colour (https://no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def _painted(column: str, text: str) -> str:
    value = text.strip()
    if column == "error" and value not in ("", "-"):
        return click.style(text, fg="red")
    colour = _STATE_COLOURS.get(value) if column == "state" else None
    if column == "paused" and value == "yes":
        colour = "yellow"
    return text if colour is None else click.style(text, fg=colour)


def show_fields(fields: Iterable[tuple[str, str]]) -> None:
    """Print one thing as lines of name and value; further lines of a value are indented."""
    lines = [(name, text) for name, text in fields if text]
    width = max((len(name) for name, _ in lines), default=0)
    for name, text in lines:
        first, *rest = text.splitlines() or [""]
        click.echo(f"{name.ljust(width)}  {first}".rstrip())
        for line in rest:
            click.echo(f"{'':{width}}  {line}".rstrip())


def cell(column: str, value: Any) -> str:
    """Return the text of one value, on one line."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, datetime):
        return value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    if isinstance(value, int) and column == "count":
        return f"{value:,}"
    if isinstance(value, float) and column.endswith("seconds"):
        return spell(round(value, 1)) if value >= 0.05 else "0s"
    if isinstance(value, list):
        return ",".join(str(part) for part in value) or "-"
    text = " ".join(str(value).split())
    return text if len(text) <= _CELL else text[: _CELL - 1] + "…"


def task_json(task: Task[Any]) -> dict[str, Any]:
    """Return a task in its documented shape."""
    return {
        "id": task.id,
        "type": task.type,
        "queue": task.queue,
        "state": str(task.state),
        "priority": task.priority,
        "attempt": task.attempt,
        "max_attempts": task.max_attempts,
        "payload": task.payload,
        "result": task.result,
        "error": task.error,
        "progress": None if task.progress is None else _progress_json(task.progress),
        "tags": list(task.tags),
        "headers": task.headers,
        "idempotency_key": task.idempotency_key,
        "created_at": task.created_at,
        "run_at": task.run_at,
        "started_at": task.started_at,
        "finished_at": task.finished_at,
        "attempts": [_attempt_json(attempt) for attempt in task.attempts],
    }


def _progress_json(progress: Progress) -> dict[str, Any]:
    return {
        "done": progress.done,
        "total": progress.total,
        "message": progress.message,
        "at": progress.at,
    }


def _attempt_json(attempt: Attempt) -> dict[str, Any]:
    shape = {
        "number": attempt.number,
        "outcome": attempt.outcome,
        "error": attempt.error,
        "traceback": attempt.traceback,
        "started_at": attempt.started_at,
        "ended_at": attempt.ended_at,
        "node": attempt.node,
        "slot": attempt.slot,
        "pid": attempt.pid,
    }
    return shape if attempt.crash is None else {**shape, "crash": attempt.crash}


def show_task(task: Task[Any]) -> None:
    """Print everything about one task, for people."""
    shape = task_json(task)
    attempts = shape.pop("attempts")
    show_fields((name.replace("_", " "), _value(name, value)) for name, value in shape.items())
    for attempt in attempts:
        click.echo()
        show_fields(_attempt_fields(attempt))


def _attempt_fields(attempt: dict[str, Any]) -> Iterable[tuple[str, str]]:
    yield "attempt", f"{attempt['number']}: {attempt['outcome'] or 'running'}"
    place = f"worker {attempt['slot']}, pid {attempt['pid']}, node {attempt['node']}"
    yield "  on", place
    started, ended = attempt["started_at"], attempt["ended_at"]
    yield "  started", cell("started_at", started)
    if started and ended:
        yield "  took", spell(round((ended - started).total_seconds(), 3))
    if attempt["error"]:
        yield "  error", attempt["error"]
    if attempt["traceback"]:
        yield "  traceback", attempt["traceback"].rstrip()
    for name, value in attempt.get("crash", {}).items():
        if value is not None:
            yield f"  crash {name}", _value(name, value)


def _value(name: str, value: Any) -> str:
    if value is None or value == [] or value == {}:
        return ""
    if name == "progress":
        return _progress_text(value)
    if name in ("payload", "result", "headers") or isinstance(value, dict | list):
        return msgspec.json.encode(value, enc_hook=str).decode()
    if isinstance(value, datetime):
        return cell(name, value)
    return str(value)


def _progress_text(progress: dict[str, Any]) -> str:
    done, total, message = progress["done"], progress["total"], progress["message"]
    text = f"{done:g}" if total is None else f"{done:g} of {total:g}"
    if total:
        text += f" ({done / total:.0%})"
    return f"{text}{': ' if message else ''}{message}, {cell('at', progress['at'])}"
