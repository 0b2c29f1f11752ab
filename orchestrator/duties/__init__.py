"""The periodic jobs of the leader, one file each.

A duty is an object with a `name` and `run(session) -> seconds until it wants to run again`. Each
run is short (transactions of at most a second) and idempotent: another leader may repeat it.
"""

from __future__ import annotations

from typing import Protocol

from orchestrator.db.connection import Session


class Duty(Protocol):
    """One periodic job."""

    name: str

    def run(self, session: Session) -> float:
        """Do one slice of work; return the seconds until the next. 0: there is more to do.

        Raises:
            DatabaseUnavailable: the session is lost, and with it the lead.
        """
        ...
