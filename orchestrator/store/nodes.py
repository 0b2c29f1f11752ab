"""Nodes: register and deregister, beat, the locks that tell a living node from a dead one."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from orchestrator.db.connection import Session


def register(
    session: Session,
    *,
    name: str,
    host: str,
    pid: int,
    run: str,
    version: str,
    lock_path: str,
    distributed: bool,
    handlers: Sequence[str],
    queues: Sequence[str],
) -> int:
    """Register a node as alive; return its new id. `pid` and `run` are the supervisor's."""
    return int(
        session.value(
            "register",
            name=name,
            host=host,
            pid=pid,
            run=run,
            version=version,
            lock_path=lock_path,
            distributed=distributed,
            handlers=list(handlers),
            queues=list(queues),
        )
    )


def beat(session: Session, *, node: int, workers: str) -> bool:
    """Renew the node's beat; False where it was marked dead and must register anew.

    `workers` is the JSON list that `orchestratorctl worker list` shows.
    """
    return bool(session.value("beat", node=node, workers=workers))


def describe(session: Session, *, node: int, handlers: Sequence[str]) -> None:
    """Write which task types the node serves."""
    session.all("describe_node", node=node, handlers=list(handlers))


def deregister(session: Session, *, node: int) -> None:
    """Say that the node has left; what it still had in `running` is rescued."""
    session.all("deregister", node=node)


def mark_dead(session: Session, *, node: int, judged: datetime) -> bool:
    """Give up a node, unless it has beaten since the beat that was judged."""
    return bool(session.value("mark_dead", node=node, judged=judged))


def alive(session: Session) -> list[Any]:
    """List the nodes that count as alive, with `age_seconds` of their beats (database time)."""
    return session.all("alive_nodes")


def lock(session: Session, *, purpose: str, number: int = 0) -> bool:
    """Try to take an advisory lock of this schema; it lasts as long as the session.

    "node" (by node id) says that a node's steward is connected, "single" that a node is alone,
    "leader" that somebody leads.
    """
    return bool(session.value("lock", purpose=purpose, number=number))


def terminate_holder(session: Session, *, purpose: str, number: int = 0) -> int:
    """Terminate the backends that hold an advisory lock of this schema; return how many.

    Found in pg_locks: a remembered backend pid may be another's by now.
    """
    return len(session.all("terminate_holder", purpose=purpose, number=number))
