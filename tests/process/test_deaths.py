"""What the death of a worker means for the task that it ran, and for nothing else."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from orchestrator import Client, State, Task
from orchestrator.slots import Phase, Slots
from tests.node import Node, alive, zombies_of
from tests.support import eventually


def worker_running(client: Client, task: Task) -> int:
    """Wait until the handler of a task runs; return the pid of its worker.

    A row in `running` is not enough: its worker may not have begun, and then costs nobody.
    """

    def pid() -> int | None:
        attempts = client.get(task).attempts
        return attempts[-1].pid if attempts and attempts[-1].outcome is None else None

    found = eventually(pid)
    eventually(lambda: slot_of(found) == Phase.RUN)
    return found


def slot_of(pid: int) -> Phase | None:
    """Read the phase of a worker from the slots that its own descriptor shows."""
    environ = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    number = next(v.partition(b"=")[2] for v in environ if v.startswith(b"ORCHESTRATOR_SLOTS_FD="))
    fd = os.open(f"/proc/{pid}/fd/{number.decode()}", os.O_RDWR)
    views = Slots.attach(fd).occupied()
    os.close(fd)
    return next((view.phase for view in views if view.pid == pid), None)


def test_killed_worker_gives_its_attempt_the_signal_and_the_task_runs_again(
    node: Node, client: Client
) -> None:
    task = client.enqueue("sleep", {"seconds": 60, "then": 0})
    victim = worker_running(client, task)

    os.kill(victim, signal.SIGKILL)

    ended = client.wait(task, timeout=20)
    first, second = ended.attempts
    assert ended.state is State.SUCCEEDED
    assert (first.outcome, second.outcome) == ("crashed", "succeeded")
    assert first.pid == victim
    assert first.crash is not None
    assert (first.crash["cause"], first.crash["signal"]) == ("crash", "SIGKILL")
    assert first.crash["max_rss_bytes"] > 1_000_000
    assert first.crash["cpu_seconds"] < first.crash["wall_seconds"] + 0.1


def test_segfault_is_charged_to_crashes_and_ends_in_the_dead_letter_queue_after_three(
    node: Node, client: Client
) -> None:
    task = client.enqueue("segfault", {})

    ended = client.wait(task, timeout=30)

    assert ended.state is State.DEAD
    assert [a.outcome for a in ended.attempts] == ["crashed"] * 3
    assert {a.crash["signal"] for a in ended.attempts if a.crash} == {"SIGSEGV"}


def test_exit_code_of_a_worker_that_left_is_in_the_report(node: Node, client: Client) -> None:
    task = client.enqueue("exit", {"code": 7})

    ended = client.wait(task, timeout=30)

    crash = ended.attempts[0].crash
    assert crash is not None
    assert (crash["cause"], crash["exit_code"]) == ("exit", 7)


def test_worker_killed_by_a_signal_without_a_name_is_reported_like_any_other(
    node: Node, client: Client
) -> None:
    task = client.enqueue("sleep", {"seconds": 60, "then": 0})

    os.kill(worker_running(client, task), signal.SIGRTMIN + 5)

    crash = client.wait(task, timeout=20).attempts[0].crash
    assert crash is not None
    assert crash["signal"] == "SIGRTMIN+5"


def test_neighbour_of_a_killed_worker_finishes_undisturbed(node: Node, client: Client) -> None:
    first = client.enqueue("sleep", {"seconds": 60, "then": 0})
    second = client.enqueue("sleep", {"seconds": 3})
    victim = worker_running(client, first)
    worker_running(client, second)

    os.kill(victim, signal.SIGKILL)

    client.wait(first, timeout=20)
    assert [a.outcome for a in client.wait(second, timeout=20).attempts] == ["succeeded"]


def test_killed_worker_is_replaced_and_leaves_no_zombie(node: Node) -> None:
    before = node.workers()

    os.kill(before["cpu-0"], signal.SIGKILL)

    eventually(lambda: node.workers().get("cpu-0") not in (None, before["cpu-0"]))
    eventually(lambda: not zombies_of(node.pid))
    assert node.workers()["cpu-1"] == before["cpu-1"]


def test_idle_worker_killed_charges_nobody(node: Node, client: Client) -> None:
    done = client.wait(client.enqueue("where", {}), timeout=10)

    os.kill(node.workers()["cpu-0"], signal.SIGKILL)
    os.kill(node.workers()["cpu-1"], signal.SIGKILL)

    after = client.wait(client.enqueue("where", {}), timeout=20)
    assert (done.attempt, after.attempt) == (1, 1)


def test_handler_stuck_in_c_code_is_killed_at_its_deadline(node: Node, client: Client) -> None:
    task = client.enqueue("stuck", {}, max_attempts=1)

    ended = client.wait(task, timeout=20)

    assert ended.state is State.DEAD
    assert ended.attempts[0].outcome == "timed_out"
    assert ended.attempts[0].crash is not None
    assert ended.attempts[0].crash["cause"] == "timeout"


def test_task_that_crashed_once_runs_in_a_worker_that_is_replaced_afterwards(
    node: Node, client: Client
) -> None:
    task = client.enqueue("killed", {"times": 1})

    ended = client.wait(task, timeout=20)

    second = ended.attempts[1]
    assert ended.result == 2
    assert second.slot is not None
    eventually(lambda: node.workers().get(second.slot or "") not in (None, second.pid))


def test_daemonised_grandchild_ends_with_the_task(node: Node, client: Client) -> None:
    client.wait(client.enqueue("orphan", {}), timeout=20)

    eventually(lambda: not any("time.sleep(600)" in _command(pid) for pid in node.pids()))


def test_daemonised_grandchild_of_a_killed_worker_is_killed_by_the_supervisor(
    node: Node, client: Client
) -> None:
    client.enqueue("orphan", {"die": True}, max_attempts=1)

    eventually(lambda: node.events("attempt.crashed"), timeout=20)
    eventually(lambda: not any("time.sleep(600)" in _command(pid) for pid in node.pids()))


def test_crash_while_the_steward_is_away_is_written_by_the_next(node: Node, client: Client) -> None:
    task = client.enqueue("sleep", {"seconds": 60, "then": 0})
    victim = worker_running(client, task)
    steward = node.child("steward")

    os.kill(steward, signal.SIGSTOP)
    os.kill(victim, signal.SIGKILL)
    eventually(lambda: node.workers().get("cpu-0") and node.workers().get("cpu-1"))
    eventually(lambda: not alive(victim))
    os.kill(steward, signal.SIGKILL)

    ended = client.wait(task, timeout=20)
    assert ended.attempts[0].outcome == "crashed"
    assert ended.attempts[0].crash is not None
    assert ended.attempts[0].crash["signal"] == "SIGKILL"


@pytest.mark.parametrize("kind", ["steward", "leader", "forkserver"])
def test_lost_child_is_replaced_and_work_goes_on(node: Node, client: Client, kind: str) -> None:
    before = node.child(kind)

    os.kill(before, signal.SIGKILL)

    eventually(lambda: _other(node, kind, before))
    assert client.wait(client.enqueue("where", {}), timeout=20).attempt == 1
    os.kill(node.workers()["cpu-0"], signal.SIGKILL)
    eventually(lambda: len(node.workers()) == 2)


def _other(node: Node, kind: str, pid: int) -> bool:
    try:
        return node.child(kind) != pid
    except StopIteration:
        return False


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""
