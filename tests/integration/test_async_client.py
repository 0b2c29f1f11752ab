"""AsyncClient on a real database: its verbs, the caller's transaction, connections, loops."""

from __future__ import annotations

import asyncio
import importlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psycopg
import psycopg2
import pytest
from sqlalchemy.ext.asyncio import create_async_engine

from orchestrator import (
    AsyncClient,
    Client,
    DatabaseUnavailable,
    PayloadError,
    State,
    TaskFailed,
    TaskNotFound,
    TaskType,
)
from orchestrator.db.connection import Session
from orchestrator.errors import ConfigError, NotDead, SchemaError
from orchestrator.outcome import Ending, Outcome
from orchestrator.store.fail import fail
from orchestrator.store.finish import finish
from tests.callers import AWAITED, AWAITED_SQLALCHEMY, RollBack, url_for
from tests.conftest import RunningServer
from tests.doorbell import n_rings, sleeping
from tests.integration.test_attempts import failure, register, take
from tests.proxy import Proxy, proxied
from tests.server import FAST, own_server
from tests.sql import backends, count, rows
from tests.support import eventually, never

ROOT = Path(__file__).parents[2]


@pytest.fixture
def sleeper(dsn: str) -> Iterator[Session]:
    """Give a steward whose workers are all idle."""
    with sleeping(dsn) as session:
        yield session


async def ids(client: AsyncClient) -> list[int]:
    return [task.id async for task in client.tasks()]


# -- the verbs


def test_verbs_are_those_of_the_client_awaited(dsn: str, session: Session) -> None:
    double = TaskType("a", dict, int)

    async def main() -> None:
        async with AsyncClient(dsn) as client:
            task = await client.enqueue(double, {"n": 2}, priority=3, tags=["x"])
            assert task.state is State.READY
            assert (await client.get(task)).payload == {"n": 2}
            (claimed,) = take(session, register(session), token=9)
            finish(session, [(claimed, Outcome(ending=Ending.SUCCEEDED, result=b"4"))])
            assert (await client.wait(task, timeout=5)).state is State.SUCCEEDED
            assert await client.result(task, timeout=5) == 4

            bad = await client.enqueue("a")
            (claimed,) = take(session, register(session), token=10)
            fail(
                session, task_id=claimed.task_id, token=10,
                outcome=failure(dead_reason="enough", delay=0.0),
            )  # fmt: skip
            with pytest.raises(TaskFailed, match="dead"):
                await client.result(bad, timeout=5)
            assert (await client.redrive(bad)).state is State.READY
            assert (await client.cancel(bad)).state is State.CANCELLED
            with pytest.raises(NotDead):
                await client.redrive(bad)

            waiting = await client.enqueue("a")
            with pytest.raises(TimeoutError):
                await client.wait(waiting, timeout=0.1)
            with pytest.raises(TaskNotFound):
                await client.get(424242)

    asyncio.run(main())


def test_tasks_are_iterated_over_in_pages_by_the_same_filters(dsn: str) -> None:
    async def main() -> None:
        async with AsyncClient(dsn) as client:
            tasks = await client.enqueue_many("a", range(1200), tags=["x"])
            await client.enqueue("b")

            found = [task.id async for task in client.tasks(type="a", tag="x", state="ready")]
            first = [task.id async for task in client.tasks(limit=2)]

        assert found == [task.id for task in reversed(tasks)]
        assert len(first) == 2

    asyncio.run(main())


def test_batch_is_one_transaction_and_tells_its_progress(dsn: str, session: Session) -> None:
    seen: list[tuple[int, int]] = []

    def stop(done: int, total: int) -> None:
        if done == 2000:
            raise KeyError

    async def main() -> None:
        async with AsyncClient(dsn) as client:
            with pytest.raises(KeyError):
                await client.enqueue_many("a", range(2500), on_progress=stop)
            assert count(session, "task") == 0
            with pytest.raises(PayloadError, match=r"payloads\[1500\]"):
                await client.enqueue_many("b", [{}] * 1500 + [{"n": float("inf")}])
            await client.enqueue_many("a", range(2500), on_progress=lambda *done: seen.append(done))
            assert count(session, "task") == 2500

    asyncio.run(main())

    assert seen == [(1000, 2500), (2000, 2500), (2500, 2500)]


def test_both_clients_share_their_keys(dsn: str, client: Client) -> None:
    async def main() -> None:
        first = client.enqueue("a", {"n": 1}, idempotency_key="k")
        async with AsyncClient(dsn) as other:
            again = await other.enqueue("a", {"n": 2}, idempotency_key="k")
        assert (again.id, again.existing, again.payload) == (first.id, True, {"n": 1})
        assert again.created_at == client.get(first).created_at

    asyncio.run(main())


def test_enqueue_rings_for_what_can_run_now(dsn: str, sleeper: Session) -> None:
    async def main() -> None:
        async with AsyncClient(dsn) as client:
            await client.enqueue("a")
            assert eventually(lambda: n_rings(sleeper) == 1)
            await client.enqueue("a", delay="1h")
            never(lambda: n_rings(sleeper), during=0.1)
            assert await client.ring()

    asyncio.run(main())


# -- the caller's transaction


@pytest.mark.parametrize("way", AWAITED.values(), ids=AWAITED)
def test_task_exists_after_the_callers_commit_only(way: Any, dsn: str) -> None:
    async def main() -> None:
        async with AsyncClient(dsn) as client, way(dsn) as transactions:
            with pytest.raises(RollBack):
                async with transactions() as conn:
                    rolled_back = await client.enqueue("a", conn=conn)
                    await client.enqueue_many("a", range(1500), conn=conn)
                    raise RollBack
            async with transactions() as conn:
                task = await client.enqueue("a", {"n": 1}, conn=conn, idempotency_key="k")
                again = await client.enqueue("a", {"n": 2}, conn=conn, idempotency_key="k")
                unseen = await ids(client)

            assert unseen == []
            assert await ids(client) == [task.id]
            assert (again.id, again.existing, again.payload) == (task.id, True, {"n": 1})
            with pytest.raises(TaskNotFound):
                await client.get(rolled_back)

    asyncio.run(main())


@pytest.mark.parametrize("way", AWAITED_SQLALCHEMY.values(), ids=AWAITED_SQLALCHEMY)
def test_bell_rings_once_after_a_commit_by_sqlalchemy_and_not_after_a_rollback(
    way: Any, dsn: str, sleeper: Session
) -> None:
    async def main() -> None:
        async with AsyncClient(dsn) as client, way(dsn) as transactions:
            with pytest.raises(RollBack):
                async with transactions() as conn:
                    await client.enqueue("a", conn=conn)
                    raise RollBack
            never(lambda: n_rings(sleeper), during=0.1)
            async with transactions() as conn:
                async with conn.begin_nested():
                    await client.enqueue("a", conn=conn)
                await client.enqueue("a", conn=conn)
                never(lambda: n_rings(sleeper), during=0.1)
            assert eventually(lambda: n_rings(sleeper) == 1)
            never(lambda: n_rings(sleeper), during=0.1)

    asyncio.run(main())


def test_bell_that_cannot_ring_does_not_spoil_the_commit(dsn: str, client: Client) -> None:
    async def main() -> int:
        far = AsyncClient("postgresql://nobody@127.0.0.1:1/nowhere")
        async with AWAITED_SQLALCHEMY["sqlalchemy session"](dsn) as transactions:
            async with transactions() as conn:
                return (await far.enqueue("a", conn=conn)).id

    assert client.get(asyncio.run(main())).state is State.READY


@asynccontextmanager
async def autocommit_psycopg(dsn: str) -> AsyncIterator[Any]:
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        yield connection


@asynccontextmanager
async def autocommit_sqlalchemy(dsn: str) -> AsyncIterator[Any]:
    engine = create_async_engine(url_for(dsn, "psycopg"), isolation_level="AUTOCOMMIT")
    async with engine.connect() as connection:
        yield connection
    await engine.dispose()


@pytest.mark.parametrize("autocommit", [autocommit_psycopg, autocommit_sqlalchemy])
def test_in_autocommit_mode_a_task_is_there_at_once_and_a_batch_is_all_or_nothing(
    autocommit: Any, dsn: str, session: Session, sleeper: Session
) -> None:
    def stop(done: int, total: int) -> None:
        if done == 2000:
            raise KeyError

    async def main() -> None:
        async with AsyncClient(dsn) as client, autocommit(dsn) as conn:
            await client.enqueue("a", conn=conn)
            assert eventually(lambda: n_rings(sleeper) == 1)
            with pytest.raises(KeyError):
                await client.enqueue_many("a", range(2500), conn=conn, on_progress=stop)
            assert count(session, "task") == 1
            await client.enqueue_many("a", range(2500), conn=conn)
            assert count(session, "task") == 2501

    asyncio.run(main())


def test_client_without_url_lives_on_connections_that_are_given(dsn: str, client: Client) -> None:
    async def main() -> int:
        lonely = AsyncClient()
        with pytest.raises(ConfigError, match="without url"):
            await lonely.enqueue("a")
        async with AWAITED["psycopg"](dsn) as transactions, transactions() as conn:
            return (await lonely.enqueue("a", conn=conn)).id

    assert client.get(asyncio.run(main())).state is State.READY


def test_missing_schema_is_named_with_the_remedy(dsn: str) -> None:
    async def main() -> None:
        async with AsyncClient(dsn, schema="elsewhere") as client:
            with pytest.raises(SchemaError, match=r'"elsewhere" is not installed .* migrate'):
                await client.enqueue("a")

    asyncio.run(main())


# -- what is refused


def test_connection_that_is_not_awaited_is_refused_with_the_way(dsn: str) -> None:
    connection = psycopg2.connect(dsn)

    with pytest.raises(TypeError, match=r"orchestrator\.Client takes those"):
        asyncio.run(AsyncClient().enqueue("a", conn=connection))

    connection.close()


def test_without_psycopg_the_constructor_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)

    with pytest.raises(ConfigError, match=r"pip install 'task-orchestrator\[async\]'"):
        AsyncClient("postgresql://localhost/x")


def test_importing_the_client_loads_neither_psycopg_nor_asyncio() -> None:
    program = (
        "import sys; from orchestrator import Client; Client()\n"
        "print(*{name.partition('.')[0] for name in sys.modules})"
    )

    loaded = subprocess.check_output([sys.executable, "-c", program], text=True, cwd=ROOT)

    assert not {"psycopg", "asyncio"} & set(loaded.split())


# -- connections


@pytest.fixture
def proxy(pg_server: RunningServer) -> Iterator[Proxy]:
    with proxied(Path(pg_server.host) / ".s.PGSQL.5432") as proxy:
        yield proxy


def far(proxy: Proxy, main: Callable[[AsyncClient], Awaitable[Any]], **options: Any) -> Any:
    """Run with a client whose replies the proxy can lose, and which has been used before."""

    async def with_client() -> Any:
        url = f"postgresql://postgres@127.0.0.1:{proxy.port}/orc_test"
        async with AsyncClient(url, **options) as client:
            await client.enqueue("a")
            return await main(client)

    return asyncio.run(with_client())


def test_tasks_of_the_loop_share_no_more_sessions_than_the_pool_has(
    dsn: str, session: Session
) -> None:
    async def main() -> None:
        async with AsyncClient(dsn, pool_size=3) as client:
            await asyncio.gather(*(client.enqueue("a") for _ in range(40)))
            assert len(backends(session)) == 3

    asyncio.run(main())

    assert count(session, "task") == 40
    assert eventually(lambda: not backends(session))


def test_lost_reply_to_an_enqueue_is_unknown_and_not_sent_again(
    dsn: str, proxy: Proxy, session: Session
) -> None:
    async def main(client: AsyncClient) -> None:
        proxy.lose_reply_to("enqueue_many")
        with pytest.raises(DatabaseUnavailable) as caught:
            await client.enqueue("a", {"n": 2})
        assert caught.value.unknown

    far(proxy, main)

    assert proxy.n_sent("enqueue_many") == 1
    assert eventually(lambda: count(session, "task") == 2)


def test_lost_reply_to_an_enqueue_with_a_key_is_sent_again(
    dsn: str, proxy: Proxy, session: Session
) -> None:
    async def main(client: AsyncClient) -> None:
        proxy.lose_reply_to("enqueue_many")
        task = await client.enqueue("a", {"n": 2}, idempotency_key="k")
        assert (await client.get(task)).payload == {"n": 2}

    far(proxy, main)

    assert proxy.n_sent("enqueue_many") == 2
    assert count(session, "task") == 2


def test_batch_cut_before_its_commit_was_not_carried_out_and_is_sent_again(
    dsn: str, proxy: Proxy, session: Session
) -> None:
    async def main(client: AsyncClient) -> None:
        proxy.lose_reply_to("enqueue_many")
        assert len(await client.enqueue_many("b", range(2500))) == 2500

    far(proxy, main)

    assert count(session, "task") == 2501


def test_batch_with_a_lost_reply_to_its_commit_is_unknown(
    dsn: str, proxy: Proxy, session: Session
) -> None:
    async def main(client: AsyncClient) -> None:
        proxy.lose_reply_to("COMMIT")
        with pytest.raises(DatabaseUnavailable) as caught:
            await client.enqueue_many("b", range(2500))
        assert caught.value.unknown

    far(proxy, main)

    assert eventually(lambda: count(session, "task") == 2501)


def test_reads_and_cancel_survive_a_lost_reply(dsn: str, proxy: Proxy) -> None:
    async def main(client: AsyncClient) -> None:
        task = await client.enqueue("a")
        proxy.lose_reply_to("tasks")
        assert (await client.get(task)).state is State.READY
        proxy.lose_reply_to("cancel")
        assert (await client.cancel(task)).state is State.CANCELLED

    far(proxy, main)


def test_first_call_after_a_restart_of_the_server_works_and_wait_outlasts_it() -> None:
    with own_server() as server:

        async def main() -> None:
            async with AsyncClient(server.dsn) as client:
                task = await client.enqueue("a")
                waiting = asyncio.create_task(client.wait(task, 30))
                await asyncio.sleep(0)
                server.end(FAST)
                with pytest.raises(DatabaseUnavailable) as caught:
                    await client.get(task)
                assert not caught.value.unknown
                server.start()
                await client.enqueue("a")
                await client.cancel(task)
                assert (await waiting).state is State.CANCELLED

        asyncio.run(main())


def test_call_that_is_cancelled_leaves_the_client_fit(dsn: str, session: Session) -> None:
    async def main() -> None:
        async with AsyncClient(dsn, pool_size=1) as client:
            await client.enqueue("a")
            with psycopg2.connect(dsn) as holder:
                Client().enqueue("a", idempotency_key="k", conn=holder)
                stuck = asyncio.create_task(client.enqueue("a", idempotency_key="k"))
                while not rows(
                    session, "select 1 from pg_stat_activity where wait_event_type = 'Lock'"
                ):
                    await asyncio.sleep(0.01)
                stuck.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await stuck
                assert (await client.enqueue("b")).state is State.READY
            holder.close()

    asyncio.run(main())


def test_client_goes_on_in_the_next_event_loop(dsn: str, session: Session) -> None:
    client = AsyncClient(dsn, pool_size=1)

    async def many() -> int:
        # More than the pool has: the tasks of one loop wait for each other.
        return len(await asyncio.gather(*(client.enqueue("a") for _ in range(5))))

    n_enqueued = [asyncio.run(many()) for _ in range(2)]
    n_open = len(backends(session))
    asyncio.run(client.close())

    assert (n_enqueued, n_open) == ([5, 5], 1)
    assert eventually(lambda: not backends(session))


def test_client_works_on_in_a_forked_child_and_the_parent_keeps_its_session(
    dsn: str, session: Session
) -> None:
    client = AsyncClient(dsn)

    def pids() -> list[tuple[Any, ...]]:
        return rows(
            session,
            "select pid from pg_stat_activity where application_name = 'orchestrator client' "
            "and datname = current_database()",
        )

    with asyncio.Runner() as runner:
        runner.run(client.enqueue("a"))
        of_parent = pids()
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.write(writer, str(asyncio.run(client.enqueue("a")).id).encode())
            os._exit(0)
        os.waitpid(pid, 0)
        in_child = int(os.read(reader, 100))

        assert runner.run(client.get(in_child)).id == in_child
        assert eventually(lambda: pids() == of_parent)
        runner.run(client.close())


def test_async_client_is_exported_lazily() -> None:
    assert importlib.import_module("orchestrator").AsyncClient is AsyncClient
