"""The state directory of an embedded server: its layout, its lock, and what may be wrong with it.

    <state>/                    config.state_directory(); as root it must be open to all (0755)
      embedded.lock             flock: held by whoever runs the server, and by the server itself
      pgdata-18/                the data directory, named after the major version
      run/.s.PGSQL.5432         the only way in: a Unix socket in a folder of mode 0700
      postgresql.log            what the server says
      pg/18.6/                  a copy of the programs, where the server's user cannot reach them

Who runs the server, and how, is `embedded.py`'s business.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from urllib.parse import quote

from orchestrator import config
from orchestrator.db.accounts import PLACE, user_name
from orchestrator.errors import ConfigError

DATABASE = "orchestrator"
SUPERUSER = "postgres"
PORT = 5432

# sun_path has 108 bytes, one of them the closing NUL; libpq and the server keep to it.
_LONGEST_SOCKET_PATH = 107


@dataclass(frozen=True)
class Layout:
    """Where everything of one embedded server lies."""

    state: Path
    named_data: Path | None = None

    @classmethod
    def of(cls, settings: config.Settings) -> Layout:
        named = settings.database.data_directory
        return cls(
            state=Path(config.state_directory(settings)).absolute(),
            named_data=Path(named).absolute() if named else None,
        )

    @property
    def lock(self) -> Path:
        return self.state / "embedded.lock"

    @property
    def sockets(self) -> Path:
        return self.state / "run"

    @property
    def log(self) -> Path:
        return self.state / "postgresql.log"

    @property
    def copies(self) -> Path:
        return self.state / "pg"

    def data(self, major: int) -> Path:
        return self.named_data or self.state / f"pgdata-{major}"

    def majors(self) -> dict[int, Path]:
        """Return the data directories that exist, by their major version."""
        named = self.named_data
        found = {}
        for folder in [named] if named else sorted(self.state.glob("pgdata-*")):
            with contextlib.suppress(OSError, ValueError):
                found[int((folder / "PG_VERSION").read_text())] = folder
        return found

    def url(self, database: str = DATABASE) -> str:
        """Return the libpq URL of a database of this server."""
        host = quote(str(self.sockets), safe="")
        return f"postgresql://{SUPERUSER}@/{database}?host={host}&port={PORT}"

    def check_socket_path(self) -> None:
        """Refuse a place whose socket no client could open.

        Raises:
            ConfigError: the path is longer than the kernel takes.
        """
        path = self.sockets / f".s.PGSQL.{PORT}"
        n_bytes = len(os.fsencode(path))
        if n_bytes > _LONGEST_SOCKET_PATH:
            raise ConfigError(
                f"[node] state_directory = {str(self.state)!r} makes the path of the database's "
                f"socket {n_bytes} bytes long, and at most {_LONGEST_SOCKET_PATH} are allowed: "
                f"choose a directory that is {n_bytes - _LONGEST_SOCKET_PATH} bytes shorter"
            )


class Lock:
    """The right to run the server of one state directory, and to write there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[str] | None = None

    def acquire(self, holder: str) -> bool:
        """Take the lock for `holder`, "keeper" or "command"; False when somebody has it.

        Raises:
            ConfigError: the file cannot be opened.
        """
        try:
            # Not truncated before it is ours: the file names the holder.
            file = open(self.path, "a+")  # noqa: SIM115 - stays open for as long as the lock is held
        except OSError as error:
            raise unwritable(self.path.parent, error) from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return False
        file.truncate(0)
        file.write(f"{holder} {os.getpid()}\n")
        file.flush()
        self._file = file
        return True

    def holder(self) -> str:
        """Return who wrote last that he has the lock, like `keeper 4711`; "" if nobody did."""
        try:
            return self.path.read_text().strip()
        except OSError:
            return ""

    def fileno(self) -> int:
        if self._file is None:
            raise ValueError(f"the lock {self.path} is not held")
        return self._file.fileno()

    def release(self) -> None:
        """Let go of our end; the lock is free when the server has ended, too."""
        if self._file is not None:
            # Closed, not unlocked: LOCK_UN would also take it from a server that still runs.
            self._file.close()
            self._file = None


def make_state_directory(folder: Path) -> None:
    """Make the state directory: private, but for root, whose server runs as another user.

    Raises:
        ConfigError: it cannot be made or written.
    """
    try:
        if not folder.is_dir():
            folder.mkdir(parents=True, mode=0o700)
            if os.geteuid() == 0:
                folder.chmod(0o755)
    except OSError as error:
        raise unwritable(folder, error) from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise unwritable(folder, PermissionError(errno.EACCES, os.strerror(errno.EACCES)))


def failed(what: str, returncode: int, output: str) -> ConfigError:
    """Make the error of a program that ended badly from what it said."""
    if os.strerror(errno.ENOSPC) in output:
        return ConfigError(
            f"{PLACE}: {what} found no space left on the device: free some (a new database takes "
            "40 MB, and 80 MB more for its log), or choose another [node] state_directory"
        )
    last = "\n  ".join(output.strip().splitlines()[-6:])
    how = f"by signal {-returncode}" if returncode < 0 else f"with exit code {returncode}"
    return ConfigError(
        f"{PLACE}: {what} ended {how}; the last it said:\n  {last}\n"
        "cure what it names, or set DATABASE_URL to a server that you run"
    )


def has_no_space(folder: Path) -> bool:
    """Tell whether the file system of a folder is full, to within 64 KiB."""
    try:
        found = os.statvfs(folder)
    except OSError:
        return False
    return found.f_bavail * found.f_frsize < 64 * 1024


def unwritable(folder: Path, error: OSError) -> ConfigError:
    who = user_name(os.geteuid())
    if error.errno == errno.ENOSPC:
        return failed("writing", 1, os.strerror(errno.ENOSPC))
    return ConfigError(
        f"{PLACE}: user {who!r} must be able to write {folder}, and cannot ({error.strerror}): "
        f"choose another [node] state_directory, or give it to that user with chown {who} {folder}"
    )
