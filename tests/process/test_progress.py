"""What handlers say of how far they are: seen while they run, at a bounded pace, never a harm."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator import Client, Progress, State
from orchestrator.db.connection import Session
from tests.node import Node, running
from tests.server import FAST, own_server
from tests.sql import rows
from tests.support import eventually, never

POOLS = """
[[pool]]
name = "cpu"
processes = 1
queues = ["default"]

[[pool]]
name = "io"
mode = "async"
concurrency = 50
processes = 1
queues = ["io"]
"""
HANDLERS = ("tests.progress_handlers",)

# Each word that reaches the table, in its order.
WITNESS = """
    create table public.word (id bigint generated always as identity, task bigint, done float8,
                              at timestamptz default clock_timestamp(), xid text);
    create function public.witness() returns trigger language plpgsql as $$ begin
        insert into public.word (task, done, xid) values (new.id, new.done, txid_current()::text);
        return null; end $$;
    create trigger witness after insert or update on orchestrator.progress
        for each row execute function public.witness()
"""


@pytest.fixture
def node(dsn: str, session: Session, tmp_path: Path) -> Iterator[Node]:
    rows(session, WITNESS)
    with running(dsn, tmp_path / "node", processes=2, pools=POOLS, handlers=HANDLERS) as node:
        yield node


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """A file that handlers wait for."""
    return tmp_path / "gate"


def progress(client: Client, task: int) -> Progress | None:
    return client.get(task).progress


def words(session: Session, task: int) -> list[float]:
    found = rows(session, "select done from public.word where task = %(t)s order by id", t=task)
    return [done for (done,) in found]


SAYING = pytest.mark.parametrize(
    ("type", "queue"), [("say", "default"), ("io:say", "io")], ids=["process", "async"]
)


@SAYING
def test_progress_is_seen_while_the_task_runs(
    node: Node, client: Client, gate: Path, type: str, queue: str
) -> None:
    task = client.enqueue(type, {"words": 1, "until": str(gate)}, queue=queue)

    said = eventually(lambda: progress(client, task.id))

    assert (said.done, said.total, said.message) == (0.0, 1.0, "page 1")
    assert said.at.tzinfo is not None
    assert client.get(task).state is State.RUNNING
    gate.touch()
    assert client.wait(task, timeout=20).state is State.SUCCEEDED


def test_burst_of_words_is_cut_to_ten_and_the_last_one_is_kept(
    node: Node, client: Client, session: Session, gate: Path
) -> None:
    task = client.enqueue("say", {"words": 500, "until": str(gate)})
    eventually(lambda: len(words(session, task.id)) >= 10)

    gate.touch()
    ended = client.wait(task, timeout=20)

    # Saying 500 words takes a moment, in which one or two more may be due.
    written = words(session, task.id)
    assert written[:10] == list(range(10))
    assert written[-1] == 499
    assert len(written) <= 10 + 2 * (ended.result + 1) + 1
    assert ended.progress is not None
    assert (ended.progress.done, ended.progress.total) == (499, 500)


def test_words_of_async_handlers_are_written_together_twice_a_second_and_the_last_is_kept(
    node: Node, client: Client, session: Session
) -> None:
    tasks = client.enqueue_many("io:say", [{"words": 100, "pause": 0.015}] * 40, queue="io")
    # Ends all the while, which keep the desk busy.
    client.enqueue_many("io:say", [{"words": 1, "pause": 0.02}] * 400, queue="io")

    ended = [client.wait(task, timeout=20) for task in tasks]

    # The last words go with the ends, which are reported in batches.
    ids = [task.id for task in tasks]
    n_writes, seconds = rows(
        session,
        "select count(distinct xid), extract(epoch from max(at) - min(at))::float8 "
        "from public.word where done < 99 and task = any (%(ids)s)",
        ids=ids,
    )[0]
    assert {task.progress.done for task in ended if task.progress} == {99}
    assert 1 <= n_writes <= 2 * (seconds + 1)


def test_text_that_no_database_takes_is_cleaned_and_a_long_one_loses_its_middle(
    node: Node, client: Client, gate: Path
) -> None:
    task = client.enqueue("say:odd", {"until": str(gate)})

    said = eventually(lambda: progress(client, task.id))
    gate.touch()

    assert said.message.startswith("a\ufffdb\ufffdcxxx")
    assert said.message.endswith("xxxend")
    assert len(said.message.encode()) <= 500
    assert client.wait(task, timeout=20).state is State.SUCCEEDED


def test_word_of_a_thread_is_seen_and_those_after_the_end_disturb_nobody(
    node: Node, client: Client, session: Session, gate: Path
) -> None:
    task = client.enqueue("say:thread", {"until": str(gate)})
    eventually(lambda: progress(client, task.id))
    gate.touch()
    ended = client.wait(task, timeout=20)
    written = words(session, task.id)

    others = [client.wait(client.enqueue("say", {"words": 3}), timeout=20) for _ in range(20)]

    assert {other.state for other in others} == {State.SUCCEEDED}
    assert [words(session, other.id)[-1] for other in others] == [2.0] * 20
    assert words(session, task.id) == written
    assert progress(client, task.id) == ended.progress
    assert node.events("database.lost", "progress.refused") == []


def test_word_of_a_thread_of_an_async_handler_is_seen(
    node: Node, client: Client, gate: Path
) -> None:
    task = client.enqueue("io:thread", {"until": str(gate)}, queue="io")

    said = eventually(lambda: progress(client, task.id))
    gate.touch()

    assert (said.done, said.total, said.message) == (7.0, 9.0, "in a thread")


@SAYING
def test_words_that_the_database_refuses_are_dropped_and_the_task_goes_on(
    node: Node, client: Client, session: Session, type: str, queue: str
) -> None:
    rows(session, "alter table orchestrator.progress add check (done < 0)")

    ended = client.wait(client.enqueue(type, {"words": 20}, queue=queue), timeout=20)

    assert (ended.state, ended.attempt, ended.progress) == (State.SUCCEEDED, 1, None)


def test_words_are_dropped_while_the_database_is_away_and_come_back_with_it(
    tmp_path: Path, gate: Path
) -> None:
    with (
        own_server() as own,
        running(own.dsn, tmp_path / "node", processes=1, handlers=HANDLERS) as node,
    ):
        client = Client(own.dsn)
        task = client.enqueue("say:often", {"until": str(gate)})
        eventually(lambda: progress(client, task.id))

        own.end(FAST)
        eventually(lambda: node.events("database.lost"))
        never(lambda: node.workers() == {}, during=2)
        own.start()
        before = eventually(lambda: progress(client, task.id))
        eventually(lambda: progress(client, task.id).done > before.done, timeout=20)

        gate.touch()
        ended = client.wait(task, timeout=20)
        client.close()
    assert (ended.state, ended.attempt) == (State.SUCCEEDED, 1)
    # One word waits for a refused connection at most, and that is refused at once.
    assert ended.result < 2.0
