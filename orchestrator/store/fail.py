"""Record an attempt that started and did not succeed, and let its task go on or die."""

from __future__ import annotations

from typing import Any

import msgspec

from orchestrator.db.connection import Session
from orchestrator.outcome import Answer, Outcome


def fail(
    session: Session,
    *,
    task_id: int,
    token: int,
    outcome: Outcome,
    crash: dict[str, Any] | None = None,
) -> Answer:
    """Write the attempt and move the task, durably.

    To `scheduled` (after `outcome.delay` seconds), `ready` (no delay), `dead` (budget spent, or
    `outcome.dead_reason`), or to cancelled where somebody asked for that meanwhile.

    Raises:
        DatabaseUnavailable: perhaps recorded; the same call may be made again.
    """
    failure = outcome.failure
    return Answer(
        session.value(
            "fail",
            id=task_id,
            token=token,
            outcome=str(outcome.ending),
            budget=str(outcome.budget),
            limit=outcome.limit,
            delay=outcome.delay,
            dead_reason=outcome.dead_reason,
            error_type=failure.type if failure else None,
            error_message=failure.message if failure else None,
            traceback=failure.traceback if failure else None,
            crash=None if crash is None else msgspec.json.encode(crash).decode(),
            wall=outcome.usage.wall_seconds,
            cpu=outcome.usage.cpu_seconds,
            rss=outcome.usage.max_rss_bytes,
        )
    )
