"""What all workers share: the data connection, the claim, and what is counted of an end.

How many tasks run at once, and how, is decided by `process_worker` (one) and `async_worker`
(many); what they publish in the slot is theirs as well.

A claimant outlives every loss of its connection: it says so once, and tries again with jittered
back-off. `lost` and `connected` are all that its owner needs to know about it.
"""

from __future__ import annotations

import contextlib
import os
import random
import select
import signal
import time
from collections.abc import Sequence

from orchestrator import config, logs, metrics
from orchestrator.db.connection import Backoff, Session
from orchestrator.errors import DatabaseUnavailable, NodeRefused
from orchestrator.outcome import Answer, Ending, Outcome
from orchestrator.processes.identity import PASSED_SIGNALS, Place
from orchestrator.processes.messages import Spawn
from orchestrator.processes.sessions import open_session
from orchestrator.processes.signals import SignalInbox
from orchestrator.store.claim import claim
from orchestrator.task import Claim

log = logs.get("worker")


class Claimant:
    """One worker as the database and the node see it."""

    def __init__(
        self,
        place: Place,
        settings: config.Settings,
        birth: Spawn,
        *,
        patterns: Sequence[str],
        refused: Sequence[str] = (),
        signals: Sequence[int] = PASSED_SIGNALS,
    ) -> None:
        self.place = place
        self.settings = settings
        self.birth = birth
        self.patterns = patterns
        self.refused = refused
        self.pool = next(
            pool for pool in settings.pools if pool.name == birth.name.rpartition("-")[0]
        )
        slots = place.slots()
        self.header = slots.header
        self.slot = slots.writer(birth.index)
        self.slot.begin(os.getpid())
        self.inbox = SignalInbox(signals)
        self.wake_fd = place.wakes[self.pool.name][0]
        self.waiting = select.epoll()
        # One byte wakes one worker, not all that wait.
        self.waiting.register(self.wake_fd, select.EPOLLIN | select.EPOLLEXCLUSIVE)
        self.session: Session | None = None
        self.backoff = Backoff()
        self.was_told_to_stop = False

    @property
    def is_stopping(self) -> bool:
        """True once the node drains or this worker was told to end."""
        if signal.SIGTERM in self.inbox.drain():
            self.was_told_to_stop = True
        return self.was_told_to_stop or self.header.is_stopping

    # -- claim

    def may_claim(self) -> bool:
        """Tell whether the node speaks to the database, and others will wait for what we claim."""
        header = self.header
        if not header.is_session_ok or not header.node_id:
            return False
        node = self.settings.node
        if not node.distributed:
            return True
        return header.seconds_since_beat() < node.worker_timeout - node.kill_grace

    def claim(self, *, token: int, limit: int) -> list[Claim]:
        """Claim up to `limit` tasks; empty where there is none or this node must not claim.

        `token` must have been published in the slot.

        Raises:
            DatabaseUnavailable: what the old backend may still claim belongs to nobody: withdraw
                the token, then call `lost`.
        """
        session = self.connected()
        if session is None:
            return []
        began = time.monotonic()
        try:
            claims = claim(
                session,
                node=self.header.node_id,
                slot=self.birth.name,
                incarnation=self.birth.incarnation,
                pid=os.getpid(),
                token=token,
                queues=self.queues(),
                patterns=self.patterns,
                refused=self.refused,
                limit=limit,
            )
        except NodeRefused as error:
            log.warning("claim.refused", reason=str(error))
            return []
        if claims:
            metrics.claimed(time.monotonic() - began, len(claims))
        for claimed in claims:
            if claimed.attempt == 1:
                metrics.waited(claimed.queue, claimed.waited_seconds)
        return claims

    def queues(self) -> Sequence[str]:
        """Return the queues of the pool in the order of the next claim.

        With weights the order is drawn anew for each claim: a queue comes first with the
        probability of its share, so that none is starved. Source: Efraimidis and Spirakis,
        "Weighted random sampling with a reservoir", 2006.
        """
        pool = self.pool
        if not pool.weights:
            return pool.queues
        drawn = [
            (random.random() ** (1.0 / weight), queue)
            for queue, weight in zip(pool.queues, pool.weights, strict=True)
        ]
        return [queue for _, queue in sorted(drawn, reverse=True)]

    def take_byte(self) -> None:
        """Take the byte that woke this worker; another may have been quicker."""
        with contextlib.suppress(BlockingIOError):
            os.read(self.wake_fd, 1)

    # -- ends

    def count(self, claimed: Claim, outcome: Outcome, answer: Answer) -> None:
        """Count an end on `recorded` only: a repeated report must not count twice."""
        if answer is Answer.LOST:
            metrics.fence_rejected()
            log.warning(
                "claim.lost",
                task_id=claimed.task_id,
                attempt=claimed.attempt,
                outcome=outcome.ending,
                reason="the claim was taken back meanwhile; the outcome is dropped",
            )
            return
        if answer is not Answer.RECORDED:
            return
        metrics.task_ended(claimed.type, outcome.ending, outcome.usage.wall_seconds)
        log.debug(
            "task.ended",
            task_id=claimed.task_id,
            type=claimed.type,
            attempt=claimed.attempt,
            outcome=outcome.ending,
        )
        if outcome.ending in (Ending.FAILED, Ending.TIMED_OUT):
            is_dead = outcome.is_last(claimed.failures)
            (metrics.dead if is_dead else metrics.retried)(claimed.type)
            log.warning(
                "task.died" if is_dead else "task.failed",
                task_id=claimed.task_id,
                type=claimed.type,
                attempt=claimed.attempt,
                error=str(outcome.failure),
            )

    # -- connection

    def connected(self) -> Session | None:
        """Return the session, opening one if need be; None while the database is away."""
        if self.session is not None:
            return self.session
        try:
            self.session = open_session(self.settings, self.birth.name)
        except DatabaseUnavailable as error:
            self.lost(error)
            return None
        if self.backoff.tries:
            log.info("database.restored")
        self.backoff.reset()
        return self.session

    def lost(self, error: DatabaseUnavailable) -> None:
        """Drop the connection, and say so if it is news."""
        if self.backoff.tries == 0:
            log.warning("database.lost", reason=str(error))
            self.backoff.tries = 1
        metrics.database_error("worker")
        self.disconnect()

    def disconnect(self) -> None:
        if self.session is not None:
            self.session.close()
            self.session = None

    # -- bells

    def ring_bell(self) -> None:
        """Have the supervisor look at the slots: ready, or busy."""
        _ring(self.place.bell_fd)

    def ring_idle(self) -> None:
        """Tell the steward that a worker waits for work."""
        _ring(self.place.idle_fd)


def _ring(fd: int) -> None:
    with contextlib.suppress(BlockingIOError):
        os.eventfd_write(fd, 1)
