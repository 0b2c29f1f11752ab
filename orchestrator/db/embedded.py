"""The embedded PostgreSQL: one private server for one node, started and stopped by us.

PostgreSQL refuses to run as root, so root starts it as another account. There are no passwords
(`trust`): the mode of the socket's folder is the guard, and there is no TCP.

The lock is an open file that the server inherits. It is free only when the last process of the
server is gone, so whoever gets it never meets a server that is still stopping, and a
`postmaster.pid` found then is a left-over. The server dies with whoever started it
(PR_SET_PDEATHSIG), by a clean shutdown.

Who runs it: the keeper for a daemon (`processes/keeper.py`), `serving()` for one command, tests.
Finding the programs is `programs.py`'s business; what is in the database is nobody's here.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from orchestrator import config
from orchestrator.db import programs
from orchestrator.db.accounts import (
    ENVIRONMENT,
    PLACE,
    Account,
    account_for,
    can_execute,
    user_name,
)
from orchestrator.db.layout import (
    DATABASE,
    PORT,
    SUPERUSER,
    Layout,
    Lock,
    failed,
    has_no_space,
    make_state_directory,
    unwritable,
)
from orchestrator.db.programs import Programs
from orchestrator.errors import ConfigError, DatabaseUnavailable

# 250 workers, steward, leader and web, the command line, and PostgreSQL's own reserve.
_PARAMETERS = {"max_connections": "300", "log_checkpoints": "off", "timezone": "UTC"}

# For tests: a crash of the machine may lose everything, and nothing waits for a disk.
UNSAFE_PARAMETERS = {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off"}

_POLL_SECONDS = 0.005
# SIGINT (fast shutdown) writes a checkpoint; SIGQUIT leaves recovery to the next start.
_FAST_SECONDS, _IMMEDIATE_SECONDS = 10.0, 5.0
_BIGGEST_LOG_BYTES = 8 * 1024 * 1024

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


def resolve(settings: config.Settings, *, direct: bool = False) -> str:
    """Return the URL that reaches the database of these settings, embedded or not.

    `direct` passes by a pooler. Nothing is started and nothing is looked up: every process gets
    the same answer.
    """
    database = settings.database
    if not database.is_embedded:
        return database.session_url if direct else database.url
    return Layout.of(settings).url()


@dataclass
class Server:
    """The server of one layout. Its methods are called by one thread, the main thread.

    (The kernel ties PR_SET_PDEATHSIG to the *thread* that started the server.)
    """

    layout: Layout
    user: str | None = None
    parameters: Mapping[str, str] = field(default_factory=dict)
    is_safe: bool = True  # False: without fsync, for tests
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)
    _programs: Programs | None = field(default=None, init=False)
    _account: Account | None = field(default=None, init=False)
    _lock: Lock | None = field(default=None, init=False)
    _log_offset: int = field(default=0, init=False)

    @classmethod
    def of(cls, settings: config.Settings) -> Server:
        return cls(Layout.of(settings), user=settings.node.user)

    def lock(self, holder: str) -> bool:
        """Make the state directory and take its lock; False when somebody else has it.

        Raises:
            ConfigError: the directory cannot be made, or its name is too long.
        """
        self.layout.check_socket_path()
        make_state_directory(self.layout.state)
        lock = Lock(self.layout.lock)
        if not lock.acquire(holder):
            return False
        self._lock = lock
        return True

    def unlock(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def initialise(self) -> bool:
        """Make the data directory with the database in it, unless it exists; True when made.

        It appears under its name when it is complete, so that an interrupted call leaves nothing
        that a later one would take for a database. Takes about 0.6 s. Needs the lock.

        Raises:
            ConfigError: no programs; a data directory of another major version or owner; no
                permission; no space left.
        """
        layout = self.layout
        existing = layout.majors()
        found = programs.find(wanted_majors=existing)
        self._refuse_other_major(found, existing)
        data = layout.data(found.major)
        self._account = account_for(self.user, _owner(data))
        self._check_reach(layout.state)
        self._check_reach(data.parent)
        self._programs = found.runnable_by(self._account, copies=layout.copies)
        self._own_folder(layout.sockets)
        if found.major in existing:
            self._check_owner(data)
            return False
        self._refuse_foreign_files(data)
        self._create(data)
        return True

    def _create(self, data: Path) -> None:
        binaries = self._ready_programs()
        # A directory that somebody made for us may be a mount point: it is filled, not replaced.
        is_given = data.exists()
        fresh = data / ".new" if is_given else data.with_name(f".{data.name}.new")
        try:
            if is_given:
                self._own_folder(data)
            shutil.rmtree(fresh, ignore_errors=True)
            self._own_folder(fresh)
            self._run(
                binaries.path("initdb"), "--pgdata", str(fresh), "--username", SUPERUSER,
                "--auth", "trust", "--encoding", "UTF8", "--locale", "C.UTF-8",
                *([] if self.is_safe else ["--no-sync"]),
            )  # fmt: skip
            # The single-user server: no socket, no driver, and nobody can look in meanwhile.
            self._run(
                binaries.path("postgres"), "--single", "-D", str(fresh),
                *_as_options({} if self.is_safe else UNSAFE_PARAMETERS), "postgres",
                text=f"create database {DATABASE}\n",
            )  # fmt: skip
            if is_given:
                # PG_VERSION, the last, is what makes it a data directory.
                for entry in sorted(fresh.iterdir(), key=lambda entry: entry.name == "PG_VERSION"):
                    entry.rename(data / entry.name)
            else:
                fresh.rename(data)
        except OSError as error:
            raise unwritable(data.parent, error) from error
        finally:
            shutil.rmtree(fresh, ignore_errors=True)

    def start(self) -> None:
        """Start the server as a direct child. `is_ready` tells when it takes connections.

        Raises:
            ConfigError: another server runs on the data directory; it cannot be executed.
        """
        binaries, layout = self._ready_programs(), self.layout
        data = layout.data(binaries.major)
        _remove_stale_pid_file(data)
        parameters = {
            **_PARAMETERS,
            "listen_addresses": "",
            "unix_socket_directories": str(layout.sockets),
            "port": str(PORT),
            **({} if self.is_safe else UNSAFE_PARAMETERS),
            **self.parameters,
        }
        with _log_file(layout.log) as log:
            self._log_offset = log.tell()
            self.process = self._popen(
                [binaries.path("postgres"), "-D", str(data), *_as_options(parameters)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def is_ready(self) -> bool:
        """Tell whether the server takes connections; False, too, when it has ended."""
        if self.process is None or self.process.poll() is not None:
            return False
        return _status(self.data) == (self.process.pid, "ready")

    def wait_ready(self, timeout: float = 60.0) -> None:
        """Wait until the server takes connections, at most `timeout` seconds.

        Raises:
            ConfigError: it ended before, with the last lines of its log.
            DatabaseUnavailable: it is still starting, for instance recovering after a crash.
        """
        deadline = time.monotonic() + timeout
        while not self.is_ready():
            self.check_alive()
            if time.monotonic() > deadline:
                raise DatabaseUnavailable(
                    f"the embedded PostgreSQL is not ready after {timeout:g} s, perhaps it is "
                    f"recovering from a crash: see {self.layout.log}"
                )
            time.sleep(_POLL_SECONDS)

    def check_alive(self) -> None:
        """Raise when the server has ended by itself.

        Raises:
            ConfigError: with the reason, as far as its log tells.
        """
        if self.process is not None and self.process.poll() is not None:
            said = self._said()
            if has_no_space(self.data) or has_no_space(self.layout.state):
                # The log is on the full disk as well, so the server could not say it.
                said += os.strerror(errno.ENOSPC)
            raise failed("the server", self.process.returncode, said)

    def stop(self) -> None:
        """End the server: fast, then at once, then by force; always reaped. At most 15 s or so."""
        process = self.process
        if process is None:
            return
        for signum, seconds in (
            # Never SIGTERM, which waits until the last client leaves by itself.
            (signal.SIGINT, _FAST_SECONDS),
            (signal.SIGQUIT, _IMMEDIATE_SECONDS),
            (signal.SIGKILL, None),
        ):
            process.send_signal(signum)
            try:
                process.wait(seconds)
                break
            except subprocess.TimeoutExpired:
                continue
        self.process = None

    def _said(self) -> str:
        """Return what the server wrote to its log since it was started, at most the last 8 KiB."""
        try:
            with open(self.layout.log, "rb") as file:
                size = os.fstat(file.fileno()).st_size
                file.seek(max(self._log_offset, size - 8192))
                return file.read().decode(errors="replace")
        except OSError:
            return ""

    def holder(self) -> str:
        """Return who has the lock, or had it last, like `keeper 4711`; "" if nobody ever did."""
        return Lock(self.layout.lock).holder()

    @property
    def pid(self) -> int:
        """The pid of the server; 0 when it was not started."""
        return self.process.pid if self.process else 0

    @property
    def version(self) -> str:
        return self._ready_programs().version

    @property
    def data(self) -> Path:
        """The data directory; known once `initialise` was called."""
        return self.layout.data(self._ready_programs().major)

    def _ready_programs(self) -> Programs:
        if self._programs is None:
            raise ValueError("initialise() comes first")
        return self._programs

    def _popen(self, command: list[str], **streams: int | IO[bytes]) -> subprocess.Popen[bytes]:
        if self._lock is None:
            raise ValueError("lock() comes first")
        account, starter_pid = self._account, os.getpid()

        def die_with_starter() -> None:
            _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGINT, 0, 0, 0)
            if os.getppid() != starter_pid:
                os._exit(1)

        try:
            return subprocess.Popen(  # type: ignore[call-overload,no-any-return]
                command,
                cwd="/",
                env=ENVIRONMENT,
                umask=0o077,
                # Away from the terminal: Ctrl-C is for whoever started us.
                start_new_session=True,
                # It runs after the change of user, which would undo it.
                preexec_fn=die_with_starter,  # noqa: PLW1509 - whoever starts a server has one thread
                pass_fds=[self._lock.fileno()],
                **(account.popen_arguments() if account else {}),
                **streams,
            )
        except (OSError, subprocess.SubprocessError) as error:
            who = f"as user {account.name!r} " if account else ""
            raise ConfigError(
                f"{PLACE}: {command[0]} cannot be started {who}({error}): name a user that may run "
                "it in [node] user, or set DATABASE_URL to a server that you run"
            ) from error

    def _run(self, *command: str, text: str = "") -> None:
        process = self._popen(
            list(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        output = process.communicate(text.encode())[0].decode(errors="replace")
        # The single-user server reports a failed statement and exits 0.
        has_failed = process.returncode != 0 or re.search(
            r"^.*\b(ERROR|FATAL|PANIC): ", output, re.M
        )
        if has_failed:
            raise failed(Path(command[0]).name, process.returncode, output)

    def _refuse_other_major(self, found: Programs, existing: dict[int, Path]) -> None:
        if not existing or found.major in existing:
            return
        major, folder = max(existing.items())
        raise ConfigError(
            f"{PLACE}: {folder} was made by PostgreSQL {major} and the programs found, in "
            f"{found.folder}, are version {found.version}: install PostgreSQL {major} or name "
            f"its programs in ORCHESTRATOR_PG_BIN and go on, dump and restore it, or move the "
            "folder away to begin with an empty database"
        )

    def _refuse_foreign_files(self, data: Path) -> None:
        try:
            is_in_use = data.exists() and any(
                not entry.name.startswith(".") and entry.name != "lost+found"
                for entry in data.iterdir()
            )
        except OSError as error:
            raise unwritable(data, error) from error
        if is_in_use:
            raise ConfigError(
                f"[database] data_directory = {str(data)!r} must be absent, empty or a database, "
                "and it holds something else: choose another directory"
            )

    def _check_reach(self, folder: Path) -> None:
        account = self._account
        if account is None or can_execute(account, [str(folder)]):
            return
        ancestors = [*reversed(folder.parents), folder]
        barrier = next(
            (path for path in ancestors if not can_execute(account, [str(path)])), folder
        )
        raise ConfigError(
            f"[node] state_directory = {str(self.layout.state)!r} must be reachable for user "
            f"{account.name!r}, as whom root starts the server, and {barrier} is closed to it: "
            f"choose a directory like /var/lib/orchestratord, or open it with chmod o+x {barrier}"
        )

    def _check_owner(self, data: Path) -> None:
        wanted = self._account.uid if self._account else os.geteuid()
        owner = data.stat().st_uid
        if owner != wanted:
            name = self._account.name if self._account else user_name(wanted)
            raise ConfigError(
                f"{PLACE}: {data} must belong to user {name!r}, as whom the server runs, and "
                f"belongs to {user_name(owner)!r}: run chown -R {name} {data}, or start as "
                "that user"
            )

    def _own_folder(self, folder: Path) -> None:
        """Make a folder that is the server's alone."""
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
            if self._account is not None:
                os.chown(folder, self._account.uid, self._account.gid)
            folder.chmod(0o700)
        except OSError as error:
            raise unwritable(folder.parent, error) from error


@contextlib.contextmanager
def serving(settings: config.Settings, *, timeout: float = 60.0) -> Iterator[str]:
    """Yield the URL of a server that takes connections, starting the embedded one if need be.

    For commands. A daemon's server is used as it is; without one the server is started for the
    duration of the block, and commands that start one take turns. At most `timeout` seconds are
    waited for either.

    Raises:
        ConfigError: the embedded server cannot be started.
        DatabaseUnavailable: another process has the lock, and its server is not ready in time.
    """
    url = resolve(settings)
    if not settings.database.is_embedded:
        yield url
        return
    server = Server.of(settings)
    deadline = time.monotonic() + timeout
    while not server.lock("command"):
        if server.holder().startswith("keeper") and _is_serving(server.layout):
            yield url
            return
        if time.monotonic() > deadline:
            raise DatabaseUnavailable(
                f"the embedded PostgreSQL in {server.layout.state} is held by {server.holder()} "
                f"and not ready after {timeout:g} s: see {server.layout.log}"
            )
        time.sleep(0.02)
    try:
        server.initialise()
        server.start()
        server.wait_ready(max(1.0, deadline - time.monotonic()))
        yield url
    finally:
        server.stop()
        server.unlock()


def _is_serving(layout: Layout) -> bool:
    for data in layout.majors().values():
        pid, status = _status(data)
        if status == "ready" and Path(f"/proc/{pid}").exists():
            return True
    return False


def _owner(data: Path) -> int | None:
    """Return the user id that a data directory belongs to, None where there is no directory."""
    try:
        return data.stat().st_uid
    except FileNotFoundError:
        return None
    except OSError as error:
        raise unwritable(data.parent, error) from error


def _as_options(parameters: Mapping[str, str]) -> list[str]:
    return [word for name, value in parameters.items() for word in ("-c", f"{name}={value}")]


def _status(data: Path) -> tuple[int, str]:
    """Return pid and status that `postmaster.pid` tells; (0, "") when there is no such file."""
    try:
        lines = (data / "postmaster.pid").read_text().splitlines()
        return int(lines[0]), lines[7].strip() if len(lines) > 7 else ""
    except (OSError, ValueError, IndexError):
        return 0, ""


def _remove_stale_pid_file(data: Path) -> None:
    """Remove what a killed server left behind.

    The server refuses to start while a process of the same user has the pid that stands there, and
    in a container pids come round soon. We hold the lock, so it is no server of ours; one that was
    started by hand works in that directory.
    """
    pid = _status(data)[0]
    if not pid:
        return
    try:
        is_alive = os.path.realpath(f"/proc/{pid}/cwd") == os.path.realpath(data)
    except OSError:
        is_alive = False
    if is_alive:
        raise ConfigError(
            f"{PLACE}: another server, pid {pid}, runs on {data}, which must be ours alone: stop it"
        )
    with contextlib.suppress(OSError):
        (data / "postmaster.pid").unlink()


@contextlib.contextmanager
def _log_file(path: Path) -> Iterator[IO[bytes]]:
    try:
        if path.exists() and path.stat().st_size > _BIGGEST_LOG_BYTES:
            path.replace(path.with_suffix(".log.1"))
        with open(path, "ab") as file:
            yield file
    except OSError as error:
        raise unwritable(path.parent, error) from error
