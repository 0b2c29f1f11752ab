"""Who leads, and who leads next when the leader dies or stops."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator import Client
from orchestrator.db.connection import connect
from tests.node import Node, running
from tests.support import eventually

DISTRIBUTED = {"node.distributed": "true"}


@pytest.fixture
def nodes(dsn: str, tmp_path: Path) -> Iterator[tuple[Node, Node]]:
    with (
        running(dsn, tmp_path / "one", name="one", settings=DISTRIBUTED, processes=1) as one,
        running(dsn, tmp_path / "two", name="two", settings=DISTRIBUTED, processes=1) as two,
    ):
        yield one, two


def leaders(nodes: tuple[Node, Node], dsn: str) -> list[str]:
    """Name the nodes in the order in which they were elected."""
    elected = [
        (event["term"], node.name) for node in nodes for event in node.events("leader.elected")
    ]
    return [name for _, name in sorted(elected)]


def test_killed_leader_is_followed_by_one_more_term(nodes: tuple[Node, Node], dsn: str) -> None:
    eventually(lambda: leaders(nodes, dsn))
    first = next(node for node in nodes if node.name == leaders(nodes, dsn)[0])

    os.kill(first.child("leader"), signal.SIGKILL)

    eventually(lambda: len(leaders(nodes, dsn)) == 2)
    terms = sorted(e["term"] for node in nodes for e in node.events("leader.elected"))
    assert terms == [1, 2]


def test_stopped_leader_is_deposed_and_finds_its_session_gone(
    nodes: tuple[Node, Node], dsn: str
) -> None:
    eventually(lambda: leaders(nodes, dsn))
    first = next(node for node in nodes if node.name == leaders(nodes, dsn)[0])
    second = next(node for node in nodes if node is not first)
    stopped = first.child("leader")

    os.kill(stopped, signal.SIGSTOP)
    eventually(lambda: second.events("leader.elected"), timeout=20)
    os.kill(stopped, signal.SIGCONT)

    eventually(lambda: [e for e in first.events("database.lost") if "leader" in e["identity"]])
    assert second.events("leader.deposed")


def test_node_that_drains_resigns_and_the_other_leads(nodes: tuple[Node, Node], dsn: str) -> None:
    eventually(lambda: leaders(nodes, dsn))
    first = next(node for node in nodes if node.name == leaders(nodes, dsn)[0])
    second = next(node for node in nodes if node is not first)

    first.terminate()

    eventually(lambda: second.events("leader.elected"))
    assert first.events("leader.resigned")


def test_delayed_task_runs_after_the_lead_has_changed(nodes: tuple[Node, Node], dsn: str) -> None:
    eventually(lambda: leaders(nodes, dsn))
    first = next(node for node in nodes if node.name == leaders(nodes, dsn)[0])
    client = Client(dsn)
    task = client.enqueue("where", {}, delay=1)

    os.kill(first.child("leader"), signal.SIGKILL)

    assert client.wait(task, timeout=20).state == "succeeded"


def test_session_of_the_leader_holds_the_lock_and_nobody_else(
    nodes: tuple[Node, Node], dsn: str
) -> None:
    eventually(lambda: leaders(nodes, dsn))
    session = connect(dsn, schema="orchestrator", application_name="test")

    with session.connection.cursor() as cursor:
        cursor.execute(
            "select count(*), min(a.application_name) from pg_locks l "
            "join pg_stat_activity a on a.pid = l.pid "
            "where l.locktype = 'advisory' and l.objsubid = 2 and l.granted and l.objid = 0 "
            "and l.mode = 'ExclusiveLock' and a.datname = current_database()"
        )
        held = cursor.fetchone()

    session.close()
    assert held == (1, "orchestrator leader")
