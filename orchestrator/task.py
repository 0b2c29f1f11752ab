"""The task as the outside sees it (`Task`, `Attempt`) and as a worker gets it (`Claim`)."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Generic, TypeVar

import msgspec

P = TypeVar("P")
R = TypeVar("R")


class State(StrEnum):
    """Where a task is. Each state is a table; the last four are ends."""

    READY = "ready"
    SCHEDULED = "scheduled"
    HELD = "held"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    DEAD = "dead"

    @property
    def is_end(self) -> bool:
        """True when nothing more happens by itself."""
        return self in ENDS


ENDS = frozenset({State.SUCCEEDED, State.CANCELLED, State.EXPIRED, State.DEAD})


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One run of a task. `outcome` is None while it runs.

    `crash` is the crash report where the process died: `{"cause": ..., "signal": ...,
    "exit_code": ..., "max_rss_bytes": ..., "cpu_seconds": ..., ...}`.
    """

    number: int
    outcome: str | None
    error: str | None
    traceback: str | None
    started_at: datetime | None
    ended_at: datetime | None
    node: str | None
    slot: str | None
    pid: int | None
    crash: dict[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What the handler of a task said last about how far it is.

    `total` is None where the handler does not know it; both count in whatever unit it likes.
    """

    done: float
    total: float | None
    message: str
    at: datetime


@dataclass(frozen=True, kw_only=True)
class Task(Generic[R]):
    """A task as it stood when it was read. All times are UTC.

    `existing` is True when an enqueue met a live task with the same idempotency key.
    `max_attempts` is None when the handler decides. `error` is that of the last attempt, else the
    reason why the task is held or dead. `progress` is that of the present or last attempt, None
    where it said nothing. `attempts` is filled by `Client.get`, empty in lists.
    """

    id: int
    type: str
    queue: str
    state: State
    priority: int
    attempt: int = 0
    max_attempts: int | None = None
    payload: Any = None
    result: R | None = None
    error: str | None = None
    progress: Progress | None = None
    tags: tuple[str, ...] = ()
    headers: dict[str, Any] = field(default_factory=dict)
    idempotency_key: str | None = None
    created_at: datetime | None = None
    run_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    attempts: tuple[Attempt, ...] = ()
    existing: bool = False
    # What `Client.result` reads the result as: the TaskType's, where one was given to `enqueue`.
    result_type: Any = field(default=None, repr=False, compare=False)


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """One task in the hands of one worker. (task_id, token) is the fence.

    `payload` and `headers` are JSON text. `timeout` is the task's own, in seconds, None when
    the handler decides. `failures`, `crashes` and `losses` are what was charged before.
    `waited_seconds` counts from when the task was first due.
    """

    task_id: int
    token: int
    attempt: int
    type: str
    queue: str
    priority: int
    payload: str
    headers: str
    max_attempts: int | None
    timeout: float | None
    failures: int
    crashes: int
    losses: int
    is_alone: bool
    created_at: datetime
    waited_seconds: float = 0.0
