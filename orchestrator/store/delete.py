"""Delete: take tasks out of the database, with everything that is known of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from orchestrator.db.connection import Session
from orchestrator.task import State


def delete_many(
    session: Session, *, task_ids: Sequence[int], states: Iterable[State]
) -> dict[int, str | None]:
    """Delete those of the tasks that are in one of `states`, in one transaction.

    Returns for each "deleted" or the state that it is in, None where there is none. A running task
    is never deleted.
    """
    rows = session.all("delete_many", ids=list(task_ids), states=[str(state) for state in states])
    return {row.task_id: row.answer for row in rows}
