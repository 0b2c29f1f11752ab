"""Record how attempts ended, each by the statement that its ending asks for."""

from __future__ import annotations

from orchestrator.db.connection import Session
from orchestrator.outcome import Answer, Ending, Outcome
from orchestrator.store.fail import fail
from orchestrator.store.finish import finish, finish_cancelled
from orchestrator.task import Claim


def record(session: Session, claim: Claim, outcome: Outcome) -> Answer:
    """Record the end of one attempt durably, and what follows from it for its task.

    Raises:
        PayloadError: the database refuses the result; nothing was recorded.
        DatabaseUnavailable: perhaps recorded; the same call may be made again.
    """
    if outcome.ending is Ending.SUCCEEDED:
        return finish(session, [(claim, outcome)])[0]
    if outcome.ending is Ending.CANCELLED:
        message = outcome.failure.message if outcome.failure else ""
        return finish_cancelled(session, claim, message=message, usage=outcome.usage)
    return fail(session, task_id=claim.task_id, token=claim.token, outcome=outcome)
