"""Count: keep the totals per type, and write what only the database knows for the metrics.

The figures go into `statistics.json` of the run directory, which the web process shows while this
process leads: so one node of many tells them, and a sum over nodes is right.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from orchestrator import config
from orchestrator.db.connection import Session
from orchestrator.store import count

FILE = "statistics.json"


class Count:
    """Counts enqueues up to a mark set earlier, once no transaction before the mark is open."""

    name = "count"

    def __init__(self, settings: config.Settings, run_directory: Path) -> None:
        self.interval = max(1.0, settings.node.heartbeat_interval / 2)
        self.path = run_directory / FILE
        self.marked: count.Mark | None = None

    def run(self, session: Session) -> float:
        if self.marked is not None and count.count_enqueued(session, self.marked):
            self.marked = None
        if self.marked is None:
            self.marked = count.mark(session)
        pending, is_estimate = count.pending(session)
        self._write(
            {
                "enqueued": count.totals(session),
                "pending": pending,
                "oldest_pending_seconds": count.oldest_pending(session),
                "estimated": sorted(pending) if is_estimate else [],
            }
        )
        return self.interval

    def forget(self) -> None:
        """Take the figures away: another leads now."""
        self.path.unlink(missing_ok=True)

    def _write(self, figures: dict[str, object]) -> None:
        unfinished = self.path.with_suffix(".new")
        unfinished.write_bytes(msgspec.json.encode(figures))
        os.replace(unfinished, self.path)
