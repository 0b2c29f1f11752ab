"""Count: totals of enqueued tasks, pending tasks per type, the age of the oldest.

`tasks_enqueued_total` advances by ranges of ids, so that enqueues by SQL or by other programs
count too. An id may be drawn long before its transaction commits; a range may only be counted
when every transaction that could hold an id of it has ended. Hence two steps: remember the
sequence's position and, after it, the next transaction id (`mark`); count up to the position once
no transaction older than that is left (`count_enqueued`). An enqueue has its transaction id before
it draws task ids, which is what makes the order hold.
"""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.db.connection import Session

EXACT_UP_TO = 100_000
_SAMPLE_PERCENT = 5.0


@dataclass(frozen=True)
class Mark:
    """A position in the ids and the transaction id that none of them can exceed."""

    up_to: int
    xmax: int


def mark(session: Session) -> Mark:
    """Remember the position; two statements, in this order."""
    up_to = int(session.value("count_position", schema=session.schema) or 0)
    horizon = session.one("count_horizon")
    return Mark(up_to, int(horizon.xmax))


def count_enqueued(session: Session, marked: Mark) -> bool:
    """Count up to a mark; False while a transaction that may hold an id below it is open."""
    if int(session.one("count_horizon").xmin) < marked.xmax:
        return False
    session.value("count_enqueued", up_to=marked.up_to)
    return True


def totals(session: Session) -> dict[str, int]:
    """Return how many tasks of each type were ever enqueued, as far as counted."""
    return {row.type: int(row.enqueued) for row in session.all("totals")}


def pending(session: Session) -> tuple[dict[str, int], bool]:
    """Return the waiting tasks per type, and whether the figures are estimates.

    Exact up to 100,000 rows; beyond that from a sample of the pages.
    """
    is_estimate = int(session.value("pending_size") or 0) > EXACT_UP_TO
    if is_estimate:
        rows = session.all("pending_estimated", percent=_SAMPLE_PERCENT)
    else:
        rows = session.all("pending")
    return {row.type: int(row.n) for row in rows}, is_estimate


def oldest_pending(session: Session) -> dict[str, float]:
    """Return the seconds that the head of each queue has been due."""
    return {row.queue: float(row.seconds) for row in session.all("oldest_pending")}
