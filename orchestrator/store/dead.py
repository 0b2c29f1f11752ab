"""The dead letter queue: which tasks lie in it."""

from __future__ import annotations

from orchestrator.db.connection import Session


def dead_ids(
    session: Session, *, type: str | None = None, queue: str | None = None, limit: int
) -> list[int]:
    """List the ids of dead tasks, oldest first."""
    return [row.id for row in session.all("dead_ids", type=type, queue=queue, limit=limit)]
