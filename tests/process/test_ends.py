"""How a node ends: asked politely, urgently, or not at all; and what the next start finds."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from orchestrator import Client, State, Task
from orchestrator.db.connection import Session
from orchestrator.processes.identity import all_pids, has_marker
from tests.ledger import Ledger
from tests.node import Node, alive, running
from tests.sql import charged, count, rows, value
from tests.support import eventually

EXIT_TEMPORARY = 75
SLACK_SECONDS = 3.0
SUPERVISOR_LOST_SECONDS = 5.0
NOTHING = (0, 0, 0)


@pytest.fixture
def impatient(dsn: str, tmp_path: Path) -> Iterator[Node]:
    """A node that gives running tasks two seconds."""
    settings = {"node.graceful_timeout": "2s"}
    with running(dsn, tmp_path / "node", settings=settings) as node:
        yield node


def busy(client: Client, ledger: Path, *, seconds: float, n_tasks: int = 2) -> list[Task]:
    """Enqueue tasks and wait until all run; a second attempt would end at once."""
    payload = {"seconds": seconds, "then": 0, "ledger": str(ledger)}
    tasks = [client.enqueue("sleep", payload) for _ in range(n_tasks)]
    eventually(lambda: len(Ledger(ledger).started) == n_tasks)
    return tasks


def outcomes(client: Client, tasks: Sequence[Task]) -> list[list[str | None]]:
    return [[attempt.outcome for attempt in client.get(task).attempts] for task in tasks]


def causes(client: Client, tasks: Sequence[Task]) -> list[str]:
    """Name what ended the first attempt of each task."""
    crashes = [client.get(task).attempts[0].crash for task in tasks]
    return [crash["cause"] if crash else "" for crash in crashes]


def ours(run: str) -> list[int]:
    """List the living processes of a run."""
    return [pid for pid in all_pids() if has_marker(pid, run) and alive(pid)]


# -- TERM


def test_term_lets_running_tasks_finish(
    node: Node, client: Client, session: Session, tmp_path: Path
) -> None:
    tasks = busy(client, tmp_path / "ledger", seconds=2)

    exit_code = node.terminate(timeout=10 + SLACK_SECONDS)

    assert exit_code == 0
    assert outcomes(client, tasks) == [["succeeded"], ["succeeded"]]
    assert count(session, "running") == 0
    assert ours(node._runs()[-1]) == []


def test_term_starts_nothing_new(
    node: Node, client: Client, session: Session, tmp_path: Path
) -> None:
    busy(client, tmp_path / "ledger", seconds=2)
    waiting = [client.enqueue("where", {}) for _ in range(5)]

    node.terminate(timeout=10 + SLACK_SECONDS)

    assert {client.get(task).state for task in waiting} == {State.READY}
    assert [client.get(task).attempt for task in waiting] == [0] * 5


def test_term_returns_what_does_not_finish_in_time_uncharged(
    impatient: Node, client: Client, session: Session, tmp_path: Path
) -> None:
    tasks = busy(client, tmp_path / "ledger", seconds=60)
    began = time.monotonic()

    exit_code = impatient.terminate(timeout=20)

    seconds = time.monotonic() - began
    assert exit_code == 0
    assert 2.0 <= seconds <= 2.0 + SLACK_SECONDS
    assert causes(client, tasks) == ["shutdown", "shutdown"]
    assert {client.get(task).state for task in tasks} == {State.READY}
    assert [charged(session, task.id) for task in tasks] == [NOTHING, NOTHING]
    assert count(session, "running") == 0


def test_term_is_heard_by_a_handler_that_waits_for_it(node: Node, client: Client) -> None:
    task = client.enqueue("patient", {"seconds": 60})
    eventually(lambda: client.get(task).state is State.RUNNING)
    began = time.monotonic()

    node.terminate()

    assert client.get(task).result == {"stopped": True}
    assert time.monotonic() - began < 10


def test_node_that_ended_has_left(node: Node, session: Session) -> None:
    node.terminate()

    assert rows(session, "select state from node") == [("left",)]


@pytest.mark.parametrize(
    "signals",
    [(signal.SIGTERM, signal.SIGTERM), (signal.SIGQUIT,), (signal.SIGINT,)],
    ids=["second-term", "quit", "int"],
)
def test_urgent_end_waits_for_nobody_and_charges_nobody(
    node: Node, client: Client, session: Session, tmp_path: Path, signals: Sequence[int]
) -> None:
    tasks = busy(client, tmp_path / "ledger", seconds=60)
    assert node.process is not None
    began = time.monotonic()

    for signum in signals:
        node.process.send_signal(signum)
        eventually(lambda: node.events("supervisor.draining") + node.events("supervisor.stopping"))

    assert node.process.wait(20) == 0
    # Far from the 10 s of graceful_timeout.
    assert time.monotonic() - began < SLACK_SECONDS
    assert causes(client, tasks) == ["shutdown", "shutdown"]
    assert [charged(session, task.id) for task in tasks] == [NOTHING, NOTHING]
    assert count(session, "running") == 0
    assert ours(node._runs()[-1]) == []


# -- the supervisor is lost


def left_by(node: Node) -> list[Path]:
    """Return the run directory and the lock file of a node, by what its children were told."""
    environ = Path(f"/proc/{node.child('steward')}/environ").read_bytes().decode().split("\0")
    told = dict(word.split("=", 1) for word in environ if "=" in word)
    return [Path(told["ORCHESTRATOR_RUN_DIRECTORY"]), Path(told["ORCHESTRATOR_LOCK"])]


def lose_supervisor(node: Node) -> list[int]:
    """Kill it; return the processes of ours that are left after the promised time."""
    run = node.run_id
    assert node.process is not None
    node.process.kill()
    node.process.wait(5)
    deadline = time.monotonic() + SUPERVISOR_LOST_SECONDS
    while (left := ours(run)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def test_killed_supervisor_takes_all_processes_with_it_also_what_a_task_daemonised(
    node: Node, client: Client, tmp_path: Path
) -> None:
    busy(client, tmp_path / "ledger", seconds=60, n_tasks=1)
    client.enqueue("orphan", {"stay": 60})
    eventually(lambda: daemonised(node))

    assert lose_supervisor(node) == []


def daemonised(node: Node) -> list[int]:
    """List the processes of a node that have left its session and do not lead their own."""
    found = []
    for pid in node.pids():
        # It may have ended since it was listed.
        with suppress(ProcessLookupError):
            if os.getsid(pid) not in (pid, os.getsid(node.pid)):
                found.append(pid)
    return found


def test_tasks_of_a_killed_supervisor_go_back_uncharged(
    node: Node, client: Client, session: Session, tmp_path: Path
) -> None:
    tasks = busy(client, tmp_path / "ledger", seconds=60)

    lose_supervisor(node)

    assert causes(client, tasks) == ["supervisor_lost", "supervisor_lost"]
    assert [charged(session, task.id) for task in tasks] == [NOTHING, NOTHING]
    assert count(session, "running") == 0


def test_killed_supervisor_leaves_no_files(node: Node) -> None:
    files = left_by(node)
    assert all(path.exists() for path in files)

    lose_supervisor(node)

    assert [path for path in files if path.exists()] == []


def test_next_start_goes_on_where_a_killed_supervisor_stopped(
    node: Node, client: Client, tmp_path: Path
) -> None:
    tasks = busy(client, tmp_path / "ledger", seconds=60)
    lose_supervisor(node)

    node.start()

    for task in tasks:
        assert client.wait(task, timeout=20).state is State.SUCCEEDED
    assert outcomes(client, tasks) == [["released", "succeeded"]] * 2


def test_next_start_after_everything_was_killed_does_not_wait_for_worker_timeout(
    dsn: str, client: Client, session: Session, tmp_path: Path
) -> None:
    settings = {"node.worker_timeout": "60s"}
    with running(dsn, tmp_path / "node", settings=settings) as node:
        tasks = busy(client, tmp_path / "ledger", seconds=60)
        assert node.process is not None
        # All stopped first, so that nobody can write anything down about the others' end.
        node.signal_all(signal.SIGSTOP)
        for pid in [*node.pids(), node.pid]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        node.process.wait(5)
        assert value(session, "select state from node") == "alive"

        node.start()

        assert [client.wait(task, timeout=20).state for task in tasks] == [State.SUCCEEDED] * 2
        assert causes(client, tasks) == ["node_lost", "node_lost"]
        assert node.events("node.found_dead")


# -- a second node


def test_second_node_is_refused_while_the_first_lives(
    node: Node, client: Client, dsn: str, tmp_path: Path
) -> None:
    second = Node(dsn, tmp_path / "second", name="second")
    second.start(wait=False)
    try:
        assert second.process is not None
        exit_code = second.process.wait(20)
    finally:
        second.kill_everything()

    (failed,) = second.events("process.failed")
    assert exit_code == EXIT_TEMPORARY
    assert "(node, host" in failed["reason"]
    assert "DISTRIBUTED_MODE=true" in failed["reason"]
    assert client.wait(client.enqueue("where", {}), timeout=10).attempts[0].node == "node"
