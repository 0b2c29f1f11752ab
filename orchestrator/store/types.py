"""Task types: how many tasks of each are in which state."""

from __future__ import annotations

from typing import NamedTuple

from orchestrator.db.connection import Session


class TypeCounts(NamedTuple):
    """The tasks of one type by state; those that ended otherwise than dead only while kept.

    `enqueued` counts all that ever were, as far as the leader has counted.
    """

    type: str
    is_paused: bool
    enqueued: int
    ready: int
    scheduled: int
    held: int
    running: int
    succeeded: int
    cancelled: int
    expired: int
    dead: int


def types(session: Session) -> list[TypeCounts]:
    """List the types that tasks were ever enqueued with, by name. Reads all tasks that are kept."""
    return [TypeCounts(*row) for row in session.all("types")]
