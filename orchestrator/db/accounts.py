"""The account that the embedded server runs as, and what that account can reach.

PostgreSQL refuses to run as root. Nobody is created for it: the account is one that is there.
Which files it must own is `embedded.py`'s business.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.errors import ConfigError

# What the messages about the embedded server begin with.
PLACE = '[database] url = "embedded"'

# Nothing of the caller's environment may reach the programs: PGDATA, PGPORT or a locale would.
ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LC_ALL": "C.UTF-8"}


@dataclass(frozen=True)
class Account:
    """The user that the server runs as, where that is not the caller."""

    name: str
    uid: int
    gid: int

    def popen_arguments(self) -> dict[str, object]:
        """Return what makes `subprocess` drop to this account, supplementary groups included."""
        return {"user": self.uid, "group": self.gid, "extra_groups": []}


def account_for(user: str | None, owner: int | None = None) -> Account | None:
    """Choose the account that the server runs as: None for the caller himself.

    Root needs another one: the one that the settings name, else the owner of the data directory
    (a user id), else `postgres`, else `nobody`.

    Raises:
        ConfigError: the account does not exist or is root; or the caller, not root, names another,
            or has no entry among the users, which initdb insists on.
    """
    if os.geteuid() != 0:
        _check_ordinary_user(user)
        return None
    if user is not None:
        found = _account_named(user)
        if found is None:
            raise ConfigError(
                f"[node] user = {user!r} must be a user of this host, and there is none: create "
                "it, or leave the setting out"
            )
        if found.uid == 0:
            raise ConfigError(
                f"[node] user = {user!r} must not be root, as whom PostgreSQL refuses to run: "
                "leave it out to use postgres or nobody"
            )
        return found
    if owner:
        with contextlib.suppress(KeyError):
            entry = pwd.getpwuid(owner)
            return Account(entry.pw_name, entry.pw_uid, entry.pw_gid)
    for name in ("postgres", "nobody"):
        found = _account_named(name)
        if found is not None:
            return found
    raise ConfigError(
        f"{PLACE} as root needs another user to run the server as, and this host has neither "
        "postgres nor nobody: name one in [node] user, or set DATABASE_URL to a server that you run"
    )


def _check_ordinary_user(user: str | None) -> None:
    try:
        own = pwd.getpwuid(os.geteuid()).pw_name
    except KeyError as error:
        raise ConfigError(
            f"{PLACE} needs an entry for user id {os.geteuid()} in /etc/passwd, because initdb "
            "looks it up, and there is none: add one, or set DATABASE_URL to a server that you run"
        ) from error
    if user not in (None, own):
        raise ConfigError(
            f"[node] user = {user!r} can be chosen by root only, and this is {own!r}: leave it out"
        )


def _account_named(name: str) -> Account | None:
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        return None
    return Account(entry.pw_name, entry.pw_uid, entry.pw_gid)


def user_name(uid: int) -> str:
    """Return the name of a user, or the number where it has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def can_execute(account: Account, paths: Sequence[str]) -> bool:
    """Tell whether an account may execute all of these files, or enter all of these folders."""
    # The kernel is asked, as that account: modes, ACLs, mount options and every parent count.
    script = 'for path do test -x "$path" || exit 1; done'
    done = subprocess.run(
        ["/bin/sh", "-c", script, "sh", *paths],
        cwd="/",
        env=ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        check=False,
        **account.popen_arguments(),  # type: ignore[call-overload]
    )
    return bool(done.returncode == 0)
