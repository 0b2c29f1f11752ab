"""Cancel: end a waiting task, or ask for the end of a running one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from orchestrator.db.connection import Session
from orchestrator.task import State


def cancel(session: Session, *, task_id: int) -> str | None:
    """Cancel a task, wherever it is meanwhile; return the state it is in afterwards.

    "cancelled"; "running": it is flagged, and is cancelled unless it succeeds first; or the end
    that it had reached before. None where there is no such task. Doing it twice changes nothing.
    """
    state = session.value("cancel", id=task_id)
    return None if state is None else str(state)


def cancel_many(
    session: Session, *, task_ids: Sequence[int], states: Iterable[State]
) -> dict[int, str | None]:
    """Cancel those of the tasks that are in one of `states`, in one transaction.

    Returns for each what `cancel` returns.
    """
    rows = session.all("cancel_many", ids=list(task_ids), states=[str(state) for state in states])
    return {row.task_id: row.answer for row in rows}
