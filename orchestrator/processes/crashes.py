"""What the death of a worker means for its tasks: who is to blame, and from a report to an
outcome, without I/O.

The causes that a task is charged for, and to which budget, are a table in `outcome.py`; the delay
before the next attempt is drawn in `retry.py`. The steward writes what is decided here.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass

from orchestrator.options import Policy, after
from orchestrator.outcome import (
    BUDGET_OF_CAUSE,
    Budget,
    Cause,
    Ending,
    Failure,
    Outcome,
    Usage,
)
from orchestrator.processes.messages import Casualty, Crash, Report
from orchestrator.slots import Record, SlotView

_ERROR_TYPES = {
    Cause.TIMEOUT: "Timeout", Cause.CRASH: "Crash", Cause.EXIT: "Exit",
    Cause.CANCELLED: "Cancelled",
}  # fmt: skip
_ENDINGS = {
    Cause.TIMEOUT: Ending.TIMED_OUT, Cause.CRASH: Ending.CRASHED, Cause.EXIT: Ending.CRASHED,
    Cause.CANCELLED: Ending.CANCELLED,
}  # fmt: skip


@dataclass(frozen=True)
class Reason:
    """Why we killed a worker and the attempt that it was meant for; no task: all that it ran."""

    cause: Cause
    task_id: int = 0
    token: int = 0


def outcome_of(crash: Crash, *, policy: Policy, failures: int, crashes: int) -> Outcome:
    """Decide what follows a death during user code, given what was charged before."""
    budget = BUDGET_OF_CAUSE[crash.cause]
    limit, delay = 1, 0.0
    if budget not in (Budget.NOTHING, Budget.SUSPECT):
        limit, delay = after(policy, budget, failures=failures, crashes=crashes)
    return Outcome(
        ending=_ENDINGS.get(crash.cause, Ending.RELEASED),
        failure=Failure(type=_ERROR_TYPES.get(crash.cause, "Released"), message=_message(crash)),
        budget=budget,
        limit=limit,
        delay=delay,
        usage=Usage(
            wall_seconds=crash.wall_seconds,
            cpu_seconds=crash.cpu_seconds,
            max_rss_bytes=crash.max_rss_bytes,
        ),
    )


def _message(crash: Crash) -> str:
    match crash.cause:
        case Cause.TIMEOUT:
            return f"killed after {crash.wall_seconds:.1f} s"
        case Cause.CRASH:
            return f"the process died of {crash.signal}"
        case Cause.EXIT:
            return f"the process exited with {crash.exit_code}"
        case Cause.SUSPECT:
            return "its process died or was killed for another of the attempts that it ran"
        case Cause.CANCELLED:
            return "the handler did not stop in time, and was killed"
        case cause:
            return f"killed: {cause}"


def casualties(
    view: SlotView, blame: Callable[[Record], tuple[Cause, int | None]]
) -> list[Casualty]:
    """List what died with a worker, each with the cause and the task a kill was meant for.

    All attempts that ran, then the tokens of claims of which nothing ran.
    """
    now = time.monotonic_ns()
    found: list[Casualty] = []
    tokens: set[int] = set()
    for record in sorted(view.records, key=lambda record: not record.is_running):
        # What did not run goes back with all that has its token.
        if record.token in tokens and not record.is_running:
            continue
        tokens.add(record.token)
        cause, meant_for = blame(record)
        found.append(
            Casualty(
                token=record.token,
                phase=record.phase,
                cause=cause,
                task_id=record.task_id,
                attempt=record.attempt,
                wall_seconds=(
                    round((now - record.started_ns) / 1e9, 6) if record.started_ns else 0.0
                ),
                meant_for_task=meant_for,
            )
        )
    return found


def report_of_lost(view: SlotView, *, generation: int) -> Report:
    """Make the report that a supervisor cannot make any more, since it is dead itself."""
    return Report(
        incarnation=view.incarnation,
        slot=view.name,
        pid=view.pid,
        crash=Crash(cause=Cause.SUPERVISOR_LOST, generation=generation),
        casualties=casualties(view, lambda _: (Cause.SUPERVISOR_LOST, None)),
    )


def cause_of_death(killed_for: Reason | None, signum: int | None) -> Cause:
    """Say what a process died of, whatever that means for its attempts."""
    if killed_for is not None and signum == signal.SIGKILL:
        return killed_for.cause
    return Cause.EXIT if signum is None else Cause.CRASH


def blame_for(
    killed_for: Reason | None, view: SlotView, signum: int | None
) -> Callable[[Record], tuple[Cause, int | None]]:
    """Return the rule that says what each attempt of a dead worker died of.

    The rule also says for which task a kill was meant that hit another. Where many ran in one
    process and nobody was aimed at, nobody can tell whose doing it was: all are suspects.
    """
    killed = killed_for if signum == signal.SIGKILL else None
    cause = cause_of_death(killed_for, signum)
    target = (killed.task_id, killed.token) if killed and killed.task_id else None
    is_there = target in [(record.task_id, record.token) for record in view.records]
    is_crowd = len(view.running) > 1

    def blame(record: Record) -> tuple[Cause, int | None]:
        if killed is None:
            if is_crowd and record.is_running:
                return Cause.SUSPECT, None
            return cause, None
        if target in (None, (record.task_id, record.token)):
            return cause, None
        return (Cause.SUSPECT if is_there else Cause.BYSTANDER), killed.task_id

    return blame
