"""Read the rows of `running` that belong to one node."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from orchestrator.db.connection import Session


def running(session: Session, *, node: int, tokens: Sequence[int] | None = None) -> list[Any]:
    """List the node's running tasks, those of some claims if `tokens` are given, in id order.

    Rows: id token attempt type failures crashes losses alone cancel_requested max_attempts
    timeout_seconds age_seconds.
    """
    return session.all("running", node=node, tokens=None if tokens is None else list(tokens))


def flagged(session: Session, *, node: int) -> list[Any]:
    """List the node's running tasks that somebody cancelled. Rows: id token."""
    return session.all("flagged", node=node)
