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

import array
import contextlib
import errno
import fcntl
import os
import secrets
import selectors
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from orchestrator import __version__, config, logs
from orchestrator.errors import ConfigError
from orchestrator.outcome import Cause
from orchestrator.processes import identity
from orchestrator.processes.children import Children, Kind, Plan, Signal, Spawn, Stage
from orchestrator.processes.signals import SignalInbox
from orchestrator.slots import MAX_SLOTS, Phase, Slots, SlotView

SWEEP_SECONDS = 0.25
HEALTHY_SECONDS = 10.0
EXIT_TEMPORARY = 75
EXIT_CONFIG = 78

log = logs.get("supervisor")


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
    kill: Kill | None = None


@dataclass(frozen=True)
class Kill:
    """Why we killed a worker and the attempt that it was meant for; no task: whatever it ran."""

    cause: Cause
    task_id: int = 0
    token: int = 0


@dataclass
class Outbox:
    """Messages for the steward, in order; what is `sent` has been listed."""

    waiting: deque[bytes] = field(default_factory=deque)

    def flush(self, to: socket.socket) -> None:
        while self.waiting:
            try:
                to.send(self.waiting[0])
            except (BlockingIOError, ConnectionError, BrokenPipeError):
                return
            self.waiting.popleft()


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
        return EXIT_CONFIG
    try:
        return supervisor.loop()
    finally:
        supervisor.close()


class Supervisor:
    """The loop and the system calls."""

    def __init__(self, settings: config.Settings) -> None:
        self.settings = settings
        self.run_id = secrets.token_hex(8)
        slot_names = tuple(
            f"{pool.name}-{number}" for pool in settings.pools for number in range(pool.processes)
        )
        if len(slot_names) > MAX_SLOTS:
            raise ConfigError(
                f"[[pool]] processes: {len(slot_names)} workers in all, at most {MAX_SLOTS} are "
                "possible on one node: lower them, or start another node"
            )
        self.children = Children(
            Plan(
                slots=slot_names,
                has_keeper=settings.database.url == "embedded",
                has_web=bool(settings.web.bind),
                graceful_timeout=settings.node.graceful_timeout,
                spawn_timeout=settings.node.spawn_timeout,
            )
        )
        self.listener = _listen(settings.web.bind) if settings.web.bind else None
        self.slots = Slots.create()
        self.slots.header.supervisor_pid = os.getpid()
        self.slots.header.generation = 1
        self.slots.header.started_ns = time.monotonic_ns()
        self.settings_fd = _memory_file(config.encode(settings))
        self.bell_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.idle_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.wakes = {pool.name: _wake_pipe() for pool in settings.pools}
        self.life_reader, self.life_writer = os.pipe()
        self.run_directory = _run_directory()
        self.lock_path, self.lock_fd = _hold_lock(settings, self.run_id)
        self.processes: dict[int, Process] = {}  # by incarnation
        self.pids: dict[int, int] = {}  # pid -> incarnation
        self.reports: dict[int, bytes] = {}  # by incarnation, until the steward has answered
        self.outbox = Outbox()
        self.policies: bytes | None = None
        self.handlers_were_loaded = False
        self.sweep_at: float | None = None
        self.strangers_at: float | None = None
        self.strangers_until = 0.0
        self.fenced_node = 0
        self.inbox = SignalInbox(identity.PASSED_SIGNALS)
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.inbox, selectors.EVENT_READ, self._on_signals)
        self.selector.register(self.bell_fd, selectors.EVENT_READ, self._on_bell)
        identity.become_subreaper()

    # -- the loop

    def loop(self) -> int:
        """Turn until every child is gone; return the exit code."""
        log.info(
            "supervisor.started",
            version=__version__,
            run=self.run_id,
            config=self.settings.source,
            workers=len(self.children.plan.slots),
            web=self.settings.web.bind or None,
        )
        while True:
            now = time.monotonic()
            self._sweep(now)
            self._adopt(now)
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

    def close(self) -> None:
        """Leave nothing behind: the run directory and the lock file."""
        shutil.rmtree(self.run_directory, ignore_errors=True)
        if self.lock_path:
            with contextlib.suppress(OSError):
                os.unlink(self.lock_path)

    def _timeout(self, now: float) -> float | None:
        times = [
            at
            for at in (self.children.next_deadline(now), self.sweep_at, self.strangers_at)
            if at is not None
        ]
        if self.outbox.waiting:
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
                    name = signal.Signals(signum).name
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
        ours: socket.socket | None = None
        theirs: socket.socket | None = None
        if command.kind in (Kind.KEEPER, Kind.FORK_SERVER, Kind.STEWARD):
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            ours.setblocking(False)
            for side in (ours, theirs):
                side.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
        passed = self._passed_descriptors(command.kind, theirs)
        environ = {**os.environ, **self._environment(command, passed)}
        for fd in passed.values():
            os.set_inheritable(fd, True)
        try:
            pid = os.posix_spawn(
                sys.executable,
                [sys.executable, "-P", "-m", f"orchestrator.processes.{command.kind}"],
                environ,
                file_actions=[(os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0)],
                setpgroup=0,
                setsigmask=[],
            )
        except OSError as error:
            log.error("process.spawn_failed", process=command.name, reason=str(error))
            self.children.postpone(command.incarnation, now + 1.0)
            for side in (ours, theirs):
                if side is not None:
                    side.close()
            return
        finally:
            for fd in passed.values():
                os.set_inheritable(fd, False)
        if theirs is not None:
            theirs.close()
        process = Process(
            command.kind, command.name, command.incarnation, -1, pid, os.pidfd_open(pid), now, ours
        )
        self._adopt_process(process)
        if ours is not None:
            self.selector.register(ours, selectors.EVENT_READ, lambda: self._on_message(process))
        if command.kind is Kind.STEWARD:
            self._brief_steward()

    def _passed_descriptors(self, kind: Kind, theirs: socket.socket | None) -> dict[str, int]:
        passed = {"SETTINGS": self.settings_fd, "SLOTS": self.slots.fd}
        if theirs is not None:
            passed["SOCKET"] = theirs.fileno()
        if kind in (Kind.KEEPER, Kind.STEWARD):
            passed["LIFE"] = self.life_reader
        if kind in (Kind.FORK_SERVER, Kind.STEWARD):
            passed["BELL"], passed["IDLE"] = self.bell_fd, self.idle_fd
            for number, pipe in enumerate(self.wakes.values()):
                passed[f"wake {number} reader"], passed[f"wake {number} writer"] = pipe
        if kind is Kind.WEB and self.listener is not None:
            passed["LISTEN"] = self.listener.fileno()
        return passed

    def _environment(self, command: Spawn, passed: dict[str, int]) -> dict[str, str]:
        environment = {
            identity.MARKER: self.run_id,
            identity.KIND: str(command.kind),
            "ORCHESTRATOR_INCARNATION": str(command.incarnation),
            "ORCHESTRATOR_SUPERVISOR_PID": str(os.getpid()),
            "ORCHESTRATOR_RUN_DIRECTORY": str(self.run_directory),
            "ORCHESTRATOR_LOCK": self.lock_path,
            "ORCHESTRATOR_WAKE_FDS": (identity.spell_wakes(self.wakes) if "IDLE" in passed else ""),
            "PROMETHEUS_MULTIPROC_DIR": str(self.run_directory / "metrics"),
        }
        for name, fd in passed.items():
            if name.isupper():
                environment[f"ORCHESTRATOR_{name}_FD"] = str(fd)
        package_parent = str(Path(__file__).resolve().parents[2])
        if "site-packages" not in package_parent:
            # A checkout: its children must find the package that we run from.
            search = [package_parent, *filter(None, [os.environ.get("PYTHONPATH")])]
            environment["PYTHONPATH"] = os.pathsep.join(search)
        return environment

    def _ask_for_worker(self, command: Spawn, now: float) -> None:
        server = self._find(Kind.FORK_SERVER)
        if command.incarnation and self._has_unlisted_report(command.index):
            # The dead worker's record is the only trace of its task until the report is listed.
            self.children.postpone(command.incarnation, now + 0.1)
            return
        request = msgspec.json.encode(
            {"index": command.index, "name": command.name, "incarnation": command.incarnation}
        )
        self.slots.lease(command.index, command.name, command.incarnation)
        try:
            if server is None or server.socket is None:
                raise BrokenPipeError(errno.EPIPE, "there is no fork server")
            server.socket.send(request)
        except OSError as error:
            self.slots.clear(command.index)
            self.children.postpone(command.incarnation, now + 0.1)
            log.warning("worker.spawn_postponed", worker=command.name, reason=str(error))

    def _has_unlisted_report(self, index: int) -> bool:
        view = self.slots.read(index)
        return view is not None and view.incarnation in self.reports and bool(self.outbox.waiting)

    def _adopt_process(self, process: Process) -> None:
        self.processes[process.incarnation] = process
        self.pids[process.pid] = process.incarnation
        self.selector.register(process.pidfd, selectors.EVENT_READ, lambda: self._on_death(process))
        log.debug(
            "process.spawned", process=process.name, inc=process.incarnation, child=process.pid
        )

    def _find(self, kind: Kind) -> Process | None:
        return next((p for p in self.processes.values() if p.kind is kind), None)

    # -- messages

    def _on_message(self, process: Process) -> None:
        """Read all messages of a child; births carry the pidfd of a new worker."""
        if process.socket is None:
            return
        while True:
            try:
                data, fds = _receive(process.socket)
            except BlockingIOError:
                return
            except ConnectionError:
                data, fds = b"", []
            if not data:
                self.selector.unregister(process.socket)
                process.socket.close()
                process.socket = None
                return
            message = msgspec.json.decode(data)
            kind = message.pop("kind")
            getattr(self, f"_hear_{kind}")(process, message, fds)

    def _hear_born(self, server: Process, message: dict[str, Any], fds: list[int]) -> None:
        incarnation, pid, pidfd = message["incarnation"], message["pid"], fds[0]
        child = self.children.alive.get(incarnation)
        if child is None:
            # Given up meanwhile (spawn time-out): nobody waits for it.
            with contextlib.suppress(OSError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            os.close(pidfd)
            return
        self._adopt_process(
            Process(Kind.WORKER, child.name, incarnation, child.index, pid, pidfd, time.monotonic())
        )

    def _hear_ready(self, process: Process, message: dict[str, Any], fds: list[int]) -> None:
        if process.kind is Kind.FORK_SERVER:
            self.handlers_were_loaded = True
            self.policies = msgspec.json.encode({"kind": "handlers", **message})
            self._tell_steward(self.policies)
        self.children.became_ready(process.incarnation)
        log.info("process.ready", process=process.name, inc=process.incarnation)

    def _hear_down(self, process: Process, message: dict[str, Any], fds: list[int]) -> None:
        log.warning("database.down", **message)

    def _hear_failed(self, process: Process, message: dict[str, Any], fds: list[int]) -> None:
        """A child cannot do its work, and starting it again would not help."""
        log.error(f"{process.kind}.failed", reason=message["message"])
        if process.kind is Kind.FORK_SERVER and self.handlers_were_loaded:
            return
        self.slots.header.is_stopping = True
        self.children.fail(message.get("exit_code", EXIT_CONFIG))

    def _hear_ack(self, process: Process, message: dict[str, Any], fds: list[int]) -> None:
        self.reports.pop(message["incarnation"], None)

    def _hear_kill(self, process: Process, message: dict[str, Any], fds: list[int]) -> None:
        self._kill_attempt(message["task_id"], message["token"], Cause(message["cause"]))

    # -- the steward

    def _brief_steward(self) -> None:
        """Tell a new steward what its predecessor may not have written, then that this was all."""
        self.outbox.waiting.clear()
        if self.policies is not None:
            self.outbox.waiting.append(self.policies)
        self.outbox.waiting.extend(self.reports.values())
        self.outbox.waiting.append(msgspec.json.encode({"kind": "sync"}))
        self._flush()

    def _tell_steward(self, message: bytes) -> None:
        if self._find(Kind.STEWARD) is not None:
            self.outbox.waiting.append(message)
            self._flush()

    def _flush(self) -> None:
        steward = self._find(Kind.STEWARD)
        if steward is not None and steward.socket is not None:
            self.outbox.flush(steward.socket)

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
        has_task = view is not None and view.phase >= Phase.CLAIM
        if view is not None:
            healthy = healthy or has_task or view.finished_count > 0
            if has_task:
                self._report(process, view, exit_code, signum, usage)
            if not self._has_unlisted_report(process.index):
                self.slots.clear(process.index)
        self.children.died(process.incarnation, now, exit_code=exit_code, healthy=healthy)
        is_planned = exit_code == 0 or self.children.stage >= Stage.DRAIN
        (log.debug if is_planned else log.warning)(
            "process.exited" if is_planned else "process.died",
            process=process.name,
            inc=process.incarnation,
            child=process.pid,
            signal=signal.Signals(signum).name if signum else None,
            exit_code=exit_code,
            task_id=view.task_id or None if view else None,
            attempt=view.attempt or None if view else None,
            phase=view.phase.name.lower() if view else None,
        )
        self.strangers_at, self.strangers_until = now, now + 5.0

    def _forget(self, process: Process) -> None:
        """Stop listening to a process, after its last words were heard."""
        self._on_message(process)
        self.selector.unregister(process.pidfd)
        os.close(process.pidfd)
        if process.socket is not None:
            self.selector.unregister(process.socket)
            process.socket.close()
            process.socket = None
        del self.processes[process.incarnation]
        del self.pids[process.pid]
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
        usage: Any,
    ) -> None:
        """Make the crash report of a worker that died with a token, and list it."""
        kill = process.kill
        is_bystander = False
        if kill is not None and signum == signal.SIGKILL:
            cause = kill.cause
            if kill.task_id and (kill.task_id, kill.token) != (view.task_id, view.token):
                cause, is_bystander = Cause.BYSTANDER, True
        elif signum is not None:
            cause = Cause.CRASH
        else:
            cause = Cause.EXIT
        started = view.started_ns
        report = {
            "kind": "report",
            "incarnation": process.incarnation,
            "slot": process.name,
            "pid": process.pid,
            "task_id": view.task_id,
            "attempt": view.attempt,
            "token": view.token,
            "phase": view.phase.name.lower(),
            "wall_seconds": (time.monotonic_ns() - started) / 1e9 if started else 0.0,
            "crash": {
                "cause": str(cause),
                "signal": signal.Signals(signum).name if signum else None,
                "exit_code": exit_code,
                "core_dumped": False,
                "phase": view.phase.name.lower(),
                "max_rss_bytes": usage.ru_maxrss * 1024,
                "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 6),
                "meant_for_task": kill.task_id if kill is not None and is_bystander else None,
            },
        }
        encoded = msgspec.json.encode(report)
        self.reports[process.incarnation] = encoded
        self._tell_steward(encoded)

    # -- strangers

    def _adopt(self, now: float) -> None:
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
                elif identity.has_marker(pid, self.run_id):
                    os.kill(pid, signal.SIGKILL)
                    found_living = True
            except (ChildProcessError, ProcessLookupError):
                continue
        if found_living and now < self.strangers_until:
            self.strangers_at = now + 0.02

    # -- running attempts

    def _on_bell(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.bell_fd)
        for process in self.processes.values():
            if process.kind is Kind.WORKER:
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
        views = [view for view in self.slots.occupied() if view.phase is Phase.RUN]
        clock = time.monotonic_ns()
        for view in views:
            if 0 < view.hard_deadline_ns <= clock:
                self._kill_attempt(view.task_id, view.token, Cause.TIMEOUT)
        self._fence(views)

    def _fence(self, views: list[SlotView]) -> None:
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
            log.error("node.fenced", node=header.node_id, running=len(views))
        for view in views:
            self._kill_attempt(view.task_id, view.token, Cause.FENCED)

    def _kill_attempt(self, task_id: int, token: int, cause: Cause) -> None:
        """Kill the worker of an attempt, if that is still what it runs."""
        for process in self.processes.values():
            if process.kind is not Kind.WORKER:
                continue
            view = self.slots.read(process.index)
            if view is None or (view.task_id, view.token) != (task_id, token):
                continue
            if process.kill is None:
                process.kill = Kill(cause, task_id, token)
                log.info("attempt.killed", task_id=task_id, cause=cause, worker=process.name)
            self._kill_group(process)

    def _signal(self, command: Signal) -> None:
        process = self.processes.get(command.incarnation)
        if process is None:
            if command.signum == signal.SIGKILL:
                self._give_up(command.incarnation)
            return
        if command.signum == signal.SIGKILL:
            if process.kind is Kind.WORKER and process.kill is None:
                process.kill = Kill(Cause.SHUTDOWN)
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


# -- what a supervisor holds


def _listen(bind: str) -> socket.socket:
    host, _, port = bind.rpartition(":")
    host = host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, int(port)))
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"[web] bind = {bind!r}: {error.strerror}: choose another address, or end what "
            "listens there"
        ) from error
    listener.listen(128)
    return listener


def _memory_file(content: bytes) -> int:
    fd = os.memfd_create("orchestrator-settings", os.MFD_CLOEXEC)
    os.write(fd, content)
    return fd


def _wake_pipe() -> tuple[int, int]:
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    return reader, writer


def _run_directory() -> Path:
    """Make the folder of this run, on memory where there is some: metrics are written often."""
    base = "/dev/shm" if os.access("/dev/shm", os.W_OK | os.X_OK) else None
    directory = Path(tempfile.mkdtemp(prefix="orchestratord-", dir=base))
    (directory / "metrics").mkdir(mode=0o700)
    return directory


def _hold_lock(settings: config.Settings, run_id: str) -> tuple[str, int]:
    """Hold a lock that lives as long as this process: proof for a later daemon of this host.

    Without a writable state directory there is none, and a later daemon waits for the beat.
    """
    path = config.state_directory(settings) / "nodes" / f"{run_id}.lock"
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        fd = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        log.warning("lock.unavailable", path=str(path), reason=error.strerror)
        return "", -1
    return str(path), fd


def _receive(from_socket: socket.socket) -> tuple[bytes, list[int]]:
    data, ancillary, _, _ = from_socket.recvmsg(1 << 20, socket.CMSG_SPACE(4))
    fds = array.array("i")
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
    return data, list(fds)
