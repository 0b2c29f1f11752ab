"""Verbs for many tasks: which ones, whether that is meant, at what pace, and what came of it.

Tasks are named by ids, on the command line or, with `-`, on standard input, or found by filters.
Those that were found are counted first, and nothing is done before somebody has agreed. The work
goes by slices, each one transaction: a verb that is interrupted has done whole slices and nothing
else. What a verb does to a slice is the store's.
"""

from __future__ import annotations

import functools
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import click

from orchestrator.cli.access import Access
from orchestrator.cli.failures import EXIT_INTERRUPTED, EXIT_USAGE, CommandFailed
from orchestrator.cli.output import Format, show_json, show_tasks, task_json
from orchestrator.db.connection import Session
from orchestrator.errors import DatabaseUnavailable
from orchestrator.store import tasks as stored
from orchestrator.store.tasks import Filters

F = TypeVar("F", bound=Callable[..., Any])

SLICE = 500
# Slices of a verb with a rate: small enough that the pace is steady.
_SLICES_PER_SECOND = 10
# Up to so many tasks are shown one by one.
_FEW = 50
_SAMPLE = 10
_TRIES = 3
_NAMED_REFUSALS = 20
_LARGEST_ID = 2**63 - 1


class Answer(NamedTuple):
    """What became of one task: `refusal` says why nothing did, `note` what else is to be known."""

    task_id: int
    refusal: str | None = None
    note: str | None = None


@dataclass(frozen=True)
class Verb:
    """What is done to tasks. `act` does it to one slice, in one transaction.

    `leaves_nothing`: the tasks have to be read before, to be shown.
    """

    name: str
    done: str
    act: Callable[[Session, Sequence[int]], list[Answer]]
    leaves_nothing: bool = False


@dataclass
class Request:
    """What the options of the command line ask of a verb."""

    limit: int | None
    rate: float | None
    is_sure: bool
    is_dry: bool


@dataclass
class _Result:
    done: list[int] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    shown: list[dict[str, Any]] = field(default_factory=list)
    is_interrupted: bool = False


class TaskId(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.4
    """The id of a task, or - for ids on standard input."""

    name = "id"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | str:
        if value == "-":
            return "-"
        task_id = _task_id(str(value))
        if task_id is None:
            self.fail(f"{value!r} is no task id", param, ctx)
        return task_id


def bulk_options(command: F) -> F:
    """Give a command its ids and what is asked of a verb for many tasks, as `request`."""

    @functools.wraps(command)
    def with_request(*args: Any, **options: Any) -> Any:
        request = Request(*(options.pop(name) for name in ("limit", "rate", "yes", "dry_run")))
        return command(*args, request=request, **options)

    decorated: Any = with_request
    for option in (
        click.option("--dry-run", is_flag=True, help="Count, show some, and change nothing."),
        click.option("--yes", is_flag=True, help="Do not ask, whatever the number."),
        click.option(
            "--rate",
            type=click.FloatRange(min=0, min_open=True),
            metavar="N",
            help="At most so many a second, at a steady pace.",
        ),
        click.option("--limit", type=click.IntRange(1), help="At most so many, oldest first."),
    ):
        decorated = option(decorated)
    return decorated  # type: ignore[no-any-return]


def ids_argument(command: F) -> F:
    return click.argument("ids", nargs=-1, type=TaskId(), metavar="[ID...|-]")(command)


def perform(
    access: Access,
    verb: Verb,
    request: Request,
    *,
    ids: Sequence[int | str] = (),
    filters: Filters,
    is_filtered: bool,
    is_all: bool | None = None,
) -> None:
    """Do the verb to the tasks with these ids, or to those that the filters find.

    Without either it is a mistake: a forgotten option must not mean everything. `is_all` is None
    where the verb has no `--all`.
    """
    filters_or_all = "filters" if is_all is None else "filters or --all"
    if ids and (is_filtered or is_all):
        raise click.UsageError(f"give IDs or {filters_or_all}, not both")
    if not ids and not (is_filtered or is_all):
        raise click.UsageError(f"give IDs, - for IDs on standard input, or {filters_or_all}")
    session = access.session
    found = _named(ids) if ids else stored.matching(session, filters)
    chosen = found[: request.limit]
    if not ids:
        click.echo(_count(verb, len(found), len(chosen)), err=True)
    if request.is_dry:
        _show_dry(access, chosen)
        return
    if chosen and not ids:
        _agree(verb, request, len(chosen))
    result = _work(access, verb, request, chosen)
    _show(access, verb, result, n_chosen=len(chosen))


def _count(verb: Verb, n_found: int, n_chosen: int) -> str:
    some = "" if n_chosen == n_found else f"; {n_chosen:,} of them, the oldest, are chosen"
    return f"{verb.name}: {_tasks(n_found)} match{some}"


def _tasks(number: int) -> str:
    return f"{number:,} {'task' if number == 1 else 'tasks'}"


def _named(ids: Sequence[int | str]) -> list[int]:
    """Return the ids, each once, in their order."""
    chosen: list[int] = []
    for given in ids:
        if isinstance(given, int):
            chosen.append(given)
            continue
        for number, line in enumerate(sys.stdin, 1):
            text = line.strip()
            task_id = _task_id(text)
            if task_id is not None:
                chosen.append(task_id)
            elif text:
                raise click.UsageError(f"standard input, line {number}: {text!r} is no task id")
    return list(dict.fromkeys(chosen))


def _task_id(text: str) -> int | None:
    is_number = text.isascii() and text.isdigit()
    return int(text) if is_number and 0 < int(text) <= _LARGEST_ID else None


def _show_dry(access: Access, chosen: Sequence[int]) -> None:
    if access.format is Format.IDS:
        for task_id in chosen:
            click.echo(str(task_id))
        return
    sample = _read(access.session, chosen[:_SAMPLE])
    if access.format is Format.JSON:
        show_json({"count": len(chosen), "sample": sample})
        return
    show_tasks(access.format, sample, empty="")
    if len(chosen) > len(sample):
        click.echo(f"and {len(chosen) - len(sample):,} more", err=True)


def _agree(verb: Verb, request: Request, number: int) -> None:
    if request.is_sure:
        return
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise CommandFailed(
            f"would {verb.name} {_tasks(number)}: give --yes to do it, or --dry-run to look first",
            EXIT_USAGE,
        )
    if not click.confirm(f"{verb.name} {_tasks(number)}?", err=True):
        raise CommandFailed("nothing was done")


def _work(access: Access, verb: Verb, request: Request, chosen: Sequence[int]) -> _Result:
    result = _Result()
    shows = access.format is Format.JSON or (access.format is Format.TABLE and len(chosen) <= _FEW)
    size = _slice_size(request.rate)
    due = time.monotonic()
    with _until_interrupted() as stopping, _progress(verb, len(chosen), size) as advance:
        for start in range(0, len(chosen), size):
            if stopping.wait(max(0.0, due - time.monotonic())) or stopping.is_set():
                break
            part = chosen[start : start + size]
            before = _read(access.session, part) if shows and verb.leaves_nothing else []
            # Counted from when this slice was due or begun, so that a slow one is not made up for.
            due = max(due, time.monotonic()) + len(part) / (request.rate or float("inf"))
            try:
                answers = _repeated(verb, access.session, part)
            except DatabaseUnavailable:
                click.echo(_summary(verb, result, len(chosen)), err=True)
                raise
            _take_in(result, answers)
            if shows:
                done = {answer.task_id for answer in answers if answer.refusal is None}
                shapes = before or _read(access.session, [i for i in part if i in done])
                result.shown += [shape for shape in shapes if shape["id"] in done]
            advance(len(part))
        result.is_interrupted = stopping.is_set()
    return result


def _slice_size(rate: float | None) -> int:
    return SLICE if rate is None else max(1, min(SLICE, int(rate / _SLICES_PER_SECOND)))


def _repeated(verb: Verb, session: Session, part: Sequence[int]) -> list[Answer]:
    """Do one slice, again where it was rolled back: two that lock many rows may meet."""
    for _ in range(_TRIES - 1):
        try:
            return verb.act(session, part)
        except DatabaseUnavailable as error:
            if error.unknown or session.is_closed:
                raise
    return verb.act(session, part)


def _take_in(result: _Result, answers: Sequence[Answer]) -> None:
    for answer in answers:
        if answer.refusal is not None:
            result.refusals.append(answer.refusal)
            continue
        result.done.append(answer.task_id)
        if answer.note is not None:
            result.notes.append(answer.note)


def _read(session: Session, ids: Sequence[int]) -> list[dict[str, Any]]:
    return [task_json(task) for task in stored.get_many(session, task_ids=ids)] if ids else []


def _show(access: Access, verb: Verb, result: _Result, *, n_chosen: int) -> None:
    # At the end, not as it goes: a reader that goes away must not stop the work half-way.
    if access.format is Format.IDS:
        for task_id in result.done:
            click.echo(str(task_id))
    elif access.format is Format.JSON:
        show_json(result.shown)
    elif n_chosen <= _FEW:
        show_tasks(access.format, result.shown, empty="")
    _name(result.notes, "note: ")
    if n_chosen > _FEW:
        click.echo(_summary(verb, result, n_chosen), err=True)
    if result.is_interrupted:
        _name(result.refusals, "orchestratorctl: ")
        raise CommandFailed(
            f"interrupted: {_summary(verb, result, n_chosen)}; the others are as they were",
            EXIT_INTERRUPTED,
        )
    if result.refusals:
        _name(result.refusals[:-1], "orchestratorctl: ")
        raise CommandFailed(result.refusals[-1])


def _name(lines: Sequence[str], begin: str) -> None:
    for line in lines[:_NAMED_REFUSALS]:
        click.echo(f"{begin}{line}", err=True)
    if len(lines) > _NAMED_REFUSALS:
        click.echo(f"{begin}and {len(lines) - _NAMED_REFUSALS:,} more", err=True)


def _summary(verb: Verb, result: _Result, n_chosen: int) -> str:
    refused = f", {len(result.refusals):,} refused" if result.refusals else ""
    return f"{verb.done} {len(result.done):,} of {_tasks(n_chosen)}{refused}"


@contextmanager
def _until_interrupted() -> Iterator[threading.Event]:
    """Give an event that Ctrl-C sets: the slice under way is finished. A second Ctrl-C ends."""
    stopping = threading.Event()

    def stop(_signum: int, _frame: Any) -> None:
        if stopping.is_set():
            raise KeyboardInterrupt
        stopping.set()

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield stopping
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _progress(verb: Verb, number: int, size: int) -> Iterator[Callable[[int], None]]:
    """Show how far it is, on a terminal and where it takes more than a slice."""
    if number <= size or not sys.stderr.isatty():
        yield lambda _n: None
        return
    with click.progressbar(length=number, label=verb.name, file=sys.stderr) as bar:
        yield bar.update
