"""The steward: speaks for the node. Beats, listens, wakes idle workers, writes crash reports.

One direct session. Losing it never ends the process: reports wait, workers pause, everything goes
on when the database is back. It is the only writer of crash reports, so nothing has to be agreed
between processes about a death:

    report   from the supervisor, for a worker that died with a token; answered when written
    beat     every `heartbeat_interval`, before other work; says that the node lives
    poll     every `claim_interval` and on each ring: wake as many idle workers as there is work
    reconcile  on each death, on reconnect, every 5 s: rows of this node that nobody runs go back,
             attempts that run without a row are killed

Reconcile reads rows, then slots, then the supervisor's messages, in this order. A worker publishes
its token before it claims, and the supervisor lists a report before it clears a slot; so a row
whose token is in neither was claimed by nobody who lives. The mirror: a token that runs before and
after the rows were read, and has no row, lost its claim (server crash after an asynchronous commit,
or a rescue).

Every wait for the server ends after 5 s at the latest: a beat unanswered for so long means that
there is no session, and the slots' header says so. Who may register is decided in
`registration.py`, what a death means for a task in `crashes.py`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import selectors
import shutil
import signal
import socket
import struct
import sys
import termios
import time
from collections.abc import Callable
from typing import Any

import msgspec
import psycopg2
import psycopg2.extensions

from orchestrator import config, logs, metrics
from orchestrator.db.connection import Backoff, Keepalives, Session, StatementTimeout
from orchestrator.errors import DatabaseUnavailable
from orchestrator.options import Policy, match
from orchestrator.outcome import Answer, Budget, Cause
from orchestrator.processes import crashes, identity, messages
from orchestrator.processes.birth import begin
from orchestrator.processes.messages import Report
from orchestrator.processes.registration import NotYet, Refused, Registration
from orchestrator.processes.sessions import open_session
from orchestrator.processes.signals import SignalInbox
from orchestrator.slots import Phase
from orchestrator.store import doorbell, nodes
from orchestrator.store.fail import fail
from orchestrator.store.poll import poll, unhold
from orchestrator.store.release import release
from orchestrator.store.running import flagged, running

RECONCILE_SECONDS = 5.0
ANSWER_SECONDS = 5.0
UNHOLD_SLICE = 1000
KILLS_AT_ONCE = 1000  # of 40 bytes each, in one message
BURY_SECONDS = 5.0
LEAVE_SECONDS = 3.0

log = logs.get("steward")


def _wait_bounded(connection: Any) -> None:
    """Wait for the server, at most `ANSWER_SECONDS`: psycopg2's own wait has no end."""
    deadline = time.monotonic() + ANSWER_SECONDS
    with selectors.DefaultSelector() as selector:
        while True:
            state = connection.poll()
            if state == psycopg2.extensions.POLL_OK:
                return
            mask = (
                selectors.EVENT_READ
                if state == psycopg2.extensions.POLL_READ
                else selectors.EVENT_WRITE
            )
            selector.register(connection.fileno(), mask)
            left = deadline - time.monotonic()
            if left <= 0 or not selector.select(left):
                # psycopg2 closes the connection of a wait that fails.
                raise psycopg2.OperationalError(f"no answer from the server for {ANSWER_SECONDS} s")
            selector.unregister(connection.fileno())


class Steward:
    """One node's spokesman."""

    def __init__(self) -> None:
        self.place, self.settings = begin(dies_with_supervisor=False)
        metrics.set_identity("steward")
        psycopg2.extensions.set_wait_callback(_wait_bounded)
        self.inbox = SignalInbox(identity.PASSED_SIGNALS)
        self.slots = self.place.slots()
        self.header = self.slots.header
        self.supervisor = socket.socket(fileno=self.place.socket_fd)
        self.supervisor.setblocking(False)
        self.session: Session | None = None
        self.session_fd = -1
        self.backoff = Backoff()
        self.retry_at = 0.0
        self.registration = Registration(self.place, self.settings, self.header.node_id)
        self.policies: dict[str, Policy] = {}
        self.async_patterns: list[str] = []
        self.reports: dict[int, Report] = {}  # by incarnation, not yet written
        self.is_synced = False
        self.is_stopping = False
        self.is_orphaned = False
        self.holds_sleep_lock = False
        self.may_have_more = False
        self.beat_at = self.poll_at = self.reconcile_at = 0.0
        self.told_pids: list[int] = []  # of the workers in the last beat
        self.selector = selectors.DefaultSelector()
        for source in (self.inbox, self.place.life_fd, self.supervisor, self.place.idle_fd):
            self.selector.register(source, selectors.EVENT_READ)

    @property
    def node(self) -> int:
        """The node's id, 0 while it is not registered."""
        return self.registration.node

    # -- the loop

    def run(self) -> None:
        while not (self.is_stopping or self.is_orphaned):
            now = time.monotonic()
            if self.session is None and now >= self.retry_at:
                self._try(self._open)
            if self.session is not None:
                self._try(self._work)
            self._listen(self._timeout(time.monotonic()))
        if self.is_orphaned:
            self._bury()
        self._leave()

    def _work(self) -> None:
        """Do what is due, the beat first."""
        now = time.monotonic()
        if now >= self.beat_at:
            self._beat()
            self.beat_at = now + self.settings.node.heartbeat_interval
        if self.reports:
            self._write_reports()
            self.reconcile_at = now
        if now >= self.reconcile_at and self.is_synced:
            self._reconcile()
            self.reconcile_at = time.monotonic() + RECONCILE_SECONDS
        if self._take_notifications() or now >= self.poll_at:
            self._poll()
            self.poll_at = time.monotonic() + self.settings.node.claim_interval

    def _timeout(self, now: float) -> float:
        if self.session is None:
            return max(0.0, self.retry_at - now)
        if self.session.connection.notifies:
            return 0.0
        return max(0.0, min(self.beat_at, self.poll_at, self.reconcile_at) - now)

    def _listen(self, timeout: float) -> None:
        """Wait for the server, the supervisor, idle workers, signals; take what came."""
        for key, _ in self.selector.select(timeout):
            if key.fileobj is self.inbox:
                self.is_stopping = self.is_stopping or signal.SIGTERM in self.inbox.drain()
            elif key.fileobj == self.place.life_fd:
                self.is_orphaned = True
            elif key.fileobj is self.supervisor:
                self._hear()
            elif key.fileobj == self.place.idle_fd:
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(self.place.idle_fd)
                self._on_idle()
            else:
                self._read_notifications()

    def _try(self, work: Callable[[], None]) -> None:
        """Do work that needs the database; without one, say so once and try again later."""
        try:
            work()
        except StatementTimeout as error:
            log.warning("statement.timed_out", reason=str(error))
        except DatabaseUnavailable as error:
            self._lose_session(error)

    # -- the supervisor

    def _hear(self) -> None:
        """Read all messages of the supervisor."""
        while True:
            try:
                data, _ = messages.receive(self.supervisor)
            except BlockingIOError:
                return
            if not data:
                with contextlib.suppress(KeyError):
                    self.selector.unregister(self.supervisor)
                return
            match messages.decode_for_steward(data):
                case messages.Handlers() as handlers:
                    self.policies = handlers.policies
                    self.async_patterns = sorted(handlers.async_patterns)
                    metrics.announce(self.patterns)
                    self._describe()
                case Report() as report:
                    self.reports[report.incarnation] = report
                case messages.Sync():
                    self.is_synced = True

    def _tell(self, message: messages.Message) -> None:
        # A supervisor that is gone needs no answer, and life's end is heard elsewhere.
        with contextlib.suppress(OSError):
            self.supervisor.send(messages.encode(message))

    @property
    def patterns(self) -> list[str]:
        """The task types that this node serves."""
        return sorted(self.policies)

    def _patterns_of(self, pool: config.PoolSettings) -> list[str]:
        """The task types that one of its pools serves."""
        return self.async_patterns if pool.mode == "async" else self.patterns

    def _describe(self) -> None:
        session = self.session
        if session is not None:
            self._try(lambda: nodes.describe(session, node=self.node, handlers=self.patterns))

    # -- the session

    def _open(self) -> None:
        """Connect, take the node's lock, register where need be, beat: then there is a session."""
        node = self.settings.node
        # Long on both sides: a cut cable must not free the node's lock before `worker_timeout`.
        patience = int(node.worker_timeout) + 10
        session = open_session(
            self.settings,
            "steward",
            direct=True,
            statement_timeout=max(0.5, node.heartbeat_interval / 4),
            keepalives=Keepalives(patience, 5, 3),
        )
        try:
            self.registration.take(session, self.patterns)
            began = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
            if not nodes.beat(session, node=self.node, workers=self._workers()):
                self.registration.forget()
                raise NotYet("the node was marked dead while it took its lock")
            doorbell.listen(session)
        except BaseException:
            session.close()
            raise
        self.session = session
        self.holds_sleep_lock = False
        # By number: a connection that an error has closed cannot tell it any more.
        self.session_fd = session.fileno()
        self.selector.register(self.session_fd, selectors.EVENT_READ)
        self.header.last_beat_ns = began
        self.header.node_id = self.node
        self.header.is_session_ok = True
        if self.backoff.tries:
            log.info("database.restored")
        self.backoff.reset()
        self.beat_at = time.monotonic() + node.heartbeat_interval
        self.poll_at = self.reconcile_at = 0.0

    def _lose_session(self, error: DatabaseUnavailable) -> None:
        self.header.is_session_ok = False
        if self.session is not None:
            self.selector.unregister(self.session_fd)
            self.session.close()
            self.session = None
        if self.backoff.tries == 0:
            is_waiting = isinstance(error, NotYet)
            log.warning("node.waiting" if is_waiting else "database.lost", reason=str(error))
        metrics.database_error("steward")
        self.retry_at = time.monotonic() + self.backoff.next()

    # -- beat

    def _beat(self) -> None:
        assert self.session is not None
        began = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        if not nodes.beat(self.session, node=self.node, workers=self._workers()):
            log.error(
                "node.was_given_up",
                node=self.node,
                reason="it was silent too long; its tasks went to others; it registers anew",
            )
            self.registration.forget()
            raise NotYet("this node was marked dead")
        self.header.last_beat_ns = began

    def _workers(self) -> str:
        """Describe the slots, for `orchestratorctl worker list`."""
        now = time.monotonic_ns()
        views = self.slots.occupied()
        self.told_pids = [view.pid for view in views]
        return msgspec.json.encode(
            [
                {
                    "slot": view.name,
                    "pid": view.pid,
                    "incarnation": view.incarnation,
                    "state": view.phase.name.lower(),
                    "task": view.task_id or None,
                    **({"running": view.n_busy} if view.n_lanes else {}),
                    "seconds": (
                        round((now - view.started_ns) / 1e9, 3) if view.started_ns else None
                    ),
                }
                for view in views
            ]
        ).decode()

    # -- wake-ups

    def _read_notifications(self) -> None:
        """Read what the server sent unasked: a ring, or the end of the session."""
        if self.session is None:
            return
        try:
            self.session.connection.poll()
        except psycopg2.Error as error:
            self._lose_session(DatabaseUnavailable(str(error).strip()))

    def _take_notifications(self) -> bool:
        assert self.session is not None
        notifies = self.session.connection.notifies
        if not notifies:
            return False
        notifies.clear()
        return True

    def _on_idle(self) -> None:
        """A worker went idle: look for work that found nobody idle before."""
        if self.may_have_more or not self.holds_sleep_lock:
            self.poll_at = 0.0

    def _poll(self) -> None:
        """Wake as many idle workers of each pool as there are ready tasks for it."""
        session = self.session
        assert session is not None
        for pool in self.settings.pools:
            if patterns := self._patterns_of(pool):
                queues, limit = pool.queues, UNHOLD_SLICE
                while unhold(session, patterns=patterns, queues=queues, limit=limit) == limit:
                    pass
        self._pass_on_cancels(session)
        idle: dict[str, int] = {}
        views = self.slots.occupied()
        if [view.pid for view in views] != self.told_pids:
            self.beat_at = 0.0  # a worker was born or died: say so before the beat is due
        for view in views:
            if view.is_ready and view.phase is Phase.IDLE:
                idle[view.pool] = idle.get(view.pool, 0) + 1
        if not idle and self.holds_sleep_lock:
            doorbell.drop_sleep_lock(session)
            self.holds_sleep_lock = False
        elif idle and not self.holds_sleep_lock:
            # Clients ring from now on; what they enqueued before is seen below.
            doorbell.hold_sleep_lock(session)
            self.holds_sleep_lock = True
        self.may_have_more = False
        for pool in self.settings.pools:
            count = idle.get(pool.name, 0)
            wanted = poll(session, queues=pool.queues, limit=count) if count else 0
            self._wake(pool, wanted)
            if wanted == count:
                # As many as are idle, or nobody is: who goes idle next must look again.
                self.may_have_more = True

    def _pass_on_cancels(self, session: Session) -> None:
        """Have the supervisor end the attempts whose tasks were cancelled.

        At every poll again, while a flagged row exists: the attempt may just have been claimed.
        """
        attempts = [(row.id, row.token) for row in flagged(session, node=self.node)]
        self._ask_to_end(attempts, Cause.CANCELLED)

    def _ask_to_end(self, attempts: list[tuple[int, int]], cause: Cause) -> None:
        for first in range(0, len(attempts), KILLS_AT_ONCE):
            some = attempts[first : first + KILLS_AT_ONCE]
            self._tell(messages.Kill(attempts=some, cause=cause))

    def _wake(self, pool: config.PoolSettings, wanted: int) -> None:
        """Write one byte per task into the pool's pipe, less those not yet read.

        Each with a write of its own, since one write wakes one worker. Never none where there is
        work: a byte that was left lying by a worker which died or was busy wakes nobody.
        """
        if not wanted:
            return
        reader, writer = self.place.wakes[pool.name]
        unread = struct.unpack("i", fcntl.ioctl(reader, termios.FIONREAD, b"\0" * 4))[0]
        with contextlib.suppress(BlockingIOError):
            for _ in range(max(1, wanted - unread)):
                os.write(writer, b"!")

    # -- crash reports

    def _write_reports(self) -> None:
        session = self.session
        assert session is not None
        for incarnation, report in list(self.reports.items()):
            self._write_report(session, report)
            del self.reports[incarnation]
            self._tell(messages.Ack(incarnation=incarnation))

    def _write_report(self, session: Session, report: Report) -> None:
        """Write what the death of a worker means for the tasks that it held."""
        victims = {(victim.task_id, victim.token): victim for victim in report.casualties}
        tokens = sorted({victim.token for victim in report.casualties})
        rows = running(session, node=self.node, tokens=tokens) if self.node else []
        unharmed = []
        for row in rows:
            victim = victims.get((row.id, row.token))
            if victim is not None and victim.phase is Phase.RUN:
                self._record_crash(session, row, report, report.crash_of(victim))
            else:
                unharmed.append((row.id, row.token))
        # Claimed and not started, or done and not recorded: it goes back and costs nothing.
        released = release(session, unharmed)
        if released:
            log.info("tasks.released", slot=report.slot, tasks=released)
        metrics.worker_exited(report.crash.cause)

    def _record_crash(
        self, session: Session, row: Any, report: Report, what: messages.Crash
    ) -> None:
        pattern = match(self.policies, row.type)
        policy = self.policies[pattern] if pattern else self.settings.defaults.policy()
        outcome = crashes.outcome_of(
            what,
            policy=policy.of_task(max_attempts=row.max_attempts, timeout=row.timeout_seconds),
            failures=row.failures,
            crashes=row.crashes,
        )
        crash = msgspec.to_builtins(what)
        answer = fail(session, task_id=row.id, token=row.token, outcome=outcome, crash=crash)
        if answer is not Answer.RECORDED:
            return
        metrics.task_ended(row.type, outcome.ending, outcome.usage.wall_seconds)
        if outcome.budget in (Budget.FAILURES, Budget.CRASHES):
            spent = row.crashes if outcome.budget is Budget.CRASHES else row.failures
            (metrics.dead if outcome.is_last(spent) else metrics.retried)(row.type)
        fields = {
            "task_id": row.id,
            "type": row.type,
            "attempt": row.attempt,
            "worker": report.slot,
            "child": report.pid,
            **crash,
        }
        if outcome.budget in (Budget.NOTHING, Budget.SUSPECT):
            log.info("attempt.released", **fields)
        else:
            log.warning("attempt.crashed", **fields)

    # -- reconcile

    def _reconcile(self) -> None:
        session = self.session
        assert session is not None
        before = self._running_tokens()
        rows = running(session, node=self.node)
        views = self.slots.occupied()
        # After the slots: a report is sent before its slot is cleared.
        self._hear()
        protected = {record.token for view in views for record in view.records}
        for report in self.reports.values():
            protected.update(victim.token for victim in report.casualties)
        orphans = [(row.id, row.token) for row in rows if row.token not in protected]
        if orphans:
            # Most have just been finished by a worker that is at its next claim by now.
            released = release(session, orphans)
            if released:
                log.warning("tasks.reconciled", released=released)
        known = {(row.id, row.token) for row in rows}
        lost = []
        for record in (record for view in views for record in view.running):
            attempt = (record.task_id, record.token)
            if attempt in before and attempt not in known:
                log.warning("claim.lost", task_id=record.task_id, attempt=record.attempt)
                metrics.claim_lost()
                lost.append(attempt)
        self._ask_to_end(lost, Cause.LOST_CLAIM)

    def _running_tokens(self) -> set[tuple[int, int]]:
        views = self.slots.occupied()
        return {(record.task_id, record.token) for view in views for record in view.running}

    # -- the end

    def refuse(self, reason: str) -> None:
        """Tell the supervisor that this node may not run."""
        self._tell(messages.Failed(message=reason, exit_code=messages.EXIT_TEMPORARY))

    def _bury(self) -> None:
        """The supervisor is dead: end what is left of its run and write what it left undone."""
        log.error("supervisor.lost", reason="its life pipe is closed")
        self.header.is_session_ok = False
        deadline = time.monotonic() + BURY_SECONDS
        while time.monotonic() < deadline and self._kill_marked():
            time.sleep(0.005)
        self._hear()
        for view in self.slots.occupied():
            if view.records and view.incarnation not in self.reports:
                self.reports[view.incarnation] = crashes.report_of_lost(
                    view, generation=self.header.generation
                )

    def _kill_marked(self) -> bool:
        """Kill every process with this run's marker but the keeper and ourselves."""
        found = False
        for pid in identity.all_pids():
            if pid == os.getpid() or not identity.has_marker(pid, self.place.run):
                continue
            if identity.is_kind(pid, "keeper"):
                continue
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                found = True
        return found

    def _leave(self) -> None:
        """Write the last reports, give back what is left, deregister; a few seconds at most."""
        self.header.is_session_ok = False
        self._hear()
        deadline = time.monotonic() + LEAVE_SECONDS
        while time.monotonic() < deadline:
            try:
                self._say_goodbye()
                break
            except DatabaseUnavailable as error:
                self._lose_session(error)
                time.sleep(min(0.2, max(0.0, self.retry_at - time.monotonic())))
        if self.session is not None:
            self.session.close()
        if self.is_orphaned:
            self._clean_up()

    def _say_goodbye(self) -> None:
        if not self.node:
            return
        if self.session is None:
            self._open()
        assert self.session is not None
        self._write_reports()
        rows = running(self.session, node=self.node)
        release(self.session, [(row.id, row.token) for row in rows])
        nodes.deregister(self.session, node=self.node)
        log.info("node.deregistered", node=self.node)

    def _clean_up(self) -> None:
        """Remove what the supervisor would have removed."""
        shutil.rmtree(self.place.run_directory, ignore_errors=True)
        if self.place.lock_path:
            with contextlib.suppress(OSError):
                os.unlink(self.place.lock_path)


def main() -> int:
    steward = Steward()
    try:
        steward.run()
    except Refused as error:
        steward.refuse(str(error))
        return messages.EXIT_TEMPORARY
    return 0


if __name__ == "__main__":
    sys.exit(main())
