"""What becomes of an attempt whose effects can, or cannot, be committed; on a real node."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator import Client, State, Task
from orchestrator.db.connection import Session
from tests import booking_handlers
from tests.conftest import RunningServer
from tests.node import Node, running
from tests.proxy import Proxy, proxied
from tests.sql import backends, rows


@pytest.fixture
def proxy(pg_server: RunningServer) -> Iterator[Proxy]:
    with proxied(Path(pg_server.host) / ".s.PGSQL.5432") as proxy:
        yield proxy


@pytest.fixture
def node(dsn: str, session: Session, proxy: Proxy, tmp_path: Path) -> Iterator[Node]:
    """One worker, whose connections lead through a proxy."""
    rows(session, booking_handlers.CREATE)
    far = f"postgresql://postgres@127.0.0.1:{proxy.port}/orc_test"
    with running(far, tmp_path / "node", processes=1, handlers=("tests.booking_handlers",)) as node:
        yield node


def attempts(task: Task) -> list[tuple[str | None, str | None]]:
    return [(attempt.outcome, attempt.error) for attempt in task.attempts]


def booked(session: Session, task: Task) -> list[int]:
    """The attempts of which rows are there."""
    found = rows(session, "select attempt from public.booking where task = %(id)s", id=task.id)
    return [attempt for (attempt,) in found]


@pytest.mark.parametrize(
    ("statement", "told"),
    [
        ("select 1/0", "RuntimeError: a statement on ctx.connection() had failed"),
        ("commit and chain", "RuntimeError: the handler ended the transaction"),
        ("rollback", "RuntimeError: the handler ended the transaction"),
        (
            "insert into public.booking (task) values (-1)",
            "psycopg2.errors.CheckViolation: booking 0 refuses",
        ),
        (
            "select pg_terminate_backend(pg_backend_pid())",
            "DatabaseUnavailable: ctx.connection() was closed",
        ),
    ],
    ids=["error swallowed", "commit", "rollback", "constraint at the commit", "terminated"],
)
def test_attempt_whose_effects_cannot_be_committed_has_failed_and_tells_why(
    node: Node, client: Client, session: Session, statement: str, told: str
) -> None:
    rows(
        session,
        "create function public.refuse() returns trigger language plpgsql as $$ begin "
        "if new.task < 0 then raise check_violation using message = 'booking 0 refuses'; end if; "
        "return null; end $$; "
        "create constraint trigger refuse after insert on public.booking "
        "deferrable initially deferred for each row execute function public.refuse()",
    )

    ended = client.wait(client.enqueue("careless:x", {"statement": statement}), timeout=20)

    (outcome, error), last = attempts(ended)
    assert (outcome, last) == ("failed", ("succeeded", None))
    assert error is not None
    assert told in error
    # What the handler committed itself, nobody can undo.
    assert booked(session, ended) == ([1, 2] if statement.startswith("commit") else [2])


def test_task_whose_result_the_database_refuses_is_dead_and_its_effects_are_undone(
    node: Node, client: Client, session: Session
) -> None:
    ended = client.wait(client.enqueue("careless:x", {"result_bytes": 300_000}), timeout=20)

    assert ended.state is State.DEAD
    assert [outcome for outcome, _ in attempts(ended)] == ["failed"]
    assert "a result is larger than the limit" in str(ended.error)
    assert booked(session, ended) == []


def test_block_of_the_connection_fails_the_attempt_and_names_the_remedy(
    node: Node, client: Client, session: Session
) -> None:
    ended = client.wait(client.enqueue("reckless:block", {}, max_attempts=1), timeout=20)

    assert ended.state is State.DEAD
    assert "Remove the call (or the `with connection:` round it)" in str(attempts(ended))
    assert booked(session, ended) == []


def test_connection_that_a_handler_kept_for_the_next_task_fails_that(
    node: Node, client: Client, session: Session
) -> None:
    first = client.wait(client.enqueue("reckless:keep", {}), timeout=20)
    second = client.wait(client.enqueue("reckless:keep", {}, max_attempts=1), timeout=20)

    assert (first.state, second.state) == (State.SUCCEEDED, State.DEAD)
    assert "call ctx.connection() in each attempt" in str(attempts(second))
    assert rows(session, "select task from public.booking") == [(first.id,)]


def test_success_whose_reply_was_lost_is_counted_as_what_it_is(
    node: Node, client: Client, session: Session, proxy: Proxy
) -> None:
    proxy.lose_reply_to("commit and chain")

    ended = client.wait(client.enqueue("careless:x", {}), timeout=20)
    after = client.wait(client.enqueue("careless:x", {}), timeout=20)

    assert attempts(ended) == attempts(after) == [("succeeded", None)]
    assert (booked(session, ended), booked(session, after)) == ([1], [1])
    assert node.events("claim.lost", "task.failed") == []


def test_commit_that_did_not_reach_the_server_fails_the_attempt_and_the_next_writes_once(
    node: Node, client: Client, session: Session, proxy: Proxy
) -> None:
    proxy.lose_request("commit and chain")

    ended = client.wait(client.enqueue("careless:x", {}), timeout=20)

    assert [outcome for outcome, _ in attempts(ended)] == ["failed", "succeeded"]
    assert booked(session, ended) == [2]


def test_worker_opens_its_connection_for_effects_at_the_first_need_and_keeps_it(
    node: Node, client: Client, session: Session
) -> None:
    before = backends(session)

    for _ in range(3):
        client.wait(client.enqueue("page", {}), timeout=20)

    opened = [name for name in backends(session) if name.endswith("effects")]
    assert [name for name in before if name.endswith("effects")] == []
    assert opened == ["orchestrator cpu-0 effects"]
