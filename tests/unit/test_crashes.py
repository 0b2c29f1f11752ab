"""What a death means for a task, cause by cause."""

from __future__ import annotations

import signal

import pytest

from orchestrator.options import Policy
from orchestrator.outcome import BUDGET_OF_CAUSE, Budget, Cause, Ending
from orchestrator.processes import messages
from orchestrator.processes.crashes import Reason, blame_for, casualties, outcome_of
from orchestrator.processes.messages import Crash, Report
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


def crowd_of(*running: tuple[int, int], reporting: tuple[tuple[int, int], ...] = ()) -> SlotView:
    """The slot of an async pool's worker with these attempts, (task, token) each."""
    slots = Slots.create(n_lanes=1000)
    slots.lease(0, "io-0", 1, n_lanes=1000)
    lanes = iter(slots.writer(0).lanes())
    for phase, attempts in ((Phase.RUN, running), (Phase.REPORT, reporting)):
        for (task_id, token), lane in zip(attempts, lanes, strict=False):
            lane.publish(phase, token=token, task_id=task_id)
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
    view = view_of(5, 7)

    assert blame_for(killed_for, view, signum)(view) == blame


TWO = ((5, 7), (6, 7))


@pytest.mark.parametrize(
    ("killed_for", "signum", "causes"),
    [
        # Nobody was aimed at: any of them may have done it.
        (None, signal.SIGSEGV, (Cause.SUSPECT, Cause.SUSPECT)),
        (None, None, (Cause.SUSPECT, Cause.SUSPECT)),
        (Reason(Cause.TIMEOUT, 5, 7), signal.SIGKILL, (Cause.TIMEOUT, Cause.SUSPECT)),
        (Reason(Cause.CANCELLED, 6, 7), signal.SIGKILL, (Cause.SUSPECT, Cause.CANCELLED)),
        # It had ended before the kill arrived.
        (Reason(Cause.TIMEOUT, 4, 7), signal.SIGKILL, (Cause.BYSTANDER, Cause.BYSTANDER)),
        (Reason(Cause.SHUTDOWN), signal.SIGKILL, (Cause.SHUTDOWN, Cause.SHUTDOWN)),
    ],
)
def test_death_of_a_crowd_is_charged_to_the_one_that_was_aimed_at_and_to_nobody_else(
    killed_for: Reason | None, signum: int | None, causes: tuple[Cause, ...]
) -> None:
    view = crowd_of(*TWO)

    blame = blame_for(killed_for, view, signum)

    assert tuple(blame(record)[0] for record in view.running) == causes


def test_only_one_of_a_pool_for_many_is_blamed_as_if_it_were_alone() -> None:
    view = crowd_of((5, 7), reporting=((6, 7),))

    blame = blame_for(None, view, signal.SIGSEGV)

    assert blame(view.running[0]) == (Cause.CRASH, None)


def test_suspect_is_charged_nothing_and_goes_at_once() -> None:
    outcome = outcome_of(Crash(cause=Cause.SUSPECT), policy=POLICY, failures=3, crashes=1)

    assert (outcome.ending, outcome.budget, outcome.delay) == (Ending.RELEASED, Budget.SUSPECT, 0.0)


def test_cancelled_attempt_ends_as_cancelled() -> None:
    outcome = outcome_of(Crash(cause=Cause.CANCELLED), policy=POLICY, failures=0, crashes=0)

    assert (outcome.ending, outcome.budget) == (Ending.CANCELLED, Budget.NOTHING)


def test_report_tells_each_casualty_its_own_cause() -> None:
    view = crowd_of(*TWO)
    killed_for = Reason(Cause.TIMEOUT, 5, 7)

    found = casualties(view, blame_for(killed_for, view, signal.SIGKILL))

    assert [(victim.task_id, victim.cause, victim.meant_for_task) for victim in found] == [
        (5, Cause.TIMEOUT, None), (6, Cause.SUSPECT, 5),
    ]  # fmt: skip


def test_report_of_a_thousand_casualties_fits_into_one_datagram() -> None:
    view = crowd_of(*((2**40 + n, 2**62 + n) for n in range(1000)))
    report = Report(
        incarnation=1, slot="io-0", pid=4711, crash=Crash(cause=Cause.CRASH),
        casualties=casualties(view, blame_for(None, view, signal.SIGSEGV)),
    )  # fmt: skip

    # The kernel's usual limit of a send buffer, which counts more than the bytes.
    assert len(messages.encode(report)) < 212992 * 0.9
