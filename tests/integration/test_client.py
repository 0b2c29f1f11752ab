"""The client on a real database: enqueue, idempotency, moving tasks, ends."""

from __future__ import annotations

import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator import (
    Client,
    DatabaseUnavailable,
    IdempotencyConflict,
    PayloadError,
    State,
    Task,
    TaskFailed,
    TaskNotFound,
    TaskType,
)
from orchestrator.db.connection import Session, connect
from orchestrator.outcome import Ending, Outcome
from orchestrator.store.fail import fail
from orchestrator.store.finish import finish
from tests.integration.test_attempts import failure, register, take


@dataclass
class Mail:
    to: str
    copies: int = 1


# -- enqueue


def test_enqueued_task_reads_back_with_all_its_options(client: Client) -> None:
    task = client.enqueue(
        "email:send", {"to": "a"}, queue="mail", priority=-7, max_attempts=4, timeout="30s",
        ttl="1h", tags=["x", "y"], headers={"trace": "t"}, idempotency_key="k",
    )  # fmt: skip

    found = client.get(task)

    assert (found.type, found.queue, found.state) == ("email:send", "mail", State.READY)
    assert (found.payload, found.priority, found.max_attempts) == ({"to": "a"}, -7, 4)
    assert (set(found.tags), found.headers) == ({"x", "y"}, {"trace": "t"})
    assert found.idempotency_key == "k"
    assert found.created_at is not None
    assert found.created_at.utcoffset() == timedelta(0)


def test_typed_payload_and_defaults_come_from_the_task_type(client: Client) -> None:
    mail = TaskType("email:send", Mail, queue="mail", priority=3)

    found = client.get(client.enqueue(mail, Mail("a")).id)

    assert (found.payload, found.queue, found.priority) == ({"to": "a", "copies": 1}, "mail", 3)


@pytest.mark.parametrize("option", ["delay", "run_at"])
def test_postponed_task_is_scheduled(client: Client, option: str) -> None:
    later = datetime.now(UTC) + timedelta(hours=1)
    options: dict[str, Any] = {"delay": "1h"} if option == "delay" else {"run_at": later}

    found = client.get(client.enqueue("a", **options))

    assert found.state is State.SCHEDULED
    assert found.run_at is not None
    assert abs(found.run_at - later) < timedelta(minutes=1)


@pytest.mark.parametrize(
    ("payload", "path"),
    [
        ({"a": [1, float("nan")]}, "a[1]"),
        ({"a": "x\0y"}, "a"),
        ({"a": {"b": "\ud800"}}, "a.b"),
        ({"big": "x" * 300_000}, ""),
    ],
)
def test_payload_that_jsonb_would_refuse_is_refused_with_its_path(
    client: Client, payload: Any, path: str
) -> None:
    with pytest.raises(PayloadError) as caught:
        client.enqueue("a", payload)

    assert path in str(caught.value)
    assert list(client.tasks()) == []


@settings(
    max_examples=150, deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
@given(
    payload=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
        max_leaves=12,
    )
)
def test_any_json_is_stored_and_comes_back_equal_or_is_refused(
    client: Client, payload: Any
) -> None:
    try:
        task = client.enqueue("a", payload)
    except PayloadError:
        return

    assert client.get(task).payload == json.loads(json.dumps(payload))


def test_enqueue_many_keeps_the_order_and_is_one_transaction(client: Client) -> None:
    tasks = client.enqueue_many("a", [{"n": n} for n in range(2500)])

    assert [client.get(tasks[n]).payload["n"] for n in (0, 1000, 2499)] == [0, 1000, 2499]
    with pytest.raises(PayloadError, match=r"payloads\[1500\]"):
        client.enqueue_many("b", [{}] * 1500 + [{"n": float("inf")}])
    assert list(client.tasks(type="b")) == []


# -- the caller's transaction


def test_enqueue_in_a_transaction_exists_after_its_commit_only(client: Client, dsn: str) -> None:
    connection = psycopg2.connect(dsn)

    rolled_back = client.enqueue("a", conn=connection)
    connection.rollback()
    committed = client.enqueue("a", conn=connection)
    unseen = list(client.tasks())
    connection.commit()
    connection.close()

    assert unseen == []
    assert client.get(committed).state is State.READY
    with pytest.raises(TaskNotFound):
        client.get(rolled_back)


def test_plain_sql_enqueues_the_same(client: Client, session: Session) -> None:
    with session.connection.cursor() as cursor:
        cursor.execute(
            "select orchestrator.enqueue('a', '{\"n\": 1}', priority => 5, "
            "idempotency_key => 'k', tags => array['t'])"
        )
        by_sql = cursor.fetchone()[0]

    again = client.enqueue("a", {"n": 2}, idempotency_key="k")

    assert (again.id, again.existing) == (by_sql, True)
    assert client.get(by_sql).payload == {"n": 1}


# -- idempotency


def test_fifty_concurrent_enqueuers_with_one_key_make_one_task(dsn: str, session: Session) -> None:
    barrier = threading.Barrier(50)

    def enqueue(_: int) -> tuple[int, bool]:
        with Client(dsn, pool_size=1) as own:
            barrier.wait()
            task = own.enqueue("a", {}, idempotency_key="same")
            return task.id, task.existing

    with ThreadPoolExecutor(50) as pool:
        results = list(pool.map(enqueue, range(50)))

    assert len({task_id for task_id, _ in results}) == 1
    assert [existing for _, existing in results].count(False) == 1


def test_concurrent_batches_with_overlapping_keys_neither_deadlock_nor_double(
    dsn: str, client: Client
) -> None:
    keys = [f"k{n}" for n in range(60)]

    def enqueue(number: int) -> list[int]:
        mine = keys[number:] + keys[:number]
        with Client(dsn, pool_size=1) as own:
            tasks = own.enqueue_many("a", [{}] * 60, idempotency_keys=mine)
        return [task.id for _, task in sorted(zip(mine, tasks, strict=True))]

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(enqueue, range(0, 56, 7)))

    assert all(result == results[0] for result in results)
    assert len(list(client.tasks())) == 60


def test_same_key_twice_in_one_batch_is_one_task(client: Client) -> None:
    first, second, third = client.enqueue_many(
        "a", [{"n": 1}, {"n": 2}, {"n": 3}], idempotency_keys=["k", "k", None]
    )

    assert (first.id, first.existing) == (second.id, False)
    assert second.existing
    assert third.id != first.id


def test_key_is_of_one_queue(client: Client) -> None:
    one = client.enqueue("a", idempotency_key="k", queue="one")
    two = client.enqueue("a", idempotency_key="k", queue="two")

    assert one.id != two.id


# -- ends


def end(session: Session, outcome: Outcome) -> None:
    node = register(session, "ender")
    (claimed,) = take(session, node, token=9)
    if outcome.ending is Ending.SUCCEEDED:
        finish(session, [(claimed, outcome)])
    else:
        fail(session, task_id=claimed.task_id, token=9, outcome=outcome)


def test_result_is_the_handlers_and_a_failed_task_raises(client: Client, session: Session) -> None:
    good = client.enqueue("a")
    end(session, Outcome(ending=Ending.SUCCEEDED, result=b'{"n": 1}'))
    bad = client.enqueue("a")
    end(session, failure(dead_reason="enough", delay=0.0))

    assert client.result(good, timeout=5) == {"n": 1}
    with pytest.raises(TaskFailed, match="dead"):
        client.result(bad, timeout=5)


def test_wait_gives_up_after_its_timeout(client: Client) -> None:
    task = client.enqueue("a")

    with pytest.raises(TimeoutError):
        client.wait(task, timeout=0.2)


def test_redrive_gives_new_budgets_and_keeps_counting_attempts(
    client: Client, session: Session
) -> None:
    task = client.enqueue("a")
    end(session, failure(dead_reason="enough", delay=0.0))

    redriven = client.redrive(task)

    assert (redriven.state, redriven.attempt) == (State.READY, 1)
    assert [a.error for a in client.get(task).attempts] == ["ValueError: no"]


def test_redrive_of_a_task_whose_key_is_taken_names_the_other(
    client: Client, session: Session
) -> None:
    task = client.enqueue("a", idempotency_key="k")
    end(session, failure(dead_reason="enough", delay=0.0))
    other = client.enqueue("a", idempotency_key="k")

    with pytest.raises(IdempotencyConflict, match=str(other.id)):
        client.redrive(task)

    assert client.get(task).state is State.DEAD


def test_cancel_of_a_waiting_task_ends_it_and_frees_its_key(client: Client) -> None:
    task = client.enqueue("a", idempotency_key="k")

    cancelled = client.cancel(task)

    assert cancelled.state is State.CANCELLED
    assert client.enqueue("a", idempotency_key="k").id != task.id


def test_unknown_task_is_not_found(client: Client) -> None:
    for verb in (client.get, client.cancel, client.redrive):
        with pytest.raises(TaskNotFound):
            verb(424242)


# -- tasks that move meanwhile


def keep_moving(dsn: str, stop: threading.Event) -> None:
    """Claim, fail, promote, release and redrive whatever there is, round and round."""
    session = connect(dsn, schema="orchestrator", application_name="mover")
    node = register(session, "mover")
    token = 0
    with session.connection.cursor() as cursor:
        while not stop.is_set():
            token += 1
            for claimed in take(session, node, token=token, limit=3):
                if token % 3 == 0:
                    cursor.execute(
                        "select orchestrator.release(array[%s]::bigint[], array[%s]::bigint[])",
                        (claimed.task_id, token),
                    )
                    continue
                delay = 0.0 if token % 2 else 0.0001
                dead = "enough" if token % 5 == 0 else None
                fail(
                    session, task_id=claimed.task_id, token=token,
                    outcome=failure(limit=30000, delay=delay, dead_reason=dead),
                )  # fmt: skip
            cursor.execute("select orchestrator.promote(100)")
            cursor.execute("select orchestrator.redrive(id) from orchestrator.dead")
    session.close()


@pytest.mark.parametrize("tries", [1500, pytest.param(10_000, marks=pytest.mark.slow)])
def test_moving_task_is_always_found(dsn: str, client: Client, tries: int) -> None:
    stop = threading.Event()
    mover = threading.Thread(target=keep_moving, args=(dsn, stop))
    mover.start()
    states: set[State] = set()
    tasks: list[Task[Any]] = []

    try:
        for number in range(tries):
            if number % 50 == 0:  # fresh ones, since each move adds an attempt to be read
                for task in tasks:
                    client.cancel(task)
                tasks = client.enqueue_many("a", [{}] * 3)
            states.add(client.get(tasks[number % 3]).state)
    finally:
        stop.set()
        mover.join()

    assert len(states) >= 3  # it did move


@pytest.mark.parametrize("tries", [300, pytest.param(3_000, marks=pytest.mark.slow)])
def test_moving_task_can_always_be_cancelled(dsn: str, client: Client, tries: int) -> None:
    stop = threading.Event()
    mover = threading.Thread(target=keep_moving, args=(dsn, stop))
    mover.start()

    try:
        tasks = client.enqueue_many("a", [{}] * tries)
        seen = {client.cancel(task).state for task in tasks}
    finally:
        stop.set()
        mover.join()

    assert State.CANCELLED in seen  # and none was "not found"


# -- connections


def test_client_survives_the_end_of_its_sessions(client: Client, session: Session) -> None:
    first = client.enqueue("a")
    with session.connection.cursor() as cursor:
        cursor.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity "
            "where application_name = 'orchestrator client' and datname = current_database()"
        )

    second = client.enqueue("a")

    assert second.id > first.id


def test_client_works_on_in_a_forked_child(client: Client) -> None:
    client.enqueue("a")
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(writer, str(client.enqueue("a").id).encode())
        os._exit(0)
    os.waitpid(pid, 0)

    in_child = int(os.read(reader, 100))

    assert client.get(in_child).id == in_child
    assert client.enqueue("a").id > in_child


def test_server_that_is_not_there_is_unavailable_and_says_where() -> None:
    with pytest.raises(DatabaseUnavailable, match=r"127\.0\.0\.1"):
        Client("postgresql://u:secret@127.0.0.1:1/x").enqueue("a")


def test_batch_of_one_statement_is_undone_when_its_progress_raises(client: Client) -> None:
    def stop(done: int, total: int) -> None:
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        client.enqueue_many("a", [1, 2], on_progress=stop)

    assert list(client.tasks()) == []


@pytest.mark.parametrize(
    "filters",
    [
        {"queue": 5}, {"tag": ["a"]}, {"type": 5}, {"type": "a\0b"}, {"error": b"x"},
        {"state": 5}, {"state": "gone"}, {"limit": "5"}, {"limit": True},
    ],
    ids=repr,
)  # fmt: skip
def test_filter_of_a_wrong_kind_is_refused_by_name(client: Client, filters: Any) -> None:
    (name,) = filters

    with pytest.raises(PayloadError, match=f"^{name} = "):
        list(client.tasks(**filters))


@pytest.mark.parametrize("payloads", [{"a": 1}, "abc", b"abc", 5, None], ids=repr)
def test_one_payload_is_not_taken_for_many(client: Client, payloads: Any) -> None:
    with pytest.raises(PayloadError, match=r"^payloads are a .*one payload per task"):
        client.enqueue_many("a", payloads)

    assert list(client.tasks()) == []


def test_misspelt_option_of_many_is_named_with_those_that_there_are(client: Client) -> None:
    with pytest.raises(TypeError, match=r"enqueue_many\(\).*'prio'.*priority"):
        client.enqueue_many("a", [1], prio=1)  # type: ignore[call-overload]
