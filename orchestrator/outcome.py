"""How an attempt ended, and what follows from it: plain values, no I/O."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import msgspec


class Ending(StrEnum):
    """The outcome of one attempt (see the glossary)."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CRASHED = "crashed"
    TIMED_OUT = "timed_out"
    CANCELLED = "cancelled"
    SNOOZED = "snoozed"
    RELEASED = "released"


class Budget(StrEnum):
    """The counter an attempt is charged to. `NOTHING` costs nothing; neither does `SUSPECT`, but
    the task runs alone next."""

    FAILURES = "failures"
    CRASHES = "crashes"
    LOSSES = "losses"
    NOTHING = "nothing"
    SUSPECT = "suspect"


class Cause(StrEnum):
    """Why the process of an attempt died or was killed: the first word of a crash report."""

    CRASH = "crash"  # a signal that nobody of ours sent
    EXIT = "exit"  # the handler ended the process itself (`os._exit`)
    TIMEOUT = "timeout"  # the hard deadline passed
    CANCELLED = "cancelled"  # somebody cancelled the task, and its handler did not stop in time
    SHUTDOWN = "shutdown"  # a drain ran out of time, or an immediate stop
    BYSTANDER = "bystander"  # the kill was meant for an attempt that had ended meanwhile
    SUSPECT = "suspect"  # it ran beside others in a process that died for one of them
    LOST_CLAIM = "lost_claim"  # it ran without a row in `running`: its claim was lost
    FENCED = "fenced"  # the node could not beat and ended its own tasks in time
    SUPERVISOR_LOST = "supervisor_lost"  # the supervisor died
    NODE_LOST = "node_lost"  # the node is gone; written by the node that rescued the task


class Answer(StrEnum):
    """What the database says to a report about an attempt."""

    RECORDED = "recorded"  # this call recorded it
    ALREADY = "already"  # the very same end stood there under this token
    LOST = "lost"  # the claim is gone: drop the result


# Which budget a death is charged to. What costs nothing was not the task's doing.
BUDGET_OF_CAUSE = {
    Cause.CRASH: Budget.CRASHES,
    Cause.EXIT: Budget.CRASHES,
    Cause.TIMEOUT: Budget.FAILURES,
    Cause.CANCELLED: Budget.NOTHING,
    Cause.SHUTDOWN: Budget.NOTHING,
    Cause.BYSTANDER: Budget.NOTHING,
    Cause.SUSPECT: Budget.SUSPECT,
    Cause.LOST_CLAIM: Budget.NOTHING,
    Cause.FENCED: Budget.NOTHING,
    Cause.SUPERVISOR_LOST: Budget.NOTHING,
    Cause.NODE_LOST: Budget.LOSSES,
}


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """What one attempt used."""

    wall_seconds: float = 0.0
    cpu_seconds: float = 0.0
    max_rss_bytes: int = 0


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """The error of an attempt, as kept in its history."""

    type: str
    message: str
    traceback: str | None = None

    def __str__(self) -> str:
        return f"{self.type}: {self.message}" if self.message else self.type


class Enqueue(msgspec.Struct, frozen=True, kw_only=True):
    """One `ctx.enqueue`: written in the transaction that records the success."""

    type: str
    payload: bytes  # JSON
    options: dict[str, Any] = {}


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """The end of one attempt and the decision that goes with it.

    `result` is JSON and only set for a success. For the others: `budget` names the counter to
    charge, `limit` the size of that budget; `delay` is the seconds until the next attempt;
    `dead_reason` sends the task to the dead letter queue at once.
    """

    ending: Ending
    result: bytes | None = None
    failure: Failure | None = None
    budget: Budget = Budget.NOTHING
    limit: int = 1
    delay: float = 0.0
    dead_reason: str | None = None
    enqueues: list[Enqueue] = []
    usage: Usage = Usage()

    def is_last(self, spent: int) -> bool:
        """Tell whether the task dies of it, its budget having been charged `spent` before."""
        return self.dead_reason is not None or spent + 1 >= self.limit
