"""Every kind of process is killed under load, the supervisor too: the tasks do not notice.

Whoever dies is replaced, what it knew is told to its successor, and what it left undone is done by
those that remain. The witness is a ledger that the handlers write outside the database.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest

from orchestrator import Client
from orchestrator.db.connection import Session
from tests.ledger import Ledger, Run
from tests.node import Node, free_address, running, zombies_of
from tests.sql import backends, count, rows
from tests.support import eventually

WORKERS = 3
KINDS = ("steward", "leader", "forkserver", "web")
SECONDS_BETWEEN_KILLS = 0.4

# Kills at random must not use up a task's budgets: this is about none being lost.
SETTINGS = {
    "defaults.max_crashes": "1000",
    "defaults.max_losses": "1000",
    "logging.level": "info",
}


@pytest.mark.parametrize(
    ("n_tasks", "n_supervisors"),
    [
        pytest.param(1_200, 2, marks=pytest.mark.timeout(240)),
        pytest.param(20_000, 20, marks=[pytest.mark.slow, pytest.mark.timeout(3600)]),
    ],
)
def test_tasks_end_once_while_processes_of_every_kind_are_killed(
    dsn: str, tmp_path: Path, session: Session, n_tasks: int, n_supervisors: int
) -> None:
    seed = int(os.environ.get("ORCHESTRATOR_TEST_SEED") or random.randrange(10**6))
    print(f"ORCHESTRATOR_TEST_SEED={seed}")
    chance = random.Random(seed)
    ledger = tmp_path / "ledger"
    client = Client(dsn)
    client.enqueue_many(
        "burn",
        [{"milliseconds": chance.uniform(1, 20), "ledger": str(ledger)} for _ in range(n_tasks)],
    )
    settings = {**SETTINGS, "web.bind": free_address()}

    with running(dsn, tmp_path / "node", processes=WORKERS, settings=settings) as node:
        began = time.monotonic()
        killed: Counter[str] = Counter()
        while (n_ended := count(session, "outcome")) < n_tasks:
            assert time.monotonic() < began + 60 + n_tasks * 0.1, f"stuck at {n_ended} of {n_tasks}"
            time.sleep(chance.uniform(0.0, 2 * SECONDS_BETWEEN_KILLS))
            if n_ended > (killed["supervisor"] + 1) * n_tasks // (n_supervisors + 1):
                replace_supervisor(node)
                killed["supervisor"] += 1
            else:
                killed[kill_one(node, chance)] += 1
        print(f"{n_tasks} tasks, {time.monotonic() - began:.1f} s, killed: {dict(killed)}")

        assert_each_ended_once(session, n_tasks, Ledger(ledger))
        assert killed["supervisor"] == n_supervisors
        workers = [f"orchestrator cpu-{number}" for number in range(WORKERS)]
        ours = [*workers, "orchestrator leader", "orchestrator steward"]
        eventually(lambda: without_client(backends(session)) == ours, timeout=30)
        eventually(lambda: not zombies_of(node.pid))
        assert node.terminate() == 0
        assert node.pids() == []
    eventually(lambda: without_client(backends(session)) == [])
    client.close()


def kill_one(node: Node, chance: random.Random) -> str:
    """Kill a child, three times in four a worker; return of which kind."""
    kind = chance.choice([*KINDS, *["worker"] * 3 * len(KINDS)])
    if kind == "worker":
        pids = list(node.workers().values())
    else:
        pids = [pid for pid in node.pids() if title(pid) == f"orc-{kind}"]
    if not pids:
        return "nobody"
    with suppress(ProcessLookupError):
        os.kill(chance.choice(pids), signal.SIGKILL)
    return kind


def title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def replace_supervisor(node: Node) -> None:
    """Kill the supervisor and start another daemon at once, beside what is left of the first."""
    assert node.process is not None
    node.process.kill()
    node.process.wait(5)
    node.start(wait=False)


def without_client(names: list[str]) -> list[str]:
    return [name for name in names if name != "orchestrator client"]


def assert_each_ended_once(session: Session, n_tasks: int, ledger: Ledger) -> None:
    states = dict(rows(session, "select state, count(*) from tasks group by 1"))  # type: ignore[arg-type]
    assert states == {"succeeded": n_tasks}
    ends = {Run(*row) for row in rows(session, "select id, attempt, pid from outcome")}
    others = rows(session, "select id, attempt, pid, outcome from attempt")
    # What is said to have ended did come to its end, and what was cut short is on record as that.
    assert ends - set(ledger.ended) == set()
    assert ledger.cut_short - {Run(*row[:3]) for row in others} == set()
    assert {outcome for *_, outcome in others} <= {"crashed", "released"}
    started_twice = Counter((run.task, run.attempt) for run in ledger.started)
    assert [attempt for attempt, n in started_twice.items() if n > 1] == []
