"""Read the rows of `running` that belong to one node."""

from __future__ import annotations

from typing import Any

from orchestrator.db.connection import Session


def running(session: Session, *, node: int, token: int | None = None) -> list[Any]:
    """List the node's running tasks, those of one claim if `token` is given, in id order.

    Rows: id token attempt type failures crashes losses alone cancel_requested max_attempts
    timeout_seconds age_seconds.
    """
    return session.all("running", node=node, token=token)
