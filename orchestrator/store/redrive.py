"""Redrive: put dead tasks back into line, with new budgets."""

from __future__ import annotations

from orchestrator.db.connection import Session


def redrive(session: Session, *, task_id: int) -> bool:
    """Put a dead task back into `ready`; False where it is not dead.

    Raises:
        IdempotencyConflict: another live task has its idempotency key; it stays dead.
    """
    return bool(session.value("redrive", id=task_id))
