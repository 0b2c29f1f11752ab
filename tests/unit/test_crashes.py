"""What a death means for a task, cause by cause."""

from __future__ import annotations

import signal

import pytest

from orchestrator.options import Policy
from orchestrator.outcome import BUDGET_OF_CAUSE, Budget, Cause, Ending
from orchestrator.processes.crashes import outcome_of
from orchestrator.processes.messages import Crash
from orchestrator.processes.supervisor import Reason, blame_for
from orchestrator.slots import Phase, Slots, SlotView

POLICY = Policy(max_attempts=5, max_crashes=2, backoff_base=10.0)


def test_every_cause_has_a_budget() -> None:
    assert set(BUDGET_OF_CAUSE) == set(Cause)


@pytest.mark.parametrize(
    ("cause", "budget", "limit"),
    [
        (Cause.CRASH, Budget.CRASHES, 2),
        (Cause.EXIT, Budget.CRASHES, 2),
        (Cause.TIMEOUT, Budget.FAILURES, 5),
    ],
)
def test_death_that_is_the_tasks_doing_is_charged(cause: Cause, budget: Budget, limit: int) -> None:
    outcome = outcome_of(Crash(cause=cause), policy=POLICY, failures=0, crashes=0)

    assert (outcome.budget, outcome.limit) == (budget, limit)


@pytest.mark.parametrize(
    "cause",
    [Cause.SHUTDOWN, Cause.LOST_CLAIM, Cause.BYSTANDER, Cause.FENCED, Cause.SUPERVISOR_LOST],
)
def test_death_that_is_not_the_tasks_doing_costs_nothing_and_waits_for_nothing(
    cause: Cause,
) -> None:
    outcome = outcome_of(Crash(cause=cause), policy=POLICY, failures=3, crashes=1)

    assert (outcome.ending, outcome.budget, outcome.delay) == (Ending.RELEASED, Budget.NOTHING, 0.0)


def test_report_names_signal_and_usage() -> None:
    crash = Crash(
        cause=Cause.CRASH, signal="SIGSEGV", max_rss_bytes=9, cpu_seconds=0.5, wall_seconds=2.0
    )

    outcome = outcome_of(crash, policy=POLICY, failures=0, crashes=0)

    assert outcome.ending is Ending.CRASHED
    assert "SIGSEGV" in str(outcome.failure)
    assert (outcome.usage.max_rss_bytes, outcome.usage.cpu_seconds) == (9, 0.5)


def view_of(task_id: int, token: int) -> SlotView:
    slots = Slots.create()
    slots.lease(0, "cpu-0", 1)
    slots.writer(0).publish(Phase.RUN, token=token, task_id=task_id)
    view = slots.read(0)
    assert view is not None
    return view


@pytest.mark.parametrize(
    ("killed_for", "signum", "blame"),
    [
        (None, signal.SIGSEGV, (Cause.CRASH, None)),
        (None, None, (Cause.EXIT, None)),
        (Reason(Cause.TIMEOUT, 5, 7), signal.SIGKILL, (Cause.TIMEOUT, None)),
        (Reason(Cause.TIMEOUT, 4, 7), signal.SIGKILL, (Cause.BYSTANDER, 4)),
        (Reason(Cause.TIMEOUT, 5, 6), signal.SIGKILL, (Cause.BYSTANDER, 5)),
        (Reason(Cause.SHUTDOWN), signal.SIGKILL, (Cause.SHUTDOWN, None)),
        (Reason(Cause.TIMEOUT, 5, 7), signal.SIGSEGV, (Cause.CRASH, None)),
    ],
)
def test_death_is_blamed_on_a_kill_only_where_the_kill_was_meant_for_this_attempt(
    killed_for: Reason | None, signum: int | None, blame: tuple[Cause, int | None]
) -> None:
    assert blame_for(killed_for, view_of(5, 7), signum) == blame
