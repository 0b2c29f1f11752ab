"""The worker of a pool with `mode = "process"`: one task at a time, in this process alone.

    IDLE ──woken──> CLAIM (token published, then the claim is sent)
                      │ nothing: IDLE       │ a task
                      v                     v
                  wait for a byte         RUN (task, attempt, token, deadline published)
                                            │ the handler is done
                                            v
                                          REPORT until the database has answered, then CLAIM

A cancelled attempt is interrupted here, when the supervisor signals: `Cancelled` is raised in the
handler. One that does not stop is killed with this process by the supervisor. What the handler
wrote by `ctx.connection()` is committed here with its success (`store/effects.py`).
"""

from __future__ import annotations

import contextlib
import resource
import secrets
import select
import signal
import sys
import threading
import time
from types import FrameType

import psycopg2

from orchestrator import config, logs
from orchestrator.db.connection import Session
from orchestrator.errors import DatabaseUnavailable, OrchestratorError, PayloadError
from orchestrator.mux import Mux
from orchestrator.outcome import Answer, Ending, Outcome
from orchestrator.processes import identity
from orchestrator.processes.claimant import Claimant
from orchestrator.processes.identity import Place
from orchestrator.processes.messages import Spawn
from orchestrator.processes.progress import ProgressOfOne
from orchestrator.processes.sessions import open_session
from orchestrator.processes.signals import STOP_ATTEMPT, end_at_latest
from orchestrator.runner import Runner, refused, undone
from orchestrator.slots import Phase
from orchestrator.store.effects import Effects, EffectsConnection, effects_were_committed
from orchestrator.store.record import record
from orchestrator.task import Claim

# Until an interruption that Python has swallowed is tried once more.
AGAIN_SECONDS = 0.05

log = logs.get("worker")


class ProcessWorker:
    """The loop of one worker."""

    def __init__(self, place: Place, settings: config.Settings, mux: Mux, birth: Spawn) -> None:
        self.claimant = Claimant(place, settings, birth, patterns=mux.patterns())
        self.slot = self.claimant.slot
        self.claimant.waiting.register(self.claimant.inbox, select.EPOLLIN)
        self.effects = Effects(
            lambda: open_session(settings, f"{birth.name} effects", kind=EffectsConnection)
        )
        self.progress = ProgressOfOne(self.claimant)
        self.runner = Runner(
            mux,
            defaults=self.claimant.pool.policy(settings.defaults.policy()),
            stopping=lambda: self.claimant.is_stopping,
            wake=self.wait,
            cancelled=lambda claimed: self.slot.is_asked_to_stop(claimed.task_id, claimed.token),
            progress=self.progress.say,
            connect=self.effects.connection,
        )
        self.running: Claim | None = None
        self.was_idle = True
        self.is_spent = False
        signal.signal(STOP_ATTEMPT, self._on_stop_attempt)
        signal.siginterrupt(STOP_ATTEMPT, False)
        sys.unraisablehook = self._on_swallowed

    def wait(self, seconds: float) -> bool:
        """Sleep for a handler; end early, with True, when the worker is told to stop."""
        deadline = time.monotonic() + seconds
        while not self.claimant.is_stopping:
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            select.select([self.claimant.inbox], [], [], left)
        return True

    def work(self) -> int:
        """Claim and run until told to stop; return the exit code."""
        with self.runner:
            self.slot.ready()
            self.claimant.ring_bell()
            while not self.claimant.is_stopping and not self.is_spent:
                claims = self._claim() if self.claimant.may_claim() else []
                if not claims:
                    self._idle()
                for claimed in claims:
                    self._run(claimed)
            self.slot.publish(Phase.IDLE)
            if self.is_spent:
                end_at_latest(self.claimant.settings.node.cancel_grace)
        self.effects.close()
        self.claimant.disconnect()
        return 0

    def _claim(self) -> list[Claim]:
        """Claim the next task; empty where there is none or the database is away."""
        # Published before it is sent: if this process dies with the claim under way, the steward
        # finds whatever the server still makes of it.
        token = secrets.randbits(62) + 1
        self.slot.publish(Phase.CLAIM, token=token)
        try:
            return self.claimant.claim(token=token, limit=1)
        except DatabaseUnavailable as error:
            self.slot.publish(Phase.IDLE)
            self.claimant.lost(error)
            return []

    def _idle(self) -> None:
        """Wait for a byte of the pool's pipe, or for a signal."""
        # After an empty or refused claim, and after a report when no claim may follow: only who
        # is seen to be idle is woken.
        self.slot.publish(Phase.IDLE)
        # The supervisor may have gone to sleep meanwhile: the next task rings for it.
        self.was_idle = True
        if self.claimant.session is None and self.claimant.backoff.tries:
            # The database is away: try again soon, a byte could not come.
            select.select([self.claimant.inbox], [], [], self.claimant.backoff.next())
            return
        self.claimant.ring_idle()
        self.claimant.waiting.poll()
        self.claimant.take_byte()

    # -- run

    def _run(self, claimed: Claim) -> None:
        policy = self.runner.policy(claimed)
        started_ns = time.monotonic_ns()
        used = resource.getrusage(resource.RUSAGE_SELF)
        deadline_ns = 0 if policy.timeout is None else started_ns + int(policy.timeout * 1e9)
        self.running = claimed
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
            self.claimant.ring_bell()
        self.progress.begin(claimed)
        outcome = self.runner.run(claimed)
        self.running = None
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

    def _on_stop_attempt(self, signum: int, frame: FrameType | None) -> None:
        """Interrupt the handler, if it is this very attempt that is to stop."""
        claimed = self.running
        if claimed is not None:
            self.runner.stop(claimed)

    def _on_swallowed(self, unraisable: sys.UnraisableHookArgs) -> None:
        """Interrupt the handler once more, a little later, where it met a `__del__` of its."""
        if not self.runner.interrupts.is_lost(unraisable.exc_value):
            sys.__unraisablehook__(unraisable)
            return
        again = threading.Timer(
            AGAIN_SECONDS, signal.pthread_kill, (threading.main_thread().ident, STOP_ATTEMPT)
        )
        again.daemon = True
        again.start()

    # -- report

    def _report(self, claimed: Claim, outcome: Outcome) -> None:
        """Report until the database has answered; the answer decides what is counted."""
        self.progress.end()
        if self.effects.is_begun:
            if outcome.ending is Ending.SUCCEEDED:
                outcome, answer = self._commit_effects(claimed, outcome)
                self.claimant.count(claimed, outcome, answer)
                return
            self.effects.roll_back()
        outcome, answer = self._record(claimed, outcome)
        self.claimant.count(claimed, outcome, answer)

    def _record(self, claimed: Claim, outcome: Outcome) -> tuple[Outcome, Answer]:
        """Record an end, whatever it takes; return what was recorded in the end."""
        while True:
            session = self._session()
            try:
                return outcome, record(session, claimed, outcome)
            except PayloadError as error:
                # The database refuses what we cleaned: the task must not hang for it.
                outcome = refused(claimed, outcome, self.runner.policy(claimed), error)
            except DatabaseUnavailable as error:
                self.claimant.lost(error)

    def _commit_effects(self, claimed: Claim, outcome: Outcome) -> tuple[Outcome, Answer]:
        """Record a success in one transaction with what its handler wrote.

        Where that fails, what the handler wrote is rolled back, and the attempt has failed.
        """
        policy = self.runner.policy(claimed)
        try:
            return outcome, self.effects.commit(claimed, outcome)
        except PayloadError as error:
            return self._record(claimed, refused(claimed, outcome, policy, error))
        except (OrchestratorError, RuntimeError, psycopg2.Error) as error:
            failed, answer = self._record(claimed, undone(claimed, outcome, policy, error))
        # The reply to the commit may be what was lost.
        if answer is Answer.LOST and self._was_committed(claimed):
            return outcome, Answer.RECORDED
        return failed, answer

    def _was_committed(self, claimed: Claim) -> bool:
        while True:
            with contextlib.suppress(DatabaseUnavailable):
                return effects_were_committed(self._session(), claimed)
            self.claimant.disconnect()
            time.sleep(self.claimant.backoff.next())

    def _session(self) -> Session:
        """Return the session, having waited for the database."""
        while (session := self.claimant.connected()) is None:
            # Not by the inbox: a signal that waits to be read would end it at once, every time.
            time.sleep(self.claimant.backoff.next())
        return session
