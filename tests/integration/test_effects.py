"""The transaction of `ctx.connection()`: one with the success, and the runner's alone to end."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg2
import psycopg2.extensions
import psycopg2.extras
import pytest

from orchestrator import Client, Context, PayloadError
from orchestrator.db.connection import SHORT_KEEPALIVES, Session, connect
from orchestrator.errors import DatabaseUnavailable, OrchestratorError
from orchestrator.outcome import Answer, Budget, Ending, Enqueue, Failure, Outcome
from orchestrator.store import nodes
from orchestrator.store.cancel import cancel
from orchestrator.store.claim import claim
from orchestrator.store.effects import Effects, EffectsConnection, effects_were_committed
from orchestrator.store.fail import fail
from orchestrator.store.release import release
from orchestrator.store.rescue import rescue
from orchestrator.task import Claim
from tests.conftest import RunningServer
from tests.proxy import Proxy, proxied
from tests.sql import rows, value
from tests.support import eventually

SUCCESS = Outcome(ending=Ending.SUCCEEDED, result=b'{"ok": true}')
UNDONE = Outcome(
    ending=Ending.FAILED,
    budget=Budget.FAILURES,
    limit=3,
    failure=Failure(type="Undone", message="its effects were not committed"),
)


@dataclass
class Worker:
    """What a worker has in its hands: claims, and the connection for their effects."""

    dsn: str
    session: Session
    node: int
    opened: list[Session] = field(default_factory=list)
    tokens: int = 0

    def __post_init__(self) -> None:
        self.effects = Effects(self.open)

    def open(self) -> Session:
        opened = connect(
            self.dsn, schema="orchestrator", application_name="effects", kind=EffectsConnection
        )
        self.opened.append(opened)
        return opened

    def take(self) -> Claim:
        """Enqueue a task and claim it."""
        with self.session.connection.cursor() as cursor:
            cursor.execute("select orchestrator.enqueue('a', '1')")
        self.tokens += 1
        (claimed,) = claim(
            self.session, node=self.node, slot="cpu-0", incarnation=1, pid=7, token=self.tokens,
            queues=["*"], patterns=["a"], limit=1,
        )  # fmt: skip
        return claimed

    def begin(self) -> tuple[Claim, Any]:
        claimed = self.take()
        return claimed, self.effects.connection(claimed)

    def undo(self, claimed: Claim) -> Answer:
        """Report, on the other connection, that the effects were not committed."""
        return fail(self.session, task_id=claimed.task_id, token=claimed.token, outcome=UNDONE)

    def booked(self) -> list[int]:
        found = rows(self.session, "select task from public.booking order by 1")
        return [task for (task,) in found]

    def state(self, claimed: Claim) -> str:
        return str(
            value(self.session, "select state from tasks where id = %(i)s", i=claimed.task_id)
        )


@pytest.fixture
def worker(dsn: str, session: Session) -> Iterator[Worker]:
    rows(session, "create table public.booking (task bigint)")
    node = nodes.register(
        session, name="n", host="h", pid=1, run="n", version="0", lock_path="",
        distributed=True, handlers=["a"], queues=["*"],
    )  # fmt: skip
    worker = Worker(dsn, session, node)
    yield worker
    worker.effects.close()
    for opened in worker.opened:
        opened.connection._close()


def book(connection: Any, claimed: Claim) -> None:
    with connection.cursor() as cursor:
        cursor.execute("insert into public.booking values (%s)", (claimed.task_id,))


def execute(connection: Any, statement: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(statement)


def execute_or_not(connection: Any, statement: str) -> None:
    """Swallow what the database says to it, as careless handlers do."""
    try:
        execute(connection, statement)
    except psycopg2.Error:
        pass


def enqueues(*types: str) -> list[Enqueue]:
    ctx: Context[Any] = Context(task_id=1, type="a")
    for type in types:
        ctx.enqueue(type)
    return ctx._end()


# -- success and failure


def test_effects_success_result_and_enqueued_tasks_are_one_transaction(worker: Worker) -> None:
    claimed, connection = worker.begin()
    book(connection, claimed)
    outcome = Outcome(
        ending=Ending.SUCCEEDED, result=b'{"n": 5}', enqueues=enqueues("child", "child")
    )

    answer = worker.effects.commit(claimed, outcome)

    inserts = rows(
        worker.session,
        "select xmin::text from public.booking union all select xmin::text from outcome "
        "union all select xmin::text from task where type = "
        "(select id from type where name = 'child')",
    )
    assert answer is Answer.RECORDED
    assert len(inserts) == 4
    assert len(set(inserts)) == 1
    assert value(worker.session, "select result from outcome") == {"n": 5}


def test_before_the_commit_nobody_else_sees_any_of_it(worker: Worker) -> None:
    claimed, connection = worker.begin()

    book(connection, claimed)

    assert worker.booked() == []
    assert worker.state(claimed) == "running"


def test_rolled_back_attempt_leaves_nothing_and_may_fail(worker: Worker) -> None:
    claimed, connection = worker.begin()
    book(connection, claimed)

    worker.effects.roll_back()

    assert worker.undo(claimed) is Answer.RECORDED
    assert worker.booked() == []


def test_rollback_by_the_handler_undoes_and_goes_on(worker: Worker) -> None:
    claimed, connection = worker.begin()
    book(connection, claimed)

    connection.rollback()
    book(connection, claimed)

    assert worker.effects.commit(claimed, SUCCESS) is Answer.RECORDED
    assert worker.booked() == [claimed.task_id]


def test_rollback_to_a_savepoint_is_the_handlers_own_affair(worker: Worker) -> None:
    claimed, connection = worker.begin()
    book(connection, claimed)
    execute(connection, "savepoint before")
    execute_or_not(connection, "select 1/0")
    execute(connection, "rollback to before")

    assert worker.effects.commit(claimed, SUCCESS) is Answer.RECORDED
    assert worker.booked() == [claimed.task_id]


# -- what is the runner's


@pytest.mark.parametrize(
    ("misuse", "told"),
    [
        (lambda c: c.commit(), r"commit\(\) is the runner's.*Remove the call"),
        (lambda c: c.close(), r"close\(\) is the runner's.*Remove the call"),
        (lambda c: c.__exit__(None, None, None), "or the `with connection:` round it"),
        (lambda c: setattr(c, "autocommit", True), "autocommit = True.*Remove the call"),
        (lambda c: c.set_isolation_level(0), "make `set transaction isolation level"),
        (lambda c: c.set_client_encoding("LATIN1"), "remove the call"),
        (lambda c: c.reset(), r"call rollback\(\)"),
    ],
    ids=["commit", "close", "with", "autocommit", "isolation", "encoding", "reset"],
)
def test_what_would_end_the_transaction_is_refused_with_the_remedy_and_changes_nothing(
    worker: Worker, misuse: Callable[[Any], Any], told: str
) -> None:
    claimed, connection = worker.begin()
    book(connection, claimed)

    with pytest.raises(RuntimeError, match=told):
        misuse(connection)

    assert worker.effects.commit(claimed, SUCCESS) is Answer.RECORDED
    assert worker.booked() == [claimed.task_id]


def test_block_of_the_connection_raises_at_its_end_and_commits_nothing(worker: Worker) -> None:
    claimed, connection = worker.begin()

    with pytest.raises(RuntimeError, match="`with connection:`"), connection:
        book(connection, claimed)

    worker.effects.roll_back()
    assert worker.booked() == []


def test_block_of_the_connection_that_raises_undoes_and_lets_the_handler_go_on(
    worker: Worker,
) -> None:
    claimed, connection = worker.begin()

    with pytest.raises(KeyError), connection:
        book(connection, claimed)
        raise KeyError

    book(connection, claimed)
    assert worker.effects.commit(claimed, SUCCESS) is Answer.RECORDED
    assert worker.booked() == [claimed.task_id]


@pytest.mark.parametrize(
    "misuse",
    [
        lambda c: c.set_session(autocommit=True),
        lambda c: c.set_session(readonly=True),
        lambda c: setattr(c, "isolation_level", "SERIALIZABLE"),
        lambda c: setattr(c, "deferrable", True),
        lambda c: c.tpc_begin(c.xid(1, "a", "b")),
        lambda c: c.tpc_prepare(),
        lambda c: c.tpc_commit(),
        lambda c: c.tpc_rollback(),
        lambda c: c.tpc_commit(c.xid(1, "a", "b")),
    ],
)
def test_what_psycopg2_refuses_inside_of_a_transaction_is_refused_here_always(
    worker: Worker, misuse: Callable[[Any], Any]
) -> None:
    claimed, connection = worker.begin()
    connection.rollback()

    with pytest.raises(psycopg2.ProgrammingError):
        misuse(connection)

    book(connection, claimed)
    assert worker.effects.commit(claimed, SUCCESS) is Answer.RECORDED


def test_database_session_of_psycopg2_extras_works_on_it(worker: Worker) -> None:
    claimed, connection = worker.begin()

    with connection.cursor(cursor_factory=psycopg2.extras.DictCursor) as cursor:
        psycopg2.extras.execute_values(
            cursor, "insert into public.booking values %s", [(claimed.task_id,)] * 3
        )
        cursor.execute("select count(*) as n from public.booking")
        seen = cursor.fetchone()["n"]
    with connection.cursor("named") as named:
        named.execute("select task from public.booking")
        read = len(list(named))
    large = connection.lobject(0, "w")
    large.write("kept")

    assert worker.effects.commit(claimed, SUCCESS) is Answer.RECORDED
    assert (seen, read, len(worker.booked())) == (3, 3, 3)
    assert value(worker.session, "select count(*) from pg_largeobject_metadata") == 1


def test_isolation_level_may_be_chosen_by_the_first_statement(worker: Worker) -> None:
    claimed, connection = worker.begin()

    execute(connection, "set transaction isolation level serializable")
    book(connection, claimed)

    assert worker.effects.commit(claimed, SUCCESS) is Answer.RECORDED


# -- transactions ended in SQL


@pytest.mark.parametrize(
    "statement",
    ["commit", "rollback", "commit; begin", "commit and chain", "rollback and chain", "end",
     "abort", "reset all"],
)  # fmt: skip
def test_transaction_ended_in_sql_is_noticed(worker: Worker, statement: str) -> None:
    claimed, connection = worker.begin()
    book(connection, claimed)

    with connection.cursor() as cursor:
        cursor.execute(statement)
        cursor.execute("select 1")

    with pytest.raises(RuntimeError, match=r"the handler ended the transaction.*leave both to the"):
        worker.effects.commit(claimed, SUCCESS)
    assert worker.state(claimed) == "running"
    assert worker.undo(claimed) is Answer.RECORDED


def test_handler_that_ended_its_transaction_in_sql_gets_no_further_cursor(worker: Worker) -> None:
    _, connection = worker.begin()
    execute(connection, "commit")

    with pytest.raises(RuntimeError, match="the handler ended the transaction"):
        connection.cursor()


def test_procedure_and_block_cannot_commit(worker: Worker) -> None:
    _, connection = worker.begin()

    with pytest.raises(psycopg2.Error, match="invalid transaction termination"):
        execute(connection, "do $$ begin commit; end $$")


# -- a claim that was lost


def test_rescued_attempt_is_rolled_back_and_lost(worker: Worker) -> None:
    claimed, connection = worker.begin()
    book(connection, claimed)
    rows(worker.session, "update node set state = 'dead'")
    rescue(worker.session, max_losses=3, limit=10)

    assert worker.effects.commit(claimed, SUCCESS) is Answer.LOST
    assert worker.booked() == []
    assert not effects_were_committed(worker.session, claimed)


@pytest.mark.parametrize("is_cancelled", [False, True])
def test_released_attempt_is_rolled_back_and_lost(worker: Worker, is_cancelled: bool) -> None:
    claimed, connection = worker.begin()
    book(connection, claimed)
    if is_cancelled:
        cancel(worker.session, task_id=claimed.task_id)
    release(worker.session, [(claimed.task_id, claimed.token)])

    assert worker.effects.commit(claimed, SUCCESS) is Answer.LOST
    assert worker.booked() == []


def test_next_attempt_commits_once_where_the_one_before_was_lost(worker: Worker) -> None:
    other = Worker(worker.dsn, worker.session, worker.node)
    first, connection = worker.begin()
    book(connection, first)
    release(worker.session, [(first.task_id, first.token)])
    (second,) = claim(
        worker.session, node=worker.node, slot="cpu-1", incarnation=2, pid=8, token=99,
        queues=["*"], patterns=["a"], limit=1,
    )  # fmt: skip
    book(other.effects.connection(second), second)

    answers = [other.effects.commit(second, SUCCESS), worker.effects.commit(first, SUCCESS)]
    other.effects.close()

    assert answers == [Answer.RECORDED, Answer.LOST]
    assert worker.booked() == [first.task_id]


def test_cancel_that_came_too_late_changes_nothing(worker: Worker) -> None:
    claimed, connection = worker.begin()
    book(connection, claimed)
    cancel(worker.session, task_id=claimed.task_id)

    assert worker.effects.commit(claimed, SUCCESS) is Answer.RECORDED
    assert worker.state(claimed) == "succeeded"


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
def test_cancel_that_an_isolated_transaction_cannot_see_rolls_it_back(
    worker: Worker, level: str
) -> None:
    claimed, connection = worker.begin()
    execute(connection, f"set transaction isolation level {level}")
    book(connection, claimed)
    cancel(worker.session, task_id=claimed.task_id)

    with pytest.raises(DatabaseUnavailable, match="could not serialize access"):
        worker.effects.commit(claimed, SUCCESS)

    assert worker.undo(claimed) is Answer.RECORDED
    assert (worker.state(claimed), worker.booked()) == ("cancelled", [])


def test_isolated_attempt_whose_claim_was_lost_is_rolled_back(worker: Worker) -> None:
    claimed, connection = worker.begin()
    execute(connection, "set transaction isolation level repeatable read")
    book(connection, claimed)
    release(worker.session, [(claimed.task_id, claimed.token)])

    with pytest.raises(DatabaseUnavailable, match="could not serialize access"):
        worker.effects.commit(claimed, SUCCESS)

    assert worker.undo(claimed) is Answer.LOST
    assert (worker.state(claimed), worker.booked()) == ("ready", [])


# -- commits that the database refuses


def test_error_that_the_handler_swallowed_rolls_everything_back(worker: Worker) -> None:
    claimed, connection = worker.begin()
    book(connection, claimed)
    execute_or_not(connection, "select 1/0")

    with pytest.raises(RuntimeError, match=r"had failed and the handler went on.*SAVEPOINT"):
        worker.effects.commit(claimed, SUCCESS)

    assert worker.undo(claimed) is Answer.RECORDED
    assert worker.booked() == []


DEFERRED = """
    create function public.refuse() returns trigger language plpgsql as $$ begin {body} end $$;
    create constraint trigger refuse after insert on public.booking
        deferrable initially deferred for each row execute function public.refuse();
"""


@pytest.mark.parametrize(
    "body",
    ["raise unique_violation using message = 'broken';", "raise division_by_zero;",
     "raise serialization_failure;"],
)  # fmt: skip
def test_constraint_that_breaks_at_the_commit_rolls_everything_back_as_an_error_of_the_handler(
    worker: Worker, body: str
) -> None:
    rows(worker.session, DEFERRED.format(body=body))
    claimed, connection = worker.begin()
    book(connection, claimed)

    # Not a PayloadError: that would tell that the result was refused.
    with pytest.raises(psycopg2.Error):
        worker.effects.commit(claimed, SUCCESS)

    assert worker.undo(claimed) is Answer.RECORDED
    assert worker.booked() == []


def test_result_that_the_database_refuses_is_told_apart_and_rolls_everything_back(
    worker: Worker,
) -> None:
    claimed, connection = worker.begin()
    book(connection, claimed)

    with pytest.raises(PayloadError, match="larger than the limit"):
        worker.effects.commit(
            claimed, Outcome(ending=Ending.SUCCEEDED, result=b'"%s"' % (b"x" * 300_000))
        )

    assert worker.undo(claimed) is Answer.RECORDED
    assert worker.booked() == []


def test_commit_that_answers_rollback_is_no_success(worker: Worker) -> None:
    claimed, connection = worker.begin()
    book(connection, claimed)
    connection._check_whole()
    # A thread that the handler left behind fails a statement after all has been looked at.
    execute_or_not(connection, "select 1/0")

    with pytest.raises(RuntimeError, match="had failed"):
        connection._commit()

    worker.effects.roll_back()
    assert worker.booked() == []


# -- connections that break


def terminate(session: Session, connection: Any) -> None:
    pid = connection.info.backend_pid
    rows(session, "select pg_terminate_backend(%(pid)s)", pid=pid)
    alive = "select count(*) from pg_stat_activity where pid = %(pid)s"
    eventually(lambda: value(session, alive, pid=pid) == 0)


def test_connection_terminated_before_the_last_statement_breaks_that_and_the_attempt(
    worker: Worker,
) -> None:
    claimed, connection = worker.begin()
    book(connection, claimed)
    terminate(worker.session, connection)

    with pytest.raises(psycopg2.Error):
        book(connection, claimed)
    # A new one would commit the second half alone.
    assert worker.effects.connection(claimed) is connection
    with pytest.raises(DatabaseUnavailable, match=r"closed by the server while the handler ran"):
        worker.effects.commit(claimed, SUCCESS)

    assert worker.undo(claimed) is Answer.RECORDED
    assert worker.booked() == []


def test_connection_terminated_after_the_last_statement_breaks_the_attempt(worker: Worker) -> None:
    claimed, connection = worker.begin()
    book(connection, claimed)
    terminate(worker.session, connection)

    with pytest.raises((psycopg2.Error, OrchestratorError)):
        worker.effects.commit(claimed, SUCCESS)

    assert worker.undo(claimed) is Answer.RECORDED
    assert worker.booked() == []


def test_task_after_a_broken_connection_gets_a_new_one(worker: Worker) -> None:
    claimed, connection = worker.begin()
    terminate(worker.session, connection)
    with pytest.raises((psycopg2.Error, OrchestratorError)):
        worker.effects.commit(claimed, SUCCESS)
    worker.undo(claimed)

    claimed, connection = worker.begin()
    book(connection, claimed)

    assert worker.effects.commit(claimed, SUCCESS) is Answer.RECORDED
    assert worker.booked() == [claimed.task_id]


def test_idle_connection_that_the_server_closed_between_two_tasks_is_replaced(
    worker: Worker,
) -> None:
    claimed, connection = worker.begin()
    worker.effects.commit(claimed, SUCCESS)
    terminate(worker.session, connection)

    claimed, replaced = worker.begin()
    book(replaced, claimed)

    assert worker.effects.commit(claimed, SUCCESS) is Answer.RECORDED
    assert worker.booked() == [claimed.task_id]
    assert len(worker.opened) == 2


def cut(connection: Any) -> None:
    """End the link as the death of the worker does."""
    with socket.fromfd(connection.fileno(), socket.AF_UNIX, socket.SOCK_STREAM) as link:
        link.shutdown(socket.SHUT_RDWR)


def test_query_of_a_worker_that_died_ends_and_with_it_its_locks(worker: Worker) -> None:
    claimed, connection = worker.begin()
    book(connection, claimed)
    pid = connection.info.backend_pid
    asleep = "select count(*) from pg_stat_activity where pid = %(pid)s and wait_event = 'PgSleep'"

    with ThreadPoolExecutor(1) as threads:
        query = threads.submit(execute, connection, "select pg_sleep(100)")
        eventually(lambda: value(worker.session, asleep, pid=pid) == 1)
        cut(connection)

        eventually(lambda: value(worker.session, asleep, pid=pid) == 0)
        assert isinstance(query.exception(timeout=10), psycopg2.Error)


# -- the reply to the commit is lost


@pytest.fixture
def far(pg_server: RunningServer, worker: Worker) -> Iterator[tuple[Worker, Proxy]]:
    """A worker whose effects go through a proxy that loses what it is told to."""
    with proxied(Path(pg_server.host) / ".s.PGSQL.5432") as proxy:
        worker.dsn = f"postgresql://postgres@127.0.0.1:{proxy.port}/orc_test"
        yield worker, proxy


def test_commit_whose_reply_is_lost_is_found_in_the_database(far: tuple[Worker, Proxy]) -> None:
    worker, proxy = far
    claimed, connection = worker.begin()
    book(connection, claimed)
    proxy.lose_reply_to("commit and chain")

    with pytest.raises((psycopg2.Error, OrchestratorError)):
        worker.effects.commit(claimed, SUCCESS)

    assert worker.undo(claimed) is Answer.LOST
    assert effects_were_committed(worker.session, claimed)
    assert (worker.booked(), worker.state(claimed)) == ([claimed.task_id], "succeeded")


@pytest.mark.parametrize("text", ["commit and chain", ".finish(", "current_setting"])
def test_commit_that_never_reached_the_server_is_rolled_back(
    far: tuple[Worker, Proxy], text: str
) -> None:
    worker, proxy = far
    claimed, connection = worker.begin()
    book(connection, claimed)
    proxy.lose_request(text)

    with pytest.raises((psycopg2.Error, OrchestratorError)):
        worker.effects.commit(claimed, SUCCESS)

    assert worker.undo(claimed) is Answer.RECORDED
    assert not effects_were_committed(worker.session, claimed)
    assert worker.booked() == []


def test_report_waits_for_a_commit_that_the_server_is_still_at(worker: Worker) -> None:
    rows(worker.session, DEFERRED.format(body="perform pg_sleep(1); return null;"))
    claimed, connection = worker.begin()
    book(connection, claimed)
    # The server does not look for us meanwhile, as in the midst of writing the commit.
    execute(connection, "set local client_connection_check_interval = 0")
    waiting = "select count(*) from pg_stat_activity where wait_event = 'PgSleep'"

    with ThreadPoolExecutor(1) as threads:
        commit = threads.submit(worker.effects.commit, claimed, SUCCESS)
        eventually(lambda: value(worker.session, waiting) == 1)
        cut(connection)
        error = commit.exception(timeout=10)

    assert isinstance(error, psycopg2.Error | OrchestratorError)
    assert worker.undo(claimed) is Answer.LOST
    assert effects_were_committed(worker.session, claimed)
    assert worker.booked() == [claimed.task_id]


# -- from one attempt to the next


def test_connection_is_opened_at_the_first_call_and_kept_for_all_tasks(worker: Worker) -> None:
    nothing = list(worker.opened)
    for _ in range(3):
        claimed, connection = worker.begin()
        assert worker.effects.connection(claimed) is connection
        worker.effects.commit(claimed, SUCCESS)

    assert nothing == []
    assert len(worker.opened) == 1


def test_threads_of_one_handler_share_one_connection(worker: Worker) -> None:
    claimed = worker.take()
    together = threading.Barrier(8)

    def ask(_: int) -> Any:
        together.wait()
        return worker.effects.connection(claimed)

    with ThreadPoolExecutor(8) as threads:
        connections = list(threads.map(ask, range(8)))

    assert len(set(map(id, connections))) == len(worker.opened) == 1


def test_connection_has_the_settings_of_all_our_sessions(worker: Worker) -> None:
    _, connection = worker.begin()

    with connection.cursor() as cursor:
        cursor.execute(
            "select current_setting('TimeZone'), current_setting('statement_timeout'), "
            "current_setting('application_name')"
        )
        settings = cursor.fetchone()
    link = connection.info.dsn_parameters

    assert settings == ("UTC", "0", "effects")
    assert link["keepalives"] == "1"
    assert int(link["keepalives_idle"]) == SHORT_KEEPALIVES.idle
    assert int(link["tcp_user_timeout"]) == SHORT_KEEPALIVES.total * 1000


SETTINGS = (
    "select current_setting('search_path'), current_setting('transaction_isolation'), "
    "current_setting('statement_timeout'), current_setting('client_encoding'), current_user, "
    "coalesce(current_setting('my.setting', true), ''), to_regclass('pg_temp.mine') is null, "
    "(select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()), "
    "(select count(*) from pg_prepared_statements), (select count(*) from pg_cursors), "
    "(select count(*) from pg_listening_channels())"
)


@pytest.mark.parametrize("is_success", [True, False], ids=["committed", "rolled back"])
def test_session_forgets_what_a_handler_did_to_it(worker: Worker, is_success: bool) -> None:
    rows(worker.session, "do $$ begin create role bob; exception when others then null; end $$")
    claimed, connection = worker.begin()
    with connection.cursor() as cursor:
        cursor.execute(SETTINGS)
        before = cursor.fetchone()
    connection.rollback()
    for statement in (
        "set transaction isolation level serializable",
        "set search_path to pg_temp",
        "set statement_timeout to '1h'",
        "set my.setting to 'mine'",
        "set client_encoding to 'LATIN1'",
        "create temp table mine (i int)",
        "select pg_advisory_lock(5)",
        "prepare mine as select 1",
        "listen mine",
        "declare mine cursor with hold for select 1",
        "set role bob",
        "reset role" if is_success else "select 1",
    ):
        execute(connection, statement)

    if is_success:
        worker.effects.commit(claimed, SUCCESS)
    else:
        worker.effects.roll_back()

    _, again = worker.begin()
    with again.cursor() as cursor:
        cursor.execute(SETTINGS)
        after = cursor.fetchone()
    assert again is connection
    assert after == before


def test_connection_forgets_what_a_handler_registered_on_it(worker: Worker) -> None:
    claimed, connection = worker.begin()
    wrong = psycopg2.extensions.new_type((20, 23, 25, 1043), "WRONG", lambda text, cursor: object())
    psycopg2.extensions.register_type(wrong, connection)
    connection.cursor_factory = psycopg2.extras.RealDictCursor
    execute(connection, "do $$ begin raise notice 'n'; end $$")
    book(connection, claimed)

    assert worker.effects.commit(claimed, SUCCESS) is Answer.RECORDED

    _, connection = worker.begin()
    with connection.cursor() as cursor:
        cursor.execute("select 1::bigint")
        assert cursor.fetchone() == (1,)
    assert list(connection.notices) == []


def test_result_is_kept_as_it_is_whatever_encoding_the_handler_chose(worker: Worker) -> None:
    claimed, connection = worker.begin()
    execute(connection, "set client_encoding to 'LATIN1'")

    worker.effects.commit(claimed, Outcome(ending=Ending.SUCCEEDED, result='"grün"'.encode()))

    assert value(worker.session, "select result from outcome") == "grün"


def test_connection_that_was_kept_from_an_earlier_attempt_refuses(worker: Worker) -> None:
    first, connection = worker.begin()
    worker.effects.commit(first, SUCCESS)
    second = worker.take()

    with pytest.raises(RuntimeError, match=r"call ctx.connection\(\) in each attempt"):
        book(connection, second)
    with pytest.raises(RuntimeError, match="kept from an attempt that has ended"):
        connection.lobject(0, "w")


@pytest.mark.parametrize("name", [None, "named"])
def test_cursor_that_was_kept_from_an_earlier_attempt_writes_nothing_into_the_next(
    worker: Worker, name: str | None
) -> None:
    first, connection = worker.begin()
    cursor = connection.cursor(name)
    cursor.execute("select 1")
    worker.effects.commit(first, SUCCESS)
    second, _ = worker.begin()

    with pytest.raises(psycopg2.Error):
        cursor.execute("insert into public.booking values (%s)", (first.task_id,))
    with pytest.raises(psycopg2.Error):
        cursor.fetchone()

    assert worker.effects.commit(second, SUCCESS) is Answer.RECORDED
    assert worker.booked() == []


def test_what_was_written_past_all_refusals_between_two_attempts_is_not_committed_with_the_next(
    worker: Worker,
) -> None:
    first, connection = worker.begin()
    worker.effects.commit(first, SUCCESS)
    with psycopg2.extensions.cursor(connection) as cursor:
        cursor.execute("insert into public.booking values (%s)", (first.task_id,))

    second, connection = worker.begin()
    book(connection, second)

    assert worker.effects.commit(second, SUCCESS) is Answer.RECORDED
    assert worker.booked() == [second.task_id]


def test_commits_say_nothing_in_the_log_of_the_server(worker: Worker) -> None:
    claimed, connection = worker.begin()
    said: list[str] = []
    connection.notices = said
    book(connection, claimed)

    worker.effects.commit(claimed, SUCCESS)

    # What psycopg2 appends to is what we gave it, until the next attempt.
    assert said == []


def test_other_server_away_is_told_by_the_first_call(worker: Worker) -> None:
    worker.dsn = "postgresql://nobody@127.0.0.1:1/nowhere"

    with pytest.raises(DatabaseUnavailable):
        worker.begin()

    assert not worker.effects.is_begun


# -- enqueueing through it


def test_client_enqueues_on_the_connection_in_the_same_transaction(worker: Worker) -> None:
    claimed, connection = worker.begin()
    Client().enqueue("child", {"n": 1}, conn=connection)
    before = value(worker.session, "select count(*) from ready")

    worker.effects.commit(claimed, SUCCESS)

    assert (before, value(worker.session, "select count(*) from ready")) == (0, 1)


# -- where there is none


def test_context_of_an_ended_attempt_gives_no_connection(worker: Worker) -> None:
    claimed = worker.take()
    ctx: Context[Any] = Context(
        task_id=claimed.task_id, type="a", connect=lambda: worker.effects.connection(claimed)
    )
    ctx._end()

    with pytest.raises(RuntimeError, match="has ended, so nothing would be committed"):
        ctx.connection()

    assert worker.opened == []


def test_context_without_a_process_worker_names_the_remedy() -> None:
    with pytest.raises(
        RuntimeError, match=r'mode = "process" only.*run this handler in such a pool'
    ):
        Context(task_id=1, type="a").connection()
