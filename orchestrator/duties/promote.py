"""Promote: move scheduled tasks to `ready` when they are due."""

from __future__ import annotations

from orchestrator import config
from orchestrator.db.connection import Session
from orchestrator.store.promote import next_due, promote
from orchestrator.store.ring import ring

SLICE = 2000


class Promote:
    """Sleeps until the next task is due, at most `promote_interval`."""

    name = "promote"

    def __init__(self, settings: config.Settings) -> None:
        self.interval = settings.leader.promote_interval

    def run(self, session: Session) -> float:
        moved = promote(session, limit=SLICE)
        if moved:
            ring(session)
        if moved == SLICE:
            return 0.0
        due = next_due(session)
        return self.interval if due is None else min(self.interval, max(0.01, due))
