"""For tests of handlers and of programs that enqueue.

    without a database   context(), run()               a handler as a function, or as in a worker
                         capture(), assert_enqueued()   what a program enqueues
    with a database      drain()                        the worker's loop, until nothing is ready
    with a node          the fixtures of `orchestrator.pytest_plugin`

Importing it loads no database driver, and it works on every system; only the fixtures with a node
need Linux. docs/testing.md shows all of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from orchestrator.testing.attempts import AttemptOutcome, RecordingContext, context, run
from orchestrator.testing.enqueued import (
    CapturedTask,
    assert_enqueued,
    assert_not_enqueued,
    capture,
)

if TYPE_CHECKING:
    from orchestrator.testing.draining import drain

__all__ = [
    "AttemptOutcome",
    "CapturedTask",
    "RecordingContext",
    "assert_enqueued",
    "assert_not_enqueued",
    "capture",
    "context",
    "drain",
    "run",
]


def __getattr__(name: str) -> Any:
    if name != "drain":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # It needs the driver, which the rest must do without.
    from orchestrator.testing.draining import drain

    globals()["drain"] = drain
    return drain
