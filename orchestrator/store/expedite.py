"""Expedite: make the next scheduled task due at once, for tests that do not wait."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.db.connection import Session


def expedite(session: Session, *, patterns: Sequence[str], queues: Sequence[str]) -> bool:
    """Make the earliest scheduled task of these types and queues due; False where there is none.

    "*" is every queue. It is `promote` that moves it.
    """
    return bool(session.all("expedite", patterns=list(patterns), queues=list(queues)))
