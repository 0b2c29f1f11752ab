"""Rescue: give up nodes that have been silent too long and take back what they ran."""

from __future__ import annotations

import time
from typing import Any

from orchestrator import config, logs, metrics
from orchestrator.db.connection import Session
from orchestrator.store import nodes
from orchestrator.store.rescue import rescue
from orchestrator.store.ring import ring

SLICE = 500

log = logs.get("leader")


class Rescue:
    """Judges beats against the database's clock, and against this session's own age.

    After a server restart every beat is old and every node healthy: no node is given up before
    this session itself has been able to see beats for `worker_timeout`.
    """

    name = "rescue"

    def __init__(self, settings: config.Settings) -> None:
        self.worker_timeout = settings.node.worker_timeout
        self.max_losses = settings.defaults.max_losses
        self.interval = min(1.0, settings.node.worker_timeout / 10)
        self.watching_since = time.monotonic()

    def run(self, session: Session) -> float:
        watched = time.monotonic() - self.watching_since
        if watched >= self.worker_timeout:
            for node in nodes.alive(session):
                if node.age_seconds >= self.worker_timeout:
                    self._give_up(session, node)
        taken = rescue(session, max_losses=self.max_losses, limit=SLICE)
        if taken:
            metrics.rescued(len(taken))
            for row in taken:
                log.warning("task.rescued", task_id=row.task_id, attempt=row.attempt, node=row.node)
            ring(session)
        return 0.0 if len(taken) == SLICE else self.interval

    @staticmethod
    def _give_up(session: Session, node: Any) -> None:
        if nodes.mark_dead(session, node=node.id, judged=node.beat_at):
            log.error(
                "node.given_up",
                node=node.id,
                name=node.name,
                silent_seconds=round(node.age_seconds, 1),
            )
