"""Prune: delete what ended longer ago than the retention time, never live or dead tasks."""

from __future__ import annotations

from orchestrator.db.connection import Session


def prune(
    session: Session, *, after: int, keep_seconds: float, limit: int
) -> tuple[int, int | None]:
    """Look at up to `limit` ended tasks with ids above `after` and delete the old ones.

    Returns how many went and the last id looked at, None at the end of the table.
    """
    row = session.one("prune", after=after, keep=keep_seconds, limit=limit)
    return int(row.deleted), row.last_id
