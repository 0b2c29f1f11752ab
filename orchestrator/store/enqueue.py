"""Enqueue: write tasks, or find the live ones that hold their idempotency keys."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from orchestrator.db.connection import Session
from orchestrator.enqueueing import EnqueueOptions
from orchestrator.outcome import Enqueue


class Enqueued(NamedTuple):
    """The task that stands for one payload; `existing`: it was live before and holds the key."""

    id: int
    existing: bool


def enqueue(
    session: Session,
    options: EnqueueOptions,
    payloads: Sequence[bytes],
    *,
    keys: Sequence[str | None] | None = None,
) -> list[Enqueued]:
    """Enqueue one task per payload (JSON), all with the same options, in their order.

    `keys` holds one idempotency key, or None, per payload and takes the place of that in the
    options. Waits while another transaction holds one of the keys.

    Raises:
        PayloadError: a payload is larger than the limit of this database.
        DatabaseUnavailable: nothing was enqueued; with `unknown`, perhaps all of it was.
    """
    if keys is None and options.idempotency_key is not None:
        keys = [options.idempotency_key] * len(payloads)
    rows = session.all(
        "enqueue",
        type=options.type,
        queue=options.queue,
        priority=options.priority,
        run_at=options.run_at,
        delay=options.delay,
        payloads=[payload.decode() for payload in payloads],
        keys=None if keys is None else list(keys),
        max_attempts=options.max_attempts,
        timeout=options.timeout,
        ttl=options.ttl,
        tags=list(options.tags),
        headers=options.headers.decode(),
    )
    return [Enqueued(row.id, row.existing) for row in rows]


def enqueue_from_outcome(session: Session, request: Enqueue) -> Enqueued:
    """Enqueue what a handler asked for by `ctx.enqueue`, in the transaction of its success."""
    options = EnqueueOptions(type=request.type, **request.options)
    return enqueue(session, options, [request.payload])[0]


def max_payload_bytes(session: Session) -> int:
    """Return this database's limit of a payload, in bytes of JSON."""
    return int(session.value("max_payload_bytes"))
