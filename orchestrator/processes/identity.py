"""Who a process is and what ties it to its supervisor: environment, markers, prctl.

Every child finds its place from the environment that the supervisor gave it (`Place.here()`). The
*marker*, `ORCHESTRATOR_RUN=<random>`, is in the environment of every descendant from its exec on:
by it the processes of one supervisor are told from all others, also those that left their session.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from orchestrator import config
from orchestrator.slots import Slots

_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_PR_SET_CHILD_SUBREAPER = 36
_libc = ctypes.CDLL(None, use_errno=True)

MARKER = "ORCHESTRATOR_RUN"
KIND = "ORCHESTRATOR_KIND"

PASSED_SIGNALS = (
    signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2,
    signal.SIGTTIN, signal.SIGTTOU, signal.SIGCHLD,
)  # fmt: skip


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, value, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl({option}): {os.strerror(number)}")


def become_subreaper() -> None:
    """Adopt orphaned descendants, so that none escapes to init."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def set_title(title: str) -> None:
    """Name the process for `ps` and `top`; the kernel keeps 15 bytes."""
    buffer = ctypes.create_string_buffer(title.encode()[:15])
    _libc.prctl(_PR_SET_NAME, buffer, 0, 0, 0)


def arm_parent_death_signal(supervisor_pid: int, signum: int = signal.SIGKILL) -> None:
    """Ask the kernel to end this process when its parent, the supervisor, dies.

    Exits at once where the supervisor is not the parent any more: it died before this call.
    """
    _prctl(_PR_SET_PDEATHSIG, signum)
    if os.getppid() != supervisor_pid:
        os._exit(1)


@dataclass(frozen=True)
class Place:
    """What a child was given by its supervisor. Descriptors are -1 where the kind has none."""

    run: str
    kind: str
    incarnation: int
    supervisor_pid: int
    run_directory: Path
    lock_path: str
    settings_fd: int
    slots_fd: int
    life_fd: int
    socket_fd: int
    listen_fd: int
    bell_fd: int
    idle_fd: int
    wakes: dict[str, tuple[int, int]]

    @classmethod
    def here(cls) -> Place:
        """Read the environment of this process.

        Raises:
            KeyError: this process was not started by a supervisor.
        """
        environ = os.environ
        return cls(
            run=environ[MARKER],
            kind=environ[KIND],
            incarnation=int(environ["ORCHESTRATOR_INCARNATION"]),
            supervisor_pid=int(environ["ORCHESTRATOR_SUPERVISOR_PID"]),
            run_directory=Path(environ["ORCHESTRATOR_RUN_DIRECTORY"]),
            lock_path=environ.get("ORCHESTRATOR_LOCK", ""),
            settings_fd=int(environ["ORCHESTRATOR_SETTINGS_FD"]),
            slots_fd=int(environ["ORCHESTRATOR_SLOTS_FD"]),
            life_fd=int(environ.get("ORCHESTRATOR_LIFE_FD", -1)),
            socket_fd=int(environ.get("ORCHESTRATOR_SOCKET_FD", -1)),
            listen_fd=int(environ.get("ORCHESTRATOR_LISTEN_FD", -1)),
            bell_fd=int(environ.get("ORCHESTRATOR_BELL_FD", -1)),
            idle_fd=int(environ.get("ORCHESTRATOR_IDLE_FD", -1)),
            wakes=_parse_wakes(environ.get("ORCHESTRATOR_WAKE_FDS", "")),
        )

    def settings(self) -> config.Settings:
        size = os.fstat(self.settings_fd).st_size
        return config.decode(os.pread(self.settings_fd, size, 0))

    def slots(self) -> Slots:
        return Slots.attach(self.slots_fd)

    def identity(self) -> str:
        return f"{self.kind} inc={self.incarnation} pid={os.getpid()}"


def _parse_wakes(text: str) -> dict[str, tuple[int, int]]:
    wakes = {}
    for item in filter(None, text.split(",")):
        pool, reader, writer = item.split(":")
        wakes[pool] = (int(reader), int(writer))
    return wakes


def spell_wakes(wakes: dict[str, tuple[int, int]]) -> str:
    """Write the wake pipes for the environment: the inverse of what `Place.here` reads."""
    return ",".join(f"{pool}:{reader}:{writer}" for pool, (reader, writer) in wakes.items())


def has_marker(pid: int, run: str) -> bool:
    """Tell whether a process belongs to the run of a supervisor; False when it is gone."""
    return _has_in_environment(pid, MARKER, run)


def is_kind(pid: int, kind: str) -> bool:
    """Tell whether a process was started by a supervisor as this kind of child."""
    return _has_in_environment(pid, KIND, kind)


def _has_in_environment(pid: int, name: str, value: str) -> bool:
    try:
        environ = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False
    return f"{name}={value}".encode() in environ.split(b"\0")


def is_lock_free(path: str | Path) -> bool:
    """Tell whether a lock file exists that nobody holds: who held it for life is dead."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    else:
        return True
    finally:
        os.close(fd)


def all_pids() -> Iterator[int]:
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            yield int(entry)


def children_of(pid: int) -> list[int]:
    """List the living and the unreaped children of a process of ours."""
    children: list[int] = []
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            text = Path(f"/proc/{pid}/task/{thread}/children").read_text()
            children.extend(int(word) for word in text.split())
    except OSError:
        return children
    return children


def kill_children(seconds: float = 5.0) -> int:
    """Kill and reap every child of this process; return how many there were.

    A worker calls it after each attempt: being a subreaper it has adopted whatever the task left
    behind, daemonised or not. Costs one system call where there is none. Passes repeat, bounded by
    `seconds`, because a dying process can leave new orphans.
    """
    killed = 0
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return killed
        for pid in children_of(os.getpid()):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                killed += 1
        except ChildProcessError:
            return killed
        time.sleep(0.001)
    return killed
