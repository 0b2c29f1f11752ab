"""One live task per queue and key, whoever asks, however many at once, and in batches."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import psycopg2
import pytest

from orchestrator import Client, PayloadError, Task
from orchestrator.db.connection import Session
from tests.sql import count, rows, value
from tests.support import eventually

T = TypeVar("T")
N_CALLERS = 50


@pytest.fixture(autouse=True)
def known_type(session: Session) -> None:
    # Whoever enqueues the first task of a type holds up all others until the commit, and no two
    # callers would ever meet at a key.
    rows(session, "select intern_type('a')")


def at_once(dsn: str, call: Callable[[Client, int], T]) -> list[T]:
    """Let `call(client, number)` run in 50 threads at the same moment, each on its own session."""
    barrier = threading.Barrier(N_CALLERS)

    def run(number: int) -> T:
        with Client(dsn, pool_size=1) as own:
            own.ring()  # connected before the start
            barrier.wait()
            return call(own, number)

    with ThreadPoolExecutor(N_CALLERS) as threads:
        return list(threads.map(run, range(N_CALLERS)))


def test_fifty_callers_with_one_key_get_one_task_and_one_of_them_made_it(
    dsn: str, session: Session
) -> None:
    tasks = at_once(dsn, lambda client, n: client.enqueue("a", n, idempotency_key="k"))

    assert len({task.id for task in tasks}) == 1
    assert Counter(task.existing for task in tasks) == {False: 1, True: N_CALLERS - 1}
    assert count(session, "task") == count(session, "ready") == 1


def test_existing_task_is_the_one_that_was_made_not_the_one_that_was_asked_for(dsn: str) -> None:
    tasks = at_once(dsn, lambda client, n: client.enqueue("a", n, idempotency_key="k"))

    (made,) = {task.payload for task in tasks if not task.existing}
    assert {task.payload for task in tasks} == {made}


def test_fifty_batches_with_the_same_keys_make_each_task_once(dsn: str, session: Session) -> None:
    keys = [f"k{n}" for n in range(40)]

    def enqueue(client: Client, number: int) -> dict[str, Task[int]]:
        mine = keys[number % 40 :] + keys[: number % 40]  # each in another order
        tasks = client.enqueue_many("a", range(40), idempotency_keys=mine)
        return dict(zip(mine, tasks, strict=True))

    answers = at_once(dsn, enqueue)

    assert count(session, "task") == count(session, "ready") == 40
    for key in keys:
        assert len({answer[key].id for answer in answers}) == 1
        assert sum(not answer[key].existing for answer in answers) == 1


def n_waiting(session: Session) -> int:
    return int(
        value(
            session,
            "select count(*) from pg_stat_activity where wait_event_type = 'Lock' "
            "and application_name = 'orchestrator client' and datname = current_database()",
        )
    )


def test_callers_that_wait_for_one_key_do_not_hold_keys_that_come_after_it(
    dsn: str, session: Session
) -> None:
    keys = [f"k{n:03}" for n in range(100)]
    holder = psycopg2.connect(dsn)
    Client().enqueue("a", idempotency_key="k050", conn=holder)

    def enqueue(number: int) -> set[int]:
        mine = random.Random(number).sample(keys, 100)
        with Client(dsn, pool_size=1) as own:
            return {task.id for task in own.enqueue_many("a", keys, idempotency_keys=mine)}

    with ThreadPoolExecutor(6) as threads:
        futures = [threads.submit(enqueue, number) for number in range(6)]
        eventually(lambda: n_waiting(session) == 6)
        holder.commit()
        answers = [future.result(30) for future in futures]

    assert all(answer == answers[0] for answer in answers)
    assert count(session, "task") == len(keys)
    holder.close()


def test_key_that_is_freed_while_another_is_waited_for_gets_a_new_task(
    dsn: str, client: Client, session: Session
) -> None:
    old = client.enqueue("a", idempotency_key="k1")
    holder = psycopg2.connect(dsn)
    held = client.enqueue("a", idempotency_key="k2", conn=holder)

    with ThreadPoolExecutor(1) as thread:
        future = thread.submit(client.enqueue_many, "a", [1, 2], idempotency_keys=["k1", "k2"])
        eventually(lambda: n_waiting(session) == 1)
        client.cancel(old)
        holder.commit()
        first, second = future.result(30)

    assert (second.id, second.existing) == (held.id, True)
    assert (first.existing, first.id != old.id) == (False, True)
    assert client.get(first).payload == 1
    holder.close()


def test_batches_of_several_statements_with_opposite_keys_do_not_deadlock(
    dsn: str, session: Session
) -> None:
    keys = [f"k{n:04}" for n in range(2200)]
    barrier = threading.Barrier(4)

    def enqueue(number: int) -> list[int]:
        mine = keys if number % 2 else keys[::-1]
        with Client(dsn, pool_size=1) as own:
            barrier.wait()
            tasks = own.enqueue_many("a", [None] * len(mine), idempotency_keys=mine)
        return [task.id for _, task in sorted(zip(mine, tasks, strict=True))]

    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(enqueue, range(4)))

    assert all(answer == answers[0] for answer in answers)
    assert count(session, "task") == len(keys)


def test_large_batch_answers_in_the_order_of_its_payloads(client: Client) -> None:
    numbers = list(range(2200))
    keys = [f"k{(n * 7919) % 2200}" for n in numbers]

    tasks = client.enqueue_many("a", numbers, idempotency_keys=keys)

    assert [task.payload for task in tasks] == numbers
    assert [task.idempotency_key for task in tasks] == keys
    assert [client.get(tasks[n].id).payload for n in (0, 999, 1000, 2199)] == [0, 999, 1000, 2199]


def test_keys_may_be_missing_and_may_repeat_across_statements(
    client: Client, session: Session
) -> None:
    keys = [None if n % 2 else f"k{n % 100}" for n in range(2500)]

    tasks = client.enqueue_many("a", range(2500), idempotency_keys=keys)

    assert count(session, "task") == 1250 + 50
    assert len({task.id for task in tasks}) == 1250 + 50


def test_second_caller_waits_and_makes_the_task_when_the_first_rolls_back(
    dsn: str, client: Client, session: Session
) -> None:
    holder = psycopg2.connect(dsn)
    first = client.enqueue("a", idempotency_key="k", conn=holder)

    with ThreadPoolExecutor(1) as thread:
        second = thread.submit(client.enqueue, "a", idempotency_key="k")
        holder.rollback()
        task = second.result(10)

    assert not task.existing
    assert task.id != first.id
    assert value(session, "select id from idempotency") == task.id
    holder.close()


def test_plain_sql_holds_keys_as_well(client: Client, session: Session) -> None:
    ids = [
        value(session, "select enqueue('a', '1', idempotency_key => 'k')"),
        client.enqueue("a", idempotency_key="k").id,
        value(session, "select enqueue('a', '1', idempotency_key => 'k')"),
    ]

    assert len(set(ids)) == 1


def test_key_is_free_again_when_its_task_has_ended(client: Client, session: Session) -> None:
    first = client.enqueue("a", idempotency_key="k")
    client.cancel(first)

    second = client.enqueue("a", idempotency_key="k")

    assert (second.existing, second.id != first.id) == (False, True)
    assert rows(session, "select id from idempotency") == [(second.id,)]


def test_key_that_is_freed_meanwhile_leads_to_a_task_that_exists(dsn: str) -> None:
    def enqueue_and_free(_: int) -> Counter[bool]:
        seen: Counter[bool] = Counter()
        with Client(dsn, pool_size=1) as own:
            for _ in range(100):
                task = own.enqueue("a", idempotency_key="k")
                seen[task.existing] += 1
                own.cancel(task)  # raises where there is none
        return seen

    with ThreadPoolExecutor(4) as threads:
        seen = sum(threads.map(enqueue_and_free, range(4)), Counter[bool]())

    assert seen.total() == 400
    assert seen[True]  # they did meet


@pytest.mark.parametrize(
    ("keys", "rule"),
    [(["k"], "1 keys for 2 payloads"), ("kk", "must be a list"), (["k", ""], "1 to 1000")],
)
def test_keys_of_a_batch_are_one_per_payload(client: Client, keys: list[str], rule: str) -> None:
    with pytest.raises(PayloadError, match=rule):
        client.enqueue_many("a", [1, 2], idempotency_keys=keys)


def test_one_key_for_a_whole_batch_is_a_mistake_and_says_so(client: Client) -> None:
    with pytest.raises(PayloadError, match="give idempotency_keys"):
        client.enqueue_many("a", [1, 2], idempotency_key="k")  # type: ignore[call-overload]
