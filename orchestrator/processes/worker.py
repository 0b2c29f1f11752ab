"""A worker: claims tasks, runs their handlers, reports the outcomes; one task at a time.

    IDLE ──woken──> CLAIM (token published, then the claim is sent)
                      │ nothing: IDLE       │ a task
                      v                     v
                  wait for a byte         RUN (task, attempt, token, deadline published)
                                            │ the handler is done
                                            v
                                          REPORT until the database has answered, then CLAIM

The slot tells all others what the worker is doing, at any instruction at which it may be killed.
An idle worker runs no SQL and wakes for nobody else's work: it waits for one byte from its pool's
pipe.
Without a database it does not exit: it keeps its outcome and tries again, with jittered back-off.
What becomes of the task of a worker that died is decided by supervisor and steward.
"""

from __future__ import annotations

import contextlib
import os
import random
import resource
import secrets
import select
import signal
import sys
import time
import traceback

from orchestrator import config, logs, metrics
from orchestrator.db.connection import Backoff, Session
from orchestrator.errors import DatabaseUnavailable, NodeRefused, PayloadError
from orchestrator.mux import Mux
from orchestrator.outcome import Answer, Ending, Outcome
from orchestrator.processes import identity
from orchestrator.processes.identity import Place
from orchestrator.processes.messages import Spawn
from orchestrator.processes.sessions import open_session
from orchestrator.processes.signals import SignalInbox, forget_inherited
from orchestrator.runner import Runner, refused
from orchestrator.slots import Phase
from orchestrator.store.claim import claim
from orchestrator.store.record import record
from orchestrator.task import Claim

log = logs.get("worker")


def live(place: Place, settings: config.Settings, mux: Mux, birth: Spawn) -> int:
    """Be a worker, from just after the fork to the exit code. Signals are blocked on entry."""
    forget_inherited()
    _await_supervisor(place.supervisor_pid)
    identity.arm_parent_death_signal(place.supervisor_pid)
    os.setpgid(0, 0)
    identity.become_subreaper()
    identity.set_title(f"orc-{birth.name}")
    logs.configure(
        settings.logging,
        identity=f"worker={birth.name} inc={birth.incarnation} pid={os.getpid()}",
    )
    random.seed()
    if "numpy" in sys.modules:
        # Its global generator is copied by the fork: every worker would draw the same numbers.
        sys.modules["numpy"].random.seed()
    metrics.set_identity(birth.name)
    worker = Worker(place, settings, mux, birth)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    try:
        code = worker.work()
    except BaseException:  # the outermost loop: nothing above it could say what happened
        log.exception("worker.failed")
        traceback.print_exc()
        code = 1
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    return code


def _await_supervisor(supervisor_pid: int) -> None:
    """Wait until the middle process is gone and the supervisor is the parent."""
    deadline = time.monotonic() + 10.0
    while os.getppid() != supervisor_pid:
        if time.monotonic() > deadline:
            os._exit(1)
        time.sleep(0.0002)


class Worker:
    """The loop of one worker."""

    def __init__(self, place: Place, settings: config.Settings, mux: Mux, birth: Spawn) -> None:
        self.place = place
        self.settings = settings
        self.birth = birth
        self.pool = next(
            pool for pool in settings.pools if pool.name == birth.name.rpartition("-")[0]
        )
        self.patterns = mux.patterns()
        slots = place.slots()
        self.header = slots.header
        self.slot = slots.writer(birth.index)
        self.slot.begin(os.getpid())
        self.inbox = SignalInbox(identity.PASSED_SIGNALS)
        self.wake_fd = place.wakes[self.pool.name][0]
        self.waiting = select.epoll()
        self.waiting.register(self.inbox, select.EPOLLIN)
        # One byte wakes one worker, not all that wait.
        self.waiting.register(self.wake_fd, select.EPOLLIN | select.EPOLLEXCLUSIVE)
        self.runner = Runner(
            mux,
            defaults=self.pool.policy(settings.defaults.policy()),
            stopping=lambda: self.is_stopping,
            wake=self.wait,
        )
        self.session: Session | None = None
        self.backoff = Backoff()
        self.was_told_to_stop = False
        self.was_idle = True
        self.is_spent = False

    @property
    def is_stopping(self) -> bool:
        """True once the node drains or this worker was told to end."""
        if signal.SIGTERM in self.inbox.drain():
            self.was_told_to_stop = True
        return self.was_told_to_stop or self.header.is_stopping

    def wait(self, seconds: float) -> bool:
        """Sleep for a handler; end early, with True, when the worker is told to stop."""
        deadline = time.monotonic() + seconds
        while not self.is_stopping:
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            select.select([self.inbox], [], [], left)
        return True

    def work(self) -> int:
        """Claim and run until told to stop; return the exit code."""
        with self.runner:
            self.slot.ready()
            self._ring(self.place.bell_fd)
            while not self.is_stopping and not self.is_spent:
                claims = self._claim() if self._may_claim() else []
                if not claims:
                    self._idle()
                for claimed in claims:
                    self._run(claimed)
            self.slot.publish(Phase.IDLE)
        self._disconnect()
        return 0

    # -- claim

    def _may_claim(self) -> bool:
        """Tell whether the node speaks to the database, and others will wait for what we claim."""
        header = self.header
        if not header.is_session_ok or not header.node_id:
            return False
        node = self.settings.node
        if not node.distributed:
            return True
        return header.seconds_since_beat() < node.worker_timeout - node.kill_grace

    def _claim(self) -> list[Claim]:
        """Claim the next task; empty where there is none or the database is away."""
        session = self._connected()
        if session is None:
            return []
        # Published before it is sent: if this process dies with the claim under way, the steward
        # finds whatever the server still makes of it.
        token = secrets.randbits(62) + 1
        self.slot.publish(Phase.CLAIM, token=token)
        began = time.monotonic()
        try:
            claims = claim(
                session,
                node=self.header.node_id,
                slot=self.birth.name,
                incarnation=self.birth.incarnation,
                pid=os.getpid(),
                token=token,
                queues=self.pool.queues,
                patterns=self.patterns,
                limit=1,
            )
        except NodeRefused as error:
            log.warning("claim.refused", reason=str(error))
            return []
        except DatabaseUnavailable as error:
            # What the old backend may still claim belongs to nobody: the token is withdrawn.
            self.slot.publish(Phase.IDLE)
            self._lost_connection(error)
            return []
        if not claims:
            return []
        metrics.claimed(time.monotonic() - began, len(claims))
        for claimed in claims:
            if claimed.attempt == 1:
                metrics.waited(claimed.queue, claimed.waited_seconds)
        return claims

    def _idle(self) -> None:
        """Wait for a byte of the pool's pipe, or for a signal."""
        # After an empty or refused claim, and after a report when no claim may follow: only who
        # is seen to be idle is woken.
        self.slot.publish(Phase.IDLE)
        if self.session is None and self.backoff.tries:
            # The database is away: try again soon, a byte could not come.
            self._pause(self.backoff.next())
            return
        self.was_idle = True
        self._ring(self.place.idle_fd)
        self.waiting.poll()
        with contextlib.suppress(BlockingIOError):
            os.read(self.wake_fd, 1)

    def _pause(self, seconds: float) -> None:
        select.select([self.inbox], [], [], seconds)

    # -- run

    def _run(self, claimed: Claim) -> None:
        policy = self.runner.policy(claimed)
        started_ns = time.monotonic_ns()
        used = resource.getrusage(resource.RUSAGE_SELF)
        deadline_ns = 0 if policy.timeout is None else started_ns + int(policy.timeout * 1e9)
        self.slot.publish(
            Phase.RUN,
            token=claimed.token,
            task_id=claimed.task_id,
            attempt=claimed.attempt,
            started_ns=started_ns,
            hard_deadline_ns=deadline_ns,
            user_us=int(used.ru_utime * 1e6),
            system_us=int(used.ru_stime * 1e6),
        )
        if self.was_idle:
            self.was_idle = False
            self._ring(self.place.bell_fd)
        outcome = self.runner.run(claimed)
        self.slot.publish(
            Phase.REPORT,
            token=claimed.token,
            task_id=claimed.task_id,
            attempt=claimed.attempt,
            started_ns=started_ns,
        )
        self._report(claimed, outcome)
        self.slot.count_finished()
        left_behind = identity.kill_children()
        if left_behind:
            log.warning("task.left_processes", task_id=claimed.task_id, killed=left_behind)
        # It crashed once and may have spoilt this process as well: its successor starts afresh.
        self.is_spent = claimed.is_alone

    # -- report

    def _report(self, claimed: Claim, outcome: Outcome) -> None:
        """Report until the database has answered; the answer decides what is counted."""
        while True:
            session = self._connected()
            if session is None:
                # Not `_pause`: a signal that waits to be read would end it at once, every time.
                time.sleep(self.backoff.next())
                continue
            try:
                answer = record(session, claimed, outcome)
            except PayloadError as error:
                # The database refuses what we cleaned: the task must not hang for it.
                outcome = refused(claimed, outcome, self.runner.policy(claimed), error)
            except DatabaseUnavailable as error:
                self._lost_connection(error)
            else:
                break
        self._count(claimed, outcome, answer)

    def _count(self, claimed: Claim, outcome: Outcome, answer: Answer) -> None:
        """Count on `recorded` only: a repeated report must not count twice."""
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

    def _connected(self) -> Session | None:
        """Return the session, opening one if need be; None while the database is away."""
        if self.session is not None:
            return self.session
        try:
            self.session = open_session(self.settings, self.birth.name)
        except DatabaseUnavailable as error:
            self._lost_connection(error)
            return None
        if self.backoff.tries:
            log.info("database.restored")
        self.backoff.reset()
        return self.session

    def _lost_connection(self, error: DatabaseUnavailable) -> None:
        if self.backoff.tries == 0:
            log.warning("database.lost", reason=str(error))
            self.backoff.tries = 1
        metrics.database_error("worker")
        self._disconnect()

    def _disconnect(self) -> None:
        if self.session is not None:
            self.session.close()
            self.session = None

    @staticmethod
    def _ring(fd: int) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_write(fd, 1)
