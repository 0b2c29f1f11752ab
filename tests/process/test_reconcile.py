"""Rows of `running` that nobody runs, and attempts that run without a row: both are put right.

How such rows come to be: a claim that was sent by a worker which died before the answer came, and
which the server carries out all the same. How such attempts do: the server crashed before an
asynchronous commit of the claim reached the disk.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator import Client, State
from orchestrator.db.connection import Session
from orchestrator.store.claim import claim
from tests.ledger import Ledger
from tests.node import Node, alive, running
from tests.sql import charged, count, opened, rows, value
from tests.support import eventually, never

PROMISED_SECONDS = 10.0

# Queue `aside` is nobody's, so what is in it stays where the test or the steward puts it.
POOL = '[[pool]]\nname = "cpu"\nprocesses = 2\nqueues = ["default"]'
PATTERNS = ["sleep", "where"]


@pytest.fixture
def node(dsn: str, tmp_path: Path) -> Iterator[Node]:
    with running(dsn, tmp_path, pools=POOL) as node:
        yield node


def node_id(session: Session) -> int:
    return int(eventually(lambda: value(session, "select id from node where state = 'alive'")))


def claim_for(session: Session, node: int, *, token: int) -> list[int]:
    """Claim a task of queue `aside` in the name of a node, as one of its workers would."""
    claims = claim(
        session,
        node=node,
        slot="cpu-0",
        incarnation=9999,
        pid=9999,
        token=token,
        queues=["aside"],
        patterns=PATTERNS,
        limit=1,
    )
    return [claimed.task_id for claimed in claims]


def test_row_whose_token_no_slot_holds_is_released_uncharged(
    node: Node, client: Client, session: Session
) -> None:
    task = client.enqueue("where", {}, queue="aside")

    assert claim_for(session, node_id(session), token=4711) == [task.id]

    released = eventually(lambda: client.get(task).state is State.READY, timeout=PROMISED_SECONDS)
    assert released
    assert charged(session, task.id) == (0, 0, 0)
    assert client.get(task).attempts == ()
    assert [event["released"] for event in node.events("tasks.reconciled")] == [[task.id]]


def test_claim_that_the_server_carries_out_for_a_dead_worker_is_released(
    node: Node, client: Client, session: Session, dsn: str
) -> None:
    with opened(dsn) as holder:
        # A claim needs this table, and what the steward does at a death does not.
        rows(holder, "begin; lock table idempotency in access exclusive mode")
        # Not by the client: its enqueue would wait for the lock as well.
        task_id = enqueue_behind(holder)
        rows(holder, "commit; begin; lock table idempotency in access exclusive mode")
        blocked = eventually(lambda: blocked_claims(session))
        victims = [node.workers()[name.removeprefix("orchestrator ")] for name in blocked]
        for pid in victims:
            os.kill(pid, signal.SIGKILL)
        eventually(lambda: not any(alive(pid) for pid in victims))
        eventually(lambda: len(node.workers()) == 2)
        # Their deaths are dealt with before the server has carried out what they sent.
        never(lambda: count(session, "running"), during=0.5)

        rows(holder, "commit")

    ended = client.wait(task_id, timeout=PROMISED_SECONDS)
    assert [(attempt.number, attempt.outcome) for attempt in ended.attempts] == [(2, "succeeded")]
    assert node.events("tasks.reconciled")


def enqueue_behind(session: Session) -> int:
    found = value(
        session,
        "select id from enqueue_many('where', 'default', 0::smallint, null, 0, "
        "array['{}'], null, null, null, null, '{}', '{}')",
    )
    return int(found)


def blocked_claims(session: Session) -> list[str]:
    """Name the sessions of workers whose claim waits for a lock."""
    found = rows(
        session,
        "select application_name from pg_stat_activity where wait_event_type = 'Lock' "
        "and datname = current_database() and application_name like 'orchestrator cpu-%%'",
    )
    return [str(name) for (name,) in found]


def test_attempt_whose_row_is_gone_is_killed_uncharged_and_its_task_ends_once(
    node: Node, client: Client, session: Session, tmp_path: Path
) -> None:
    ledger = tmp_path / "ledger"
    task = client.enqueue("sleep", {"seconds": 60, "then": 0, "ledger": str(ledger)})
    first = eventually(lambda: Ledger(ledger).started)[0]

    # As after a crash of the server that lost the claim: the task is ready, its attempt runs on.
    rows(
        session,
        "with lost as (delete from running where id = %(id)s returning *) "
        "insert into ready (id, seq, queue, type, attempt, priority) "
        "select id, seq, queue, type, attempt, priority from lost",
        id=task.id,
    )

    eventually(lambda: not alive(first.pid), timeout=PROMISED_SECONDS)
    ended = client.wait(task, timeout=PROMISED_SECONDS)
    eventually(lambda: len(node.workers()) == 2)
    (killed,) = node.events("attempt.killed")
    assert (killed["task_id"], killed["cause"]) == (task.id, "lost_claim")
    assert [(attempt.number, attempt.outcome) for attempt in ended.attempts] == [(2, "succeeded")]
    assert len(Ledger(ledger).ended) == 1
    assert count(session, "attempt") == 0


def test_reconcile_leaves_alone_what_runs(
    node: Node, client: Client, session: Session, tmp_path: Path
) -> None:
    ledger = tmp_path / "ledger"
    # Longer than the time between two reconciliations.
    tasks = [client.enqueue("sleep", {"seconds": 6, "ledger": str(ledger)}) for _ in range(2)]

    ended = [client.wait(task, timeout=30) for task in tasks]

    assert [task.attempt for task in ended] == [1, 1]
    assert len(Ledger(ledger).started) == 2
    assert node.events("attempt.killed") == node.events("tasks.reconciled") == []
