"""What is paused waits without burning anything, and runs when it is not paused any more."""

from __future__ import annotations

from orchestrator import Client, State
from orchestrator.db.connection import Session
from tests.node import Node
from tests.sql import rows
from tests.support import eventually, never


def pause(session: Session, table: str, name: str, is_paused: bool) -> None:
    rows(
        session,
        f"update {table} set is_paused = %(is_paused)s where name = %(name)s",
        name=name,
        is_paused=is_paused,
    )


def test_task_of_a_paused_type_is_held_visibly_and_runs_afterwards(
    node: Node, client: Client, session: Session
) -> None:
    client.wait(client.enqueue("where", {}), timeout=20)
    pause(session, "type", "where", True)

    task = client.enqueue("where", {})
    held = eventually(lambda: client.get(task).state is State.HELD and client.get(task))
    other = client.wait(client.enqueue("burn", {"milliseconds": 1}), timeout=20)
    pause(session, "type", "where", False)

    ended = client.wait(task, timeout=20)
    assert held.error == "the task type is paused"
    assert other.state is State.SUCCEEDED
    assert (ended.state, ended.attempt) == (State.SUCCEEDED, 1)


def test_task_of_a_paused_queue_stays_in_line_and_runs_afterwards(
    node: Node, client: Client, session: Session
) -> None:
    client.wait(client.enqueue("where", {}, queue="slow"), timeout=20)
    pause(session, "queue", "slow", True)

    task = client.enqueue("where", {}, queue="slow")
    other = client.wait(client.enqueue("where", {}), timeout=20)
    never(lambda: client.get(task).state is not State.READY, during=1)
    pause(session, "queue", "slow", False)

    ended = client.wait(task, timeout=20)
    assert other.state is State.SUCCEEDED
    assert (ended.state, ended.attempt) == (State.SUCCEEDED, 1)


def test_running_task_ends_when_its_type_is_paused_meanwhile(
    node: Node, client: Client, session: Session
) -> None:
    task = client.enqueue("sleep", {"seconds": 1})
    eventually(lambda: client.get(task).state is State.RUNNING)

    pause(session, "type", "sleep", True)

    assert client.wait(task, timeout=20).state is State.SUCCEEDED
