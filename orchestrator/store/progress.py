"""Keep what handlers say about how far their running tasks are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from orchestrator.db.connection import Session


class Report(NamedTuple):
    """What one attempt says; (task_id, token) is the fence."""

    task_id: int
    token: int
    done: float
    total: float | None
    message: str


def report_progress(session: Session, reports: Sequence[Report]) -> int:
    """Keep one report per task in place of the one before; return for how many that still run.

    Commits without waiting for the disk: after a server crash the last words may be gone.

    Raises:
        DatabaseUnavailable: perhaps kept; it is not worth a second try.
    """
    return int(
        session.value(
            "report_progress",
            ids=[report.task_id for report in reports],
            tokens=[report.token for report in reports],
            dones=[report.done for report in reports],
            totals=[report.total for report in reports],
            messages=[report.message for report in reports],
        )
    )
