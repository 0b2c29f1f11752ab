"""Verbs for many tasks: who is asked, what is done, at what pace, and what a Ctrl-C leaves."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from orchestrator import Client
from orchestrator.cli import bulk
from orchestrator.db.connection import Session, connect
from orchestrator.store.delete import delete_many
from orchestrator.store.redrive import redrive_many
from orchestrator.store.types import types
from orchestrator.task import State
from tests.commands import Commands
from tests.integration.test_attempts import register, take
from tests.sql import count, rows, value
from tests.support import eventually


@pytest.fixture
def control(dsn: str, tmp_path: Path) -> Commands:
    return Commands.of(dsn, tmp_path)


def kill_all(session: Session, types: str = "", *, message: str = "no") -> None:
    """Let ready tasks of types that begin so die, without a worker."""
    rows(
        session,
        """
        with gone as (
            delete from ready r using type t
            where t.id = r.type and starts_with(t.name, %(types)s) returning r.*
        ), noted as (
            insert into attempt (id, attempt, token, started_at, outcome, error_type, error_message)
            select id, 1, id, now(), 'failed', 'ValueError', replace(%(message)s, 'ID', id::text)
            from gone
        ), freed as (
            delete from idempotency i using gone where i.id = gone.id
        )
        insert into dead (id, type, queue, attempt, priority, failures, crashes, losses, reason)
        select id, type, queue, 1, priority, 1, 0, 0, 'enough' from gone
        """,
        types=types,
        message=message,
    )


def states(session: Session) -> dict[int, str]:
    return {int(id): str(state) for id, state in rows(session, "select id, state from tasks")}


# -- by filters: counted, asked, done


def test_verb_by_filters_says_the_count_and_needs_yes_without_a_terminal(
    control: Commands, client: Client, session: Session
) -> None:
    client.enqueue_many("a", range(3))
    kill_all(session)

    result = control("task", "redrive", "--type", "a")

    assert (result.exit_code, result.stdout) == (2, "")
    assert "redrive: 3 tasks match" in result.stderr
    assert "would redrive 3 tasks: give --yes to do it, or --dry-run" in result.stderr
    assert set(states(session).values()) == {"dead"}


def test_dry_run_counts_shows_some_and_changes_nothing(
    control: Commands, client: Client, session: Session
) -> None:
    client.enqueue_many("a", range(12))
    before = states(session)

    table = control("task", "delete", "--type", "a", "--dry-run")
    shape = control.json("task", "delete", "--type", "a", "--dry-run")
    ids = control.ids("task", "delete", "--type", "a", "--dry-run", "--limit", "11")

    assert "delete: 12 tasks match" in table.stderr
    assert "and 2 more" in table.stderr
    assert (shape["count"], [task["id"] for task in shape["sample"]]) == (12, list(range(1, 11)))
    assert ids == list(range(1, 12))
    assert states(session) == before


@pytest.mark.parametrize("verb", ["redrive", "cancel", "delete"])
def test_verb_without_ids_and_filters_does_nothing(
    control: Commands, client: Client, verb: str
) -> None:
    client.enqueue("a")

    result = control("task", verb, "--yes")

    assert result.exit_code == 2
    assert "give IDs, - for IDs on standard input, or filters" in result.stderr
    assert [task.state for task in client.tasks()] == [State.READY]


def test_redrive_by_type_and_error_leaves_the_others(
    control: Commands, client: Client, session: Session
) -> None:
    for name in ("mail:a", "mail:b", "sync"):
        client.enqueue_many(name, range(4))
    kill_all(session, message="no user ID")

    done = control("task", "redrive", "--type", "mail:", "--error", "USER 2", "--yes", "-o", "ids")
    oldest = control.ids("dead", "redrive", "--type", "mail:", "--limit", "2", "--yes")

    assert (done.exit_code, done.stdout) == (0, "2\n")
    assert oldest == [1, 3]
    assert sorted(id for id, state in states(session).items() if state == "ready") == [1, 2, 3]


def test_ids_come_from_standard_input_through_a_pipe(
    control: Commands, client: Client, session: Session
) -> None:
    client.enqueue_many("a", range(700))
    kill_all(session)
    words = [
        *control.words("task", "list", "--state", "dead", "--limit", "650", "-o", "ids"),
        "|",
        *control.words("task", "redrive", "-"),
    ]

    done = subprocess.run(
        " ".join(words),
        shell=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )

    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == "redriven 650 of 650 tasks\n"
    assert (count(session, "ready"), count(session, "dead")) == (650, 50)


def test_line_that_is_no_id_is_named_and_nothing_is_done(control: Commands, client: Client) -> None:
    client.enqueue("a")

    result = control("task", "cancel", "-", input="1\n\nseven\n")

    assert result.exit_code == 2
    assert "standard input, line 3: 'seven' is no task id" in result.stderr
    assert client.get(1).state is State.READY


def test_conflicts_are_named_and_the_others_are_redriven(
    control: Commands, client: Client, session: Session
) -> None:
    client.enqueue("a", idempotency_key="k")
    client.enqueue("a")
    kill_all(session)
    client.enqueue("a", idempotency_key="other")
    kill_all(session)
    client.enqueue("a", idempotency_key="k")

    result = control("task", "redrive", "--type", "a", "--yes", "-o", "ids")

    assert (result.exit_code, result.stdout) == (1, "2\n3\n")
    assert "task 1 cannot be redriven: its idempotency key k is held by task 4" in result.stderr
    assert states(session) == {1: "dead", 2: "ready", 3: "ready", 4: "ready"}


def test_of_two_dead_tasks_with_one_key_the_older_is_redriven(
    client: Client, session: Session
) -> None:
    for _ in range(2):
        client.enqueue("a", idempotency_key="k")
        kill_all(session)

    answers = redrive_many(session, task_ids=[2, 1, 9])

    assert [tuple(answer) for answer in answers] == [
        (1, "redriven", None, None),
        (2, "conflict", "k", 1),
        (9, None, None, None),
    ]
    assert client.enqueue("a", idempotency_key="k").id == 1


def test_redriven_tasks_run_in_the_order_of_their_ids_with_new_budgets_and_ttl(
    client: Client, session: Session
) -> None:
    client.enqueue_many("a", range(3), ttl="1h")
    kill_all(session)
    rows(session, "update task set run_at = run_at - interval '2 h', "
                  "expires_at = expires_at - interval '2 h'")  # fmt: skip

    redrive_many(session, task_ids=[3, 1, 2])
    claims = take(session, register(session), limit=3)

    assert [(c.task_id, c.attempt, c.failures) for c in claims] == [(n, 2, 0) for n in (1, 2, 3)]


def test_cancel_by_filters_cancels_what_waits_and_flags_what_runs(
    control: Commands, client: Client, session: Session
) -> None:
    client.enqueue("a")
    take(session, register(session))
    client.enqueue("a", idempotency_key="k")
    client.enqueue("a", delay="1h")
    client.enqueue("b")

    result = control("task", "cancel", "--type", "a", "--yes")

    assert result.exit_code == 0
    assert states(session) == {1: "running", 2: "cancelled", 3: "cancelled", 4: "ready"}
    assert value(session, "select cancel_requested from running where id = 1")
    assert "task 1 is running; it ends as cancelled unless it succeeds" in result.stderr
    assert client.enqueue("a", idempotency_key="k").existing is False


def test_cancel_by_state_leaves_the_other_states(
    control: Commands, client: Client, session: Session
) -> None:
    client.enqueue("a")
    client.enqueue("a", delay="1h")

    control("task", "cancel", "--state", "scheduled", "--yes")

    assert states(session) == {1: "ready", 2: "cancelled"}


# -- delete


def everything_about(session: Session, task_id: int) -> dict[str, int]:
    """Count the rows of every table with a column `id` or `task_id` that have this value there."""
    tables = rows(
        session,
        "select table_name, column_name from information_schema.columns c join pg_tables t "
        "on t.schemaname = c.table_schema and t.tablename = c.table_name "
        "where table_schema = 'orchestrator' and column_name in ('id', 'task_id') "
        "and data_type = 'bigint'",
    )
    found = {
        table: value(session, f"select count(*) from {table} where {column} = %(id)s", id=task_id)
        for table, column in tables
    }
    assert {"task", "attempt", "progress", "idempotency", "dead", "ready"} <= set(found)
    return {table: number for table, number in found.items() if number}


def test_delete_leaves_nothing_behind_in_any_table(
    control: Commands, client: Client, session: Session
) -> None:
    for n in range(4):
        client.enqueue("a", idempotency_key=f"k{n}", tags=["x"])
    kill_all(session)
    redrive_many(session, task_ids=[1])
    client.enqueue("b", idempotency_key="k4")
    client.cancel(5)
    rows(session, "insert into progress (id, attempt, done, message) select id, 1, 1, '' from task")

    result = control("task", "delete", "1", "2", "5", "-o", "json")

    assert [(task["id"], task["state"]) for task in json.loads(result.stdout)] == [
        (1, "ready"), (2, "dead"), (5, "cancelled"),
    ]  # fmt: skip
    assert [everything_about(session, task_id) for task_id in (1, 2, 5)] == [{}, {}, {}]
    assert set(everything_about(session, 3)) == {"task", "dead", "attempt", "progress"}


def test_running_task_is_not_deleted_and_is_named(
    control: Commands, client: Client, session: Session
) -> None:
    client.enqueue_many("a", range(2))
    take(session, register(session))

    result = control("task", "delete", "1", "2", "7", "-o", "ids")
    by_filter = control("task", "delete", "--type", "a", "--yes")

    assert (result.exit_code, result.stdout) == (1, "2\n")
    assert "task 1 is running, and is not deleted: cancel it, and delete it then" in result.stderr
    assert "no task has the id 7" in result.stderr
    assert "delete: 0 tasks match" in by_filter.stderr
    assert states(session) == {1: "running"}


def test_task_that_left_the_state_of_the_filter_meanwhile_is_left_alone(
    client: Client, session: Session
) -> None:
    client.enqueue("a")

    answers = delete_many(session, task_ids=[1], states=[State.DEAD])

    assert answers == {1: "ready"}
    assert states(session) == {1: "ready"}


def test_purge_deletes_the_dead_ones_and_asks_even_for_all(
    control: Commands, client: Client, session: Session
) -> None:
    client.enqueue_many("a", range(3))
    kill_all(session)
    client.enqueue("a")

    refused = control("dead", "purge", "--all")
    done = control("dead", "purge", "--all", "--yes")

    assert refused.exit_code == 2
    assert done.exit_code == 0
    assert states(session) == {4: "ready"}


def test_queue_purge_deletes_what_waits_there(
    control: Commands, client: Client, session: Session
) -> None:
    client.enqueue("a", queue="q")
    take(session, register(session))
    client.enqueue("a", queue="q")
    client.enqueue("a", queue="q", delay="1h")
    client.enqueue("a")

    result = control("queue", "purge", "q", "--yes", "-o", "ids")

    assert result.stdout == "2\n3\n"
    assert states(session) == {1: "running", 4: "ready"}


def test_deletes_claims_and_redrives_at_once_lose_nothing(
    dsn: str, client: Client, session: Session
) -> None:
    client.enqueue_many("a", range(600))
    kill_all(session)
    ids = list(range(1, 601))
    deleted: set[int] = set()

    def delete() -> None:
        own = connect(dsn, schema="orchestrator", application_name="tests")
        for start in range(0, 600, 20):
            part = ids[start : start + 20]
            answers = delete_many(own, task_ids=part, states=[State.DEAD, State.READY])
            deleted.update(task_id for task_id, answer in answers.items() if answer == "deleted")
        own.close()

    thread = threading.Thread(target=delete)
    thread.start()
    node = register(session)
    claimed = set()
    for start in range(0, 600, 15):
        redrive_many(session, task_ids=ids[start : start + 15])
        claimed |= {claim.task_id for claim in take(session, node, limit=7)}
    thread.join()

    left = states(session)
    assert not deleted & set(left)
    assert deleted | set(left) == set(ids)
    assert {id for id, state in left.items() if state == "running"} == claimed


# -- the counts stay true


def test_stats_equal_a_count_of_all_tasks_whatever_was_deleted_and_counted(
    client: Client, session: Session
) -> None:
    def succeed(ids: list[int]) -> None:
        rows(
            session,
            "with gone as (delete from ready where id = any (%(ids)s) returning id) insert into "
            "outcome (id, attempt, state, finished_at) select id, 1, 'succeeded', now() from gone",
            ids=ids,
        )

    def counted() -> dict[str, tuple[int, ...]]:
        return {
            row.type: (row.ready, row.succeeded, row.cancelled, row.expired, row.dead)
            for row in types(session, alive_within=1)
        }

    def true_count() -> dict[str, tuple[int, ...]]:
        return {
            name: tuple(numbers)
            for name, *numbers in rows(
                session,
                "select t.name, count(*) filter (where state = 'ready'), "
                "count(*) filter (where state = 'succeeded'), "
                "count(*) filter (where state = 'cancelled'), "
                "count(*) filter (where state = 'expired'), count(*) filter (where state = 'dead') "
                "from type t left join tasks s on s.type = t.name group by t.name",
            )
        }

    wrong = []
    for step in range(3):
        a = [task.id for task in client.enqueue_many("a", range(20))]
        b = [task.id for task in client.enqueue_many("b", range(10))]
        succeed(a[:8] + b[:3])
        delete_many(session, task_ids=[a[0], a[19], b[9]], states=list(State))
        if step != 1:
            rows(session, "select count_enqueued((select max(id) from task))")
        client.cancel(a[10])
        kill_all(session, "b")
        delete_many(session, task_ids=[a[1], a[11], b[0], b[5]], states=list(State))
        rows(session, "select * from prune(0, clock_timestamp() - interval '1 s' * %(s)s, 6)",
             s=0 if step else 99)  # fmt: skip
        if counted() != true_count():
            wrong.append((step, counted(), true_count()))
    enqueued = {row.type: row.enqueued for row in types(session, alive_within=1)}

    assert wrong == []
    assert enqueued == {"a": 60, "b": 30}


# -- pace and interruption


def test_rate_is_a_steady_pace_by_the_times_of_the_database(
    control: Commands, client: Client, session: Session
) -> None:
    client.enqueue_many("a", range(60))

    result = control("task", "cancel", "--type", "a", "--yes", "--rate", "40")

    ended = [at for (at,) in rows(session, "select finished_at from outcome order by finished_at")]
    took = (ended[-1] - ended[0]).total_seconds()
    most_in_a_quarter = max(
        sum(1 for other in ended if 0 <= (other - at).total_seconds() < 0.25) for at in ended
    )
    assert result.exit_code == 0
    assert took >= 56 / 40 * 0.95  # the last slice of four begins then
    assert most_in_a_quarter <= 16  # 40 a second are 10, in slices of 4


def test_slow_slice_is_not_made_up_for(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[float] = []

    def act(_session: Any, ids: Any) -> list[bulk.Answer]:
        begun.append(time.monotonic())
        if len(begun) == 2:
            threading.Event().wait(0.35)
        return [bulk.Answer(task_id) for task_id in ids]

    class Access:
        format, session = bulk.Format.IDS, None

    request = bulk.Request(limit=None, rate=10.0, is_sure=True, is_dry=False)
    bulk._work(Access, bulk.Verb("do", "done", act), request, range(1, 7))  # type: ignore[arg-type]

    gaps = [later - earlier for earlier, later in pairwise(begun)]
    assert all(gap >= 0.095 for gap in gaps)


def test_interrupt_ends_after_a_slice_and_says_how_many_were_done(
    control: Commands, client: Client, session: Session
) -> None:
    client.enqueue_many("a", range(1000))
    words = ("task", "cancel", "--type", "a", "--yes", "--rate", "50")
    process = control.start(*words)

    eventually(lambda: count(session, "outcome") >= 10)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)

    done = count(session, "outcome")
    assert process.returncode == 130
    assert 10 <= done < 1000
    assert f"interrupted: cancelled {done} of 1,000 tasks; the others are as they were" in said
    assert "Traceback" not in said


def test_slice_that_was_rolled_back_is_tried_again() -> None:
    tries = []

    def act(_session: Any, ids: Any) -> list[bulk.Answer]:
        tries.append(list(ids))
        if len(tries) == 1:
            raise bulk.DatabaseUnavailable("deadlock detected")
        return [bulk.Answer(task_id) for task_id in ids]

    class Open:
        is_closed = False

    answers = bulk._repeated(bulk.Verb("do", "done", act), Open(), [1, 2])  # type: ignore[arg-type]

    assert tries == [[1, 2], [1, 2]]
    assert [answer.task_id for answer in answers] == [1, 2]


# -- on a terminal


class Terminal:
    """A program whose streams are a terminal of 100 columns."""

    def __init__(self, control: Commands, *words: str, **environ: str) -> None:
        self.ours, theirs = pty.openpty()
        self.process = control.start(
            *words, stdin=theirs, stdout=theirs, stderr=theirs,
            environ={"TERM": "xterm", "COLUMNS": "100", "NO_COLOR": "", **environ},
        )  # fmt: skip
        os.close(theirs)
        self.text = ""

    def read(self) -> str:
        while select.select([self.ours], [], [], 0)[0]:
            try:
                found = os.read(self.ours, 65536).decode()
            except OSError:
                break
            if not found:
                break
            self.text += found
        return self.text

    def says(self, text: str) -> bool:
        return text in self.read()

    def type(self, text: str) -> None:
        os.write(self.ours, text.encode())

    def end(self) -> int:
        def is_ended() -> bool:
            self.read()
            return self.process.poll() is not None

        eventually(is_ended, timeout=30)
        self.read()
        os.close(self.ours)
        return int(self.process.returncode)


@pytest.mark.parametrize(
    ("answer", "exit_code", "state"), [("y\n", 0, "ready"), ("n\n", 1, "dead"), ("\n", 1, "dead")]
)
def test_terminal_is_asked(
    control: Commands, client: Client, session: Session, answer: str, exit_code: int, state: str
) -> None:
    client.enqueue("a")
    kill_all(session)
    terminal = Terminal(control, "task", "redrive", "--type", "a")

    eventually(lambda: terminal.says("redrive 1 task? [y/N]"), timeout=30)
    terminal.type(answer)

    assert terminal.end() == exit_code
    assert states(session) == {1: state}


def test_long_work_shows_its_progress_on_a_terminal(control: Commands, client: Client) -> None:
    client.enqueue_many("a", range(1200))
    terminal = Terminal(control, "task", "delete", "--type", "a", "--yes")

    assert terminal.end() == 0
    assert "100%" in terminal.text
    assert "deleted 1,200 of 1,200 tasks" in terminal.text


@pytest.mark.parametrize(("environ", "is_red"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_dead_is_red_on_a_terminal_unless_no_colour_is_wanted(
    control: Commands, client: Client, session: Session, environ: dict[str, str], is_red: bool
) -> None:
    client.enqueue("a")
    kill_all(session)
    terminal = Terminal(control, "task", "list", **environ)

    assert terminal.end() == 0
    assert "ValueError: no" in terminal.text
    assert ("\x1b[31mdead" in terminal.text) is is_red
    assert ("\x1b" in terminal.text) is is_red


def test_output_into_a_pipe_has_no_colour(
    control: Commands, client: Client, session: Session
) -> None:
    client.enqueue("a")
    kill_all(session)

    text, _ = control.start("task", "list").communicate(timeout=30)

    assert "dead" in text
    assert "\x1b" not in text


def test_reader_that_goes_away_ends_a_list_without_a_word(
    control: Commands, client: Client
) -> None:
    client.enqueue_many("a", ["x" * 1000] * 500)
    process = control.start("task", "list", "--limit", "500", "-o", "json")
    assert process.stdout is not None
    assert process.stderr is not None

    process.stdout.readline()
    process.stdout.close()
    said = process.stderr.read()
    process.wait(30)

    assert said == ""


# -- pause and resume


@pytest.fixture
def node(session: Session) -> Iterator[int]:
    yield register(session)


def test_paused_type_is_held_when_it_is_met_and_goes_back_in_its_place(
    control: Commands, client: Client, session: Session, node: int
) -> None:
    client.enqueue_many("mail:a", range(2))
    client.enqueue("sync")

    paused = control.json("type", "pause", "mail:")
    before = states(session)
    claims = take(session, node, limit=5, patterns=["mail:", "sync"])
    held = client.get(1)
    resumed = control.json("type", "resume", "mail:a")

    assert [(entry["name"], entry["is_paused"]) for entry in paused] == [("mail:a", True)]
    assert set(before.values()) == {"ready"}
    assert [claim.task_id for claim in claims] == [3]
    assert (held.state, held.error) == (State.HELD, "the task type is paused")
    assert [(entry["name"], entry["is_paused"], entry["held"]) for entry in resumed] == [
        ("mail:a", False, 2)
    ]


@pytest.mark.parametrize("words", [("type", "resume", "a"), ("queue", "resume", "default")])
def test_resume_rings_the_doorbell(
    control: Commands, client: Client, session: Session, words: tuple[str, ...]
) -> None:
    client.enqueue("a")
    rows(session, "select pg_advisory_lock_shared(lock_key('sleep'), 0)")
    rows(session, "listen orchestrator_ready")

    control(*words)

    def is_rung() -> bool:
        session.connection.poll()
        return bool(session.connection.notifies)

    assert eventually(is_rung)


def test_paused_queue_is_passed_by(
    control: Commands, client: Client, session: Session, node: int
) -> None:
    client.enqueue("a", queue="q")
    client.enqueue("a")

    (paused,) = control.json("queue", "pause", "q")
    while_paused = [claim.task_id for claim in take(session, node, limit=5)]
    (resumed,) = control.json("queue", "resume", "q")
    afterwards = [claim.task_id for claim in take(session, node, limit=5, token=2)]

    assert (paused["is_paused"], resumed["is_paused"]) == (True, False)
    assert (while_paused, afterwards) == ([2], [1])


@pytest.mark.parametrize("words", [("type", "pause", "b"), ("queue", "pause", "b")])
def test_what_does_not_exist_cannot_be_paused(
    control: Commands, client: Client, words: tuple[str, ...]
) -> None:
    client.enqueue("a")

    result = control(*words)

    assert result.exit_code == 1
    assert f"there is no {'task type' if words[0] == 'type' else 'queue'} 'b'" in result.stderr


def test_type_list_says_who_serves_what(
    control: Commands, client: Client, session: Session, node: int
) -> None:
    client.enqueue_many("a", range(2))
    client.enqueue("b")
    rows(session, "update node set name = 'n1', handlers = '{a}'")

    a, b = control.json("type", "list")

    assert (a["name"], a["ready"], a["is_paused"], a["served_by"]) == ("a", 2, False, ["n1"])
    assert (b["name"], b["served_by"]) == ("b", [])
    assert control("type", "list", "-o", "ids").stdout == "a\nb\n"


# -- the dead letter queue in few words


def test_summary_groups_by_type_and_kind_of_error(
    control: Commands, client: Client, session: Session
) -> None:
    client.enqueue_many("mail", range(3))
    kill_all(session, message="user 'uID' of 10.0.0.ID: can't reach \"host ID\"\nmore: ID")
    client.enqueue("mail")
    kill_all(session, message="boom")
    client.enqueue("sync")
    kill_all(session, message="boom")

    found = control.json("dead", "summary")
    of_sync = control.json("dead", "summary", "--type", "sync")

    assert [(row["type"], row["count"], row["error"], row["sample"]) for row in found] == [
        ("mail", 3, "ValueError: user # of #.#.#.#: can't reach #", 3),
        ("mail", 1, "ValueError: boom", 4),
        ("sync", 1, "ValueError: boom", 5),
    ]
    assert found[0]["first_at"] <= found[0]["last_at"] <= found[1]["first_at"]
    assert [row["sample"] for row in of_sync] == [5]
    assert control("dead", "summary").stdout.splitlines()[1].startswith("mail  3")


@pytest.mark.parametrize(
    ("message", "shape"),
    [
        ("no such user: 17", "no such user: #"),
        ("task 3f2c9d1e-aaaa-bbbb-cccc-0123456789ab is gone", "task # is gone"),
        ("at 0x7f3a2b", "at #"),
        ("`x` is not \"y\" nor 'z'", "# is not # nor #"),
        ("don't, can't and won't", "don't, can't and won't"),
        ("x" * 500, "x" * 200),
        ("", ""),
    ],
)
def test_shape_of_an_error_is_its_message_without_what_differs(
    session: Session, message: str, shape: str
) -> None:
    assert value(session, "select error_shape(%(message)s)", message=message) == shape


# -- the rest


def test_stats_are_watched_until_an_interrupt(control: Commands, client: Client) -> None:
    client.enqueue("a")
    process = control.start("stats", "--watch", "0.1", "-o", "json")
    assert process.stdout is not None

    seen = [process.stdout.readline() for _ in range(40)]
    process.send_signal(signal.SIGINT)
    rest, said = process.communicate(timeout=30)

    assert (process.returncode, said) == (0, "")
    assert ("".join(seen) + rest).count('"enqueued": 1') >= 2


@pytest.mark.parametrize(
    ("shell", "part"), [("bash", "complete -o nosort"), ("zsh", "#compdef"), ("fish", "complete")]
)
def test_completion_is_a_script_for_the_shell(control: Commands, shell: str, part: str) -> None:
    result = control("completion", shell)

    assert result.exit_code == 0
    assert part in result.stdout
    assert "_ORCHESTRATORCTL_COMPLETE" in result.stdout


def test_shell_completes_commands_and_the_names_of_the_database(
    control: Commands, client: Client
) -> None:
    client.enqueue("mail:send")
    client.enqueue("sync")

    def completed(words: str, number: int) -> list[str]:
        environ = {
            "_ORCHESTRATORCTL_COMPLETE": "bash_complete",
            "COMP_WORDS": f"orchestratorctl -c {control.config} {words}",
            "COMP_CWORD": str(number + 2),
        }
        text, _ = control.start(environ=environ).communicate(timeout=30)
        return [line.partition(",")[2] for line in text.splitlines()]

    assert completed("ty", 1) == ["type"]
    assert completed("type pause ma", 3) == ["mail:send"]
