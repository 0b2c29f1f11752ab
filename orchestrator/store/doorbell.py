"""The steward's side of the doorbell: listen, and say that idle workers sleep.

The client's side is `ring`: it notifies only while somebody holds the sleep lock.
"""

from __future__ import annotations

from orchestrator.db.connection import Session, translated_errors
from orchestrator.db.statements import quoted


def listen(session: Session) -> None:
    """Subscribe this session to the doorbell of its schema."""
    with translated_errors(), session.connection.cursor() as cursor:
        cursor.execute(f"listen {quoted(session.schema + '_ready')}")


def hold_sleep_lock(session: Session) -> None:
    """Ask clients to ring. Who takes the lock must look for work once more afterwards."""
    session.all("hold_sleep_lock")


def drop_sleep_lock(session: Session) -> None:
    """Spare clients the notification while no worker is idle."""
    session.all("drop_sleep_lock")
