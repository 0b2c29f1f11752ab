"""Claim tasks for one worker: take them from `ready` into `running` for one attempt each."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.db.connection import Session
from orchestrator.task import Claim


def claim(
    session: Session,
    *,
    node: int,
    slot: str,
    incarnation: int,
    pid: int,
    token: int,
    queues: Sequence[str],
    patterns: Sequence[str],
    limit: int,
    refused: Sequence[str] = (),
    started: bool = True,
) -> list[Claim]:
    """Claim up to `limit` ready tasks; empty when nothing is ready.

    In the order of `queues` ("*" is every other queue), then by priority (larger first), then in
    the order of their entry. Tasks of other types than `patterns` are held; `refused` are patterns
    that the worker knows and must not serve, for the reason that is then told. `started` tells
    that all of them run at once. `token` must have been published before. Commits without waiting
    for the disk: a claim lost in a server crash runs again.

    Raises:
        NodeRefused: the node is not registered as alive.
        DatabaseUnavailable: nothing is known of what was claimed; the token must be withdrawn.
    """
    rows = session.all(
        "claim",
        node=node,
        slot=slot,
        incarnation=incarnation,
        pid=pid,
        token=token,
        queues=list(queues),
        patterns=list(patterns),
        limit=limit,
        refused=list(refused),
        started=started,
    )
    return [
        Claim(
            task_id=row.task_id,
            token=token,
            attempt=row.attempt,
            type=row.type,
            queue=row.queue,
            priority=row.priority,
            payload=row.payload,
            headers=row.headers,
            max_attempts=row.max_attempts,
            timeout=row.timeout_seconds,
            failures=row.failures,
            crashes=row.crashes,
            losses=row.losses,
            is_alone=row.alone,
            created_at=row.created_at,
            waited_seconds=row.waited_seconds,
        )
        for row in rows
    ]
