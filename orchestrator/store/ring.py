"""Ring: wake a steward whose workers are idle, after an enqueue was committed."""

from __future__ import annotations

from orchestrator.db.connection import Session


def ring(session: Session) -> bool:
    """Notify the sleepers of this schema, if there are any; True when there were.

    Inside a transaction the bell sounds at its commit.
    """
    return bool(session.value("ring"))
