"""Promote scheduled tasks that are due to `ready`."""

from __future__ import annotations

from orchestrator.db.connection import Session


def promote(session: Session, *, limit: int) -> int:
    """Move up to `limit` due tasks, oldest first; return how many."""
    return int(session.value("promote", limit=limit))


def next_due(session: Session) -> float | None:
    """Return the seconds until the next scheduled task is due; None when there is none."""
    value = session.value("next_due")
    return None if value is None else float(value)
