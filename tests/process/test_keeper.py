"""The keeper as the supervisor starts it, with its sockets and pipes held by the test."""

from __future__ import annotations

import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from orchestrator import config
from orchestrator.db import embedded
from orchestrator.db.layout import Layout, Lock
from orchestrator.slots import Slots
from tests.support import eventually

CHECKOUT = Path(__file__).parents[2]


class Supervisor:
    """What a keeper has of a supervisor: settings, slots, a life pipe and a socket."""

    def __init__(self, state: Path, *, has_run_before: bool = False) -> None:
        self.state = state
        self.run = secrets.token_hex(8)
        self.settings = config.Settings(
            node=config.NodeSettings(state_directory=str(state)),
            logging=config.LoggingSettings(format="json"),
        )
        self.slots = Slots.create()
        self.slots.header.node_id = 7 if has_run_before else 0
        self.settings_fd = os.memfd_create("settings")
        os.write(self.settings_fd, config.encode(self.settings))
        self.life_reader, self.life_writer = os.pipe()
        self.log_path = state / "keeper.log"
        self.keepers: list[subprocess.Popen[bytes]] = []
        self.socket: socket.socket | None = None
        self.start_keeper()

    @property
    def keeper(self) -> subprocess.Popen[bytes]:
        return self.keepers[-1]

    def environment(self, **more: str) -> dict[str, str]:
        return {
            **os.environ,
            "ORCHESTRATOR_RUN": self.run,
            "ORCHESTRATOR_KIND": "keeper",
            "ORCHESTRATOR_INCARNATION": str(len(self.keepers) + 1),
            "ORCHESTRATOR_SUPERVISOR_PID": str(os.getpid()),
            "ORCHESTRATOR_RUN_DIRECTORY": str(self.state),
            "PYTHONPATH": str(CHECKOUT),
            **more,
        }

    def start_keeper(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        fds = {
            "SETTINGS": self.settings_fd,
            "SLOTS": self.slots.fd,
            "LIFE": self.life_reader,
            "SOCKET": theirs.fileno(),
        }
        with open(self.log_path, "ab") as log:
            self.keepers.append(
                subprocess.Popen(
                    [sys.executable, "-P", "-m", "orchestrator.processes.keeper"],
                    env=self.environment(
                        **{f"ORCHESTRATOR_{k}_FD": str(v) for k, v in fds.items()}
                    ),
                    pass_fds=fds.values(),
                    stdin=subprocess.DEVNULL,
                    stderr=log,
                    process_group=0,
                )
            )
        theirs.close()
        ours.settimeout(20)
        if self.socket is not None:
            self.socket.close()
        self.socket = ours

    def hear(self) -> dict[str, Any]:
        """Return the next message of the keeper, waiting for it; {} at the end."""
        assert self.socket is not None
        return json.loads(self.socket.recv(65536) or b"{}")

    def die(self) -> None:
        os.close(self.life_writer)
        self.life_writer = -1

    def events(self) -> list[str]:
        lines = self.log_path.read_text().splitlines()
        return [json.loads(line)["event"] for line in lines if line.startswith("{")]

    def server_pid(self) -> int:
        (path,) = self.state.glob("pgdata-*/postmaster.pid")
        return int(path.read_text().split()[0])

    def close(self) -> None:
        for keeper in self.keepers:
            if keeper.poll() is None:
                keeper.kill()
            keeper.wait()
        eventually(lambda: not self.is_locked(), timeout=20)
        os.close(self.slots.fd)
        if self.socket is not None:
            self.socket.close()
        for fd in (self.settings_fd, self.life_reader, self.life_writer):
            if fd >= 0:
                os.close(fd)

    def is_locked(self) -> bool:
        lock = Lock(Layout(self.state).lock)
        if lock.acquire("test"):
            lock.release()
            return False
        return True


@pytest.fixture
def supervisor(state: Path, pgdata: Path) -> Iterator[Supervisor]:
    """Give a supervisor whose keeper was just started on a database that exists."""
    supervisor = Supervisor(state)
    yield supervisor
    supervisor.close()


def answers(settings: config.Settings) -> bool:
    try:
        psycopg2.connect(embedded.resolve(settings)).close()
    except psycopg2.OperationalError:
        return False
    return True


def test_a_keeper_says_ready_when_the_new_database_takes_connections(state: Path) -> None:
    supervisor = Supervisor(state)

    message = supervisor.hear()

    assert message == {"kind": "ready"}
    assert answers(supervisor.settings)
    assert supervisor.events() == ["database.created", "server.ready"]
    supervisor.close()


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGQUIT])
def test_a_keeper_told_to_stop_shuts_the_server_down_and_exits_0(
    supervisor: Supervisor, signum: signal.Signals
) -> None:
    supervisor.hear()
    connection = psycopg2.connect(embedded.resolve(supervisor.settings))

    supervisor.keeper.send_signal(signum)

    assert supervisor.keeper.wait(10) == 0
    assert not answers(supervisor.settings)
    assert "database system is shut down" in (supervisor.state / "postgresql.log").read_text()
    connection.close()


def test_a_killed_server_is_reported_down_and_ready_again(supervisor: Supervisor) -> None:
    supervisor.hear()

    os.kill(supervisor.server_pid(), signal.SIGKILL)

    down = supervisor.hear()
    assert down["kind"] == "down"
    assert "ended by signal 9" in down["reason"]
    assert supervisor.hear() == {"kind": "ready"}
    assert answers(supervisor.settings)
    assert supervisor.keeper.poll() is None


def test_a_server_that_keeps_dying_is_started_at_growing_intervals(supervisor: Supervisor) -> None:
    supervisor.hear()
    times = []
    for _ in range(4):
        began_at = time.monotonic()
        os.kill(supervisor.server_pid(), signal.SIGKILL)
        while supervisor.hear()["kind"] != "ready":
            pass
        times.append(time.monotonic() - began_at)

    pauses = [
        json.loads(line)["pause"]
        for line in supervisor.log_path.read_text().splitlines()
        if '"server.ended"' in line
    ]
    assert pauses == sorted(pauses)
    assert pauses[0] > 0
    assert all(seconds >= pause for seconds, pause in zip(times, pauses, strict=True))


def test_a_keeper_whose_supervisor_died_stops_once_the_others_are_gone(
    supervisor: Supervisor,
) -> None:
    supervisor.hear()
    steward = subprocess.Popen(["sleep", "60"], env=supervisor.environment())

    supervisor.die()
    # It must still be there for what the steward has to write.
    with pytest.raises(subprocess.TimeoutExpired):
        supervisor.keeper.wait(1.0)
    could_write = answers(supervisor.settings)
    steward.kill()
    steward.wait()

    assert could_write
    assert supervisor.keeper.wait(3) == 0
    assert not answers(supervisor.settings)


def test_a_keeper_whose_supervisor_died_waits_5_s_at_most(supervisor: Supervisor) -> None:
    supervisor.hear()
    stuck = subprocess.Popen(["sleep", "60"], env=supervisor.environment())
    began_at = time.monotonic()

    supervisor.die()

    assert supervisor.keeper.wait(10) == 0
    assert 4.5 < time.monotonic() - began_at < 9
    stuck.kill()
    stuck.wait()


def test_a_keeper_that_waits_for_the_lock_stops_when_its_supervisor_dies(state: Path) -> None:
    lock = Lock(Layout(state).lock)
    assert lock.acquire("command")
    supervisor = Supervisor(state)
    eventually(lambda: "lock.awaited" in supervisor.events())

    supervisor.die()

    assert supervisor.keeper.wait(10) == 0
    lock.release()
    supervisor.close()


def test_a_keeper_waits_for_the_lock_of_a_command(state: Path, pgdata: Path) -> None:
    lock = Lock(Layout(state).lock)
    assert lock.acquire("command")
    supervisor = Supervisor(state)
    eventually(lambda: "lock.awaited" in supervisor.events())

    lock.release()

    assert supervisor.hear() == {"kind": "ready"}
    supervisor.close()


def test_the_successor_of_a_killed_keeper_takes_over_the_database(supervisor: Supervisor) -> None:
    supervisor.hear()
    first_server = supervisor.server_pid()
    supervisor.keeper.kill()

    supervisor.start_keeper()

    assert supervisor.hear() == {"kind": "ready"}
    assert supervisor.server_pid() != first_server
    assert answers(supervisor.settings)


def test_a_keeper_that_cannot_start_says_why_and_exits_1(state: Path) -> None:
    (state / "pgdata-13").mkdir()
    (state / "pgdata-13" / "PG_VERSION").write_text("13\n")
    supervisor = Supervisor(state)

    message = supervisor.hear()

    assert message["kind"] == "failed"
    assert "was made by PostgreSQL 13" in message["message"]
    assert supervisor.keeper.wait(10) == 1
    supervisor.close()


def break_configuration(state: Path) -> Path:
    (path,) = state.glob("pgdata-*/postgresql.conf")
    with open(path, "a") as file:
        file.write("\nno_such_parameter = 1\n")
    return path


def test_a_server_that_never_ran_fails_after_three_tries(supervisor: Supervisor) -> None:
    supervisor.hear()
    supervisor.keeper.terminate()
    supervisor.keeper.wait(10)
    break_configuration(supervisor.state)

    supervisor.start_keeper()
    message = supervisor.hear()

    assert message["kind"] == "failed"
    assert re.search(
        r'unrecognized configuration parameter "no_such_parameter"', message["message"]
    )
    assert supervisor.events().count("server.ended") == 2


def test_the_server_of_a_node_that_has_worked_is_tried_for_ever(state: Path, pgdata: Path) -> None:
    supervisor = Supervisor(state, has_run_before=True)
    supervisor.hear()
    configuration = break_configuration(state)
    os.kill(supervisor.server_pid(), signal.SIGKILL)
    eventually(lambda: supervisor.events().count("server.ended") >= 4)
    is_alive = supervisor.keeper.poll() is None

    configuration.write_text(configuration.read_text().replace("no_such_parameter = 1", ""))
    while (message := supervisor.hear())["kind"] == "down":
        pass

    assert is_alive
    assert message == {"kind": "ready"}
    supervisor.close()


def test_the_server_carries_no_marker_and_no_environment_of_ours(supervisor: Supervisor) -> None:
    supervisor.hear()

    environ = Path(f"/proc/{supervisor.server_pid()}/environ").read_bytes()

    assert b"ORCHESTRATOR" not in environ
    assert supervisor.run.encode() not in environ
