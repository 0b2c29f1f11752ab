"""The middleware for Django, on handlers that are run as a worker runs them."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.db import connection, connections

from orchestrator import Context, Mux
from orchestrator.contrib.django import middleware
from orchestrator.db.connection import Session
from orchestrator.options import Policy
from orchestrator.outcome import Outcome
from orchestrator.runner import Runner
from orchestrator.task import Claim
from tests.callers import set_up_django
from tests.sql import rows

mux = Mux()
mux.use(middleware)


def query() -> int:
    with connection.cursor() as cursor:
        cursor.execute("select pg_backend_pid()")
        return int(cursor.fetchone()[0])


@mux.handler("sync")
def run_query(ctx: Context[None], payload: Any) -> int:
    return query()


@mux.handler("async")
async def await_query(ctx: Context[None], payload: Any) -> int:
    return await sync_to_async(query)()


def claim(type: str) -> Claim:
    return Claim(
        task_id=1, token=1, attempt=1, type=type, queue="default", priority=0, payload="{}",
        headers="{}", max_attempts=None, timeout=None, failures=0, crashes=0, losses=0,
        is_alone=False, created_at=datetime.now(UTC),
    )  # fmt: skip


@pytest.fixture(params=[0, None], ids=["CONN_MAX_AGE 0", "CONN_MAX_AGE None"])
def max_age(request: pytest.FixtureRequest, dsn: str) -> Iterator[int | None]:
    """Let Django's connections live for one task, or for ever."""
    set_up_django(dsn)
    before = connection.settings_dict["CONN_MAX_AGE"]
    connection.settings_dict["CONN_MAX_AGE"] = request.param
    yield request.param
    connections.close_all()
    connection.settings_dict["CONN_MAX_AGE"] = before


def kill_backends(session: Session) -> None:
    rows(
        session,
        "select pg_terminate_backend(pid) from pg_stat_activity "
        "where pid <> pg_backend_pid() and datname = current_database()",
    )


@pytest.mark.parametrize("type", ["sync", "async"])
def test_worker_outlives_the_loss_of_its_connection(
    max_age: int | None, session: Session, type: str
) -> None:
    with Runner(mux, defaults=Policy()) as runner:
        outcomes: list[Outcome] = [runner.run(claim(type))]
        kill_backends(session)
        outcomes += [runner.run(claim(type)) for _ in range(2)]

    # One that is kept for ever breaks under the task that met its end, and under no other.
    second = "failed" if max_age is None else "succeeded"
    assert [str(outcome.ending) for outcome in outcomes] == ["succeeded", second, "succeeded"]


def test_connection_is_kept_as_long_as_django_is_told_to(max_age: int | None) -> None:
    with Runner(mux, defaults=Policy()) as runner:
        first, second = (runner.run(claim("sync")).result for _ in range(2))

    assert (first == second) is (max_age is None)


@pytest.mark.parametrize("max_age", [0], indirect=True)
def test_no_connection_is_held_between_tasks_by_default(max_age: int) -> None:
    with Runner(mux, defaults=Policy()) as runner:
        runner.run(claim("sync"))

    assert connection.connection is None


@pytest.mark.parametrize("max_age", [600], indirect=True)
def test_connection_that_grew_too_old_while_the_worker_was_idle_is_not_used(max_age: int) -> None:
    with Runner(mux, defaults=Policy()) as runner:
        first = runner.run(claim("sync")).result
        connection.close_at = 0.0  # ten minutes later
        second = runner.run(claim("sync")).result

    assert first != second
