"""What the command line does to many tasks, slice by slice: redrive, cancel, delete."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.cli.bulk import Answer, Verb
from orchestrator.db.connection import Session
from orchestrator.store.cancel import cancel_many
from orchestrator.store.delete import delete_many
from orchestrator.store.redrive import Redriven, redrive_many
from orchestrator.store.ring import ring
from orchestrator.task import State

WAITING = (State.READY, State.SCHEDULED, State.HELD)
ALIVE = (*WAITING, State.RUNNING)
DELETABLE = tuple(state for state in State if state is not State.RUNNING)


def redrive() -> Verb:
    """Put dead tasks back into line, and wake who sleeps."""

    def act(session: Session, ids: Sequence[int]) -> list[Answer]:
        answers = redrive_many(session, task_ids=ids)
        if any(answer.answer == "redriven" for answer in answers):
            ring(session)
        return [Answer(answer.task_id, _not_redriven(answer)) for answer in answers]

    return Verb("redrive", "redriven", act)


def _not_redriven(answer: Redriven) -> str | None:
    if answer.answer == "redriven":
        return None
    if answer.answer == "conflict":
        return (
            f"task {answer.task_id} cannot be redriven: its idempotency key {answer.key} is held "
            f"by task {answer.other}"
        )
    return _missing(answer.task_id, answer.answer) or (
        f"task {answer.task_id} is {answer.answer}: only dead tasks can be redriven"
    )


def cancel(states: Sequence[State] = ALIVE) -> Verb:
    """Cancel tasks that are in one of `states`."""

    def act(session: Session, ids: Sequence[int]) -> list[Answer]:
        answers = cancel_many(session, task_ids=ids, states=states)
        return [_cancelled(task_id, answer, states) for task_id, answer in answers.items()]

    return Verb("cancel", "cancelled", act)


def _cancelled(task_id: int, answer: str | None, states: Sequence[State]) -> Answer:
    if answer == State.CANCELLED:
        return Answer(task_id)
    if answer == State.RUNNING and State.RUNNING in states:
        note = f"task {task_id} is running; it ends as cancelled unless it succeeds"
        return Answer(task_id, note=note)
    if answer in WAITING:
        return Answer(task_id, f"task {task_id} has become {answer} meanwhile: it was left alone")
    return Answer(
        task_id,
        _missing(task_id, answer) or f"task {task_id} is {answer}: there is nothing to cancel",
    )


def delete(states: Sequence[State] = DELETABLE) -> Verb:
    """Delete tasks that are in one of `states`."""

    def act(session: Session, ids: Sequence[int]) -> list[Answer]:
        answers = delete_many(session, task_ids=ids, states=states)
        return [Answer(task_id, _kept(task_id, answer)) for task_id, answer in answers.items()]

    return Verb("delete", "deleted", act, leaves_nothing=True)


def _kept(task_id: int, answer: str | None) -> str | None:
    if answer == "deleted":
        return None
    if answer == State.RUNNING:
        return f"task {task_id} is running, and is not deleted: cancel it, and delete it then"
    return _missing(task_id, answer) or (
        f"task {task_id} has become {answer} meanwhile: it was left alone"
    )


def _missing(task_id: int, answer: str | None) -> str | None:
    if answer is not None:
        return None
    return f"no task has the id {task_id}: never enqueued, rolled back, deleted, or too old"
