"""Every error that users of the package can meet, as one tree.

Errors that end a *handler* on purpose (`Dead`, `RetryAfter`, `Snooze`) and the
interruptions that the runner raises in it (`Interrupted`) live here too, so that
`from orchestrator import ...` is the only import a handler needs.
"""

from __future__ import annotations

from datetime import timedelta


class OrchestratorError(Exception):
    """Base of all errors raised by this package."""


class ConfigError(OrchestratorError):
    """A setting is wrong; the message names its place, the rule, the value and a remedy."""


class PayloadError(OrchestratorError, ValueError):
    """A payload, header, result or option breaks a rule; the message names the JSON path."""


class IdempotencyConflict(OrchestratorError):
    """A redriven task's idempotency key is meanwhile held by another live task."""


class NotDead(OrchestratorError):
    """Only a dead task can be redriven, and this one is in another state."""


class TaskNotFound(OrchestratorError, LookupError):
    """No task has this id (never enqueued, rolled back, or removed by retention)."""


class TaskFailed(OrchestratorError):
    """`Client.result` met a task that ended without success; `.task` is that task."""

    def __init__(self, message: str, task: object = None) -> None:
        super().__init__(message)
        self.task = task


class DatabaseUnavailable(OrchestratorError):
    """The server cannot be reached, or the reply was lost.

    `unknown` is True when the statement may have been carried out all the same.
    """

    def __init__(self, message: str, *, unknown: bool = False) -> None:
        super().__init__(message)
        self.unknown = unknown


class SchemaError(OrchestratorError):
    """The schema in the database is missing, older or newer than this version can work with."""


class NodeRefused(OrchestratorError):
    """The node is not registered as alive, so it must not claim."""


class HandlerSignal(Exception):
    """Base of what a handler raises to decide what happens to its task."""


class Dead(HandlerSignal):
    """End the task now, in the dead letter queue, whatever its budget says."""

    def __init__(self, reason: str = "the handler said stop") -> None:
        super().__init__(reason)
        self.reason = reason


class RetryAfter(HandlerSignal):
    """Fail this attempt and try again after `delay` instead of the computed back-off."""

    def __init__(self, delay: str | float | timedelta, reason: str = "") -> None:
        super().__init__(reason or f"retry after {delay}")
        self.delay = delay


class Snooze(HandlerSignal):
    """Run again after `delay`; the attempt costs nothing."""

    def __init__(self, delay: str | float | timedelta) -> None:
        super().__init__(f"snooze for {delay}")
        self.delay = delay


class Interrupted(BaseException):
    """Base of what is raised *in* a handler from outside.

    Not an `Exception`: a loop that swallows errors must not swallow the order to stop.
    """


class Cancelled(Interrupted):
    """The task was cancelled; handlers may raise it themselves."""


class SoftTimeout(Interrupted):
    """The attempt has used up its `timeout`."""
