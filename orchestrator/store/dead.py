"""The dead letter queue: of what its tasks died."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

from orchestrator.db.connection import Session
from orchestrator.store.tasks import Filters, scope


class Cause(NamedTuple):
    """Dead tasks of one type whose last errors are alike, `error_type` None where there is none.

    `message` has its numbers and quoted parts blanked (`error_shape` in schema/70_tasks.sql);
    `sample` is the newest of the tasks.
    """

    type: str
    error_type: str | None
    message: str
    n_tasks: int
    first_at: datetime
    last_at: datetime
    sample: int

    @property
    def error(self) -> str:
        """Type and message, as a task shows them."""
        return ": ".join(part for part in (self.error_type, self.message) if part)


def dead_summary(
    session: Session, *, type: str | None = None, queue: str | None = None
) -> list[Cause]:
    """List the causes of death, the most frequent first. None matches everything.

    Reads all dead tasks of the type and queue.
    """
    scoped = scope(session, Filters(type=type, queue=queue))
    if scoped is None:
        return []
    return [Cause(*row) for row in session.all("dead", **scoped)]
