"""The supervisor: the parent of all processes of a node, and the only one that reaps.

It owns signals, slots, pids and the listening socket. It never runs user code, never opens a
database connection, starts no thread, and makes no blocking call, so nothing that a task or the
database does can keep it from noticing a death and acting on it. What should live and die is
decided in `children.py`; what a death means for a task is written by the steward.

    turn of the loop:   select -> signals, sockets, deaths -> sweep -> step -> (spawn, signal)

When a worker dies (the order is what makes the blame exact):

    1. `waitid(WNOWAIT)` says that it is dead; the zombie still pins its pid and process group
    2. its slot is read: the task, attempt, token and phase of its last instruction
    3. its group's leftovers are killed, then `wait4` reaps it and gives the rusage
    4. the crash report is sent to the steward (listed); only then is the slot's record cleared
    5. a replacement is started; the report is kept here until the steward has answered

What it learns: deaths by one pidfd per child, signals by a descriptor, readiness and work by a bell
(an eventfd) that workers ring. Deadlines of running attempts lie in the slots and ring no bell:
while any worker is busy, all slots are swept every 250 ms.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator import __version__, config, logs
from orchestrator.errors import ConfigError
from orchestrator.outcome import Cause
from orchestrator.processes import identity, messages
from orchestrator.processes.children import Children, Kind, Plan, Signal, Spawn, Stage
from orchestrator.processes.crashes import Reason, blame_for, casualties, cause_of_death
from orchestrator.processes.estate import Estate
from orchestrator.processes.signals import STOP_ATTEMPT, SignalInbox, spell
from orchestrator.slots import MAX_SLOTS, SlotView

SWEEP_SECONDS = 0.25
HEALTHY_SECONDS = 10.0
STRANGERS_SECONDS = 5.0

log = logs.get("supervisor")


@dataclass(frozen=True)
class Asked:
    """An attempt that was asked to stop: why, and when it is killed if it goes on."""

    cause: Cause
    kill_at: float


@dataclass
class Process:
    """One child as the kernel knows it."""

    kind: Kind
    name: str
    incarnation: int
    index: int
    pid: int
    pidfd: int
    spawned_at: float
    socket: socket.socket | None = None
    killed_for: Reason | None = None


def run(settings: config.Settings) -> int:
    """Run a node until it is told to stop; return the exit code."""
    logs.configure(
        settings.logging,
        identity=f"supervisor pid={os.getpid()}",
        stream_fd=logs.nonblocking_stderr(),
    )
    try:
        supervisor = Supervisor(settings)
    except ConfigError as error:
        log.error("supervisor.refused", reason=str(error))
        return messages.EXIT_CONFIG
    try:
        return supervisor.loop()
    finally:
        supervisor.estate.close()


class Supervisor:
    """The loop and the system calls."""

    def __init__(self, settings: config.Settings) -> None:
        self.settings = settings
        self.children = Children(_plan(settings))
        self.estate = Estate(settings)
        self.slots = self.estate.slots
        self.lanes = lanes_of(settings.pools)  # by slot: the first lane, and how many
        self.asked: dict[tuple[int, int], Asked] = {}  # attempts that were asked to stop
        self.processes: dict[int, Process] = {}  # by incarnation
        self.pids: set[int] = set()
        self.reports: dict[int, bytes] = {}  # by incarnation, until the steward has answered
        self.outbox: deque[bytes] = deque()  # for the steward; what has left it is listed
        self.handlers: bytes | None = None
        self.sweep_at: float | None = None
        self.strangers_at: float | None = None
        self.strangers_until = 0.0
        self.fenced_node = 0
        self.inbox = SignalInbox(identity.PASSED_SIGNALS)
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.inbox, selectors.EVENT_READ, self._on_signals)
        self.selector.register(self.estate.bell_fd, selectors.EVENT_READ, self._on_bell)
        identity.become_subreaper()

    # -- the loop

    def loop(self) -> int:
        """Turn until every child is gone; return the exit code."""
        log.info(
            "supervisor.started",
            version=__version__,
            run=self.estate.run_id,
            config=", ".join(self.settings.files),
            database=self.settings.origin("database.url"),
            workers=len(self.children.plan.slots),
            web=self.settings.web.bind or None,
        )
        for setting in self.settings.deprecated:
            log.warning(
                "setting.deprecated",
                setting=setting.old,
                instead=setting.now or None,
                removed_in=setting.removed_in,
                place=setting.place,
            )
        while True:
            now = time.monotonic()
            self._sweep(now)
            self._end_strangers(now)
            self._flush()
            for command in self.children.step(now, open_reports=len(self.reports)):
                if isinstance(command, Spawn):
                    self._spawn(command, now)
                else:
                    self._signal(command)
            if self.children.stage is Stage.DONE:
                break
            for key, _ in self.selector.select(self._timeout(time.monotonic())):
                key.data()
        log.info("supervisor.stopped", exit_code=self.children.exit_code)
        return self.children.exit_code

    def _timeout(self, now: float) -> float | None:
        times = [
            at
            for at in (self.children.next_deadline(now), self.sweep_at, self.strangers_at)
            if at is not None
        ]
        if self.outbox:
            times.append(now + 0.05)
        return max(0.0, min(times) - now) if times else None

    # -- signals

    def _on_signals(self) -> None:
        now = time.monotonic()
        for signum in self.inbox.drain():
            match signum:
                case signal.SIGTERM:
                    self._begin_end(now, at_once=self.children.stage >= Stage.DRAIN)
                case signal.SIGINT | signal.SIGQUIT:
                    self._begin_end(now, at_once=True)
                case signal.SIGUSR1:
                    self._log_status()
                case signal.SIGCHLD:
                    self.strangers_at = self.strangers_at or now
                case _:
                    name = spell(signum)
                    log.warning("signal.ignored", signal=name, reason="not supported yet: restart")

    def _begin_end(self, now: float, *, at_once: bool) -> None:
        self.slots.header.is_stopping = True
        log.info(
            "supervisor.stopping" if at_once else "supervisor.draining",
            graceful_timeout=None if at_once else self.settings.node.graceful_timeout,
        )
        if at_once:
            self.children.stop(now)
        else:
            self.children.drain(now)

    def _log_status(self) -> None:
        """Write one line per slot and process to the log."""
        for process in self.processes.values():
            view = self.slots.read(process.index) if process.kind is Kind.WORKER else None
            log.info(
                "process.status",
                process=process.name,
                inc=process.incarnation,
                pid=process.pid,
                phase=view.phase.name.lower() if view else None,
                task_id=view.task_id or None if view else None,
                attempt=view.attempt or None if view else None,
            )

    # -- births

    def _spawn(self, command: Spawn, now: float) -> None:
        if command.kind is Kind.WORKER:
            self._ask_for_worker(command, now)
            return
        try:
            pid, talk = self.estate.start(command.kind, command.incarnation)
        except OSError as error:
            log.error("process.spawn_failed", process=command.name, reason=str(error))
            self.children.postpone(command.incarnation, now + 1.0)
            return
        process = Process(
            command.kind, command.name, command.incarnation, -1, pid, os.pidfd_open(pid), now, talk
        )
        self._enlist(process)
        if talk is not None:
            self.selector.register(talk, selectors.EVENT_READ, lambda: self._on_message(process))
        if command.kind is Kind.STEWARD:
            self._brief_steward()

    def _ask_for_worker(self, command: Spawn, now: float) -> None:
        """Ask the fork server for a worker; it is ours when the middle process says so."""
        if self._has_unlisted_report(command.index):
            # The dead worker's record is the only trace of its task until the report is listed.
            self.children.postpone(command.incarnation, now + 0.1)
            return
        first_lane, n_lanes = self.lanes[command.index]
        self.slots.lease(
            command.index,
            command.name,
            command.incarnation,
            first_lane=first_lane,
            n_lanes=n_lanes,
        )
        request = messages.Spawn(
            index=command.index, name=command.name, incarnation=command.incarnation
        )
        server = self._find(Kind.FORK_SERVER)
        try:
            if server is None or server.socket is None:
                raise BrokenPipeError("there is no fork server")
            server.socket.send(messages.encode(request))
        except OSError as error:
            self.slots.clear(command.index)
            self.children.postpone(command.incarnation, now + 0.1)
            log.warning("worker.spawn_postponed", worker=command.name, reason=str(error))

    def _has_unlisted_report(self, index: int) -> bool:
        view = self.slots.read(index)
        if view is None or view.incarnation not in self.reports:
            return False
        return self.reports[view.incarnation] in self.outbox

    def _enlist(self, process: Process) -> None:
        self.processes[process.incarnation] = process
        self.pids.add(process.pid)
        self.selector.register(process.pidfd, selectors.EVENT_READ, lambda: self._on_death(process))
        log.debug(
            "process.spawned", process=process.name, inc=process.incarnation, child=process.pid
        )

    def _find(self, kind: Kind) -> Process | None:
        return next((p for p in self.processes.values() if p.kind is kind), None)

    # -- messages

    def _on_message(self, process: Process) -> None:
        """Read all messages of a child."""
        while process.socket is not None:
            try:
                data, fds = messages.receive(process.socket)
            except BlockingIOError:
                return
            if not data:
                self._stop_hearing(process)
                return
            match messages.decode_for_supervisor(data):
                case messages.Born() as born:
                    self._on_born(born, fds[0])
                case messages.Ready() as ready:
                    self._on_ready(process, ready)
                case messages.Ack(incarnation=incarnation):
                    self.reports.pop(incarnation, None)
                case messages.Kill(attempts=attempts, cause=cause):
                    self._end_attempts(attempts, cause)
                case messages.Down(reason=reason):
                    log.warning("database.down", reason=reason)
                case messages.Failed() as failed:
                    self._on_failed(process, failed)

    def _stop_hearing(self, process: Process) -> None:
        if process.socket is not None:
            self.selector.unregister(process.socket)
            process.socket.close()
            process.socket = None

    def _on_born(self, born: messages.Born, pidfd: int) -> None:
        child = self.children.alive.get(born.incarnation)
        if child is None:
            # Given up meanwhile (spawn time-out): nobody waits for it.
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            os.close(pidfd)
            return
        self._enlist(
            Process(
                Kind.WORKER, child.name, child.incarnation, child.index, born.pid, pidfd,
                time.monotonic(),
            )
        )  # fmt: skip

    def _on_ready(self, process: Process, ready: messages.Ready) -> None:
        if process.kind is Kind.FORK_SERVER:
            self.handlers = messages.encode(
                messages.Handlers(policies=ready.policies, async_patterns=ready.async_patterns)
            )
            self._tell_steward(self.handlers)
        self.children.became_ready(process.incarnation)
        log.info("process.ready", process=process.name, inc=process.incarnation)

    def _on_failed(self, process: Process, failed: messages.Failed) -> None:
        """A child cannot do its work: the node ends, unless these handlers were good before."""
        log.error("process.failed", process=process.name, reason=failed.message)
        if process.kind is Kind.FORK_SERVER and self.handlers is not None:
            return
        self.slots.header.is_stopping = True
        self.children.fail(failed.exit_code)

    # -- the steward

    def _brief_steward(self) -> None:
        """Tell a new steward what its predecessor may not have written, then that this was all."""
        self.outbox.clear()
        if self.handlers is not None:
            self.outbox.append(self.handlers)
        self.outbox.extend(self.reports.values())
        self.outbox.append(messages.encode(messages.Sync()))
        self._flush()

    def _tell_steward(self, message: bytes) -> None:
        if self._find(Kind.STEWARD) is not None:
            self.outbox.append(message)
            self._flush()

    def _flush(self) -> None:
        steward = self._find(Kind.STEWARD)
        if steward is None or steward.socket is None:
            return
        while self.outbox:
            try:
                steward.socket.send(self.outbox[0])
            except OSError:
                return  # full, or gone: it goes on, or its successor is told everything
            self.outbox.popleft()

    # -- deaths

    def _on_death(self, process: Process) -> None:
        try:
            found = os.waitid(os.P_PIDFD, process.pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            # A worker that died before its middle process: it becomes our child in a moment.
            time.sleep(0.0005)
            return
        if found is None:
            return
        view = self.slots.read(process.index) if process.kind is Kind.WORKER else None
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        self._forget(process)
        _, status, usage = os.wait4(process.pid, 0)
        now = time.monotonic()
        exit_code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else None
        signum = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
        healthy = now - process.spawned_at >= HEALTHY_SECONDS
        if view is not None:
            # A death during user code is the task's; one during a claim is the worker's own.
            healthy = healthy or view.n_busy > 0 or view.finished_count > 0
            if view.records:
                self._report(process, view, exit_code, signum, os.WCOREDUMP(status), usage)
            if not self._has_unlisted_report(process.index):
                self.slots.clear(process.index)
        if process.kind is Kind.LEADER:
            self.slots.header.is_leader = False
        self.children.died(process.incarnation, now, exit_code=exit_code, healthy=healthy)
        is_planned = exit_code == 0 or self.children.stage >= Stage.DRAIN
        (log.debug if is_planned else log.warning)(
            "process.exited" if is_planned else "process.died",
            process=process.name,
            inc=process.incarnation,
            child=process.pid,
            signal=spell(signum) if signum else None,
            exit_code=exit_code,
            task_id=view.task_id or None if view else None,
            attempt=view.attempt or None if view else None,
            phase=view.phase.name.lower() if view else None,
        )
        self.strangers_at, self.strangers_until = now, now + STRANGERS_SECONDS

    def _forget(self, process: Process) -> None:
        """Stop listening to a process, after its last words were heard."""
        self._on_message(process)
        self.selector.unregister(process.pidfd)
        os.close(process.pidfd)
        self._stop_hearing(process)
        del self.processes[process.incarnation]
        self.pids.discard(process.pid)
        if process.kind is Kind.FORK_SERVER:
            self._give_up_unborn()

    def _give_up_unborn(self) -> None:
        """Ask again for the workers that the dead fork server had been asked for."""
        now = time.monotonic()
        for child in list(self.children.alive.values()):
            if child.kind is Kind.WORKER and child.incarnation not in self.processes:
                self.slots.clear(child.index)
                self.children.postpone(child.incarnation, now)

    def _report(
        self,
        process: Process,
        view: SlotView,
        exit_code: int | None,
        signum: int | None,
        has_core: bool,
        usage: Any,
    ) -> None:
        """Make the crash report of a worker that died with a token, and list it."""
        found = casualties(view, blame_for(process.killed_for, view, signum))
        # CPU time is that of the process: of many attempts none could be told its share.
        is_shared = view.n_lanes > 0
        user_seconds = 0.0 if is_shared else max(0.0, usage.ru_utime - view.user_us / 1e6)
        system_seconds = 0.0 if is_shared else max(0.0, usage.ru_stime - view.system_us / 1e6)
        report = messages.Report(
            incarnation=process.incarnation,
            slot=process.name,
            pid=process.pid,
            crash=messages.Crash(
                cause=(cause_of_death(process.killed_for, signum) if is_shared else found[0].cause),
                signal=spell(signum) if signum else None,
                exit_code=exit_code,
                core_dumped=has_core,
                generation=self.slots.header.generation,
                max_rss_bytes=usage.ru_maxrss * 1024,
                cpu_seconds=round(user_seconds + system_seconds, 6),
                user_seconds=round(user_seconds, 6),
                system_seconds=round(system_seconds, 6),
            ),
            casualties=found,
        )
        self.reports[process.incarnation] = messages.encode(report)
        self._tell_steward(self.reports[process.incarnation])

    # -- strangers

    def _end_strangers(self, now: float) -> None:
        """Deal with children that we did not start: what tasks left behind, what was moved here.

        Those with our marker are killed, pass after pass until none is left; those without (what
        `docker exec` left to PID 1) are only reaped.
        """
        if self.strangers_at is None or now < self.strangers_at:
            return
        self.strangers_at = None
        pids = [pid for pid in identity.children_of(os.getpid()) if pid not in self.pids]
        if not pids:
            return
        # List first, then hear of births, then judge: a worker is our child before we know it.
        server = self._find(Kind.FORK_SERVER)
        if server is not None:
            self._on_message(server)
        found_living = False
        for pid in pids:
            if pid in self.pids:
                continue
            try:
                ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                if ended is not None:
                    os.waitpid(pid, os.WNOHANG)
                elif identity.has_marker(pid, self.estate.run_id):
                    os.kill(pid, signal.SIGKILL)
                    found_living = True
            except (ChildProcessError, ProcessLookupError):
                continue
        if found_living and now < self.strangers_until:
            self.strangers_at = now + 0.02

    # -- running attempts

    def _on_bell(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.estate.bell_fd)
        for process in self._workers():
            view = self.slots.read(process.index)
            if view is not None and view.is_ready:
                self.children.became_ready(process.incarnation)
        if self.sweep_at is None:
            self.sweep_at = time.monotonic() + SWEEP_SECONDS

    def _sweep(self, now: float) -> None:
        """Kill the attempts whose time is up; sleep when nobody is busy."""
        if self.sweep_at is None or now < self.sweep_at:
            return
        if not self.slots.any_busy():
            self.sweep_at = None
            return
        self.sweep_at = now + SWEEP_SECONDS
        views = {view.incarnation: view for view in self.slots.occupied()}
        # Not those of the dead, whose reports are not listed yet.
        workers = [(it, views[it.incarnation]) for it in self._workers() if it.incarnation in views]
        running = {
            (record.task_id, record.token): worker
            for worker, view in workers
            for record in view.running
        }
        clock = time.monotonic_ns()
        for worker, view in workers:
            for record in view.running:
                if 0 < record.hard_deadline_ns <= clock:
                    self._kill_attempt(worker, (record.task_id, record.token), Cause.TIMEOUT)
        self._end_patience(running, now)
        self._fence(running)

    def _end_patience(self, running: dict[tuple[int, int], Process], now: float) -> None:
        """Kill the attempts that were asked to stop and did not within their grace."""
        for key, asked in list(self.asked.items()):
            if key not in running:
                del self.asked[key]
            elif now >= asked.kill_at:
                self._kill_attempt(running[key], key, asked.cause)

    def _fence(self, running: dict[tuple[int, int], Process]) -> None:
        """End our own tasks before others may take them: this node could not beat in time.

        Here and not in the steward, which may be what is stuck. A node that is alone never does
        so: nobody else could run its tasks.
        """
        node = self.settings.node
        header = self.slots.header
        if not node.distributed or not header.node_id:
            return
        if header.seconds_since_beat() < node.worker_timeout - node.kill_grace:
            self.fenced_node = 0
            return
        if self.fenced_node != header.node_id:
            self.fenced_node = header.node_id
            log.error("node.fenced", node=header.node_id, running=len(running))
        for key, worker in running.items():
            self._kill_attempt(worker, key, Cause.FENCED)

    def _end_attempts(self, attempts: list[tuple[int, int]], cause: Cause) -> None:
        """End attempts: at once, or, where they can clean up or have neighbours, ask them first."""
        wanted = set(attempts) - self.asked.keys()
        for worker in self._workers() if wanted else ():
            view = self.slots.read(worker.index)
            held = [(record.task_id, record.token) for record in view.records] if view else []
            found = wanted.intersection(held)
            if not found:
                continue
            if cause is Cause.CANCELLED or self.lanes[worker.index][1]:
                self._ask_to_stop(worker, found, cause)
            else:
                for key in found:
                    self._kill_attempt(worker, key, cause)

    def _ask_to_stop(self, worker: Process, attempts: set[tuple[int, int]], cause: Cause) -> None:
        kill_at = time.monotonic() + self.settings.node.cancel_grace
        self.asked.update(dict.fromkeys(attempts, Asked(cause, kill_at)))
        self.slots.ask_to_stop(worker.index, attempts)
        for task_id, _ in sorted(attempts):
            log.info("attempt.asked_to_stop", task_id=task_id, cause=cause, worker=worker.name)
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(worker.pidfd, STOP_ATTEMPT)

    def _kill_attempt(self, worker: Process, attempt: tuple[int, int], cause: Cause) -> None:
        """Kill the worker of an attempt, if that is still what it runs."""
        if worker.killed_for is None:
            if not self.slots.holds(worker.index, *attempt):
                return
            # A fence is meant for all that run here.
            worker.killed_for = Reason(cause) if cause is Cause.FENCED else Reason(cause, *attempt)
            log.info("attempt.killed", task_id=attempt[0], cause=cause, worker=worker.name)
        self._kill_group(worker)

    def _workers(self) -> list[Process]:
        return [process for process in self.processes.values() if process.kind is Kind.WORKER]

    def _signal(self, command: Signal) -> None:
        process = self.processes.get(command.incarnation)
        if process is None:
            if command.signum == signal.SIGKILL:
                self._give_up(command.incarnation)
            return
        if command.signum == signal.SIGKILL:
            if process.kind is Kind.WORKER and process.killed_for is None:
                process.killed_for = Reason(Cause.SHUTDOWN)
            log.warning("process.killed", process=process.name, inc=process.incarnation)
            self._kill_group(process)
            return
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(process.pidfd, command.signum)

    def _give_up(self, incarnation: int) -> None:
        """A worker that was asked for and never born: forget it, so that it is asked for again."""
        child = self.children.alive.get(incarnation)
        if child is not None:
            log.warning("worker.unborn", worker=child.name, inc=incarnation)
            self.slots.clear(child.index)
            self.children.died(incarnation, time.monotonic(), exit_code=None, healthy=False)

    @staticmethod
    def _kill_group(process: Process) -> None:
        # The pid is not reaped, so neither it nor the group can be another's by now. A keeper's
        # group holds the database: KILL is its last rung only.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(process.pidfd, signal.SIGKILL)


def lanes_of(pools: Sequence[config.PoolSettings]) -> list[tuple[int, int]]:
    """Return for each slot its first lane and how many it has: none in process pools."""
    lanes: list[tuple[int, int]] = []
    first = 0
    for pool in pools:
        for _ in range(pool.processes):
            lanes.append((first, pool.lanes))
            first += pool.lanes
    return lanes


def _plan(settings: config.Settings) -> Plan:
    slots = tuple(
        f"{pool.name}-{number}" for pool in settings.pools for number in range(pool.processes)
    )
    if len(slots) > MAX_SLOTS:
        raise ConfigError(
            f"[[pool]] processes: {len(slots)} workers in all, at most {MAX_SLOTS} are possible on "
            "one node: lower them, or start another node"
        )
    return Plan(
        slots=slots,
        has_keeper=settings.database.is_embedded,
        has_web=bool(settings.web.bind),
        graceful_timeout=settings.node.graceful_timeout,
        spawn_timeout=settings.node.spawn_timeout,
    )
