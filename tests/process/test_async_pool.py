"""Pools with `mode = "async"`: many at once, and what one of them does to the others."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator import Client, State, Task
from orchestrator.db.connection import Session
from tests.node import Node, running
from tests.server import FAST, own_server
from tests.sql import rows
from tests.support import eventually

POOL = '[[pool]]\nname = "io"\nmode = "async"\nconcurrency = 20\nprocesses = 1\nqueues = ["io"]'
BOTH = POOL.replace('["io"]', '["io", "both"]') + (
    '\n[[pool]]\nname = "cpu"\nprocesses = 1\nqueues = ["both"]'
)
GRACE = {"node.cancel_grace": "1s"}


@pytest.fixture
def node(dsn: str, tmp_path: Path) -> Iterator[Node]:
    with running(dsn, tmp_path, **fields(POOL)) as node:
        yield node


def fields(pools: str, *, processes: int = 1) -> dict[str, object]:
    return {
        "pools": pools,
        "processes": processes,
        "handlers": ("tests.async_handlers",),
        "settings": GRACE,
    }


def wait_for(client: Client, n: int, seconds: float = 600.0, **payload: object) -> list[Task]:
    """Enqueue n tasks that wait, and return them when all of them run."""
    tasks = [
        client.enqueue("io:wait", {"seconds": seconds, **payload}, queue="io") for _ in range(n)
    ]
    until_running(client, tasks)
    return tasks


def until_running(client: Client, tasks: list[Task]) -> None:
    eventually(lambda: all(client.get(task).state is State.RUNNING for task in tasks), timeout=20)


def causes(task: Task) -> list[tuple[str | None, str | None]]:
    return [(a.outcome, a.crash["cause"] if a.crash else None) for a in task.attempts]


def outcomes(task: Task) -> list[str | None]:
    return [attempt.outcome for attempt in task.attempts]


# -- many at once


def test_one_process_runs_as_many_at_once_as_its_concurrency(
    node: Node, client: Client, session: Session
) -> None:
    tasks = [client.enqueue("io:wait", {"seconds": 600}, queue="io") for _ in range(25)]

    eventually(lambda: rows(session, "select count(*) from running") == [(20,)], timeout=20)

    pids = {row[0] for row in rows(session, "select pid from running")}
    waiting = [task for task in tasks if client.get(task).state is State.READY]
    assert pids == set(node.workers().values())
    assert waiting == tasks[20:]


def test_place_that_gets_free_is_taken_by_the_next(node: Node, client: Client) -> None:
    short = [client.enqueue("io:wait", {"seconds": 0.01}, queue="io") for _ in range(200)]

    ended = [client.wait(task, timeout=30) for task in short]

    assert {task.state for task in ended} == {State.SUCCEEDED}
    assert {task.attempt for task in ended} == {1}


def test_task_enqueued_beside_running_ones_is_picked_up(node: Node, client: Client) -> None:
    wait_for(client, 3)

    task = client.enqueue("io:wait", {"seconds": 0}, queue="io")

    assert client.wait(task, timeout=10).state is State.SUCCEEDED


def test_result_that_the_database_refuses_does_not_take_the_others_with_it(
    node: Node, client: Client, session: Session
) -> None:
    with session.connection.cursor() as cursor:
        cursor.execute("update orchestrator.setting set value = 1000 where name like '%result%'")

    tasks = [client.enqueue("io:too_large", {"size": s}, queue="io") for s in (10, 5000, 10)]

    ended = [client.wait(task, timeout=20) for task in tasks]
    assert [task.state for task in ended] == [State.SUCCEEDED, State.DEAD, State.SUCCEEDED]


def test_handler_that_calls_sys_exit_ends_nothing_but_its_attempt(
    node: Node, client: Client
) -> None:
    others = wait_for(client, 2)
    before = node.workers()

    ended = client.wait(client.enqueue("io:exit", {}, queue="io", max_attempts=1), timeout=20)

    assert "sys.exit" in str(ended.error)
    assert node.workers() == before
    assert {client.get(task).state for task in others} == {State.RUNNING}


# -- what such a pool refuses


def test_def_handler_met_by_an_async_pool_is_held_with_the_reason(
    node: Node, client: Client
) -> None:
    task = client.enqueue("plain", {}, queue="io")

    held = eventually(lambda: (t := client.get(task)).state is State.HELD and t)

    assert "async pool" in str(held.error)
    assert held.attempt == 0


def test_def_handler_held_by_an_async_pool_runs_in_the_process_pool_of_its_queue(
    dsn: str, client: Client, tmp_path: Path
) -> None:
    with running(dsn, tmp_path, **fields(BOTH, processes=2)):
        tasks = [client.enqueue("plain", {}, queue="both") for _ in range(10)]

        ended = [client.wait(task, timeout=30) for task in tasks]

    assert {task.state for task in ended} == {State.SUCCEEDED}


def test_what_would_block_the_loop_is_refused(node: Node, client: Client) -> None:
    said = client.result(client.enqueue("io:misuse", {}, queue="io"), timeout=20)

    assert "ctx.sleep" in said["wait"]
    assert 'mode = "process"' in said["connection"]


# -- time limits and cancel leave the others alone


def test_time_limit_of_one_leaves_the_others_alone(node: Node, client: Client) -> None:
    others = wait_for(client, 3)
    before = node.workers()

    ended = client.wait(client.enqueue("io:late", {}, queue="io", max_attempts=1), timeout=20)

    assert outcomes(ended) == ["timed_out"]
    assert "SoftTimeout" in str(ended.error)
    assert node.workers() == before
    assert {client.get(task).attempt for task in others} == {1}


def test_cancel_of_one_leaves_the_others_alone(node: Node, client: Client, tmp_path: Path) -> None:
    others = wait_for(client, 3)
    before = node.workers()
    note = tmp_path / "note"
    task = client.enqueue("io:tidy", {"file": str(note)}, queue="io")
    until_running(client, [task])

    client.cancel(task)

    ended = client.wait(task, timeout=20)
    assert (ended.state, outcomes(ended)) == (State.CANCELLED, ["cancelled"])
    assert note.read_text() == "cancelled: True"
    assert node.workers() == before
    assert {client.get(task).state for task in others} == {State.RUNNING}


def test_one_that_does_not_stop_is_killed_and_the_others_are_suspects_that_run_alone(
    node: Node, client: Client
) -> None:
    others = wait_for(client, 3, then=0.05)
    task = client.enqueue("io:stubborn", {}, queue="io")
    until_running(client, [task])

    client.cancel(task)

    ended = client.wait(task, timeout=20)
    assert (ended.state, causes(ended)) == (State.CANCELLED, [("cancelled", "cancelled")])
    suspects = [client.wait(other, timeout=20) for other in others]
    assert [causes(suspect) for suspect in suspects] == [
        [("released", "suspect"), ("succeeded", None)]
    ] * 3
    # Each in a worker of its own.
    assert len({suspect.result["pid"] for suspect in suspects}) == 3


def test_one_that_blocks_the_loop_is_killed_at_its_time_limit_and_charged_alone(
    node: Node, client: Client, session: Session
) -> None:
    others = wait_for(client, 2, then=0.05)

    ended = client.wait(client.enqueue("io:blocking", {}, queue="io", max_attempts=1), timeout=30)

    assert (ended.state, causes(ended)) == (State.DEAD, [("timed_out", "timeout")])
    suspects = [client.wait(other, timeout=20) for other in others]
    assert {suspect.state for suspect in suspects} == {State.SUCCEEDED}
    assert rows(session, "select failures, crashes, losses from dead") == [(1, 0, 0)]


def test_a_thousand_cancelled_at_once_are_all_asked_and_the_stubborn_killed_in_time(
    dsn: str, client: Client, session: Session, tmp_path: Path
) -> None:
    with running(dsn, tmp_path, **fields(POOL.replace("= 20", "= 1000"))):
        tasks = client.enqueue_many("io:stubborn", [{}] * 1000, queue="io")
        eventually(lambda: rows(session, "select count(*) from running") == [(1000,)], timeout=20)

        for task in tasks:
            client.cancel(task)

        ended = "select state, count(*) from outcome group by 1"
        eventually(lambda: rows(session, ended) == [("cancelled", 1000)], timeout=15)


# -- crashes


def test_crash_among_many_is_charged_only_to_the_one_that_crashes_again_alone(
    node: Node, client: Client
) -> None:
    others = wait_for(client, 3, then=0.05)
    task = client.enqueue("io:crash", {}, queue="io")

    ended = client.wait(task, timeout=60)

    assert ended.state is State.DEAD
    assert causes(ended) == [("released", "suspect"), *[("crashed", "crash")] * 3]
    assert {client.wait(other, timeout=20).state for other in others} == {State.SUCCEEDED}


def test_suspects_run_with_no_neighbour(
    dsn: str, client: Client, tmp_path: Path, node: Node
) -> None:
    ledger = tmp_path / "ledger"
    payload = {"ledger": str(ledger), "seconds": 0.3}
    tasks = [client.enqueue("io:alone", payload, queue="io") for _ in range(3)]
    eventually(lambda: ledger.exists() and len(ledger.read_text().splitlines()) == 3)

    os.kill(node.workers()["io-0"], signal.SIGKILL)
    fresh = [client.enqueue("io:alone", payload, queue="io") for _ in range(3)]

    for task in [*tasks, *fresh]:
        assert client.wait(task, timeout=30).state is State.SUCCEEDED
    second = [line.split() for line in ledger.read_text().splitlines() if line.endswith(" 2")]
    assert [(words[0], words[1]) for words in second] == [
        (what, str(task.id)) for task in tasks for what in ("begin", "end")
    ]


def test_only_one_that_runs_in_an_async_pool_is_charged_for_its_crash(
    node: Node, client: Client
) -> None:
    ended = client.wait(client.enqueue("io:crash", {}, queue="io"), timeout=30)

    assert causes(ended) == [("crashed", "crash")] * 3


def test_worker_that_is_to_be_replaced_ends_whatever_its_task_has_left_behind(
    node: Node, client: Client
) -> None:
    ended = client.wait(client.enqueue("io:leftovers", {}, queue="io"), timeout=20)

    following = client.wait(client.enqueue("io:wait", {"seconds": 0}, queue="io"), timeout=20)

    assert causes(ended) == [("crashed", "crash"), ("succeeded", None)]
    assert following.state is State.SUCCEEDED
    assert following.result["pid"] != ended.result


# -- drain, database, supervisor


def test_drain_wakes_those_that_sleep_and_waits_for_the_others(node: Node, client: Client) -> None:
    tasks = wait_for(client, 3)
    late = client.enqueue("io:alone", {"ledger": os.devnull, "seconds": 1}, queue="io")
    until_running(client, [late])

    code = node.terminate()

    assert code == 0
    assert [client.get(task).result["stopped"] for task in tasks] == [True] * 3
    assert client.get(late).state is State.SUCCEEDED


def test_tasks_of_a_killed_supervisor_go_back_and_cost_nothing(
    node: Node, client: Client, session: Session
) -> None:
    tasks = wait_for(client, 3)

    os.kill(node.pid, signal.SIGKILL)

    eventually(lambda: {client.get(task).state for task in tasks} == {State.READY}, timeout=20)
    assert rows(session, "select distinct failures, crashes, losses from ready") == [(0, 0, 0)]


def test_outcomes_wait_for_a_database_that_is_away(tmp_path: Path) -> None:
    with own_server() as own, running(own.dsn, tmp_path / "node", **fields(POOL)) as node:
        client = Client(own.dsn)
        tasks = wait_for(client, 5, 1.0)

        own.end(FAST)
        eventually(lambda: any("worker" in e["identity"] for e in node.events("database.lost")))
        own.start()

        ended = [client.wait(task, timeout=30) for task in tasks]
        client.close()
        assert {task.state for task in ended} == {State.SUCCEEDED}
        assert {task.attempt for task in ended} == {1}


def test_idle_async_worker_uses_no_processor_time(node: Node, client: Client) -> None:
    client.wait(client.enqueue("io:wait", {"seconds": 0}, queue="io"), timeout=10)
    pid = node.workers()["io-0"]
    begin, began = cpu_seconds(pid), time.monotonic()

    eventually(lambda: time.monotonic() - began > 2)

    # Far above what it takes, far below what spinning takes.
    assert cpu_seconds(pid) - begin < 0.5


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# -- progress, and what the node tells


def test_progress_of_a_coroutine_is_seen_while_it_runs(node: Node, client: Client) -> None:
    task = client.enqueue("io:progress", {}, queue="io")

    progress = eventually(lambda: client.get(task).progress)

    assert (progress.done, progress.total, progress.message) == (3, 10, "fetching")
