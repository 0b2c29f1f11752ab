"""The leader's duties on a real database: promote, rescue, prune, count."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from orchestrator import config
from orchestrator.db.connection import Session, connect
from orchestrator.duties.count import FILE, Count
from orchestrator.duties.promote import Promote
from orchestrator.duties.prune import Prune
from orchestrator.duties.rescue import Rescue
from orchestrator.store import count, nodes
from tests.integration.test_attempts import (
    SUCCESS,
    enqueue,
    fail,
    failure,
    finish,
    register,
    row_of,
    state_of,
    take,
)


@pytest.fixture
def settings() -> config.Settings:
    return config.Settings()


@pytest.fixture
def other(dsn: str) -> Iterator[Session]:
    """A second session, for a transaction that stays open."""
    session = connect(dsn, schema="orchestrator", application_name="other")
    yield session
    session.close()


def execute(session: Session, statement: str) -> None:
    with session.connection.cursor() as cursor:
        cursor.execute(statement)


def rows_of(session: Session, table: str) -> int:
    with session.connection.cursor() as cursor:
        cursor.execute(f"select count(*) from orchestrator.{table}")
        return int(cursor.fetchone()[0])


# -- promote


def test_promote_sleeps_until_the_next_task_is_due(
    session: Session, settings: config.Settings
) -> None:
    enqueue(session, delay="300 milliseconds")

    pause = Promote(settings).run(session)

    assert 0.01 <= pause <= 0.3


def test_promote_sleeps_its_interval_when_nothing_is_scheduled(
    session: Session, settings: config.Settings
) -> None:
    assert Promote(settings).run(session) == settings.leader.promote_interval


# -- rescue


def test_no_node_is_given_up_before_the_watcher_itself_has_watched_long_enough(
    session: Session, settings: config.Settings
) -> None:
    node = register(session)
    enqueue(session)
    take(session, node)
    execute(session, "update orchestrator.node set beat_at = now() - interval '1 day'")

    Rescue(settings).run(session)

    assert [row.id for row in nodes.alive(session)] == [node]


def test_silent_node_is_given_up_and_its_tasks_are_taken_back(
    session: Session, settings: config.Settings
) -> None:
    silent, beating = register(session, "silent"), register(session, "beating")
    task = enqueue(session)
    take(session, silent)
    execute(
        session,
        f"update orchestrator.node set beat_at = now() - interval '31 s' where id = {silent}",
    )
    duty = Rescue(settings)
    duty.watching_since = time.monotonic() - settings.node.worker_timeout

    duty.run(session)

    assert [row.id for row in nodes.alive(session)] == [beating]
    assert state_of(session, task) == "ready"
    assert row_of(session, "ready", task)["losses"] == 1


# -- prune


def finished(session: Session, node: int, *, token: int = 1) -> int:
    task = enqueue(session)
    (claimed,) = take(session, node, token=token)
    finish(session, [(claimed, SUCCESS)])
    return task


def pruned(session: Session, settings: config.Settings) -> None:
    session.value("count_enqueued", up_to=10**9)
    duty = Prune(settings)
    while duty.run(session) != settings.leader.cleanup_interval:
        pass


def test_prune_removes_what_ended_before_the_retention_time_with_all_its_rows(
    session: Session, settings: config.Settings
) -> None:
    node = register(session)
    old, young = finished(session, node), finished(session, node, token=2)
    execute(
        session,
        f"update orchestrator.outcome set finished_at = now() - interval '8 d' where id = {old}",
    )

    pruned(session, settings)

    assert row_of(session, "task", old) is None
    assert row_of(session, "outcome", old) is None
    assert state_of(session, young) == "succeeded"


def test_prune_never_touches_dead_or_live_tasks(
    session: Session, settings: config.Settings
) -> None:
    node = register(session)
    dead, live = enqueue(session), enqueue(session)
    take(session, node)
    fail(session, task_id=dead, token=1, outcome=failure(dead_reason="enough"))
    execute(session, "update orchestrator.dead set died_at = now() - interval '1 year'")
    execute(session, "update orchestrator.task set created_at = now() - interval '1 year'")

    pruned(session, settings)

    assert (state_of(session, dead), state_of(session, live)) == ("dead", "ready")
    assert row_of(session, "attempt", dead) is not None


def test_prune_finds_what_is_old_behind_what_is_young(
    session: Session, settings: config.Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.duties.prune.SLICE", 2)
    node = register(session)
    tasks = [finished(session, node, token=n) for n in range(1, 7)]
    execute(
        session,
        f"update orchestrator.outcome set finished_at = now() - interval '8 d' "
        f"where id = {tasks[-1]}",
    )

    pruned(session, settings)

    assert row_of(session, "task", tasks[-1]) is None
    assert rows_of(session, "outcome") == 5


# -- count


def test_count_waits_for_a_transaction_that_holds_a_lower_id(
    session: Session, other: Session, settings: config.Settings, tmp_path: Path
) -> None:
    duty = Count(settings, tmp_path)
    execute(session, "select orchestrator.intern_type('a')")
    with other.transaction():
        enqueue(other)  # the lower id, not committed
        enqueue(session)
        for _ in range(3):
            duty.run(session)
        while_open = count.totals(session)
    for _ in range(3):
        duty.run(session)

    assert while_open == {}
    assert count.totals(session) == {"a": 2}


def test_rolled_back_enqueue_is_never_counted(
    session: Session, other: Session, settings: config.Settings, tmp_path: Path
) -> None:
    duty = Count(settings, tmp_path)
    with pytest.raises(ZeroDivisionError), other.transaction():
        enqueue(other)
        raise ZeroDivisionError
    enqueue(session)

    for _ in range(3):
        duty.run(session)

    assert count.totals(session) == {"a": 1}


def test_count_writes_what_the_web_process_shows_and_takes_it_away(
    session: Session, settings: config.Settings, tmp_path: Path
) -> None:
    enqueue(session, priority=1)
    enqueue(session, "b", delay="1 hour")
    duty = Count(settings, tmp_path)

    duty.run(session)
    figures = msgspec.json.decode((tmp_path / FILE).read_bytes())
    duty.forget()

    assert figures["pending"] == {"a": 1, "b": 1}
    assert figures["oldest_pending_seconds"]["default"] >= 0
    assert figures["estimated"] == []
    assert not (tmp_path / FILE).exists()


def test_pending_of_a_large_backlog_is_estimated_and_says_so(session: Session) -> None:
    with session.connection.cursor() as cursor:
        cursor.execute(
            "insert into orchestrator.ready (id, queue, type, priority) "
            "select n, 1, orchestrator.intern_type('a'), 0 from generate_series(1, 150000) n"
        )
        cursor.execute("analyze orchestrator.ready")

    pending, is_estimate = count.pending(session)

    assert is_estimate
    assert 75_000 < pending["a"] < 300_000
