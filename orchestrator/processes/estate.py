"""The estate: what a supervisor holds for its children, and how they come into it.

Slots, settings, bells, pipes, the listening socket, the run directory, the lock file: made once,
before the first child. `start` executes a child of a kind with exactly the descriptors that this
kind may have. The loop that decides when is in `supervisor.py`; the child's end of it, in
`identity.py`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import socket
import sys
import tempfile
import time
from pathlib import Path

import msgspec

from orchestrator import config, logs
from orchestrator.errors import ConfigError
from orchestrator.processes import identity
from orchestrator.processes.children import Kind
from orchestrator.slots import Slots

_TALKS = (Kind.KEEPER, Kind.FORK_SERVER, Kind.STEWARD)
_SOCKET_BUFFER_BYTES = 4 << 20

log = logs.get("supervisor")


class Estate:
    """The things that live as long as the supervisor."""

    def __init__(self, settings: config.Settings) -> None:
        self.run_id = secrets.token_hex(8)
        self.listener = _listen(settings.web.bind) if settings.web.bind else None
        self.slots = Slots.create(
            n_lanes=sum(pool.processes * pool.lanes for pool in settings.pools)
        )
        self.slots.header.supervisor_pid = os.getpid()
        self.slots.header.generation = 1
        self.slots.header.started_ns = time.monotonic_ns()
        # What "auto" means for the log is decided by our own stderr, which the children share.
        told = msgspec.structs.replace(settings, logging=logs.settled(settings.logging))
        self.settings_fd = _memory_file(config.encode(told))
        # Rung by workers: "look at the slots" (ready, busy), and "I am idle" for the steward.
        self.bell_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.idle_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.wakes = {pool.name: _wake_pipe() for pool in settings.pools}
        # Nobody writes to it: its end is the news.
        self.life_reader, self.life_writer = os.pipe()
        self.run_directory, self.run_lock = _run_directory()
        self.lock_path, self.lock_fd = _hold_lock(settings, self.run_id)

    def start(self, kind: Kind, incarnation: int) -> tuple[int, socket.socket | None]:
        """Execute a child; return its pid and, for kinds that talk to us, our end of its socket.

        Raises:
            OSError: there is no process to be had.
        """
        ours: socket.socket | None = None
        theirs: socket.socket | None = None
        if kind in _TALKS:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            ours.setblocking(False)
            for end in (ours, theirs):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BUFFER_BYTES)
        passed = self._passed(kind, theirs)
        inherited = [*passed.values(), *self._inherited_pipes(kind)]
        for fd in inherited:
            os.set_inheritable(fd, True)
        try:
            pid = os.posix_spawn(
                sys.executable,
                # -P: a file of the current directory must not stand in for a module.
                [sys.executable, "-P", "-m", f"orchestrator.processes.{kind}"],
                {**os.environ, **self._environment(kind, incarnation, passed)},
                file_actions=[(os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0)],
                setpgroup=0,
                setsigmask=[],
            )
        except OSError:
            if ours is not None:
                ours.close()
            raise
        finally:
            for fd in inherited:
                os.set_inheritable(fd, False)
            if theirs is not None:
                theirs.close()
        return pid, ours

    def _passed(self, kind: Kind, theirs: socket.socket | None) -> dict[str, int]:
        """Name the descriptors that a kind finds in its environment."""
        passed = {"SETTINGS": self.settings_fd, "SLOTS": self.slots.fd}
        if theirs is not None:
            passed["SOCKET"] = theirs.fileno()
        if kind in (Kind.KEEPER, Kind.STEWARD):
            passed["LIFE"] = self.life_reader
        if kind in (Kind.FORK_SERVER, Kind.STEWARD):
            passed["BELL"], passed["IDLE"] = self.bell_fd, self.idle_fd
        if kind is Kind.WEB and self.listener is not None:
            passed["LISTEN"] = self.listener.fileno()
        return passed

    def _inherited_pipes(self, kind: Kind) -> list[int]:
        if kind not in (Kind.FORK_SERVER, Kind.STEWARD):
            return []
        return [fd for pipe in self.wakes.values() for fd in pipe]

    def _environment(self, kind: Kind, incarnation: int, passed: dict[str, int]) -> dict[str, str]:
        environment = {
            identity.MARKER: self.run_id,
            identity.KIND: str(kind),
            "ORCHESTRATOR_INCARNATION": str(incarnation),
            "ORCHESTRATOR_SUPERVISOR_PID": str(os.getpid()),
            "ORCHESTRATOR_RUN_DIRECTORY": str(self.run_directory),
            "ORCHESTRATOR_LOCK": self.lock_path,
            "PROMETHEUS_MULTIPROC_DIR": str(self.run_directory / "metrics"),
        }
        if self._inherited_pipes(kind):
            environment["ORCHESTRATOR_WAKE_FDS"] = identity.spell_wakes(self.wakes)
        for name, fd in passed.items():
            environment[f"ORCHESTRATOR_{name}_FD"] = str(fd)
        package_parent = str(Path(__file__).resolve().parents[2])
        if "site-packages" not in package_parent:
            # A checkout: its children must find the package that we run from.
            search = [package_parent, *filter(None, [os.environ.get("PYTHONPATH")])]
            environment["PYTHONPATH"] = os.pathsep.join(search)
        return environment

    def close(self) -> None:
        """Leave nothing behind: the run directory and the lock file."""
        shutil.rmtree(self.run_directory, ignore_errors=True)
        if self.lock_path:
            with contextlib.suppress(OSError):
                os.unlink(self.lock_path)


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


def _run_directory() -> tuple[Path, int]:
    """Make the folder of this run, on memory where there is some: metrics are written often.

    The lock in it is held for life. Folders whose lock is free were left by runs that were killed
    with all their processes, and are removed.
    """
    base = "/dev/shm" if os.access("/dev/shm", os.W_OK | os.X_OK) else tempfile.gettempdir()
    for left in Path(base).glob("orchestratord-*"):
        if identity.is_lock_free(left / "lock"):  # of another user it cannot even be opened
            shutil.rmtree(left, ignore_errors=True)
    directory = Path(tempfile.mkdtemp(prefix="orchestratord-", dir=base))
    (directory / "metrics").mkdir(mode=0o700)
    lock = os.open(directory / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    return directory, lock


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
