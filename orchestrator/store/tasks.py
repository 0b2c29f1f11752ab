"""Tasks as they are read: one, several, a page of a list.

Every read is one statement, hence one snapshot: a task that moves between two state tables is
seen in exactly one of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

import msgspec

from orchestrator.db.connection import Session
from orchestrator.payload import read
from orchestrator.task import Attempt, Progress, State, Task

# No id is as large.
_BEYOND_ALL = 2**63 - 1

Moment = TypeVar("Moment", datetime, datetime | None)


class _AttemptRow(msgspec.Struct):
    """One element of the JSON that `get.sql` gathers from the view `attempts`."""

    attempt: int
    outcome: str | None
    error_type: str | None
    error_message: str | None
    traceback: str | None
    started_at: datetime | None
    ended_at: datetime | None
    node: str | None
    slot: str | None
    pid: int | None
    crash: dict[str, Any] | None
    cpu_seconds: float | None
    max_rss_bytes: int | None


_attempt_rows = msgspec.json.Decoder(list[_AttemptRow])


def get(session: Session, *, task_id: int) -> Task[Any] | None:
    """Return a task with its attempts, oldest first; None where there is none."""
    found = get_many(session, task_ids=[task_id])
    return found[0] if found else None


def get_many(session: Session, *, task_ids: Sequence[int]) -> list[Task[Any]]:
    """Return those of the tasks that exist, with their attempts, in the order of their ids."""
    return [_task(row) for row in session.all("get", ids=list(task_ids))]


def state(session: Session, *, task_id: int) -> State | None:
    """Return where a task is; None where there is none."""
    found = session.value("state", id=task_id)
    return None if found is None else State(found)


@dataclass(frozen=True, kw_only=True)
class Filters:
    """Which tasks: those that match all of these; None matches everything.

    `type` ending in ":" is a prefix, as in the mux. `error` is a part of what the task shows as its
    error, in whatever case. `older_than` and `newer_than` are seconds since it was created.
    """

    states: Sequence[State] | None = None
    type: str | None = None
    queue: str | None = None
    tag: str | None = None
    error: str | None = None
    older_than: float | None = None
    newer_than: float | None = None


def page(
    session: Session,
    filters: Filters | None = None,
    *,
    before: int | None = None,
    limit: int,
    with_attempts: bool = False,
) -> list[Task[Any]]:
    """List up to `limit` tasks, newest first.

    `before` is the id to go on from: the last of the page before.
    """
    chosen = filters or Filters()
    scoped = scope(session, chosen)
    if scoped is None:
        return []
    if before is not None:
        scoped["high"] = min(before, scoped["high"])
    states = chosen.states
    is_any = states is None and not chosen.error
    rows = session.all(
        "page",
        **scoped,
        any_state=is_any,
        by_body=is_any or (states is not None and State.SUCCEEDED in states and not chosen.error),
        by_state=not is_any and (states is None or set(states) != {State.SUCCEEDED}),
        by_body_too=any(
            value is not None
            for value in (chosen.queue, chosen.tag, chosen.older_than, chosen.newer_than)
        ),
        limit=limit,
        with_attempts=with_attempts,
    )
    return [_task(row) for row in rows]


def matching(session: Session, filters: Filters, *, limit: int | None = None) -> list[int]:
    """List the ids of all tasks that match, oldest first, at most `limit`."""
    scoped = scope(session, filters)
    if scoped is None:
        return []
    return list(session.value("matching", **scoped, limit=limit))


def scope(session: Session, filters: Filters) -> dict[str, Any] | None:
    """Return the filters as the statements take them; None where nothing can match.

    Names become ids, which never change, and ages become times and a range of ids: the planner
    judges by such constants which index will find the tasks soonest.
    """
    by_kind = filters.type is not None or filters.queue is not None
    scoped: dict[str, Any] = {
        "states": None if filters.states is None else [str(state) for state in filters.states],
        "by_kind": by_kind,
        "types": None,
        "queues": None,
        "tag": filters.tag,
        "error": filters.error or None,
        "low": 0,
        "high": _BEYOND_ALL,
        "created_from": None,
        "created_before": None,
    }
    if not by_kind and filters.older_than is None and filters.newer_than is None:
        return scoped
    row = session.one(
        "scope",
        type=filters.type,
        queue=filters.queue,
        older_than=filters.older_than,
        newer_than=filters.newer_than,
    )
    if by_kind:
        scoped |= {"types": row.types, "queues": row.queues}
        if not row.types or not row.queues:
            return None
    if row.low is not None:
        scoped["low"] = row.low
    if row.high is not None:
        scoped["high"] = row.high
    return scoped | {"created_from": row.created_from, "created_before": row.created_before}


def _task(row: Any) -> Task[Any]:
    return Task(
        id=row.id,
        type=row.type,
        queue=row.queue,
        state=State(row.state),
        priority=row.priority,
        attempt=row.attempt,
        max_attempts=row.max_attempts,
        payload=read(row.payload),
        result=None if row.result is None else read(row.result),
        error=_error(row.error_type, row.error_message) or row.reason,
        progress=_progress(row),
        tags=tuple(row.tags),
        headers=read(row.headers),
        idempotency_key=row.idempotency_key,
        created_at=_utc(row.created_at),
        run_at=_utc(row.run_at),
        started_at=_utc(row.started_at),
        finished_at=_utc(row.finished_at),
        attempts=tuple(_attempt(attempt) for attempt in _attempt_rows.decode(row.attempts)),
    )


def _progress(row: Any) -> Progress | None:
    if row.progress_at is None:
        return None
    return Progress(
        done=row.progress_done,
        total=row.progress_total,
        message=row.progress_message,
        at=_utc(row.progress_at),
    )


def _attempt(row: _AttemptRow) -> Attempt:
    return Attempt(
        number=row.attempt,
        outcome=row.outcome,
        error=_error(row.error_type, row.error_message),
        traceback=row.traceback,
        started_at=_utc(row.started_at),
        ended_at=_utc(row.ended_at),
        node=row.node,
        slot=row.slot,
        pid=row.pid,
        crash=_crash(row),
    )


def _crash(row: _AttemptRow) -> dict[str, Any] | None:
    if row.crash is None:
        return None
    measured = {"max_rss_bytes": row.max_rss_bytes, "cpu_seconds": row.cpu_seconds}
    empty = {"cause": None, "signal": None, "exit_code": None}
    return {**empty, **measured, **row.crash}


def _error(type: str | None, message: str | None) -> str | None:
    if type is None:
        return message
    return f"{type}: {message}" if message else type


def _utc(moment: Moment) -> Moment:
    # A caller's connection may have any time zone.
    return None if moment is None else moment.astimezone(UTC)
