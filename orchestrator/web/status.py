"""What a node says about itself: ready or not, why not, and what each worker does.

Everything is read from the slots, so it needs no database and is true while the database is away.
Who writes which word of the slots stands in `slots.py`; HTTP is `app.py`'s.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from orchestrator.config import Settings
from orchestrator.slots import Phase, Slots, SlotView

# Longer than a slow start (imports, lifespan hooks), shorter than what an operator bears.
NOT_READY_SECONDS = 30.0

READY = "ready"
NOT_READY = "not ready"

_STATES = {
    Phase.BOOT: "starting",
    Phase.IDLE: "idle",
    Phase.CLAIM: "claiming",
    Phase.RUN: "running",
    Phase.REPORT: "reporting",
}
STATES = ("down", *_STATES.values())


def state_of(view: SlotView) -> str:
    """Return the word for what a slot's worker does: one of `STATES`."""
    if not view.incarnation:
        return "down"
    if not view.is_ready:
        return "starting"
    # With lanes, the worker's own record tells only whether it looks for more.
    return "running" if view.lanes else _STATES[view.phase]


class Status:
    """The node that a web process belongs to. `clock_ns` is the clock of the slots."""

    def __init__(
        self,
        slots: Slots,
        settings: Settings,
        *,
        name: str,
        version: str,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.slots = slots
        self.settings = settings
        self.name = name
        self.version = version
        self._clock_ns = clock_ns
        # A node that starts is not ready before it can do work. Later, a moment without a ready
        # worker is a crash or a short pool, and `NOT_READY_SECONDS` judges it.
        self._has_been_ready = False

    def reasons(self) -> list[str]:
        """Return why the node is not ready, as sentences; empty when it is."""
        header = self.slots.header
        reasons = []
        if header.is_stopping:
            reasons.append("the node is stopping: it claims nothing more")
        if not header.is_session_ok:
            reasons.append("no database: the steward has no session")
        elif header.seconds_since_beat() > self.settings.node.worker_timeout:
            # The steward itself is stuck or gone: nobody took the session back.
            reasons.append(
                f"no heartbeat for {header.seconds_since_beat():.0f} s "
                f"(worker_timeout {self.settings.node.worker_timeout:g} s)"
            )
        return reasons + self._reasons_of_workers()

    def _reasons_of_workers(self) -> list[str]:
        views = self.slots.wanted()
        self._has_been_ready = self._has_been_ready or any(view.is_ready for view in views)
        if not self._has_been_ready:
            return ["starting: no worker has been ready yet"]
        return [
            f"worker {view.name} has not been ready for {seconds:.0f} s: {state_of(view)}"
            for view in views
            if (seconds := self._not_ready_seconds(view)) > NOT_READY_SECONDS
        ]

    def health(self) -> dict[str, Any]:
        """Return the node as JSON: status and reasons, node, database, leader, workers.

        Workers come in the order of their slots. `seconds` is how long the worker has been running
        its task, starting, or down; None when it is idle. A worker of an async pool tells how many
        tasks it is `running` at once, and names none. Times are in seconds.
        """
        header = self.slots.header
        reasons = self.reasons()
        return {
            "status": NOT_READY if reasons else READY,
            "reasons": reasons,
            "version": self.version,
            "node": {"id": header.node_id or None, "name": self.name},
            "uptime_seconds": round(self._seconds_since(header.started_ns), 3),
            "generation": header.generation,
            "database": "ok" if header.is_session_ok else "unavailable",
            "last_beat_seconds": (
                round(header.seconds_since_beat(), 3) if header.last_beat_ns else None
            ),
            "leader": header.is_leader,
            "workers": [self._worker(view) for view in self.slots.wanted()],
        }

    def _worker(self, view: SlotView) -> dict[str, Any]:
        state = state_of(view)
        since_ns = {
            "down": view.down_ns,
            "starting": view.spawned_ns,
            "running": view.started_ns,
            "reporting": view.started_ns,
        }.get(state, 0)
        return {
            "slot": view.name,
            "pool": view.pool,
            "pid": view.pid or None,
            "state": state,
            "task": view.task_id or None,
            **({"running": view.n_busy} if view.n_lanes else {}),
            "seconds": round(self._seconds_since(since_ns), 3) if since_ns else None,
        }

    def _not_ready_seconds(self, view: SlotView) -> float:
        # `down_ns` goes back to the last time the slot was ready, over all births in between.
        return 0.0 if view.is_ready else self._seconds_since(view.down_ns)

    def _seconds_since(self, moment_ns: int) -> float:
        return max(0.0, (self._clock_ns() - moment_ns) / 1e9)
