"""Prune: delete tasks that ended longer ago than the retention time."""

from __future__ import annotations

from orchestrator import config, logs
from orchestrator.db.connection import Session
from orchestrator.store.prune import prune

SLICE = 5000
YOUNG_SLICE_SECONDS = 1.0

log = logs.get("leader")


class Prune:
    """Walks the ended tasks in the order of their ids, a slice at a time.

    Old ones lie in front, as a rule. The walk goes on, slowly, through the young ones as well: a
    task that waited long has a low id and a young end, and must not hide what lies behind it.
    """

    name = "prune"

    def __init__(self, settings: config.Settings) -> None:
        self.keep_seconds = settings.retention.finished
        self.interval = settings.leader.cleanup_interval
        self.after = 0
        self.deleted = 0

    def run(self, session: Session) -> float:
        deleted, last_id = prune(
            session, after=self.after, keep_seconds=self.keep_seconds, limit=SLICE
        )
        self.deleted += deleted
        if last_id is not None:
            self.after = last_id
            return 0.0 if deleted else YOUNG_SLICE_SECONDS
        if self.deleted:
            log.info("tasks.pruned", deleted=self.deleted)
        self.after = self.deleted = 0
        return self.interval
