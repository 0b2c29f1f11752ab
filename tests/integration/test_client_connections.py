"""What the client does with connections: the pool, forks, lost servers, lost replies."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg2
import psycopg2.extras
import pytest

from orchestrator import AsyncClient, Client, DatabaseUnavailable, PayloadError, State
from orchestrator.db.connection import Session
from orchestrator.errors import ConfigError, SchemaError
from orchestrator.store.doorbell import listen
from tests.conftest import RunningServer
from tests.doorbell import n_rings, sleeping
from tests.proxy import Proxy, proxied
from tests.server import FAST, IMMEDIATE, own_server
from tests.sql import count, rows, value
from tests.support import eventually, never

VERSION_1 = Path(__file__).parent.parent / "data" / "schema_v1.sql"


@pytest.fixture
def proxy(pg_server: RunningServer) -> Iterator[Proxy]:
    with proxied(Path(pg_server.host) / ".s.PGSQL.5432") as proxy:
        yield proxy


@pytest.fixture
def far_client(dsn: str, proxy: Proxy) -> Iterator[Client]:
    """A client whose replies the proxy can lose."""
    with Client(f"postgresql://postgres@127.0.0.1:{proxy.port}/orc_test") as client:
        yield client


def backends(session: Session) -> list[int]:
    """The pids of the server's processes that serve clients of this database."""
    found = rows(
        session,
        "select pid from pg_stat_activity where application_name = 'orchestrator client' "
        "and datname = current_database() order by pid",
    )
    return [pid for (pid,) in found]


# -- the pool


def test_constructor_connects_to_nothing() -> None:
    Client("postgresql://nobody@127.0.0.1:1/nowhere")
    Client()


def test_client_without_url_lives_on_connections_that_are_given(dsn: str) -> None:
    client = Client()
    with psycopg2.connect(dsn) as connection:
        task = client.enqueue("a", conn=connection)

    assert task.id == 1
    with pytest.raises(ConfigError, match="without url"):
        client.enqueue("a")


def test_embedded_is_no_url_and_the_error_names_the_way() -> None:
    with pytest.raises(ConfigError, match="from_config"):
        Client("embedded")


@pytest.mark.parametrize(
    "wrong",
    [
        {"url": 5}, {"url": "mysql://u:secret@h/x"}, {"schema": 5}, {"schema": ""},
        {"pool_size": "4"}, {"pool_size": 0}, {"pool_size": True}, {"connect_timeout": "5s"},
        {"connect_timeout": 0}, {"connect_timeout": float("nan")},
    ],
    ids=repr,
)  # fmt: skip
@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_place_of_a_wrong_kind_is_refused_by_the_constructor(kind: Any, wrong: Any) -> None:
    with pytest.raises(ConfigError, match=f"^{kind.__name__}\\(") as caught:
        kind(**wrong)

    assert "secret" not in str(caught.value)


def test_threads_share_no_more_sessions_than_the_pool_has(dsn: str, session: Session) -> None:
    with Client(dsn, pool_size=3) as client, ThreadPoolExecutor(12) as threads:
        tasks = list(threads.map(lambda n: client.enqueue("a", n), range(120)))

        assert len({task.id for task in tasks}) == 120
        assert 1 <= len(backends(session)) <= 3


def test_close_closes_the_sessions_and_a_later_call_opens_new_ones(
    client: Client, session: Session
) -> None:
    client.enqueue("a")

    client.close()

    assert eventually(lambda: not backends(session))
    assert client.enqueue("a").id == 2


def test_refused_statement_does_not_cost_the_session(client: Client, session: Session) -> None:
    client.enqueue("a")
    before = backends(session)
    rows(session, "update setting set value = 10 where name = 'max_payload_bytes'")

    with pytest.raises(PayloadError, match="larger than the limit of 10 bytes"):
        client.enqueue("a", "x" * 100)
    rows(session, "update setting set value = 1000 where name = 'max_payload_bytes'")
    client.enqueue("a", "x" * 100)

    assert backends(session) == before


def test_missing_schema_is_named_with_what_to_run(empty_dsn: str) -> None:
    with Client(empty_dsn) as client, pytest.raises(SchemaError, match="orchestratorctl migrate"):
        client.enqueue("a")


def test_schema_of_an_older_version_is_named_with_what_to_run(empty_dsn: str) -> None:
    with closing(psycopg2.connect(empty_dsn)) as connection, connection:
        connection.cursor().execute(VERSION_1.read_text(encoding="utf-8"))

    with Client(empty_dsn) as client, pytest.raises(SchemaError, match="orchestratorctl migrate"):
        list(client.tasks())


# -- forks


def test_child_opens_a_session_of_its_own_and_leaves_the_parents_alone(
    client: Client, session: Session
) -> None:
    client.enqueue("a")
    (of_parent,) = backends(session)
    from_child, to_parent = os.pipe()
    from_parent, to_child = os.pipe()

    pid = os.fork()
    if pid == 0:
        os.write(to_parent, str(client.enqueue("a").id).encode())
        os.read(from_parent, 1)
        client.close()
        gc.collect()  # as at the end of an interpreter
        os._exit(0)
    in_child = int(os.read(from_child, 100))
    of_both = backends(session)
    os.write(to_child, b"x")
    os.waitpid(pid, 0)

    assert len(of_both) == 2
    assert client.enqueue("a").id == in_child + 1
    assert eventually(lambda: backends(session) == [of_parent])


def test_child_that_never_used_it_may_close_it(client: Client, session: Session) -> None:
    client.enqueue("a")
    before = backends(session)

    pid = os.fork()
    if pid == 0:
        client.close()
        gc.collect()
        os._exit(0)
    os.waitpid(pid, 0)

    assert client.enqueue("a").id == 2
    assert backends(session) == before


# -- a server that goes away


@pytest.mark.parametrize("how", [FAST, IMMEDIATE])
def test_first_call_after_a_restart_of_the_server_works(how: int) -> None:
    with own_server(is_safe=True) as server, Client(server.dsn) as client:
        client.enqueue("a")

        server.end(how)
        server.start()

        # Without an idempotency key: nothing that fails here would be sent again.
        assert client.enqueue("a").id > 1


def test_server_that_is_away_is_unavailable_and_nothing_was_done() -> None:
    with own_server() as server, Client(server.dsn) as client:
        client.enqueue("a")
        server.end(FAST)

        with pytest.raises(DatabaseUnavailable) as caught:
            client.enqueue("a")

        assert not caught.value.unknown


def test_wait_outlasts_a_restart_of_the_server() -> None:
    with own_server() as server, Client(server.dsn) as client:
        task = client.enqueue("a")
        with ThreadPoolExecutor(1) as thread:
            waiting = thread.submit(client.wait, task, 30)
            server.end(FAST)
            # Long enough for it to meet the closed door.
            never(waiting.done, during=0.5)
            server.start()
            client.cancel(task)

            assert waiting.result().state is State.CANCELLED


# -- a lost reply


def test_enqueue_with_a_lost_reply_is_unknown_and_not_sent_again(
    far_client: Client, proxy: Proxy, session: Session
) -> None:
    far_client.enqueue("a")
    proxy.lose_reply_to("enqueue_many")

    with pytest.raises(DatabaseUnavailable) as caught:
        far_client.enqueue("a", {"n": 2})

    assert caught.value.unknown
    assert proxy.n_sent("enqueue_many") == 1
    assert eventually(lambda: count(session, "task") == 2)
    assert far_client.enqueue("a").id == 3


def test_enqueue_with_a_key_and_a_lost_reply_is_sent_again_and_makes_one_task(
    far_client: Client, proxy: Proxy, session: Session
) -> None:
    far_client.enqueue("a")
    proxy.lose_reply_to("enqueue_many")

    task = far_client.enqueue("a", {"n": 2}, idempotency_key="k")

    assert proxy.n_sent("enqueue_many") == 2
    assert count(session, "task") == 2
    assert far_client.get(task).payload == {"n": 2}


def test_batch_without_all_keys_is_not_sent_again(far_client: Client, proxy: Proxy) -> None:
    far_client.enqueue("a")
    proxy.lose_reply_to("enqueue_many")

    with pytest.raises(DatabaseUnavailable) as caught:
        far_client.enqueue_many("a", [1, 2], idempotency_keys=["k", None])

    assert caught.value.unknown
    assert proxy.n_sent("enqueue_many") == 1


def test_batch_cut_before_its_commit_was_not_carried_out_and_is_sent_again(
    far_client: Client, proxy: Proxy, session: Session
) -> None:
    far_client.enqueue("a")
    proxy.lose_reply_to("enqueue_many")

    tasks = far_client.enqueue_many("b", range(2500))

    assert len(tasks) == 2500
    assert value(session, "select count(*) from tasks where type = 'b'") == 2500


def test_batch_with_a_lost_reply_to_its_commit_is_unknown(
    far_client: Client, proxy: Proxy, session: Session
) -> None:
    far_client.enqueue("a")
    proxy.lose_reply_to("COMMIT")

    with pytest.raises(DatabaseUnavailable) as caught:
        far_client.enqueue_many("b", range(2500))

    assert caught.value.unknown
    assert eventually(lambda: count(session, "task") == 2501)


def test_reads_and_cancel_survive_a_lost_reply(far_client: Client, proxy: Proxy) -> None:
    task = far_client.enqueue("a")

    proxy.lose_reply_to("tasks")
    found = far_client.get(task)
    proxy.lose_reply_to("cancel")
    cancelled = far_client.cancel(task)

    assert (found.state, cancelled.state) == (State.READY, State.CANCELLED)


# -- the caller's connection


def test_any_kind_of_cursor_will_do_on_the_callers_connection(dsn: str) -> None:
    connection = psycopg2.connect(
        dsn,
        cursor_factory=psycopg2.extras.RealDictCursor,
        options="-c timezone=Asia/Kathmandu -c search_path=pg_catalog",
    )

    first = Client().enqueue("a", idempotency_key="k", conn=connection)
    again = Client().enqueue("a", idempotency_key="k", conn=connection)

    assert (again.id, again.existing) == (first.id, True)
    assert again.created_at is not None
    assert str(again.created_at.tzinfo) == "UTC"
    connection.close()


def test_batch_on_an_autocommit_connection_is_all_or_nothing(dsn: str, session: Session) -> None:
    connection = psycopg2.connect(dsn)
    connection.autocommit = True

    def stop(done: int, total: int) -> None:
        if done == 2000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Client().enqueue_many("a", range(2500), conn=connection, on_progress=stop)
    before = count(session, "task")
    Client().enqueue_many("a", range(2500), conn=connection)

    assert (before, count(session, "task")) == (0, 2500)
    connection.close()


def test_oversized_payload_does_not_break_the_callers_transaction(dsn: str) -> None:
    connection = psycopg2.connect(dsn)

    with pytest.raises(PayloadError, match=r"^payload: has 300002 bytes as JSON"):
        Client().enqueue("a", "x" * 300_000, conn=connection)

    assert Client().enqueue("a", conn=connection).id > 0
    connection.close()


# -- the doorbell


@pytest.fixture
def sleeper(dsn: str) -> Iterator[Session]:
    """Give a steward whose workers are all idle."""
    with sleeping(dsn) as session:
        yield session


def test_enqueue_rings_for_what_can_run_now_and_only_after_its_own_commit(
    client: Client, sleeper: Session, dsn: str
) -> None:
    client.enqueue("a")
    assert eventually(lambda: n_rings(sleeper))

    with psycopg2.connect(dsn) as connection:
        client.enqueue("a", conn=connection)
    client.enqueue("a", delay="1h")
    never(lambda: n_rings(sleeper), during=0.2)
    client.enqueue("a", idempotency_key="k")
    assert eventually(lambda: n_rings(sleeper))
    client.enqueue("a", idempotency_key="k")
    never(lambda: n_rings(sleeper), during=0.2)

    assert client.ring()
    assert eventually(lambda: n_rings(sleeper))


def test_nobody_is_notified_where_nobody_sleeps(client: Client, session: Session) -> None:
    listen(session)

    client.enqueue("a")

    assert not client.ring()
    assert not n_rings(session)


def test_threads_are_not_held_up_by_one_that_waits_for_a_key(dsn: str, client: Client) -> None:
    client.enqueue("a")  # the name of a new type is itself waited for
    holder = psycopg2.connect(dsn)
    client.enqueue("a", idempotency_key="k", conn=holder)
    waiter = threading.Thread(target=client.enqueue, args=("a",), kwargs={"idempotency_key": "k"})
    waiter.start()

    others = [client.enqueue("a") for _ in range(5)]
    was_waiting = waiter.is_alive()
    holder.commit()
    waiter.join(10)

    assert was_waiting
    assert not waiter.is_alive()
    assert len(others) == 5
    holder.close()
