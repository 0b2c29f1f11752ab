"""Cancelling a running task in a process pool: told first, killed when that does not help."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator import Client, State, Task
from tests.node import Node, running
from tests.support import eventually


@pytest.fixture
def node(dsn: str, tmp_path: Path) -> Iterator[Node]:
    with running(
        dsn,
        tmp_path / "node",
        handlers=("tests.async_handlers", "tests.handlers"),
        settings={"node.cancel_grace": "1s"},
    ) as node:
        yield node


def started(client: Client, type: str, **payload: object) -> Task:
    """Enqueue a task and return it when it runs."""
    task = client.enqueue(type, payload)
    eventually(lambda: client.get(task).state is State.RUNNING)
    return task


def causes(task: Task) -> list[tuple[str | None, str | None]]:
    return [(a.outcome, a.crash["cause"] if a.crash else None) for a in task.attempts]


def test_handler_is_told_by_an_exception_and_may_clean_up(
    node: Node, client: Client, tmp_path: Path
) -> None:
    note = tmp_path / "note"
    task = started(client, "cancel:wait", file=str(note))
    before = node.workers()

    client.cancel(task)

    ended = client.wait(task, timeout=20)
    assert (ended.state, causes(ended)) == (State.CANCELLED, [("cancelled", None)])
    assert note.read_text() == "Cancelled True"
    assert node.workers() == before


def test_loop_that_swallows_exceptions_does_not_swallow_the_order_to_stop(
    node: Node, client: Client
) -> None:
    task = started(client, "cancel:swallow")

    client.cancel(task)

    assert causes(client.wait(task, timeout=20)) == [("cancelled", None)]


def test_order_to_stop_that_meets_a_finalizer_is_not_lost(
    node: Node, client: Client, tmp_path: Path
) -> None:
    note = tmp_path / "note"
    task = started(client, "cancel:finalizer", file=str(note))
    eventually(note.exists)

    client.cancel(task)

    # Not killed: the cause would be told.
    assert causes(client.wait(task, timeout=20)) == [("cancelled", None)]


def test_coroutine_in_a_process_pool_is_cancelled_too(node: Node, client: Client) -> None:
    task = started(client, "cancel:async")

    client.cancel(task)

    assert causes(client.wait(task, timeout=20)) == [("cancelled", None)]


def test_shielded_block_is_finished_first(node: Node, client: Client, tmp_path: Path) -> None:
    steps = tmp_path / "steps"
    task = started(client, "cancel:shielded", file=str(steps))
    eventually(lambda: steps.exists() and steps.read_text() == "begun")

    client.cancel(task)

    ended = client.wait(task, timeout=20)
    assert (ended.state, steps.read_text()) == (State.CANCELLED, "whole")


def test_handler_that_finishes_all_the_same_has_succeeded(node: Node, client: Client) -> None:
    task = started(client, "cancel:finish")

    client.cancel(task)

    ended = client.wait(task, timeout=20)
    assert (ended.state, ended.result) == (State.SUCCEEDED, "finished")


def test_handler_stuck_in_c_is_killed_with_its_cause_and_charged_nothing(
    node: Node, client: Client
) -> None:
    task = started(client, "stuck", seconds=600)

    client.cancel(task)

    ended = client.wait(task, timeout=20)
    assert ended.state is State.CANCELLED
    assert causes(ended) in (
        [("cancelled", "cancelled")],
        # Its own time limit of 1 s may have been sooner.
        [("timed_out", "timeout")],
    )


def test_cancel_meant_for_one_attempt_does_not_reach_the_next_task_of_that_worker(
    dsn: str, client: Client, tmp_path: Path
) -> None:
    with running(dsn, tmp_path / "one", processes=1, handlers=("tests.async_handlers",)):
        tasks = [client.enqueue("plain", {}) for _ in range(30)]
        for task in tasks[::2]:
            client.cancel(task)

        ended = [client.wait(task, timeout=20) for task in tasks]

    assert {task.state for task in ended[1::2]} == {State.SUCCEEDED}
    assert {task.state for task in ended[::2]} <= {State.SUCCEEDED, State.CANCELLED}


def test_idempotency_key_of_a_cancelled_running_task_is_free_again(
    node: Node, client: Client
) -> None:
    task = client.enqueue("cancel:swallow", {}, idempotency_key="k")
    eventually(lambda: client.get(task).state is State.RUNNING)

    client.cancel(task)
    client.wait(task, timeout=20)

    assert not client.enqueue("plain", {}, idempotency_key="k").existing


def test_worker_that_was_told_goes_on_with_other_tasks(node: Node, client: Client) -> None:
    task = started(client, "cancel:swallow")
    client.cancel(task)
    client.wait(task, timeout=20)

    results = [client.result(client.enqueue("where", {}), timeout=10) for _ in range(10)]

    assert {result["pid"] for result in results} <= set(node.workers().values())
    assert os.getpid() not in {result["pid"] for result in results}
