"""Effects of handlers under kills: what they wrote is there once for each success, else not at all.

One storm is raised for all tests of this file. Its handlers write several rows each, with time in
between, and a trigger makes each COMMIT take a while, so that kills fall before, in and after both.
Killed are workers (SIGKILL), their sessions on the server, and the steward once; meanwhile tasks
are cancelled. The witness is the table that the handlers wrote into.
"""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from orchestrator import Client
from orchestrator.db.connection import Session
from tests import booking_handlers
from tests.node import Node, kill_child, running
from tests.server import own_server
from tests.sql import opened, rows, value
from tests.support import eventually

WORKERS = 4
SECONDS_BETWEEN_KILLS = 0.12
# Of all kills, so many more hit a session on the server.
SESSIONS_PER_WORKER = 0.4
FATES = ("succeed", "succeed", "succeed", "succeed", "fail once", "die")

SLOW_COMMITS = """
    create function public.dawdle() returns trigger language plpgsql as $$
        begin perform pg_sleep(0.002); return null; end $$;
    create constraint trigger dawdle after insert on public.booking
        deferrable initially deferred for each row execute function public.dawdle()
"""

pytestmark = pytest.mark.timeout(180)


@dataclass
class Ended:
    """One task, and what its handler left."""

    id: int
    state: str
    payload: dict[str, Any]
    attempt: int  # that of its success
    pid: int
    written: list[tuple[int, int, int]]  # attempt, pid, number
    pages: int  # that it enqueued


@dataclass
class Storm:
    n_kills: int
    ended: list[Ended]
    phases: Counter[str]  # of the workers that were killed
    is_running: int
    left_in_transaction: int


@pytest.fixture(
    scope="module",
    params=[40, pytest.param(500, marks=[pytest.mark.slow, pytest.mark.timeout(900)])],
    ids=lambda n_kills: f"{n_kills} kills",
)
def storm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Storm:
    seed = int(os.environ.get("ORCHESTRATOR_TEST_SEED") or random.randrange(10**6))
    print(f"ORCHESTRATOR_TEST_SEED={seed}")
    folder = tmp_path_factory.mktemp("effects")
    with own_server() as server, opened(server.dsn) as session:
        rows(session, booking_handlers.CREATE)
        rows(session, SLOW_COMMITS)
        return raised(server.dsn, session, folder, request.param, random.Random(seed))


def raised(dsn: str, session: Session, folder: Path, n_kills: int, chance: random.Random) -> Storm:
    client = Client(dsn)
    began = time.monotonic()
    with running(dsn, folder, processes=WORKERS, handlers=("tests.booking_handlers",)) as node:
        killed = set(rage(node, client, session, n_kills, chance))
        eventually(
            lambda: value(session, "select count(*) from task") == n_ended(session), timeout=60
        )
        node.terminate()
        deaths = [event for event in node.events("process.died") if event["child"] in killed]
    client.close()
    phases = Counter(death["phase"] for death in deaths)
    storm = Storm(
        n_kills=len(killed),
        ended=list(found(session)),
        phases=phases,
        is_running=value(session, "select count(*) from running"),
        left_in_transaction=value(
            session, "select count(*) from pg_stat_activity where state like 'idle in %%'"
        ),
    )
    states = Counter(task.state for task in storm.ended)
    n_rows = sum(len(task.written) for task in storm.ended)
    print(
        f"{len(killed)} kills in {time.monotonic() - began:.0f} s: {dict(phases)}; "
        f"{dict(states)}; {n_rows} rows"
    )
    return storm


def rage(
    node: Node, client: Client, session: Session, n_kills: int, chance: random.Random
) -> Iterator[int]:
    """Kill at moments of chance, while there is always more to do; yield the workers' pids."""
    killed: set[int] = set()
    while len(killed) < n_kills:
        if value(session, "select count(*) from ready") < 50:
            enqueue(client, chance)
        time.sleep(chance.expovariate(1 / SECONDS_BETWEEN_KILLS))
        pid = chance.choice([*node.workers().values(), 0])
        # It may take a moment to die: the same one is not killed, nor counted, twice.
        if pid and pid not in killed and kill_child(node.pid, pid):
            killed.add(pid)
            yield pid
            if len(killed) == n_kills // 2:
                kill_child(node.pid, node.child("steward"))
        if chance.random() < SESSIONS_PER_WORKER:
            terminate_one(session, chance)
        if chance.random() < 0.1:
            cancel_one(client, session)


def enqueue(client: Client, chance: random.Random) -> None:
    client.enqueue_many(
        "book",
        [
            {
                "rows": chance.randint(1, 5),
                "pages": chance.randint(0, 2),
                "pause": chance.uniform(0, 0.008),
                "fate": chance.choice(FATES),
            }
            for _ in range(50)
        ],
    )


def terminate_one(session: Session, chance: random.Random) -> None:
    """End a session of a worker: the one that it claims by, or that of its effects."""
    pids = rows(
        session,
        "select pid from pg_stat_activity where application_name like 'orchestrator cpu-%%' "
        "order by 1",
    )
    if pids:
        rows(session, "select pg_terminate_backend(%(pid)s)", pid=chance.choice(pids)[0])


def cancel_one(client: Client, session: Session) -> None:
    for (id,) in rows(session, "select id from running order by random() limit 1"):
        client.cancel(id)


def n_ended(session: Session) -> int:
    ended = "select (select count(*) from outcome) + (select count(*) from dead)"
    return int(value(session, ended))


def found(session: Session) -> Iterator[Ended]:
    tasks = rows(
        session,
        "select t.id, t.state, b.payload, coalesce(o.attempt, 0), coalesce(o.pid, 0), "
        "(select coalesce(jsonb_agg(jsonb_build_array(k.attempt, k.pid, k.number) "
        "order by k.number), '[]') from public.booking k where k.task = t.id), "
        "(select count(*) from task c where c.payload ->> 'of' = t.id::text) "
        "from tasks t join task b on b.id = t.id left join outcome o on o.id = t.id order by t.id",
    )
    for id, state, payload, attempt, pid, written, pages in tasks:
        yield Ended(id, state, payload, attempt, pid, [tuple(row) for row in written], pages)


def succeeded(storm: Storm) -> list[Ended]:
    return [task for task in storm.ended if task.state == "succeeded"]


def test_storm_was_one(storm: Storm) -> None:
    states = {task.state for task in storm.ended}

    assert storm.n_kills in (40, 500)
    assert storm.phases["run"] >= storm.n_kills // 4
    assert len(succeeded(storm)) >= storm.n_kills
    assert states >= {"succeeded", "dead"}


def test_rows_are_as_many_as_the_successes_make_in_all(storm: Storm) -> None:
    n_rows = sum(len(task.written) for task in storm.ended)

    assert n_rows == sum(task.payload["rows"] for task in succeeded(storm))


def test_each_success_has_each_of_its_rows_once_by_the_attempt_that_succeeded(
    storm: Storm,
) -> None:
    wrong = [
        task
        for task in succeeded(storm)
        if task.written != [(task.attempt, task.pid, n) for n in range(task.payload["rows"])]
    ]

    assert wrong == []


def test_task_that_did_not_succeed_has_no_row(storm: Storm) -> None:
    assert [task for task in storm.ended if task.state != "succeeded" and task.written] == []


def test_tasks_enqueued_by_handlers_are_there_for_each_success_and_for_nothing_else(
    storm: Storm,
) -> None:
    wrong = [
        task
        for task in storm.ended
        if task.pages != (task.payload["pages"] if task.state == "succeeded" else 0)
    ]

    assert wrong == []


def test_nothing_is_left_running_nor_in_a_transaction(storm: Storm) -> None:
    assert (storm.is_running, storm.left_in_transaction) == (0, 0)
