"""Workers and nodes as people look at them, and the leader."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

from orchestrator.db.connection import Session


class Node(NamedTuple):
    """A registered node; `beat_seconds` is the time since its last beat."""

    id: int
    name: str
    host: str
    pid: int
    version: str
    started_at: datetime
    beat_seconds: float
    handlers: list[str]
    queues: list[str]


class Worker(NamedTuple):
    """A worker as its node described it at its last beat, and as `running` has it now.

    `state` is "starting", "idle" or "running"; `task` is the id of the task that it runs and
    `seconds` the time since that was claimed.
    """

    node: str
    slot: str
    pid: int | None
    state: str
    task: int | None
    type: str | None
    attempt: int | None
    seconds: float | None
    beat_seconds: float


class Leader(NamedTuple):
    """Who leads: `node` None when nobody does; `renewed_seconds` is the age of the last renewal."""

    term: int
    node_id: int | None
    node: str | None
    is_held: bool
    acquired_at: datetime | None
    renewed_at: datetime | None
    renewed_seconds: float | None


def nodes(session: Session, *, alive_within: float) -> list[Node]:
    """List the nodes that have beaten within `alive_within` seconds and have not left, by id."""
    return [Node(*row) for row in session.all("nodes", alive_within=alive_within)]


def workers(session: Session, *, alive_within: float) -> list[Worker]:
    """List the workers of these nodes, by node and slot."""
    return [Worker(*row) for row in session.all("workers", alive_within=alive_within)]


def leader(session: Session) -> Leader:
    """Return the leader's row."""
    return Leader(*session.one("leader"))
