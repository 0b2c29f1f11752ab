"""Queues: what waits in each, and whether anybody serves it."""

from __future__ import annotations

from typing import NamedTuple

from orchestrator.db.connection import Session


class Queue(NamedTuple):
    """One queue. The counts are exact; `oldest_seconds` is the time that its oldest ready task
    has been due, None when none is ready; `served_by` names the nodes that claim from it."""

    name: str
    is_paused: bool
    ready: int
    scheduled: int
    held: int
    running: int
    dead: int
    oldest_seconds: float | None
    served_by: list[str]


def queues(session: Session, *, alive_within: float) -> list[Queue]:
    """List the queues that tasks were ever enqueued to, by name.

    A node counts when it has beaten within `alive_within` seconds.
    """
    return [Queue(*row) for row in session.all("queues", alive_within=alive_within)]
