"""Enqueueing in the caller's transaction, with the real libraries (docs/enqueueing.md)."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import psycopg2
import psycopg2.extras
import pytest
import sqlalchemy
from django.db import connection as django_connection
from django.db import transaction
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session as OrmSession

from orchestrator import Client, DatabaseUnavailable, PayloadError, State, TaskNotFound
from orchestrator.db.connection import Session
from orchestrator.errors import SchemaError
from orchestrator.verbs import Verbs
from tests.callers import (
    AUTOCOMMIT,
    RINGING,
    SQLALCHEMY,
    WAYS,
    RollBack,
    Transactions,
    by_django,
    engine_of,
    set_up_django,
)
from tests.doorbell import n_rings, sleeping
from tests.sql import count, rows
from tests.support import eventually, never

ROOT = Path(__file__).parents[2]


@pytest.fixture(params=WAYS.values(), ids=WAYS)
def transactions(request: pytest.FixtureRequest, dsn: str) -> Iterator[Transactions]:
    """Give transactions of each library in turn."""
    with request.param(dsn) as transactions:
        yield transactions


@pytest.fixture(params=RINGING.values(), ids=RINGING)
def ringing(request: pytest.FixtureRequest, dsn: str) -> Iterator[Transactions]:
    """Give transactions of the libraries that tell of their commits."""
    with request.param(dsn) as transactions:
        yield transactions


@pytest.fixture
def sleeper(dsn: str) -> Iterator[Session]:
    """Give a steward whose workers are all idle."""
    with sleeping(dsn) as session:
        yield session


# -- roll back and commit


def test_task_exists_after_the_callers_commit_only(
    client: Client, transactions: Transactions
) -> None:
    with transactions() as conn:
        task = client.enqueue("a", {"n": 1}, conn=conn, tags=["x"], headers={"h": 1})
        unseen = list(client.tasks())

    found = client.get(task)
    assert unseen == []
    assert (found.state, found.payload, found.tags) == (State.READY, {"n": 1}, ("x",))


def test_task_of_a_transaction_that_is_rolled_back_was_never_enqueued(
    client: Client, transactions: Transactions
) -> None:
    with pytest.raises(RollBack):
        with transactions() as conn:
            task = client.enqueue("a", conn=conn)
            raise RollBack

    with pytest.raises(TaskNotFound):
        client.get(task)
    with transactions() as conn:  # and the connection is fit for more
        second = client.enqueue("a", conn=conn)
    assert [found.id for found in client.tasks()] == [second.id]


def test_batch_belongs_to_the_callers_transaction(
    client: Client, transactions: Transactions
) -> None:
    seen: list[tuple[int, int]] = []
    with pytest.raises(RollBack):
        with transactions() as conn:
            client.enqueue_many("a", range(2500), conn=conn)
            raise RollBack

    with transactions() as conn:
        tasks = client.enqueue_many(
            "b", range(2500), conn=conn, on_progress=lambda *done: seen.append(done)
        )
        n_before = len(list(client.tasks()))

    assert n_before == 0
    assert [client.get(tasks[n]).payload for n in (0, 1000, 2499)] == [0, 1000, 2499]
    assert len(list(client.tasks())) == 2500
    assert seen == [(1000, 2500), (2000, 2500), (2500, 2500)]


def test_every_option_arrives(client: Client, transactions: Transactions) -> None:
    later = datetime(2100, 1, 1, tzinfo=UTC)

    with transactions() as conn:
        task = client.enqueue(
            "a", {"s": "%s {schema} '\\"}, queue="q", priority=-7, run_at=later, max_attempts=4,
            timeout="30s", ttl="1h", tags=["x", "ü"], headers={"trace": "%(t)s"},
            idempotency_key="k", conn=conn,
        )  # fmt: skip

    found = client.get(task)
    assert (found.payload, found.queue, found.priority) == ({"s": "%s {schema} '\\"}, "q", -7)
    assert (found.state, found.run_at, found.max_attempts) == (State.SCHEDULED, later, 4)
    assert (set(found.tags), found.headers) == ({"x", "ü"}, {"trace": "%(t)s"})
    assert found.idempotency_key == "k"


def test_existing_task_is_read_alike_whatever_the_connection_makes_of_times(
    client: Client, transactions: Transactions
) -> None:
    first = client.enqueue("a", {"n": 1}, idempotency_key="k", tags=["x"])

    with transactions() as conn:
        again = client.enqueue("a", {"n": 2}, idempotency_key="k", conn=conn)

    assert (again.id, again.existing, again.payload) == (first.id, True, {"n": 1})
    assert again.created_at == client.get(first).created_at
    assert again.created_at is not None
    assert again.created_at.utcoffset() == timedelta(0)


# -- errors


def test_too_large_a_payload_does_not_break_the_callers_transaction(
    client: Client, transactions: Transactions
) -> None:
    with transactions() as conn:
        with pytest.raises(PayloadError, match=r"^payload: has 300002 bytes as JSON"):
            client.enqueue("a", "x" * 300_000, conn=conn)
        task = client.enqueue("a", conn=conn)

    assert client.get(task).state is State.READY


def test_schema_that_is_missing_is_named_with_the_remedy(
    dsn: str, transactions: Transactions
) -> None:
    elsewhere = Client(dsn, schema="elsewhere")

    with pytest.raises(SchemaError, match=r'"elsewhere" is not installed .* migrate'):
        with transactions() as conn:
            elsewhere.enqueue("a", conn=conn)


def test_connection_that_is_lost_is_our_error_and_nothing_was_enqueued(
    client: Client, session: Session, transactions: Transactions
) -> None:
    def lose_it() -> None:
        with transactions() as conn:
            client.enqueue("a", conn=conn)
            rows(
                session,
                "select pg_terminate_backend(pid) from pg_stat_activity "
                "where state = 'idle in transaction' and datname = current_database()",
            )
            with pytest.raises(DatabaseUnavailable):
                client.enqueue("a", conn=conn)
            raise RollBack

    # What the library makes of its own end is its business.
    with pytest.raises(Exception):  # noqa: B017
        lose_it()

    assert list(client.tasks()) == []


# -- in autocommit mode


@pytest.fixture(params=AUTOCOMMIT.values(), ids=AUTOCOMMIT)
def autocommit(request: pytest.FixtureRequest, dsn: str) -> Iterator[Any]:
    """Give a connection in autocommit mode, of each library in turn."""
    with request.param(dsn) as conn:
        yield conn


def test_in_autocommit_mode_the_task_is_there_at_once_and_the_bell_rings(
    client: Client, autocommit: Any, sleeper: Session
) -> None:
    task = client.enqueue("a", conn=autocommit)

    assert client.get(task).state is State.READY
    assert eventually(lambda: n_rings(sleeper) == 1)


def test_in_autocommit_mode_a_batch_is_all_or_nothing(
    client: Client, session: Session, autocommit: Any
) -> None:
    def stop(done: int, total: int) -> None:
        if done == 2000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        client.enqueue_many("a", range(2500), conn=autocommit, on_progress=stop)
    n_before = count(session, "task")
    client.enqueue_many("a", range(2500), conn=autocommit)

    assert (n_before, count(session, "task")) == (0, 2500)


# -- the doorbell


def test_bell_rings_once_after_the_commit_and_not_before(
    client: Client, ringing: Transactions, sleeper: Session
) -> None:
    with ringing() as conn:
        for _ in range(3):
            client.enqueue("a", conn=conn)
        never(lambda: n_rings(sleeper), during=0.1)

    assert eventually(lambda: n_rings(sleeper) == 1)
    with ringing() as conn:  # the next commit is nobody's
        client.enqueue("a", conn=conn, delay="1h")
    never(lambda: n_rings(sleeper), during=0.1)


def test_task_can_be_seen_when_the_bell_rings(
    client: Client, ringing: Transactions, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    async def look(_: object) -> None:
        seen.extend(task.id for task in Client(dsn).tasks())

    monkeypatch.setattr(Verbs, "ring_quietly", look)
    with ringing() as conn:
        task = client.enqueue("a", conn=conn)

    assert seen == [task.id]


def test_bell_does_not_ring_after_a_rollback_nor_for_the_next_commit(
    client: Client, ringing: Transactions, sleeper: Session
) -> None:
    with pytest.raises(RollBack):
        with ringing() as conn:
            client.enqueue("a", conn=conn)
            raise RollBack
    with ringing() as conn:
        client.enqueue("a", conn=conn, delay="1h")

    never(lambda: n_rings(sleeper), during=0.1)


def test_bell_waits_for_the_outermost_commit(
    client: Client, ringing: Transactions, sleeper: Session
) -> None:
    with ringing() as conn:
        is_django = conn is django_connection
        with transaction.atomic() if is_django else conn.begin_nested():
            client.enqueue("a", conn=conn)
        never(lambda: n_rings(sleeper), during=0.1)

    assert eventually(lambda: n_rings(sleeper) == 1)


def test_task_after_a_savepoint_that_was_rolled_back_is_rung_for(
    client: Client, ringing: Transactions, sleeper: Session
) -> None:
    with ringing() as conn:
        is_django = conn is django_connection
        with pytest.raises(RollBack):
            with transaction.atomic() if is_django else conn.begin_nested():
                client.enqueue("a", conn=conn)
                raise RollBack
        task = client.enqueue("b", conn=conn)

    assert eventually(lambda: n_rings(sleeper) == 1)
    assert [found.id for found in client.tasks()] == [task.id]


def test_django_does_not_ring_for_a_savepoint_that_was_rolled_back(
    client: Client, dsn: str, sleeper: Session
) -> None:
    with by_django(dsn) as transactions, transactions() as conn, pytest.raises(RollBack):
        with transaction.atomic():
            client.enqueue("a", conn=conn)
            raise RollBack

    never(lambda: n_rings(sleeper), during=0.1)


@pytest.mark.parametrize("way", ["psycopg2", "psycopg"])
def test_who_commits_on_a_plain_connection_rings(
    client: Client, dsn: str, sleeper: Session, way: str
) -> None:
    with WAYS[way](dsn) as transactions:
        with transactions() as conn:
            client.enqueue("a", conn=conn)
        never(lambda: n_rings(sleeper), during=0.1)

        client.ring()

    assert eventually(lambda: n_rings(sleeper) == 1)


def test_bell_of_a_session_in_a_larger_transaction_waits_for_that(
    client: Client, dsn: str, sleeper: Session
) -> None:
    with engine_of(dsn, "psycopg") as engine, engine.connect() as connection:
        outer = connection.begin()
        with OrmSession(connection, join_transaction_mode="create_savepoint") as orm:
            client.enqueue("a", conn=orm)
            orm.commit()
        never(lambda: n_rings(sleeper), during=0.1)

        outer.commit()

    assert eventually(lambda: n_rings(sleeper) == 1)


def test_bells_of_two_clients_ring_both(dsn: str, sleeper: Session) -> None:
    rings = 0

    def both_rang() -> bool:
        nonlocal rings
        rings += n_rings(sleeper)
        return rings == 2

    with Client(dsn) as one, Client(dsn) as two:
        with SQLALCHEMY["sqlalchemy session, psycopg"](dsn) as transactions:
            with transactions() as conn:
                one.enqueue("a", conn=conn)
                two.enqueue("a", conn=conn)

    assert eventually(both_rang)


def test_bell_that_cannot_ring_does_not_spoil_the_commit(
    client: Client, ringing: Transactions
) -> None:
    far = Client("postgresql://nobody@127.0.0.1:1/nowhere")

    with ringing() as conn:
        task = far.enqueue("a", conn=conn)

    assert client.get(task).state is State.READY


def test_client_without_url_enqueues_and_leaves_the_bell_alone(
    client: Client, ringing: Transactions, sleeper: Session
) -> None:
    with ringing() as conn:
        task = Client().enqueue("a", conn=conn)

    assert client.get(task).state is State.READY
    never(lambda: n_rings(sleeper), during=0.1)


# -- the libraries themselves


def test_rows_and_cursors_of_any_kind_will_do(client: Client, dsn: str) -> None:
    client.enqueue("a", {"n": 1}, idempotency_key="k")
    options = "-c timezone=Asia/Kathmandu -c search_path=pg_catalog"
    by_two = psycopg2.connect(dsn, cursor_factory=psycopg2.extras.RealDictCursor, options=options)
    by_three = psycopg.connect(
        dsn, row_factory=psycopg.rows.dict_row, cursor_factory=psycopg.ClientCursor,
        options=options,
    )  # fmt: skip

    found = [client.enqueue("a", idempotency_key="k", conn=conn) for conn in (by_two, by_three)]

    assert [task.payload for task in found] == [{"n": 1}, {"n": 1}]
    assert {task.created_at for task in found} == {client.get(found[0]).created_at}
    by_two.close()
    by_three.close()


def test_transaction_block_of_psycopg_on_an_autocommit_connection_is_joined(
    client: Client, dsn: str
) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        with pytest.raises(RollBack):
            with connection.transaction():
                client.enqueue_many("a", range(3), conn=connection)
                raise RollBack

    assert list(client.tasks()) == []


def test_objects_of_the_session_and_the_task_come_with_one_commit(client: Client, dsn: str) -> None:
    with engine_of(dsn, "psycopg2") as engine:
        with engine.begin() as connection:
            connection.execute(sqlalchemy.text("create table customer (id int primary key)"))
        with OrmSession(engine) as orm, pytest.raises(sqlalchemy.exc.IntegrityError):
            client.enqueue("a", conn=orm)
            for _ in range(2):
                orm.execute(sqlalchemy.text("insert into customer values (1)"))
            orm.commit()

    assert list(client.tasks()) == []


def test_broken_atomic_block_of_django_refuses_the_enqueue(client: Client, dsn: str) -> None:
    with by_django(dsn) as transactions, transactions() as conn:
        transaction.set_rollback(True)

        with pytest.raises(transaction.TransactionManagementError):
            client.enqueue("a", conn=conn)


def test_connection_of_django_may_be_the_wrapper_itself(client: Client, dsn: str) -> None:
    from django.db import connections

    set_up_django(dsn)
    task = client.enqueue("a", conn=connections["default"])
    connections.close_all()

    assert client.get(task).state is State.READY


DJANGO_ON_PSYCOPG2 = """
import sys
sys.modules["psycopg"] = None  # as if it were not installed
from django.db import connection, transaction
from orchestrator import Client
from tests.support import eventually
from tests.doorbell import n_rings, sleeping
import django.conf, django, psycopg2.extensions
dsn = sys.argv[1]
parts = psycopg2.extensions.parse_dsn(dsn)
django.conf.settings.configure(USE_TZ=False, TIME_ZONE="Asia/Kathmandu", DATABASES={"default": {
    "ENGINE": "django.db.backends.postgresql", "NAME": parts["dbname"], "USER": parts["user"],
    "HOST": parts["host"]}})
django.setup()
client = Client(dsn)
with sleeping(dsn) as sleeper:
    with transaction.atomic():
        first = client.enqueue("a", idempotency_key="k", conn=connection)
        again = client.enqueue("a", idempotency_key="k", conn=connection)
        assert n_rings(sleeper) == 0
    assert isinstance(connection.connection, psycopg2.extensions.connection)
    assert eventually(lambda: n_rings(sleeper) == 1)
    assert (again.id, again.created_at) == (first.id, client.get(first).created_at)
    try:
        with transaction.atomic():
            client.enqueue_many("a", range(1500), conn=connection)
            raise KeyError
    except KeyError:
        pass
    assert len(list(client.tasks())) == 1
"""


def run(program: str, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.check_output(
        [sys.executable, "-c", program, *arguments], text=True, env=environment
    )


def test_django_on_psycopg2_is_the_same(dsn: str) -> None:
    run(DJANGO_ON_PSYCOPG2, dsn)


def test_no_library_is_loaded_that_the_caller_has_not_loaded(dsn: str) -> None:
    loaded = run(
        "import sys, psycopg2; from orchestrator import Client\n"
        "connection = psycopg2.connect(sys.argv[1])\n"
        "Client().enqueue('a', conn=connection)\n"
        "try: Client().enqueue('a', conn=object())\n"
        "except TypeError: pass\n"
        "print(*{name.partition('.')[0] for name in sys.modules})",
        dsn,
    )

    assert not {"psycopg", "sqlalchemy", "django", "asyncio"} & set(loaded.split())


# -- what is refused


def test_something_else_than_a_connection_is_refused_with_what_is_taken() -> None:
    with pytest.raises(TypeError, match="psycopg2 or psycopg 3 connection, a SQLAlchemy Session"):
        Client().enqueue("a", conn=object())


def awaited_session() -> Any:
    return AsyncSession(create_async_engine("postgresql+psycopg://"))


def awaited_connection() -> Any:
    return create_async_engine("postgresql+psycopg://").connect()


@pytest.mark.parametrize("made", [awaited_session, awaited_connection])
def test_connection_that_is_awaited_is_refused_with_the_way(made: Callable[[], Any]) -> None:
    with pytest.raises(TypeError, match=r"orchestrator\.AsyncClient"):
        Client().enqueue("a", conn=made())


def test_session_on_another_database_is_refused() -> None:
    with OrmSession(sqlalchemy.create_engine("sqlite://")) as orm:
        with pytest.raises(TypeError, match=r"sqlite\+pysqlite.*must be postgresql\+psycopg2"):
            Client().enqueue("a", conn=orm)


@pytest.mark.parametrize("driver", ["psycopg2", "psycopg"])
def test_session_that_cannot_connect_is_our_error_and_nothing_was_enqueued(driver: str) -> None:
    engine = sqlalchemy.create_engine(f"postgresql+{driver}://nobody@127.0.0.1:1/nowhere")

    with OrmSession(engine) as session, pytest.raises(DatabaseUnavailable) as caught:
        Client().enqueue("a", 1, conn=session)

    assert not caught.value.unknown
