"""The leader process: competes for the lead and does the duties while it holds it.

The lead is a session advisory lock. Duties run on the very session that holds it, one short
transaction each, and the session's end is the lead's end: there is no reconnect in between, so no
duty of an old leader can commit after the lock was given on.

    candidate ──lock──> leader (term + 1) ──session lost, term taken, TERM──> candidate or exit
        │  every second
        └─ row not renewed for `term`: the holder is stopped or cut off; its backend is terminated

What each duty does is in `duties/`. Two processes that both believe to lead do no harm: one of them
has no lock any more, and its statements fail with its session.
"""

from __future__ import annotations

import heapq
import secrets
import select
import signal
import sys
import time

from orchestrator import logs, metrics
from orchestrator.db.connection import Backoff, Session, StatementTimeout
from orchestrator.duties import Duty
from orchestrator.duties.count import Count
from orchestrator.duties.promote import Promote
from orchestrator.duties.prune import Prune
from orchestrator.duties.rescue import Rescue
from orchestrator.errors import DatabaseUnavailable
from orchestrator.processes.birth import begin
from orchestrator.processes.identity import PASSED_SIGNALS
from orchestrator.processes.sessions import open_session
from orchestrator.processes.signals import SignalInbox
from orchestrator.store import leader, nodes

CANDIDATE_SECONDS = 1.0
UNREGISTERED_SECONDS = 0.1
DUTY_SECONDS = 1.0

log = logs.get("leader")


class Leader:
    """Competes for the lead, then does the duties, until told to stop."""

    def __init__(self) -> None:
        self.place, self.settings = begin()
        metrics.set_identity("leader")
        self.inbox = SignalInbox(PASSED_SIGNALS)
        self.header = self.place.slots().header
        self.count = Count(self.settings, self.place.run_directory)
        # What a predecessor that was killed could not take back.
        self._step_down()
        self.is_stopping = False

    def run(self) -> None:
        backoff = Backoff()
        while not self.is_stopping:
            try:
                session = open_session(
                    self.settings, "leader", direct=True, statement_timeout=DUTY_SECONDS
                )
            except DatabaseUnavailable as error:
                self._complain(backoff, error)
                continue
            if backoff.tries:
                log.info("database.restored")
            backoff.reset()
            try:
                if self._compete(session):
                    self._lead(session)
            except DatabaseUnavailable as error:
                self._complain(backoff, error)
            finally:
                self._step_down()
                session.close()

    def _step_down(self) -> None:
        self.header.is_leader = False
        self.count.forget()

    def _complain(self, backoff: Backoff, error: DatabaseUnavailable) -> None:
        if backoff.tries == 0:
            log.warning("database.lost", reason=str(error))
        metrics.database_error("leader")
        self._wait(backoff.next())

    def _wait(self, seconds: float) -> None:
        """Sleep, or until told to stop."""
        deadline = time.monotonic() + seconds
        while not self.is_stopping and (left := deadline - time.monotonic()) > 0:
            select.select([self.inbox], [], [], left)
            self.is_stopping = signal.SIGTERM in self.inbox.drain()

    def _compete(self, session: Session) -> bool:
        """Try for the lock until it is ours; False when told to stop.

        Only a registered node competes: one that was refused must not lead for a moment.
        """
        while not self.is_stopping:
            if self.header.node_id and nodes.lock(session, purpose="leader"):
                return True
            age = leader.lead_age(session)
            if age is not None and age > self.settings.leader.term:
                ended = nodes.terminate_holder(session, purpose="leader")
                if ended:
                    log.warning("leader.deposed", silent_seconds=round(age, 1))
                    continue
            self._wait(CANDIDATE_SECONDS if self.header.node_id else UNREGISTERED_SECONDS)
        return False

    def _lead(self, session: Session) -> None:
        """Do the duties in the order of their times, renewing the term in between."""
        holder = secrets.randbits(62) + 1
        term = leader.take_lead(session, holder=holder, node=self.header.node_id or None)
        log.info("leader.elected", term=term)
        self._do(self.count, session)  # figures of its own, before it shows any
        self.header.is_leader = True
        duties: list[Duty] = [
            Promote(self.settings), Rescue(self.settings), self.count, Prune(self.settings),
        ]  # fmt: skip
        renew_every = self.settings.leader.term / 5
        renew_at = time.monotonic() + renew_every
        queue = [(time.monotonic(), number) for number in range(len(duties))]
        while not self.is_stopping:
            at, number = queue[0]
            self._wait(min(at, renew_at) - time.monotonic())
            now = time.monotonic()
            if now >= renew_at:
                if not leader.renew_lead(session, holder=holder, term=term):
                    log.warning("leader.replaced", term=term)
                    return
                renew_at = now + renew_every
            if now >= at and not self.is_stopping:
                heapq.heapreplace(queue, (now + self._do(duties[number], session), number))
        leader.resign_lead(session, holder=holder)
        log.info("leader.resigned", term=term)

    def _do(self, duty: Duty, session: Session) -> float:
        try:
            return duty.run(session)
        except StatementTimeout as error:
            # Its transaction was rolled back: nothing is half done.
            log.warning("duty.timed_out", duty=duty.name, reason=str(error))
            return DUTY_SECONDS * 5


def main() -> int:
    Leader().run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
