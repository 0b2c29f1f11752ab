"""A second node on one schema: who may join, who is refused, and who must wait.

The plain refusal, and a node that was killed whole, are in `test_ends.py`.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

from orchestrator import Client
from orchestrator.db.connection import Session
from tests.node import Node, running
from tests.sql import rows
from tests.support import eventually, never

# Longer than any test here may take: what is decided in time was not decided by waiting.
PATIENT = {"node.worker_timeout": "300s", "leader.term": "300s"}
EXIT_TEMPORARY = 75


def states(session: Session) -> list[str]:
    return [state for (state,) in rows(session, "select state from node order by id")]


def exit_code(node: Node) -> int:
    assert node.process is not None
    return node.process.wait(30)


def test_refused_node_does_not_disturb_the_first(
    dsn: str, tmp_path: Path, session: Session
) -> None:
    client = Client(dsn)
    with running(dsn, tmp_path / "one", name="one", settings=PATIENT) as one:
        before = one.pids()
        task = client.enqueue("sleep", {"seconds": 3})

        with running(dsn, tmp_path / "two", wait=False, name="two", settings=PATIENT) as second:
            assert exit_code(second) == EXIT_TEMPORARY

        assert [a.outcome for a in client.wait(task, timeout=20).attempts] == ["succeeded"]
        assert one.pids() == before
        assert one.events("database.lost", "node.was_given_up") == []
        assert states(session) == ["alive"]


def test_second_node_may_join_where_both_are_distributed(
    dsn: str, tmp_path: Path, session: Session
) -> None:
    settings = {**PATIENT, "node.distributed": "true"}
    with (
        running(dsn, tmp_path / "one", name="one", settings=settings) as one,
        running(dsn, tmp_path / "two", name="two", settings=settings) as two,
    ):
        client = Client(dsn)
        tasks = [client.enqueue("sleep", {"seconds": 1}) for _ in range(4)]

        nodes = {client.wait(task, timeout=20).attempts[0].node for task in tasks}

        assert nodes == {one.name, two.name}
        assert states(session) == ["alive", "alive"]


def test_node_that_wants_to_be_alone_is_refused_beside_distributed_ones(
    dsn: str, tmp_path: Path
) -> None:
    settings = {**PATIENT, "node.distributed": "true"}
    with (
        running(dsn, tmp_path / "one", name="one", settings=settings),
        running(dsn, tmp_path / "two", wait=False, name="two", settings=PATIENT) as second,
    ):
        assert exit_code(second) == EXIT_TEMPORARY


def test_distributed_node_is_refused_beside_one_that_wants_to_be_alone(
    dsn: str, tmp_path: Path
) -> None:
    settings = {**PATIENT, "node.distributed": "true"}
    with (
        running(dsn, tmp_path / "one", name="one", settings=PATIENT),
        running(dsn, tmp_path / "two", wait=False, name="two", settings=settings) as second,
    ):
        assert exit_code(second) == EXIT_TEMPORARY


def kill_whole(node: Node) -> None:
    """End every process of a node at one blow, so that nobody can say good-bye."""
    assert node.process is not None
    os.kill(node.pid, signal.SIGSTOP)  # or it would start what is missing
    for pid in [*node.pids(), node.pid]:
        os.kill(pid, signal.SIGKILL)
    node.process.wait(5)
    eventually(lambda: node.pids() == [])


def test_node_whose_lock_file_is_out_of_sight_is_waited_for(
    dsn: str, tmp_path: Path, session: Session
) -> None:
    settings = {"node.worker_timeout": "4s"}
    with running(dsn, tmp_path / "one", name="one", settings=settings) as one:
        kill_whole(one)
    rows(session, "update node set host = 'another'")
    (age,) = rows(session, "select extract(epoch from clock_timestamp() - beat_at) from node")

    with running(dsn, tmp_path / "two", name="two", settings=settings) as two:
        waited = rows(
            session,
            "select extract(epoch from b.started_at - a.beat_at) from node a, node b "
            "where a.id < b.id",
        )

        assert age[0] < 4 <= waited[0][0]
        assert two.events("node.waiting")
        assert states(session) == ["dead", "alive"]


def test_stopped_steward_of_a_single_node_does_not_let_another_in(
    dsn: str, tmp_path: Path, session: Session
) -> None:
    with running(dsn, tmp_path / "one", name="one", settings=PATIENT) as one:
        os.kill(one.child("steward"), signal.SIGSTOP)

        with running(dsn, tmp_path / "two", wait=False, name="two", settings=PATIENT) as second:
            eventually(lambda: second.events("node.waiting"))
            never(lambda: second.events("node.registered"), during=2)
        os.kill(one.child("steward"), signal.SIGCONT)

        assert states(session) == ["alive"]
