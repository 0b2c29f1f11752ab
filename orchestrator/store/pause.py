"""Pause and resume: queues that are not claimed from, task types that are not run.

A claim passes by a paused queue, whose tasks stay `ready`. It meets the tasks of a paused type one
by one and puts them into `held`; the stewards take them back once the type is resumed.
"""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.db.connection import Session
from orchestrator.store.ring import ring


def pause_types(session: Session, *, patterns: Sequence[str]) -> list[str]:
    """Pause the task types that match (a pattern that ends in ":" is a prefix); return them."""
    return _names(session.all("pause_types", patterns=list(patterns), paused=True))


def resume_types(session: Session, *, patterns: Sequence[str]) -> list[str]:
    """Let the task types that match run again, wake the sleepers, and return the types."""
    names = _names(session.all("pause_types", patterns=list(patterns), paused=False))
    ring(session)
    return names


def pause_queues(session: Session, *, names: Sequence[str]) -> list[str]:
    """Pause queues; return those that exist."""
    return _names(session.all("pause_queues", names=list(names), paused=True))


def resume_queues(session: Session, *, names: Sequence[str]) -> list[str]:
    """Let queues be claimed from again, wake the sleepers, and return those that exist."""
    found = _names(session.all("pause_queues", names=list(names), paused=False))
    ring(session)
    return found


def _names(rows: Sequence[tuple[str]]) -> list[str]:
    return sorted(row[0] for row in rows)
