"""A steward whose workers are all idle, as far as the doorbell is concerned."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from orchestrator.db.connection import Session
from orchestrator.store.doorbell import hold_sleep_lock, listen
from tests.sql import opened


@contextmanager
def sleeping(dsn: str) -> Iterator[Session]:
    """Listen, and ask clients to ring, for the length of a block."""
    with opened(dsn) as session:
        listen(session)
        hold_sleep_lock(session)
        yield session


def n_rings(session: Session) -> int:
    """Count the rings since it was last asked."""
    session.connection.poll()
    n = len(session.connection.notifies)
    session.connection.notifies.clear()
    return n
