"""Release tasks that were claimed and not started: no attempt is charged."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.db.connection import Session


def release(session: Session, claims: Sequence[tuple[int, int]]) -> list[int]:
    """Give back (task id, token) pairs to their places in line; return the ids that went back.

    The others had left `running` meanwhile, by whatever way.
    """
    if not claims:
        return []
    rows = session.all(
        "release",
        ids=[task_id for task_id, _ in claims],
        tokens=[token for _, token in claims],
    )
    return [row[0] for row in rows]
