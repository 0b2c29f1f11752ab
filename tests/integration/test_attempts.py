"""The life of an attempt in the database: claim, finish, fail, release, rescue, and the fence."""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from orchestrator.db.connection import Session, connect
from orchestrator.errors import NodeRefused, PayloadError
from orchestrator.outcome import Answer, Budget, Ending, Failure, Outcome, Usage
from orchestrator.store import nodes, tasks
from orchestrator.store.cancel import cancel
from orchestrator.store.claim import claim
from orchestrator.store.doorbell import listen
from orchestrator.store.fail import fail
from orchestrator.store.finish import finish, finish_cancelled
from orchestrator.store.poll import poll, unhold
from orchestrator.store.progress import Report, report_progress
from orchestrator.store.promote import next_due, promote
from orchestrator.store.release import release
from orchestrator.store.rescue import rescue
from orchestrator.store.running import running
from orchestrator.task import Claim
from tests.support import eventually

SUCCESS = Outcome(ending=Ending.SUCCEEDED, result=b'{"ok": true}')


@pytest.fixture
def node(session: Session) -> int:
    return register(session)


def register(session: Session, name: str = "n", *, distributed: bool = True) -> int:
    return nodes.register(
        session, name=name, host="h", pid=1, run=name, version="0", lock_path="",
        distributed=distributed, handlers=["a"], queues=["*"],
    )  # fmt: skip


def enqueue(session: Session, type: str = "a", **options: Any) -> int:
    names = ", ".join(f"{name} => %({name})s" for name in options)
    with session.connection.cursor() as cursor:
        cursor.execute(
            f"select orchestrator.enqueue(%(type)s, '1'{', ' if names else ''}{names})",
            {"type": type, **options},
        )
        return int(cursor.fetchone()[0])


def take(
    session: Session, node: int, *, token: int = 1, limit: int = 1, **changes: Any
) -> list[Claim]:
    values = {
        "node": node, "slot": "cpu-0", "incarnation": 1, "pid": 7, "token": token,
        "queues": ["*"], "patterns": ["a"], "limit": limit,
    }  # fmt: skip
    return claim(session, **{**values, **changes})  # type: ignore[arg-type]


def take_claim(task_id: int, *, token: int = 1) -> Claim:
    """The claim of a task as far as an end needs it."""
    return Claim(
        task_id=task_id, token=token, attempt=1, type="a", queue="default", priority=0,
        payload="1", headers="{}", max_attempts=None, timeout=None, failures=0, crashes=0,
        losses=0, is_alone=False, created_at=datetime.now(UTC),
    )  # fmt: skip


def state_of(session: Session, task: int) -> str:
    with session.connection.cursor() as cursor:
        cursor.execute("select state from orchestrator.tasks where id = %s", (task,))
        return str(cursor.fetchone()[0])


def row_of(session: Session, table: str, task: int) -> Any:
    with session.connection.cursor() as cursor:
        cursor.execute(f"select to_jsonb(x) from orchestrator.{table} x where id = %s", (task,))
        found = cursor.fetchone()
        return found[0] if found else None


def failure(
    budget: Budget = Budget.FAILURES, *, limit: int = 3, delay: float = 60.0, **changes: Any
) -> Outcome:
    values = {
        "ending": Ending.FAILED, "budget": budget, "limit": limit, "delay": delay,
        "failure": Failure(type="ValueError", message="no", traceback="tb"),
    }  # fmt: skip
    return Outcome(**{**values, **changes})  # type: ignore[arg-type]


# -- claim


def test_claim_takes_larger_priority_first_then_enqueue_order(session: Session, node: int) -> None:
    low, first, second = (
        enqueue(session),
        enqueue(session, priority=5),
        enqueue(session, priority=5),
    )

    claims = take(session, node, limit=10)

    assert [c.task_id for c in claims] == [first, second, low]


def test_claim_walks_the_queues_in_the_order_of_the_pool(session: Session, node: int) -> None:
    late, early = enqueue(session, queue="late", priority=9), enqueue(session, queue="early")

    claims = take(session, node, limit=10, queues=["early", "late"])

    assert [c.task_id for c in claims] == [early, late]


def test_every_other_queue_stands_where_the_star_stands(session: Session, node: int) -> None:
    last, first, other = (enqueue(session, queue=name) for name in ("low", "high", "default"))

    claims = take(session, node, limit=10, queues=["high", "*", "low"])

    assert [c.task_id for c in claims] == [first, other, last]


def test_queues_that_only_the_star_names_are_all_served_while_none_is_empty(
    session: Session, node: int
) -> None:
    for name in ("a", "b", "c"):
        for _ in range(40):
            enqueue(session, queue=name)

    claimed = [take(session, node, token=n)[0].queue for n in range(1, 31)]

    # By chance alone one of three is missing in 30 draws less than once in 60,000 runs.
    assert set(claimed) == {"a", "b", "c"}


def test_type_that_the_worker_must_not_serve_is_held_with_the_reason(
    session: Session, node: int
) -> None:
    task = enqueue(session, "b")

    take(session, node, refused=["b"])

    assert "met by an async pool" in row_of(session, "held", task)["reason"]


def test_held_task_of_a_queue_that_is_not_served_stays_held(session: Session, node: int) -> None:
    task = enqueue(session, "b", queue="io")
    take(session, node)

    moved = unhold(session, patterns=["b"], queues=["default"], limit=10)

    assert moved == 0
    assert state_of(session, task) == "held"
    assert unhold(session, patterns=["b"], queues=["io"], limit=10) == 1


@pytest.mark.parametrize("started", [True, False])
def test_claim_tells_whether_its_tasks_run_at_once(
    session: Session, node: int, started: bool
) -> None:
    task = enqueue(session)

    take(session, node, limit=5, started=started)

    assert row_of(session, "running", task)["started"] is started


def test_claim_leaves_queues_that_the_pool_does_not_serve(session: Session, node: int) -> None:
    enqueue(session, queue="other")

    assert take(session, node, queues=["default"]) == []


def test_two_claims_never_return_the_same_task(dsn: str, session: Session, node: int) -> None:
    for _ in range(200):
        enqueue(session)
    claimed: list[int] = []

    def work(token: int) -> None:
        own = connect(dsn, schema="orchestrator", application_name="test")
        while found := take(own, node, token=token, limit=7):
            claimed.extend(c.task_id for c in found)
        own.close()

    threads = [threading.Thread(target=work, args=(n,)) for n in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(claimed) == len(set(claimed)) == 200


def test_type_without_handler_is_held_visible_and_burns_no_attempt(
    session: Session, node: int
) -> None:
    task = enqueue(session, "b")

    claims = take(session, node)

    assert claims == []
    assert state_of(session, task) == "held"
    assert row_of(session, "held", task)["attempt"] == 0
    assert "no handler" in row_of(session, "held", task)["reason"]


def test_held_task_goes_back_to_its_place_when_a_node_serves_its_type(
    session: Session, node: int
) -> None:
    first, second = enqueue(session, "b"), enqueue(session, "b")
    take(session, node, limit=10)

    moved = unhold(session, patterns=["b"], queues=["*"], limit=10)

    assert moved == 2
    assert [c.task_id for c in take(session, node, limit=10, patterns=["b"])] == [first, second]


def test_paused_type_is_held_and_not_given_back_while_paused(session: Session, node: int) -> None:
    task = enqueue(session)
    with session.connection.cursor() as cursor:
        cursor.execute("update orchestrator.type set is_paused = true where name = 'a'")

    take(session, node)

    assert state_of(session, task) == "held"
    assert unhold(session, patterns=["a"], queues=["*"], limit=10) == 0


def test_paused_queue_keeps_its_tasks_ready_and_wakes_nobody(session: Session, node: int) -> None:
    task = enqueue(session)
    with session.connection.cursor() as cursor:
        cursor.execute("update orchestrator.queue set is_paused = true")

    assert take(session, node) == []
    assert poll(session, queues=["*"], limit=5) == 0
    assert state_of(session, task) == "ready"


@pytest.mark.parametrize(
    ("pattern", "type", "is_served"),
    [("a:", "a:b", True), ("a:b", "a:bc", False), ("a:", "ab", False), ("a:b", "a:b", True)],
)
def test_only_patterns_that_end_in_a_colon_are_prefixes(
    session: Session, node: int, pattern: str, type: str, is_served: bool
) -> None:
    enqueue(session, type)

    assert bool(take(session, node, patterns=[pattern])) is is_served


def test_task_past_its_ttl_expires_and_frees_its_key(session: Session, node: int) -> None:
    task = enqueue(session, ttl="1 microsecond", idempotency_key="k")

    take(session, node)

    assert state_of(session, task) == "expired"
    assert enqueue(session, idempotency_key="k") != task


def test_task_marked_alone_is_claimed_with_no_other(session: Session, node: int) -> None:
    first, suspect, third = (enqueue(session) for _ in range(3))
    with session.connection.cursor() as cursor:
        cursor.execute("update orchestrator.ready set alone = true where id = %s", (suspect,))

    claims = [[c.task_id for c in take(session, node, limit=10, token=n)] for n in (1, 2, 3)]

    assert claims == [[first], [suspect], [third]]


def test_dead_node_is_refused_a_claim(session: Session, node: int) -> None:
    task = enqueue(session)
    nodes.mark_dead(session, node=node, judged=nodes.alive(session)[0].beat_at)

    with pytest.raises(NodeRefused, match="not registered as alive"):
        take(session, node)

    assert state_of(session, task) == "ready"


# -- finish


def test_finish_answers_recorded_then_already_and_lost_to_a_stranger(
    session: Session, node: int
) -> None:
    enqueue(session)
    (claimed,) = take(session, node, token=5)
    stranger = msgspec.structs.replace(claimed, token=6)

    answers = [finish(session, [(c, SUCCESS)])[0] for c in (stranger, claimed, claimed)]

    assert answers == [Answer.LOST, Answer.RECORDED, Answer.ALREADY]


def test_stale_worker_cannot_overwrite_a_newer_attempt(session: Session, node: int) -> None:
    task = enqueue(session)
    (old,) = take(session, node, token=1)
    release(session, [(task, 1)])
    (new,) = take(session, node, token=2)

    stale = finish(session, [(old, SUCCESS)])[0]
    stale_failure = fail(session, task_id=task, token=1, outcome=failure())

    assert (stale, stale_failure) == (Answer.LOST, Answer.LOST)
    assert state_of(session, task) == "running"
    assert finish(session, [(new, SUCCESS)]) == [Answer.RECORDED]


def test_result_that_jsonb_refuses_is_a_payload_error_and_changes_nothing(
    session: Session, node: int
) -> None:
    task = enqueue(session)
    (claimed,) = take(session, node)

    with pytest.raises(PayloadError):
        finish(session, [(claimed, Outcome(ending=Ending.SUCCEEDED, result=b"1e200000"))])

    assert state_of(session, task) == "running"


def test_result_over_the_limit_of_the_database_is_refused(session: Session, node: int) -> None:
    enqueue(session)
    (claimed,) = take(session, node)

    with pytest.raises(PayloadError, match="larger than the limit of 262144 bytes"):
        finish(
            session,
            [(claimed, Outcome(ending=Ending.SUCCEEDED, result=b'"' + b"x" * 300000 + b'"'))],
        )


def test_two_flushers_in_opposite_orders_do_not_deadlock(
    dsn: str, session: Session, node: int
) -> None:
    for _ in range(300):
        enqueue(session)
    claims = take(session, node, limit=300)
    answers: list[Answer] = []

    def flush(order: list[Claim]) -> None:
        own = connect(dsn, schema="orchestrator", application_name="test")
        answers.extend(finish(own, [(c, SUCCESS) for c in order]))
        own.close()

    threads = [threading.Thread(target=flush, args=(o,)) for o in (claims, claims[::-1])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert answers.count(Answer.RECORDED) == answers.count(Answer.ALREADY) == 300


def test_finished_task_frees_its_key(session: Session, node: int) -> None:
    task = enqueue(session, idempotency_key="k")
    (claimed,) = take(session, node)
    while_live = enqueue(session, idempotency_key="k")

    finish(session, [(claimed, SUCCESS)])

    assert while_live == task
    assert enqueue(session, idempotency_key="k") != task


# -- fail


def test_failed_attempt_is_written_and_the_task_scheduled(session: Session, node: int) -> None:
    task = enqueue(session)
    take(session, node)

    answer = fail(session, task_id=task, token=1, outcome=failure())

    attempt = row_of(session, "attempt", task)
    assert answer is Answer.RECORDED
    assert state_of(session, task) == "scheduled"
    assert (attempt["error_type"], attempt["error_message"], attempt["traceback"]) == (
        "ValueError", "no", "tb",
    )  # fmt: skip
    assert (attempt["slot"], attempt["pid"], attempt["outcome"]) == ("cpu-0", 7, "failed")


def test_fail_repeated_after_a_lost_reply_is_already(session: Session, node: int) -> None:
    task = enqueue(session)
    take(session, node)

    answers = [fail(session, task_id=task, token=1, outcome=failure()) for _ in range(2)]

    assert answers == [Answer.RECORDED, Answer.ALREADY]


@pytest.mark.parametrize("budget", [Budget.FAILURES, Budget.CRASHES, Budget.LOSSES])
def test_spent_budget_ends_in_the_dead_letter_queue_with_all_attempts(
    session: Session, node: int, budget: Budget
) -> None:
    task = enqueue(session)

    for token in (1, 2, 3):
        assert take(session, node, token=token)
        fail(session, task_id=task, token=token, outcome=failure(budget, limit=3, delay=0.0))

    with session.connection.cursor() as cursor:
        cursor.execute("select count(*) from orchestrator.attempt where id = %s", (task,))
        n_attempts = cursor.fetchone()[0]
    assert (state_of(session, task), n_attempts) == ("dead", 3)
    assert str(budget) in row_of(session, "dead", task)["reason"]


def test_budgets_are_counted_apart(session: Session, node: int) -> None:
    task = enqueue(session)
    budgets = [Budget.FAILURES, Budget.CRASHES, Budget.LOSSES, Budget.NOTHING]

    for token, budget in enumerate(budgets, start=1):
        take(session, node, token=token)
        fail(session, task_id=task, token=token, outcome=failure(budget, limit=2, delay=0.0))

    ready = row_of(session, "ready", task)
    assert (ready["failures"], ready["crashes"], ready["losses"]) == (1, 1, 1)
    assert ready["attempt"] == 4


def test_crash_marks_the_task_alone(session: Session, node: int) -> None:
    task = enqueue(session)
    take(session, node)

    fail(session, task_id=task, token=1, outcome=failure(Budget.CRASHES, delay=0.0))

    assert row_of(session, "ready", task)["alone"] is True


def test_dead_reason_ends_the_task_whatever_its_budget(session: Session, node: int) -> None:
    task = enqueue(session, idempotency_key="k")
    take(session, node)

    fail(session, task_id=task, token=1, outcome=failure(dead_reason="enough", delay=0.0))

    assert row_of(session, "dead", task)["reason"] == "enough"
    assert enqueue(session, idempotency_key="k") != task


# -- release


def test_release_gives_back_the_place_in_line_and_charges_nothing(
    session: Session, node: int
) -> None:
    first, second = enqueue(session), enqueue(session)
    take(session, node, token=1)

    released = release(session, [(first, 1), (second, 1)])

    assert released == [first]
    assert [c.task_id for c in take(session, node, limit=2, token=2)] == [first, second]
    assert row_of(session, "running", first)["failures"] == 0
    assert row_of(session, "running", first)["attempt"] == 2


# -- cancel


def leave_by_fail(session: Session, task: int, claimed: Claim) -> None:
    fail(session, task_id=task, token=claimed.token, outcome=failure())


def leave_by_crash(session: Session, task: int, claimed: Claim) -> None:
    fail(session, task_id=task, token=claimed.token, outcome=failure(Budget.CRASHES, delay=0.0))


def leave_by_release(session: Session, task: int, claimed: Claim) -> None:
    release(session, [(task, claimed.token)])


def leave_by_rescue(session: Session, task: int, claimed: Claim) -> None:
    for node in nodes.alive(session):
        nodes.mark_dead(session, node=node.id, judged=node.beat_at)
    rescue(session, max_losses=10, limit=10)


def leave_by_cancelled(session: Session, task: int, claimed: Claim) -> None:
    finish_cancelled(session, claimed, message="stopped", usage=Usage())


@pytest.mark.parametrize(
    "leave",
    [leave_by_fail, leave_by_crash, leave_by_release, leave_by_rescue, leave_by_cancelled],
)
def test_every_unfinished_way_out_of_running_turns_a_flagged_task_into_cancelled(
    session: Session, node: int, leave: Any
) -> None:
    task = enqueue(session)
    (claimed,) = take(session, node)
    cancel(session, task_id=task)

    leave(session, task, claimed)

    assert state_of(session, task) == "cancelled"


def test_success_of_a_flagged_task_is_a_success(session: Session, node: int) -> None:
    task = enqueue(session)
    (claimed,) = take(session, node)
    cancel(session, task_id=task)

    finish(session, [(claimed, SUCCESS)])

    assert state_of(session, task) == "succeeded"


# -- rescue


def test_rescue_takes_only_from_nodes_that_are_not_alive(session: Session, node: int) -> None:
    other = register(session, "other")
    mine, others = enqueue(session), enqueue(session)
    take(session, node, token=1)
    take(session, other, token=2)
    judged = next(row for row in nodes.alive(session) if row.id == other)

    nodes.mark_dead(session, node=other, judged=judged.beat_at)
    rescued = rescue(session, max_losses=10, limit=10)

    assert [row.task_id for row in rescued] == [others]
    assert (state_of(session, mine), state_of(session, others)) == ("running", "ready")
    assert row_of(session, "attempt", others)["crash"]["cause"] == "node_lost"


def test_node_that_beats_after_it_was_judged_is_not_marked_dead(
    session: Session, node: int
) -> None:
    judged = nodes.alive(session)[0].beat_at
    nodes.beat(session, node=node, workers="[]")

    assert nodes.mark_dead(session, node=node, judged=judged) is False


def test_task_that_takes_its_nodes_down_is_dead_after_its_losses(session: Session) -> None:
    task = enqueue(session)

    for number in range(3):
        lost = register(session, f"n{number}")
        take(session, lost, token=number + 1)
        nodes.deregister(session, node=lost)
        rescue(session, max_losses=3, limit=10)

    assert state_of(session, task) == "dead"


# -- promote


def test_promote_moves_what_is_due_and_nothing_else(session: Session, node: int) -> None:
    due, later = enqueue(session, delay="1 millisecond"), enqueue(session, delay="1 hour")
    with session.connection.cursor() as cursor:
        cursor.execute("update orchestrator.scheduled set run_at = now() where id = %s", (due,))

    assert promote(session, limit=10) == 1

    assert (state_of(session, due), state_of(session, later)) == ("ready", "scheduled")
    assert 3500 < (next_due(session) or 0) <= 3600


def test_running_lists_the_rows_of_one_node_and_one_claim(session: Session, node: int) -> None:
    first, second = enqueue(session), enqueue(session)
    take(session, node, token=1)
    take(session, node, token=2)

    assert [row.id for row in running(session, node=node)] == [first, second]
    assert [row.id for row in running(session, node=node, tokens=[2])] == [second]
    assert running(session, node=node + 1) == []


# -- suspects and progress


def test_suspect_is_charged_nothing_and_runs_alone_next(session: Session, node: int) -> None:
    suspect, other = enqueue(session), enqueue(session)
    take(session, node, limit=2)

    answer = fail(
        session, task_id=suspect, token=1, outcome=failure(Budget.SUSPECT, limit=1, delay=0.0)
    )

    row = row_of(session, "ready", suspect)
    assert answer is Answer.RECORDED
    assert (row["failures"], row["crashes"], row["losses"], row["alone"]) == (0, 0, 0, True)
    enqueue(session)
    assert [c.task_id for c in take(session, node, token=2, limit=10)] == [suspect]
    assert state_of(session, other) == "running"


def said(task_id: int, done: float, *, token: int = 1, message: str = "") -> Report:
    return Report(task_id=task_id, token=token, done=done, total=10, message=message)


def test_progress_is_seen_while_the_task_runs_and_the_last_word_wins(
    session: Session, node: int
) -> None:
    task = enqueue(session)
    take(session, node)

    report_progress(session, [said(task, 1)])
    n_running = report_progress(session, [said(task, 2, message="half")])

    found = tasks.get(session, task_id=task)
    assert n_running == 1
    assert found is not None and found.progress is not None
    assert (found.progress.done, found.progress.total, found.progress.message) == (2, 10, "half")


def test_progress_of_a_claim_that_was_lost_is_refused(session: Session, node: int) -> None:
    task = enqueue(session)
    take(session, node)

    assert report_progress(session, [said(task, 1, token=99)]) == 0

    assert tasks.get(session, task_id=task).progress is None  # type: ignore[union-attr]


def test_progress_of_an_attempt_is_not_that_of_the_next(session: Session, node: int) -> None:
    task = enqueue(session)
    take(session, node)
    report_progress(session, [said(task, 9)])

    fail(session, task_id=task, token=1, outcome=failure(delay=0.0))
    take(session, node, token=2)

    assert tasks.get(session, task_id=task).progress is None  # type: ignore[union-attr]


def test_progress_goes_when_its_task_is_pruned(session: Session, node: int) -> None:
    task = enqueue(session)
    take(session, node)
    report_progress(session, [said(task, 9)])
    finish(session, [(take_claim(task), SUCCESS)])
    with session.connection.cursor() as cursor:
        cursor.execute("update orchestrator.counted set up_to = 1000")
        cursor.execute("select * from orchestrator.prune(0, now() + interval '1 day', 100)")

    assert row_of(session, "progress", task) is None
    assert row_of(session, "task", task) is None


def test_cancel_of_a_running_task_is_announced(dsn: str, session: Session, node: int) -> None:
    task = enqueue(session)
    take(session, node)
    listener = connect(dsn, schema="orchestrator", application_name="test")
    listen(listener)

    cancel(session, task_id=task)

    def heard() -> int:
        listener.connection.poll()
        return len(listener.connection.notifies)

    assert eventually(heard) == 1
    listener.close()
