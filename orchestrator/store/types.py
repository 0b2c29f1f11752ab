"""Task types: how many tasks of each are in which state."""

from __future__ import annotations

from typing import NamedTuple

from orchestrator.db.connection import Session


class TypeCounts(NamedTuple):
    """The tasks of one type by state, as far as they are kept.

    `enqueued` counts all that ever were; `succeeded` is what the other states leave of those that
    are kept. `served_by` names the nodes that have a handler for the type.
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
    served_by: list[str]


def types(session: Session, *, alive_within: float) -> list[TypeCounts]:
    """List the types that tasks were ever enqueued with, by name.

    Reads what has not ended well: the more waits or is dead, the longer it takes. A node counts
    when it has beaten within `alive_within` seconds.
    """
    return [TypeCounts(*row) for row in session.all("types", alive_within=alive_within)]
