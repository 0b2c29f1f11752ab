"""The lead: a session advisory lock, and a row that says who holds it, since which term."""

from __future__ import annotations

from orchestrator.db.connection import Session


def take_lead(session: Session, *, holder: int, node: int | None) -> int:
    """Write who leads; return the new term. Only with the lock."""
    return int(session.value("take_lead", holder=holder, node=node))


def renew_lead(session: Session, *, holder: int, term: int) -> bool:
    """Renew the term; False where another has taken the lead meanwhile."""
    return session.value("renew_lead", holder=holder, term=term) is not None


def resign_lead(session: Session, *, holder: int) -> None:
    session.all("resign_lead", holder=holder)


def lead_age(session: Session) -> float | None:
    """Return the seconds since the lead was renewed; None when nobody leads."""
    value = session.value("lead_age")
    return None if value is None else float(value)
