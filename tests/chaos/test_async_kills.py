"""Async pools under kills, cancels and restarts of the server: nobody innocent is charged.

One storm is raised for all tests of this file; each test then looks at one side of what it left.
The database is compared with a ledger that the handlers write: `start`, then `end`, or `stop` for
a handler that was told to stop, each with the time. The workers of two async pools that share a
queue are killed at moments of chance, and so is the steward; meanwhile some tasks are cancelled.
"""

from __future__ import annotations

import os
import random
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from orchestrator import Client
from tests.ledger import Run
from tests.node import Node, kill_child, running
from tests.server import FAST, OwnServer, own_server
from tests.sql import opened, rows

POOLS = "\n".join(
    f'[[pool]]\nname = "{name}"\nmode = "async"\nconcurrency = {n}\nprocesses = {processes}\n'
    'queues = ["default"]'
    for name, n, processes in (("io", 20, 2), ("few", 1, 1))
)
SETTINGS = {"defaults.max_crashes": "1000", "node.cancel_grace": "2s"}

pytestmark = pytest.mark.timeout(300)


@dataclass
class Span:
    """One run of one attempt as its handler saw it; without an end it was cut short."""

    start_ns: int
    end_ns: int = 0
    how: str = ""


@dataclass
class Storm:
    """What was done, and what was found when it had calmed down."""

    n_tasks: int
    cancelled: set[int]
    restarts: int
    spans: dict[Run, Span] = field(default_factory=dict)
    states: dict[int, str] = field(default_factory=dict)
    attempts: list[tuple[int, int, int, str, dict[str, Any] | None]] = field(default_factory=list)
    exit_code: int = -1

    def charged(self) -> list[tuple[int, int, int, str, dict[str, Any] | None]]:
        """The attempts that were charged to a budget of their task."""
        free = ("succeeded", "cancelled", "released")
        return [attempt for attempt in self.attempts if attempt[3] not in free]


@pytest.fixture(
    scope="module",
    params=[
        pytest.param((1_500, 0), id="everyday"),
        pytest.param((20_000, 6), id="long", marks=[pytest.mark.slow, pytest.mark.timeout(1800)]),
    ],
)
def storm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Storm:
    seed = int(os.environ.get("ORCHESTRATOR_TEST_SEED") or random.randrange(10**6))
    print(f"ORCHESTRATOR_TEST_SEED={seed}")
    folder = tmp_path_factory.mktemp("storm")
    n_tasks, restarts = request.param
    with own_server() as server:
        return raised(server, folder, n_tasks, restarts, random.Random(seed))


def raised(
    server: OwnServer, folder: Path, n_tasks: int, restarts: int, chance: random.Random
) -> Storm:
    """Run the tasks while workers are killed and tasks cancelled; return what was found."""
    ledger = folder / "ledger"
    node_fields = {"pools": POOLS, "handlers": ("tests.async_handlers",), "settings": SETTINGS}
    with running(server.dsn, folder, **node_fields) as node:
        client = Client(server.dsn)
        payloads = [
            {"seconds": chance.choice((0.005, 0.05, 0.3)), "ledger": str(ledger)}
            for _ in range(n_tasks)
        ]
        ids = [task.id for task in client.enqueue_many("io:mixed", payloads)]
        cancelled = set(chance.sample(ids, n_tasks // 10))
        storm = Storm(n_tasks, cancelled, restarts)
        disturb(server, node, client, storm, chance)
        client.close()
        storm.exit_code = node.terminate()
    with opened(server.dsn) as session:
        storm.states = dict(rows(session, "select id, state from tasks"))  # type: ignore[arg-type]
        storm.attempts = rows(  # type: ignore[assignment]
            session, "select id, attempt, pid, outcome, crash from attempts order by 1, 2"
        )
    storm.spans = spans(ledger)
    return storm


def disturb(
    server: OwnServer, node: Node, client: Client, storm: Storm, chance: random.Random
) -> None:
    """Kill, cancel and restart at moments of chance until every task has ended."""
    began = time.monotonic()
    to_cancel = sorted(storm.cancelled)
    chance.shuffle(to_cancel)
    # Each kill of a worker makes suspects, which run one by one; a steward that dies young again
    # and again is not started at once.
    n_workers, steward_at, restart_at = storm.n_tasks // 250, began + 2, began + 5
    restarts = storm.restarts
    while n_live(server.dsn):
        time.sleep(chance.uniform(0, 0.4))
        for _ in range(chance.randrange(len(to_cancel) // 10 + 2)):
            if to_cancel:
                client.cancel(to_cancel.pop())
        now = time.monotonic()
        if n_workers and chance.random() < 0.2 and (workers := node.workers()):
            n_workers -= kill_child(node.pid, chance.choice(sorted(workers.values())))
        if now > steward_at:
            steward_at = now + 15
            kill_child(node.pid, node.child("steward"))
        if restarts and now > restart_at:
            restarts, restart_at = restarts - 1, now + 10
            server.end(FAST)
            server.start()
    print(f"{storm.n_tasks} tasks in {time.monotonic() - began:.1f} s")


def n_live(dsn: str) -> int:
    with opened(dsn) as session:
        return int(rows(session, "select count(*) from task")[0][0]) - int(
            rows(session, "select (select count(*) from outcome) + (select count(*) from dead)")[0][
                0
            ]
        )


def spans(ledger: Path) -> dict[Run, Span]:
    found: dict[Run, Span] = {}
    for line in ledger.read_text().splitlines():
        word, *numbers = line.split()
        task, attempt, pid, at_ns = map(int, numbers)
        if word == "start":
            found[Run(task, attempt, pid)] = Span(at_ns)
        else:
            span = found[Run(task, attempt, pid)]
            span.end_ns, span.how = at_ns, word
    return found


def by_process(storm: Storm) -> dict[int, list[tuple[Run, Span]]]:
    found: dict[int, list[tuple[Run, Span]]] = defaultdict(list)
    for run, span in storm.spans.items():
        found[run.pid].append((run, span))
    return found


def test_every_task_succeeds_or_was_cancelled(storm: Storm) -> None:
    unexpected = {
        id: state
        for id, state in storm.states.items()
        if state != "succeeded" and not (state == "cancelled" and id in storm.cancelled)
    }

    assert len(storm.states) == storm.n_tasks
    assert unexpected == {}


def test_success_is_recorded_once_for_a_handler_that_came_to_its_end(storm: Storm) -> None:
    succeeded = [Run(*a[:3]) for a in storm.attempts if a[3] == "succeeded"]
    came_to_its_end = {run for run, span in storm.spans.items() if span.how == "end"}

    assert len(succeeded) == len({run.task for run in succeeded})
    assert set(succeeded) <= came_to_its_end


def test_attempt_ends_once(storm: Storm) -> None:
    attempts = [(id, attempt) for id, attempt, *_ in storm.attempts]

    assert len(attempts) == len(set(attempts))


def test_only_one_that_ran_with_no_neighbour_is_charged(storm: Storm) -> None:
    processes = by_process(storm)
    cut_short = {
        pid: {run for run, span in runs if not span.how} for pid, runs in processes.items()
    }
    wrongly = [a for a in storm.charged() if cut_short.get(a[2], set()) - {Run(*a[:3])}]

    assert {a[3] for a in storm.charged()} <= {"crashed"}
    assert wrongly == []


def test_suspects_run_with_no_neighbour_in_a_process_that_ends_after_them(storm: Storm) -> None:
    processes = by_process(storm)
    first_alone: dict[int, int] = {}
    for id, attempt, _, outcome, crash in storm.attempts:
        if outcome == "crashed" or (crash or {}).get("cause") == "suspect":
            first_alone.setdefault(id, attempt + 1)
    neighbours = [
        (run, other)
        for runs in processes.values()
        for run, span in runs
        if run.attempt >= first_alone.get(run.task, 1 << 31)
        for other, beside in runs
        if other != run and not (beside.end_ns and beside.end_ns <= span.start_ns)
    ]

    assert first_alone
    assert neighbours == []


def test_node_ends_well_afterwards(storm: Storm) -> None:
    assert storm.exit_code == 0
