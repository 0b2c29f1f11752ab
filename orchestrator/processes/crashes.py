"""What the death of a worker means for its task: from a report to an outcome, without I/O.

The causes that a task is charged for, and to which budget, are a table in `outcome.py`; the delay
before the next attempt is drawn in `retry.py`. The steward writes what is decided here.
"""

from __future__ import annotations

import time

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
from orchestrator.processes.messages import Crash, Report
from orchestrator.slots import SlotView

_ERROR_TYPES = {Cause.TIMEOUT: "Timeout", Cause.CRASH: "Crash", Cause.EXIT: "Exit"}
_ENDINGS = {
    Cause.TIMEOUT: Ending.TIMED_OUT, Cause.CRASH: Ending.CRASHED, Cause.EXIT: Ending.CRASHED,
}  # fmt: skip


def outcome_of(crash: Crash, *, policy: Policy, failures: int, crashes: int) -> Outcome:
    """Decide what follows a death during user code, given what was charged before."""
    budget = BUDGET_OF_CAUSE[crash.cause]
    limit, delay = 1, 0.0
    if budget is not Budget.NOTHING:
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
        case cause:
            return f"killed: {cause}"


def report_of_lost(view: SlotView, *, generation: int) -> Report:
    """Make the report that a supervisor cannot make any more, since it is dead itself."""
    started = view.started_ns
    return Report(
        incarnation=view.incarnation,
        slot=view.name,
        pid=view.pid,
        task_id=view.task_id,
        attempt=view.attempt,
        token=view.token,
        phase=view.phase,
        crash=Crash(
            cause=Cause.SUPERVISOR_LOST,
            phase=view.phase.name.lower(),
            generation=generation,
            wall_seconds=round((time.monotonic_ns() - started) / 1e9, 6) if started else 0.0,
        ),
    )
