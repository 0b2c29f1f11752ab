"""A node that was stopped, given up and continued: what it still writes is refused.

One meeting of two nodes is arranged for all tests of this file: node `one` is stopped whole while
it runs tasks, node `two` rescues them, then `one` goes on, its workers first and its supervisor
last, so that for a while its workers act on nothing but what they believe.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from orchestrator import Client, Task
from orchestrator.db.connection import Session
from tests.ledger import Ledger
from tests.node import Node, free_address, running
from tests.server import own_server
from tests.sql import charged, opened, rows
from tests.support import eventually

pytestmark = pytest.mark.timeout(180)

DISTRIBUTED = {"node.distributed": "true"}


@dataclass
class Meeting:
    """Both nodes, still running, after all tasks have ended."""

    one: Node
    two: Node
    client: Client
    session: Session
    old_id: int  # of node `one`
    taken: list[Task]  # what node `one` ran when it was stopped, as it is at the end
    budgets: dict[int, tuple[int, int, int]]  # what these were charged when node `two` had them
    ledger: Ledger


@pytest.fixture(scope="module")
def meeting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Meeting]:
    folder = tmp_path_factory.mktemp("meeting")
    web = {"web.bind": free_address()}
    with (
        own_server() as server,
        opened(server.dsn) as session,
        running(server.dsn, folder / "1", name="one", settings={**DISTRIBUTED, **web}) as one,
        running(server.dsn, folder / "2", name="two", settings=DISTRIBUTED) as two,
    ):
        client = Client(server.dsn)
        yield arrange(one, two, client, session, folder / "ledger")
        client.close()


def arrange(one: Node, two: Node, client: Client, session: Session, ledger: Path) -> Meeting:
    # The second attempts are under way when the first ones report.
    payload = {"seconds": 5, "then": 3, "ledger": str(ledger)}
    tasks = [client.enqueue("sleep", payload) for _ in range(4)]
    eventually(lambda: len(Ledger(ledger).started) == 4)
    mine = rows(
        session,
        "select r.id, n.id from running r join node n on n.id = r.node where n.name = 'one'",
    )
    workers = list(one.workers().values())
    others = [pid for pid in one.pids() if pid not in workers]

    one.signal_all(signal.SIGSTOP)
    eventually(lambda: n_rescued(session) == len(mine), timeout=20)
    budgets = {id: charged(session, id) for id, _ in mine}
    for pid in workers:
        os.kill(pid, signal.SIGCONT)
    eventually(lambda: len(one.events("claim.lost")) >= len(mine), timeout=20)
    for pid in [*others, one.pid]:
        os.kill(pid, signal.SIGCONT)

    ended = {task.id: client.wait(task, timeout=30) for task in tasks}
    return Meeting(
        one,
        two,
        client,
        session,
        old_id=mine[0][1],
        taken=[ended[id] for id, _ in mine],
        budgets=budgets,
        ledger=Ledger(ledger),
    )


def n_rescued(session: Session) -> int:
    found = rows(session, "select count(*) from attempt where crash ->> 'cause' = 'node_lost'")
    return int(found[0][0])


def test_both_nodes_had_a_part(meeting: Meeting) -> None:
    assert 1 <= len(meeting.taken) <= 2


def test_stopped_workers_ran_to_the_end_without_having_a_say(meeting: Meeting) -> None:
    for task in meeting.taken:
        lost, won = task.attempts
        ran_to_the_end = {(run.task, run.attempt) for run in meeting.ledger.ended}
        assert {(task.id, 1), (task.id, 2)} <= ran_to_the_end
        assert (lost.node, lost.outcome) == ("one", "crashed")
        assert (won.node, won.outcome) == ("two", "succeeded")
        assert task.result == {"slept": 3}


def test_rescue_says_that_the_node_was_lost_and_charges_losses_only(meeting: Meeting) -> None:
    for task in meeting.taken:
        crash = task.attempts[0].crash
        assert crash is not None
        assert crash["cause"] == "node_lost"
    assert meeting.budgets == {task.id: (0, 0, 1) for task in meeting.taken}


def test_each_refused_outcome_is_logged(meeting: Meeting) -> None:
    lost: list[dict[str, Any]] = meeting.one.events("claim.lost")

    assert sorted(event["task_id"] for event in lost) == sorted(t.id for t in meeting.taken)
    assert all(event["identity"].startswith("worker=") for event in lost)
    assert {(event["attempt"], event["outcome"]) for event in lost} == {(1, "succeeded")}


def test_each_refused_outcome_is_counted(meeting: Meeting) -> None:
    def counted() -> bool:
        return meeting.one.metric("orchestrator_fence_rejections_total") == len(meeting.taken)

    eventually(counted)


def test_node_comes_back_under_a_new_id(meeting: Meeting) -> None:
    def states() -> list[tuple[Any, ...]]:
        return rows(meeting.session, "select id, state from node where name = 'one' order by id")

    eventually(lambda: len(states()) == 2, message="it did not register anew")
    (old, old_state), (new, new_state) = states()
    assert (old, old_state) == (meeting.old_id, "dead")
    assert new > old
    assert new_state == "alive"


def test_node_that_came_back_works(meeting: Meeting) -> None:
    eventually(lambda: len(meeting.one.workers()) == 2)
    meeting.two.terminate()

    ended = meeting.client.wait(meeting.client.enqueue("where", {}), timeout=20)

    assert ended.attempts[0].node == "one"
