"""What the web process derives at a scrape, and what it says about readiness, from real slots."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from orchestrator.config import PoolSettings, Settings
from orchestrator.metrics import MAX_LABEL_SETS, METRICS, Derived, Source, render
from orchestrator.slots import Phase, Slots
from orchestrator.web import collectors
from orchestrator.web.status import Status

SECOND_NS = 10**9


class Node:
    """A node made of slots and nothing else; `later` moves the clock of its web process."""

    def __init__(self, run_directory: Path) -> None:
        self.run_directory = run_directory
        self.slots = Slots.create()
        self.ahead_ns = 0
        header = self.slots.header
        header.node_id = 7
        header.started_ns = time.monotonic_ns()
        header.is_session_ok = True
        self.beat()
        self.status = Status(
            self.slots,
            Settings(pools=(PoolSettings(name="cpu"), PoolSettings(name="io"))),
            name="alpha",
            version="1.2.3",
            clock_ns=lambda: time.monotonic_ns() + self.ahead_ns,
        )

    def beat(self, seconds_ago: float = 0.0) -> None:
        now_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        self.slots.header.last_beat_ns = now_ns - int(seconds_ago * SECOND_NS)

    def worker(self, index: int, name: str, phase: Phase) -> None:
        self.slots.lease(index, name, incarnation=index + 1)
        writer = self.slots.writer(index)
        writer.begin(4000 + index)
        if phase is Phase.BOOT:
            return
        writer.ready()
        if phase in (Phase.RUN, Phase.REPORT):
            started_ns = time.monotonic_ns()
            writer.publish(phase, token=1, task_id=17, attempt=1, started_ns=started_ns)

    def later(self, seconds: float) -> None:
        self.ahead_ns += int(seconds * SECOND_NS)

    def collect(self) -> Derived:
        return collectors.collect(self.status, self.run_directory)

    def lead(self, **statistics: object) -> None:
        self.slots.header.is_leader = True
        (self.run_directory / "statistics.json").write_text(json.dumps(statistics))


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def test_utilization_is_busy_over_ready_per_pool(node: Node) -> None:
    node.worker(0, "cpu-0", Phase.RUN)
    node.worker(1, "cpu-1", Phase.REPORT)
    node.worker(2, "cpu-2", Phase.IDLE)
    node.worker(3, "cpu-3", Phase.CLAIM)
    node.worker(4, "cpu-4", Phase.BOOT)

    derived = node.collect()

    assert derived["worker_pool_utilization"] == [(("cpu",), 0.5), (("io",), 0.0)]
    assert derived["tasks_running"] == [((), 2.0)]


def test_every_slot_is_in_exactly_one_state(node: Node) -> None:
    node.worker(0, "cpu-0", Phase.RUN)
    node.worker(1, "cpu-1", Phase.BOOT)
    node.worker(2, "cpu-2", Phase.IDLE)
    node.slots.clear(2)

    workers = dict(node.collect()["orchestrator_workers"])

    assert {labels[1]: n for labels, n in workers.items() if labels[0] == "cpu" and n} == {
        "running": 1,
        "starting": 1,
        "down": 1,
    }


def test_a_node_that_does_not_lead_exports_no_facts_of_the_database(node: Node) -> None:
    node.lead(enqueued={"a": 5}, pending={"a": 2}, oldest_pending_seconds={"default": 1.5})
    node.slots.header.is_leader = False

    derived = node.collect()

    assert derived["leader_status"] == [(("alpha",), 0.0)]
    of_leader = {metric.name for metric in METRICS if metric.source is Source.LEADER}
    assert not of_leader & derived.keys()


def test_the_leader_exports_its_statistics(node: Node) -> None:
    node.lead(
        enqueued={"a": 5, "b": 1},
        pending={"a": 2},
        oldest_pending_seconds={"default": 1.5},
        estimated=["a"],
    )

    derived = node.collect()

    assert derived["leader_status"] == [(("alpha",), 1.0)]
    assert derived["tasks_enqueued_total"] == [(("a",), 5.0), (("b",), 1.0)]
    assert derived["tasks_pending"] == [(("a",), 2.0)]
    assert derived["orchestrator_oldest_pending_seconds"] == [(("default",), 1.5)]
    assert derived["orchestrator_pending_is_estimated"] == [(("a",), 1.0)]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"enqueued": 3}', '{"pending": {"a": "x"}}'])
def test_statistics_that_cannot_be_read_leave_the_rest_of_the_scrape_alone(
    node: Node, content: str
) -> None:
    node.lead()
    (node.run_directory / "statistics.json").write_text(content)

    derived = node.collect()

    assert "tasks_pending" not in derived
    assert derived["leader_status"] == [(("alpha",), 1.0)]


def test_a_flood_of_type_names_is_added_up_as_other(node: Node) -> None:
    types = {f"type-{number}": 2 for number in range(MAX_LABEL_SETS + 5)}
    queues = {f"queue-{number}": float(number) for number in range(MAX_LABEL_SETS + 5)}
    node.lead(enqueued=types, oldest_pending_seconds=queues)

    derived = node.collect()

    assert len(derived["tasks_enqueued_total"]) == MAX_LABEL_SETS + 1
    assert derived["tasks_enqueued_total"][-1] == (("other",), 10.0)
    oldest = derived["orchestrator_oldest_pending_seconds"][-1]
    assert oldest == (("other",), float(MAX_LABEL_SETS + 4)), "an age is no sum"


def test_every_derived_metric_is_written_under_its_exact_name(node: Node) -> None:
    node.worker(0, "cpu-0", Phase.IDLE)
    node.lead(enqueued={"a": 1}, pending={"a": 1}, oldest_pending_seconds={"q": 1}, estimated=["a"])

    lines = render(node.collect(), directory=node.run_directory).decode().splitlines()

    written = {line.split("{")[0].split(" ")[0] for line in lines if not line.startswith("#")}
    derived = {metric.name for metric in METRICS if metric.source is not Source.PROCESSES}
    assert derived <= written


def test_a_node_with_ready_workers_and_a_session_is_ready(node: Node) -> None:
    node.worker(0, "cpu-0", Phase.RUN)

    assert node.status.reasons() == []


def test_a_node_is_not_ready_before_its_first_worker_is(node: Node) -> None:
    node.worker(0, "cpu-0", Phase.BOOT)
    before = node.status.reasons()

    node.worker(1, "cpu-1", Phase.IDLE)

    assert before == ["starting: no worker has been ready yet"]
    assert node.status.reasons() == []


def test_without_a_session_the_node_is_not_ready(node: Node) -> None:
    node.worker(0, "cpu-0", Phase.IDLE)
    node.slots.header.is_session_ok = False

    assert node.status.reasons() == ["no database: the steward has no session"]


def test_a_silent_steward_makes_the_node_not_ready_though_it_left_its_session_marked_good(
    node: Node,
) -> None:
    node.worker(0, "cpu-0", Phase.IDLE)
    node.beat(seconds_ago=31)

    assert node.status.reasons() == ["no heartbeat for 31 s (worker_timeout 30 s)"]


def test_a_stopping_node_is_not_ready(node: Node) -> None:
    node.worker(0, "cpu-0", Phase.IDLE)
    node.slots.header.is_stopping = True

    assert node.status.reasons() == ["the node is stopping: it claims nothing more"]


def test_a_slot_may_be_without_a_ready_worker_for_30_seconds_and_not_longer(node: Node) -> None:
    node.worker(0, "cpu-0", Phase.IDLE)
    node.worker(1, "cpu-1", Phase.IDLE)
    node.slots.clear(1)

    node.later(29)
    at_29_s = node.status.reasons()
    node.later(2)

    assert at_29_s == []
    assert node.status.reasons() == ["worker cpu-1 has not been ready for 31 s: down"]


def test_a_worker_that_dies_at_every_birth_does_not_look_like_one_that_just_starts(
    node: Node,
) -> None:
    node.worker(0, "cpu-0", Phase.IDLE)
    node.worker(1, "cpu-1", Phase.IDLE)
    node.slots.clear(1)

    node.later(31)
    node.worker(1, "cpu-1", Phase.BOOT)

    assert node.status.reasons() == ["worker cpu-1 has not been ready for 31 s: starting"]


def test_health_tells_what_each_worker_does(node: Node) -> None:
    node.worker(0, "cpu-0", Phase.RUN)
    node.worker(1, "cpu-1", Phase.IDLE)
    node.worker(2, "cpu-2", Phase.BOOT)
    node.worker(3, "cpu-3", Phase.IDLE)
    node.slots.clear(3)
    node.later(2.5)

    health = node.status.health()

    assert [
        {**worker, "seconds": worker["seconds"] and round(worker["seconds"], 1)}
        for worker in health["workers"]
    ] == [
        {
            "slot": "cpu-0", "pool": "cpu", "pid": 4000, "state": "running", "task": 17,
            "seconds": 2.5,
        },
        {
            "slot": "cpu-1", "pool": "cpu", "pid": 4001, "state": "idle", "task": None,
            "seconds": None,
        },
        {
            "slot": "cpu-2", "pool": "cpu", "pid": 4002, "state": "starting", "task": None,
            "seconds": 2.5,
        },
        {
            "slot": "cpu-3", "pool": "cpu", "pid": None, "state": "down", "task": None,
            "seconds": 2.5,
        },
    ]  # fmt: skip


def test_health_tells_who_the_node_is(node: Node) -> None:
    node.worker(0, "cpu-0", Phase.IDLE)

    health = node.status.health()

    assert {key: health[key] for key in ("status", "version", "node", "database", "leader")} == {
        "status": "ready",
        "version": "1.2.3",
        "node": {"id": 7, "name": "alpha"},
        "database": "ok",
        "leader": False,
    }
    assert 0 <= health["uptime_seconds"] < 60
