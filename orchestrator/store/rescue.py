"""Rescue: take back the running tasks of nodes that are gone."""

from __future__ import annotations

from typing import Any

from orchestrator.db.connection import Session


def rescue(session: Session, *, max_losses: int, limit: int) -> list[Any]:
    """Take back up to `limit` tasks; rows of task_id, attempt, node (its name).

    A standing query over nodes that are not alive: how they came to be given up does not matter.
    """
    return session.all("rescue", max_losses=max_losses, limit=limit)
