"""The dead letter queue: which tasks lie in it."""

from __future__ import annotations

from orchestrator.db.connection import Session


def dead(
    session: Session,
    *,
    type: str | None = None,
    queue: str | None = None,
    after: int = 0,
    limit: int,
) -> list[int]:
    """List up to `limit` ids of dead tasks, in their order, from `after` on.

    None matches everything.
    """
    rows = session.all("dead", type=type, queue=queue, after=after, limit=limit)
    return [row.id for row in rows]
