"""Redrive: put dead tasks back into line, with new budgets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from orchestrator.db.connection import Session


class Redriven(NamedTuple):
    """What became of one task: "redriven"; "conflict": the live task `other` has its `key`, and it
    stays dead; or the state that it is in, None where there is no such task."""

    task_id: int
    answer: str | None
    key: str | None
    other: int | None


def redrive(session: Session, *, task_id: int) -> bool:
    """Put a dead task back into `ready`; False where it is not dead.

    Raises:
        IdempotencyConflict: another live task has its idempotency key; it stays dead.
    """
    return bool(session.value("redrive", id=task_id))


def redrive_many(session: Session, *, task_ids: Sequence[int]) -> list[Redriven]:
    """Put dead tasks back into `ready`, in the order of their ids and in one transaction."""
    return [Redriven(*row) for row in session.all("redrive_many", ids=list(task_ids))]
