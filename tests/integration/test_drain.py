"""`drain`: the worker's loop, inline, on a real database."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from orchestrator import (
    AsyncClient,
    Cancelled,
    Client,
    Context,
    DatabaseUnavailable,
    Mux,
    Retry,
    Snooze,
    State,
)
from orchestrator.db.connection import Session
from orchestrator.store import nodes
from orchestrator.testing import assert_enqueued, context, drain, run
from tests import sql


@pytest.fixture
def mux() -> Mux:
    """Give a mux with a handler for each way to end."""
    mux = Mux()

    @mux.handler("echo")
    def echo(ctx: Context[Any], payload: Any) -> Any:
        return payload

    @mux.handler("echo_async")
    async def echo_async(ctx: Context[Any], payload: Any) -> Any:
        await asyncio.sleep(0)
        return payload

    @mux.handler("fail", retry=Retry(max_attempts=3, base="1h", cap="1h"))
    def fail(ctx: Context[Any], payload: Any) -> None:
        raise ValueError(f"attempt {ctx.attempt}")

    @mux.handler("chain")
    def chain(ctx: Context[Any], payload: int) -> None:
        if payload:
            ctx.enqueue("chain", payload - 1)

    @mux.handler("snooze")
    def snooze(ctx: Context[Any], payload: Any) -> None:
        raise Snooze("1h")

    @mux.handler("cancel")
    def cancel(ctx: Context[Any], payload: Any) -> None:
        raise Cancelled

    return mux


def alive_nodes(session: Session) -> list[Any]:
    return nodes.alive(session)


def test_ready_tasks_run_in_order_and_their_ends_are_recorded(client: Client, mux: Mux) -> None:
    tasks = [
        client.enqueue("echo", 1),
        client.enqueue("echo_async", 2),
        client.enqueue("echo", 3, priority=9),
    ]

    outcomes = drain(mux, client)

    assert [outcome.value for outcome in outcomes] == [3, 1, 2]
    assert [client.result(task) for task in tasks] == [1, 2, 3]


def test_tasks_that_handlers_enqueue_run_too(client: Client, mux: Mux) -> None:
    client.enqueue("chain", 3)

    outcomes = drain(mux, client)

    assert len(outcomes) == 4
    assert_enqueued("chain", payload=0, within=client)


def test_a_retry_waits_for_its_time(client: Client, mux: Mux) -> None:
    task = client.enqueue("fail")

    outcomes = drain(mux, client)

    assert [outcome.state for outcome in outcomes] == [State.SCHEDULED]
    assert client.get(task).state is State.SCHEDULED


def test_with_scheduled_retries_run_until_the_task_is_dead(client: Client, mux: Mux) -> None:
    task = client.enqueue("fail")

    outcomes = drain(mux, client, scheduled=True)

    assert [outcome.state for outcome in outcomes] == [State.SCHEDULED, State.SCHEDULED, State.DEAD]
    dead = client.get(task)
    assert dead.state is State.DEAD
    assert [attempt.error for attempt in dead.attempts] == [
        "ValueError: attempt 1",
        "ValueError: attempt 2",
        "ValueError: attempt 3",
    ]


def test_with_scheduled_the_order_is_that_of_the_times(client: Client, mux: Mux) -> None:
    client.enqueue("echo", "late", delay="3d")
    client.enqueue("echo", "soon", delay="1h")
    client.enqueue("echo", "now")

    outcomes = drain(mux, client, scheduled=True)

    assert [outcome.value for outcome in outcomes] == ["now", "soon", "late"]


def test_without_it_scheduled_tasks_stay(client: Client, mux: Mux) -> None:
    task = client.enqueue("echo", 1, delay=timedelta(days=1))

    assert drain(mux, client) == []
    assert client.get(task).state is State.SCHEDULED


def test_what_never_ends_is_stopped_by_the_limit(client: Client, mux: Mux) -> None:
    task = client.enqueue("snooze")

    with pytest.raises(AssertionError, match=r"drain\(limit=5\): .* \(snooze\)"):
        drain(mux, client, scheduled=True, limit=5)

    assert client.get(task).state is State.READY


def test_only_the_given_queues_are_served(client: Client, mux: Mux) -> None:
    client.enqueue("echo", 1, queue="a")
    other = client.enqueue("echo", 2, queue="b")

    outcomes = drain(mux, client, queues=["a"])

    assert [outcome.value for outcome in outcomes] == [1]
    assert client.get(other).state is State.READY


def test_types_of_other_muxes_are_held_until_their_mux_drains(client: Client, mux: Mux) -> None:
    other = Mux()
    other.handle("elsewhere", lambda ctx, payload: "done")
    task = client.enqueue("elsewhere")

    assert drain(mux, client) == []
    assert client.get(task).state is State.HELD
    assert [outcome.value for outcome in drain(other, client)] == ["done"]


def test_a_cancelling_handler_is_recorded_as_such(client: Client, mux: Mux) -> None:
    task = client.enqueue("cancel")

    drain(mux, client)

    assert client.get(task).state is State.CANCELLED


def test_a_result_that_the_database_refuses_ends_the_task(client: Client, mux: Mux) -> None:
    mux.handle("large", lambda ctx, payload: "x" * 300_000)
    task = client.enqueue("large")

    [outcome] = drain(mux, client)

    assert outcome.state is State.DEAD
    assert client.get(task).state is State.DEAD


def test_it_leaves_no_node_behind(client: Client, mux: Mux, session: Session) -> None:
    client.enqueue("fail")
    seen = []
    mux.handle("look", lambda ctx, payload: seen.append(len(alive_nodes(session))))
    client.enqueue("look")

    drain(mux, client)

    assert seen == [1]
    assert alive_nodes(session) == []


def test_ctrl_c_in_a_handler_leaves_neither_node_nor_running_task(
    client: Client, mux: Mux, session: Session
) -> None:
    def interrupted(ctx: Context[Any], payload: Any) -> None:
        raise KeyboardInterrupt

    mux.handle("interrupted", interrupted)
    client.enqueue("interrupted")

    with pytest.raises(KeyboardInterrupt):
        drain(mux, client)

    assert alive_nodes(session) == []
    assert sql.count(session, "running") == 0


def test_a_lifespan_that_raises_leaves_no_node(client: Client, mux: Mux, session: Session) -> None:
    @mux.lifespan
    def lifespan() -> Any:
        raise OSError("no storage")
        yield

    with pytest.raises(OSError, match="no storage"):
        drain(mux, client)

    assert alive_nodes(session) == []


def test_the_database_going_away_is_raised(client: Client, mux: Mux, session: Session) -> None:
    def cut(ctx: Context[Any], payload: Any) -> None:
        sql.rows(
            session,
            "select pg_terminate_backend(pid) from pg_stat_activity "
            "where datname = current_database() and pid <> pg_backend_pid()",
        )

    mux.handle("cut", cut)
    client.enqueue("cut")

    with pytest.raises(DatabaseUnavailable):
        drain(mux, client)


def test_effects_are_committed_with_the_success_and_not_without(
    client: Client, mux: Mux, session: Session
) -> None:
    def write(ctx: Context[Any], payload: str) -> None:
        with ctx.connection().cursor() as cursor:
            cursor.execute("insert into effect values (%s)", [payload])
        if payload == "bad":
            raise ValueError

    sql.rows(session, "create table public.effect (word text)")
    mux.handle("write", write, retry=Retry(max_attempts=1))
    client.enqueue_many("write", ["good", "bad"])

    outcomes = drain(mux, client)

    assert [outcome.state for outcome in outcomes] == [State.SUCCEEDED, State.DEAD]
    assert sql.rows(session, "select word from public.effect") == [("good",)]


def test_effects_that_cannot_be_committed_fail_the_attempt(
    client: Client, mux: Mux, session: Session
) -> None:
    def write(ctx: Context[Any], payload: None) -> None:
        with ctx.connection().cursor() as cursor:
            cursor.execute("insert into effect values ('one')")

    sql.rows(session, "create table public.effect (word text)")
    sql.rows(session, "alter table public.effect add unique (word) deferrable initially deferred")
    sql.rows(session, "insert into public.effect values ('one')")
    mux.handle("write", write, retry=Retry(max_attempts=1))
    task = client.enqueue("write")

    [outcome] = drain(mux, client)

    assert outcome.state is State.DEAD
    assert "unique" in str(client.get(task).error)


def test_progress_is_kept(client: Client, mux: Mux) -> None:
    mux.handle("tell", lambda ctx, payload: ctx.progress(1, 2, "half"))
    task = client.enqueue("tell")

    [outcome] = drain(mux, client)

    assert outcome.said == [(1.0, 2.0, "half")]
    progress = client.get(task).progress
    assert progress is not None
    assert (progress.done, progress.total, progress.message) == (1.0, 2.0, "half")


@pytest.fixture
def connection(session: Session) -> Any:
    """Give a connection of the test's own, inside a transaction, with the table `effect`."""
    session.connection.autocommit = False
    with session.connection.cursor() as cursor:
        cursor.execute("create table public.effect (word text)")
    return session.connection


def words(connection: Any) -> list[str]:
    with connection.cursor() as cursor:
        cursor.execute("select word from public.effect")
        return [word for (word,) in cursor.fetchall()]


def writing(ctx: Context[Any], payload: str) -> None:
    with ctx.connection().cursor() as cursor:
        cursor.execute("insert into public.effect values (%s)", [payload])
    if payload == "bad":
        raise ValueError


def test_a_handler_can_be_given_the_connection_of_the_test(connection: Any) -> None:
    writing(context(connection=connection), "good")

    assert words(connection) == ["good"]


def test_what_a_failing_attempt_wrote_is_rolled_back_and_what_the_test_wrote_is_not(
    connection: Any,
) -> None:
    mux = Mux()
    mux.handle("write", writing)

    endings = [run(mux, "write", word, connection=connection).ending for word in ("good", "bad")]

    assert endings == ["succeeded", "failed"]
    assert words(connection) == ["good"]


@pytest.mark.parametrize("method", ["commit", "close", "__enter__"])
def test_a_handler_cannot_commit_the_connection_of_the_test(connection: Any, method: str) -> None:
    lent = context(connection=connection).connection()

    with pytest.raises(RuntimeError, match="is the runner's to call"):
        if method == "__enter__":
            with lent:
                pass
        else:
            getattr(lent, method)()


def test_a_connection_in_autocommit_mode_is_refused(session: Session) -> None:
    with pytest.raises(RuntimeError, match="autocommit"):
        context(connection=session.connection).connection()


def test_it_can_be_called_by_an_async_test_with_its_client(dsn: str, mux: Mux) -> None:
    async def test() -> list[Any]:
        async with AsyncClient(dsn) as client:
            await client.enqueue("echo_async", 5)
            return [outcome.value for outcome in drain(mux, client)]

    assert asyncio.run(test()) == [5]


def test_a_text_for_the_queues_is_refused(client: Client) -> None:
    with pytest.raises(TypeError, match=r"such as \['mail'\]"):
        drain(Mux(), client, queues="mail")


def test_what_is_no_mux_or_no_client_is_refused(client: Client) -> None:
    with pytest.raises(TypeError, match="must be a Mux, then a Client"):
        drain(client, Mux())  # type: ignore[arg-type]
