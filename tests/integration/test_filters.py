"""Lists and filters: which tasks they find, against a model, and page by page while tasks move."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import product
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator import Client
from orchestrator.db.connection import Session, connect
from orchestrator.store.cancel import cancel_many
from orchestrator.store.tasks import Filters, get_many, matching, page
from orchestrator.task import State, Task
from tests.sql import rows, value

TYPES, QUEUES, TAGS = ("email:send", "email:bulk", "sync"), ("cpu", "io"), ("red", "green")
ERRORS = ("HTTPError: HTTP 503", "no such user", "TypeError", "the task type is paused")
NUMBER = 96


def make_world(session: Session) -> None:
    """Put tasks of every state, type, queue and tag into the tables, one a minute until now.

    Every seventh of the older ones was created long after its id was drawn, as by an enqueue that
    waited for another.
    """
    rows(
        session,
        """
        insert into queue (name) values ('cpu'), ('io');
        insert into type (name) values ('email:send'), ('email:bulk'), ('sync');
        insert into task (id, type, queue, priority, created_at, run_at, payload, tags)
        select i, mod(i, 3) + 1, mod(i / 3, 2) + 2, 0,
               at + case when mod(i, 7) = 3 and i < 50 then interval '40 min' else '0' end,
               at, '1', (array['{}', '{red}', '{green,red}', '{other}'])[mod(i / 6, 4) + 1]::text[]
        from (select i, now() - make_interval(mins => %(number)s - i) as at
              from generate_series(1, %(number)s) i) x;
        insert into ready (id, queue, type, priority, attempt)
        select id, queue, type, 0, mod(id / 8, 2) from task where mod(id, 8) = 0;
        insert into scheduled (id, run_at, queue, type, attempt, priority)
        select id, run_at, queue, type, mod(id / 8, 2), 0 from task where mod(id, 8) = 1;
        insert into held (id, seq, queue, type, attempt, priority, failures, crashes, losses, alone,
                          reason)
        select id, id, queue, type, 0, 0, 0, 0, 0, false, 'the task type is paused'
        from task where mod(id, 8) = 2;
        insert into running (id, token, seq, queue, type, attempt, node, pid, incarnation, priority,
                             failures, crashes, losses, alone, started, slot)
        select id, id, id, queue, type, 2, 1, 1, 0, 0, 0, 0, 0, false, true, 'cpu-0'
        from task where mod(id, 8) = 3;
        insert into outcome (id, attempt, state, type)
        select id, mod(id / 8, 2) + 1, (array['succeeded', 'cancelled', 'expired'])[mod(id, 8) - 3],
               case when mod(id, 8) > 4 then type end
        from task where mod(id, 8) in (4, 5, 6);
        insert into dead (id, type, queue, attempt, priority, failures, crashes, losses, reason)
        select id, type, queue, 2, 0, 2, 0, 0, 'failures budget spent'
        from task where mod(id, 8) = 7;
        insert into attempt (id, attempt, token, started_at, outcome, error_type, error_message)
        select id, n, id, now(), 'failed',
               (array['HTTPError', null, 'TypeError'])[mod(id + n, 3) + 1],
               (array['HTTP 503', 'no such user', ''])[mod(id + n, 3) + 1]
        from task cross join generate_series(1, 2) n
        where (mod(id, 8), n) not in ((4, 1), (4, 2), (3, 2));
        """,
        number=NUMBER,
    )


@pytest.fixture
def world(session: Session) -> list[Task[Any]]:
    """All tasks, newest first, as they are read one by one."""
    make_world(session)
    found = get_many(session, task_ids=range(1, NUMBER + 1))
    assert {task.state for task in found} == set(State)
    assert len(found) == NUMBER
    return found[::-1]


def is_let_through(task: Task[Any], filters: Filters, now: datetime) -> bool:
    """The model: what the documents say of each filter."""
    assert task.created_at is not None
    age = (now - task.created_at).total_seconds()
    wanted = filters.type
    return (
        (filters.states is None or task.state in filters.states)
        and (
            wanted is None
            or task.type == wanted
            or (wanted.endswith(":") and task.type.startswith(wanted))
        )
        and (filters.queue is None or task.queue == filters.queue)
        and (filters.tag is None or filters.tag in task.tags)
        and (filters.error is None or filters.error.lower() in (task.error or "").lower())
        and (filters.older_than is None or age > filters.older_than)
        and (filters.newer_than is None or age <= filters.newer_than)
    )


# Between the minutes at which tasks were created.
AGES = st.integers(0, NUMBER + 1).map(lambda minutes: minutes * 60.0 + 30)
FILTERS = st.builds(
    Filters,
    states=st.none() | st.lists(st.sampled_from(list(State)), min_size=1, unique=True),
    type=st.none() | st.sampled_from((*TYPES, "email:", "sync:", "nothing")),
    queue=st.none() | st.sampled_from((*QUEUES, "default", "nowhere")),
    tag=st.none() | st.sampled_from((*TAGS, "other", "blue")),
    error=st.none() | st.sampled_from((*ERRORS, "error", "SUCH", "%", "budget", "zebra")),
    older_than=st.none() | AGES,
    newer_than=st.none() | AGES,
)

ALONE = [
    *(Filters(states=[state]) for state in State),
    *(Filters(type=name) for name in (*TYPES, "email:", "nothing")),
    *(Filters(queue=name) for name in (*QUEUES, "nowhere")),
    *(Filters(tag=name) for name in (*TAGS, "blue")),
    *(Filters(error=text) for text in (*ERRORS, "such USER", "_", "zebra")),
    *(Filters(older_than=minutes * 60.0 + 30) for minutes in (0, 10, 60, 75, 76, 200)),
    *(Filters(newer_than=minutes * 60.0 + 30) for minutes in (0, 10, 40, 200)),
]


def test_each_filter_alone_lets_through_what_the_model_does(
    session: Session, world: list[Task[Any]]
) -> None:
    wrong = []
    for filters in ALONE:
        now = value(session, "select clock_timestamp()")
        expected = [task for task in world if is_let_through(task, filters, now)]
        if page(session, filters, limit=1000, with_attempts=True) != expected:
            wrong.append(filters)
        assert matching(session, filters) == [task.id for task in reversed(expected)]

    assert wrong == []


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(filters=FILTERS, size=st.integers(1, 40))
def test_filters_together_find_page_by_page_what_the_model_does(
    session: Session, world: list[Task[Any]], filters: Filters, size: int
) -> None:
    now = value(session, "select clock_timestamp()")
    expected = [task.id for task in world if is_let_through(task, filters, now)]

    assert [task.id for task in paged(session, filters, size)] == expected
    assert matching(session, filters, limit=size) == expected[::-1][:size]


def paged(session: Session, filters: Filters, size: int) -> Iterator[Task[Any]]:
    before: int | None = None
    while found := page(session, filters, before=before, limit=size):
        yield from found
        before = found[-1].id


def test_bounds_of_an_age_hold_every_task_of_it(session: Session, world: list[Task[Any]]) -> None:
    for minutes in range(-2, NUMBER + 2):
        moment = datetime.now(UTC) - timedelta(minutes=minutes, seconds=30)
        found = rows(session, "select low, high from ids_created(%(at)s, %(at)s)", at=moment)
        low, high = found[0]

        since = [task.id for task in world if task.created_at and task.created_at >= moment]
        until = [task.id for task in world if task.created_at and task.created_at < moment]
        assert low is None or min(since, default=NUMBER + 1) >= low
        assert high is None or max(until, default=0) < high


# -- many tasks: the ways to look that only they take


@pytest.fixture
def crowd(session: Session) -> Session:
    """26,000 tasks that ended: the oldest 5,500 of one type and tag, the others of other ones."""
    rows(
        session,
        """
        insert into type (name) values ('old'), ('new'), ('rare');
        insert into task (id, type, queue, created_at, run_at, payload, tags)
        select i, case when mod(i, 5000) = 9 then 3 when i <= 5500 then 1 else 2 end, 1,
               now(), now(),
               '1', case when i <= 5500 then '{old}'::text[] when mod(i, 2) = 0 then '{even}'
                         when mod(i, 3000) = 1 then '{few}' else '{}' end
        from generate_series(1, 26000) i;
        insert into dead (id, type, queue, attempt, priority, failures, crashes, losses, reason)
        select id, type, queue, 0, 0, 0, 0, 0, 'reason ' || id from task where mod(id, 1000) = 9;
        insert into ready (id, queue, type, priority)
        select id, queue, type, 0 from task where id > 25900 and mod(id, 1000) <> 9;
        insert into outcome (id, attempt, state, type)
        select id, 1, case when mod(id, 100) = 1 then 'cancelled' else 'succeeded' end,
               case when mod(id, 100) = 1 then type end
        from task where id <= 25900 and mod(id, 1000) <> 9;
        analyze;
        """,
    )
    return session


def brute_force(session: Session, filters: Filters, before: int, limit: int) -> list[int]:
    """Ask the view, which looks at every task."""
    found = rows(
        session,
        """
        select id from tasks
        where (%(states)s::text[] is null or state = any (%(states)s::text[]))
          and (%(type)s::text is null or type = %(type)s)
          and (%(tag)s::text is null or %(tag)s = any (tags))
          and (%(error)s::text is null
               or strpos(lower(coalesce(error_message, reason)), lower(%(error)s)) > 0)
          and id < %(before)s
        order by id desc limit %(limit)s
        """,
        states=None if filters.states is None else [str(state) for state in filters.states],
        type=filters.type,
        tag=filters.tag,
        error=filters.error,
        before=before,
        limit=limit,
    )
    return [task_id for (task_id,) in found]


def test_every_way_to_look_finds_what_a_look_at_every_task_does(crowd: Session) -> None:
    states = (None, [State.SUCCEEDED], [State.DEAD], [State.CANCELLED, State.SUCCEEDED])
    wrong = []
    for chosen, tag, type, error, before in product(
        states, (None, "old", "even", "few", "none"), (None, "old", "rare"),
        (None, "reason 9009", "REASON 1"), (26_001, 5_000),
    ):  # fmt: skip
        filters = Filters(states=chosen, tag=tag, type=type, error=error)
        found = [task.id for task in page(crowd, filters, before=before, limit=20)]
        if found != brute_force(crowd, filters, before, 20):
            wrong.append((filters, before))

    assert wrong == []


# -- pages while tasks move


def test_pages_have_each_task_once_while_tasks_move(
    dsn: str, session: Session, client: Client
) -> None:
    ids = [task.id for task in client.enqueue_many("a", range(300))]
    stopping = threading.Event()

    def move() -> None:
        own = connect(dsn, schema="orchestrator", application_name="tests")
        try:
            while not stopping.is_set():
                for start in range(0, 300, 10):
                    rows(
                        own,
                        "with m as (delete from ready where id = any (%(ids)s) returning *) "
                        "insert into scheduled (id, run_at, queue, type, priority) "
                        "select id, now(), queue, type, priority from m",
                        ids=ids[start : start + 10],
                    )
                rows(own, "select promote(1000)")
        finally:
            own.close()

    thread = threading.Thread(target=move)
    thread.start()
    try:
        seen = [[task.id for task in paged(session, Filters(), 7)] for _ in range(5)]
    finally:
        stopping.set()
        thread.join()

    assert seen == [ids[::-1]] * 5


def test_a_list_by_state_shows_tasks_in_that_state_while_they_move(
    dsn: str, session: Session, client: Client
) -> None:
    ids = [task.id for task in client.enqueue_many("a", range(400))]

    def move() -> None:
        own = connect(dsn, schema="orchestrator", application_name="tests")
        try:
            for start in range(0, 400, 20):
                cancel_many(own, task_ids=ids[start : start + 20], states=[State.READY])
        finally:
            own.close()

    thread = threading.Thread(target=move)
    thread.start()
    states = set()
    while thread.is_alive():
        states |= {task.state for task in page(session, Filters(states=[State.READY]), limit=400)}
    thread.join()

    assert states <= {State.READY}
    assert matching(session, Filters(states=[State.CANCELLED])) == ids


# -- the same from Python


def test_client_takes_the_same_filters(client: Client, session: Session) -> None:
    make_world(session)

    found = list(client.tasks(type="email:", error="http", older_than="10m", newer_than="80m"))

    filters = Filters(type="email:", error="http", older_than=600.0, newer_than=4800.0)
    assert [task.id for task in found] == matching(session, filters)[::-1]
    assert found
