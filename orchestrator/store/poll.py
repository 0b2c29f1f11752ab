"""Look for work on behalf of idle workers: ready tasks, and held ones that can run here."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.db.connection import Session


def poll(session: Session, *, queues: Sequence[str], limit: int) -> int:
    """Count the ready tasks of the queues ("*" is every queue), up to `limit`."""
    return int(session.value("poll", queues=list(queues), limit=limit))


def unhold(session: Session, *, patterns: Sequence[str], queues: Sequence[str], limit: int) -> int:
    """Move held tasks of served queues and types that are not paused back to `ready`.

    Returns how many, at most `limit`.
    """
    return int(session.value("unhold", patterns=list(patterns), queues=list(queues), limit=limit))
