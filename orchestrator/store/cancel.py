"""Cancel: end a waiting task, or ask for the end of a running one."""

from __future__ import annotations

from orchestrator.db.connection import Session


def cancel(session: Session, *, task_id: int) -> str | None:
    """Cancel a task, wherever it is meanwhile; return the state it is in afterwards.

    "cancelled"; "running": it is flagged, and is cancelled unless it succeeds first; or the end
    that it had reached before. None where there is no such task. Doing it twice changes nothing.
    """
    state = session.value("cancel", id=task_id)
    return None if state is None else str(state)
