"""Finish attempts: record successes, and tasks that stopped because they were cancelled."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.db.connection import Session
from orchestrator.outcome import Answer, Outcome, Usage
from orchestrator.store.enqueue import enqueue_from_outcome
from orchestrator.task import Claim


def finish(session: Session, ends: Sequence[tuple[Claim, Outcome]]) -> list[Answer]:
    """Record successes durably, in one transaction, with what their handlers enqueued.

    Answers in the order of `ends`. An outcome that was not recorded by this call enqueues nothing.

    Raises:
        PayloadError: the database refuses a result; nothing was recorded.
        DatabaseUnavailable: perhaps recorded; the same call may be made again.
    """
    has_enqueues = any(outcome.enqueues for _, outcome in ends)
    if not has_enqueues:
        return _finish(session, ends)
    with session.transaction():
        answers = _finish(session, ends)
        for (_, outcome), answer in zip(ends, answers, strict=True):
            _enqueue(session, outcome, answer)
    return answers


def finish_within(session: Session, claim: Claim, outcome: Outcome) -> Answer:
    """Record one success in the transaction that the session is in; the caller commits it.

    Raises:
        PayloadError: the database refuses the result; the transaction has failed.
        DatabaseUnavailable: the connection is gone, and the transaction with it.
    """
    answer = _finish(session, [(claim, outcome)])[0]
    _enqueue(session, outcome, answer)
    return answer


def _enqueue(session: Session, outcome: Outcome, answer: Answer) -> None:
    if answer is Answer.RECORDED:
        for request in outcome.enqueues:
            enqueue_from_outcome(session, request)


def _finish(session: Session, ends: Sequence[tuple[Claim, Outcome]]) -> list[Answer]:
    rows = session.all(
        "finish",
        ids=[claim.task_id for claim, _ in ends],
        tokens=[claim.token for claim, _ in ends],
        results=[(outcome.result or b"null").decode() for _, outcome in ends],
        walls=[outcome.usage.wall_seconds for _, outcome in ends],
        cpus=[outcome.usage.cpu_seconds for _, outcome in ends],
        rss=[outcome.usage.max_rss_bytes for _, outcome in ends],
    )
    answers = {row.task_id: Answer(row.answer) for row in rows}
    return [answers[claim.task_id] for claim, _ in ends]


def finish_cancelled(session: Session, claim: Claim, *, message: str, usage: Usage) -> Answer:
    """Record that a handler stopped for good because its task was cancelled."""
    return Answer(
        session.value(
            "finish_cancelled",
            id=claim.task_id,
            token=claim.token,
            message=message,
            wall=usage.wall_seconds,
            cpu=usage.cpu_seconds,
            rss=usage.max_rss_bytes,
        )
    )
