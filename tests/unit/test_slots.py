"""The slots: what a reader sees, whatever the writer is doing or has died of."""

from __future__ import annotations

import os
import signal
import time

import pytest

from orchestrator.slots import Phase, Slots


@pytest.fixture
def slots() -> Slots:
    slots = Slots.create()
    slots.lease(0, "cpu-0", 7)
    return slots


def test_record_is_read_as_it_was_published(slots: Slots) -> None:
    slots.writer(0).begin(4711)

    slots.writer(0).publish(
        Phase.RUN, token=2**62, task_id=2**40, attempt=3, started_ns=5, hard_deadline_ns=9
    )

    view = slots.read(0)
    assert view is not None
    assert (view.name, view.pool, view.incarnation, view.pid) == ("cpu-0", "cpu", 7, 4711)
    assert (view.phase, view.token, view.task_id, view.attempt) == (Phase.RUN, 2**62, 2**40, 3)
    assert (view.started_ns, view.hard_deadline_ns) == (5, 9)


def test_publishing_forgets_what_the_new_record_does_not_name(slots: Slots) -> None:
    writer = slots.writer(0)
    writer.publish(Phase.RUN, token=1, task_id=2)

    writer.publish(Phase.IDLE)

    view = slots.read(0)
    assert view is not None
    assert (view.phase, view.token, view.task_id) == (Phase.IDLE, 0, 0)


def test_other_process_reads_through_the_descriptor(slots: Slots) -> None:
    slots.writer(0).publish(Phase.RUN, token=5, task_id=6)

    view = Slots.attach(os.dup(slots.fd)).read(0)

    assert view is not None
    assert (view.token, view.task_id) == (5, 6)


def test_descriptor_of_something_else_is_refused() -> None:
    fd = os.memfd_create("other")
    os.ftruncate(fd, os.fstat(Slots.create().fd).st_size)

    with pytest.raises(ValueError, match="holds no slots"):
        Slots.attach(fd)


def test_cleared_slot_protects_no_token_and_keeps_its_name(slots: Slots) -> None:
    slots.writer(0).publish(Phase.CLAIM, token=5)

    slots.clear(0)

    view = slots.read(0)
    assert view is not None
    assert (view.name, view.token, view.incarnation) == ("cpu-0", 0, 0)
    assert slots.occupied() == []


def test_slot_is_down_since_its_last_ready_process_died(slots: Slots) -> None:
    slots.writer(0).ready()
    slots.clear(0)
    down = slots.wanted()[0].down_ns

    slots.lease(0, "cpu-0", 8)
    slots.clear(0)
    slots.lease(0, "cpu-0", 9)

    assert slots.wanted()[0].down_ns == down


def test_any_busy_sees_a_claim_and_not_an_idle_worker(slots: Slots) -> None:
    writer = slots.writer(0)
    writer.publish(Phase.IDLE)
    idle = slots.any_busy()

    writer.publish(Phase.CLAIM, token=1)

    assert (idle, slots.any_busy()) == (False, True)


def test_record_of_a_writer_killed_at_any_instruction_is_whole(slots: Slots) -> None:
    """Writers whose records carry the same number everywhere are killed; none is ever mixed."""
    for round_number in range(60):
        pid = os.fork()
        if pid == 0:
            writer, number = slots.writer(0), 1
            while True:
                writer.publish(
                    Phase.RUN, token=number, task_id=number, attempt=number,
                    started_ns=number, hard_deadline_ns=number,
                )  # fmt: skip
                number += 1
        time.sleep(0.001 + round_number % 7 / 5000)  # the instant of the kill is the subject
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)

        view = slots.read(0)
        assert view is not None
        numbers = {view.token, view.task_id, view.attempt, view.started_ns, view.hard_deadline_ns}
        assert len(numbers) == 1


def test_reader_beside_a_busy_writer_never_sees_a_mixed_record(slots: Slots) -> None:
    pid = os.fork()
    if pid == 0:
        writer, number = slots.writer(0), 1
        while True:
            writer.publish(Phase.RUN, token=number, task_id=number, attempt=number)
            number += 1
    try:
        views = [slots.read(0) for _ in range(3000)]
        # On a busy machine the writer may hardly have run by now.
        while len({view.token for view in views if view is not None}) <= 10:
            views.append(slots.read(0))
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)

    seen = [view for view in views if view is not None]
    assert all(view.token == view.task_id == view.attempt for view in seen)


# -- lanes


@pytest.fixture
def crowd() -> Slots:
    slots = Slots.create(n_lanes=5)
    slots.lease(0, "io-0", 7, first_lane=0, n_lanes=3)
    slots.lease(1, "io-1", 8, first_lane=3, n_lanes=2)
    return slots


def test_each_lane_has_a_record_of_its_own(crowd: Slots) -> None:
    first, _, third = crowd.writer(0).lanes()

    first.publish(Phase.RUN, token=5, task_id=6, attempt=1)
    third.publish(Phase.REPORT, token=5, task_id=8, attempt=2)

    view = crowd.read(0)
    assert view is not None
    assert [(lane.phase, lane.task_id) for lane in view.lanes] == [
        (Phase.RUN, 6), (Phase.REPORT, 8),
    ]  # fmt: skip
    assert [record.task_id for record in view.running] == [6]
    assert view.n_busy == 2


def test_lanes_of_one_slot_are_not_those_of_another(crowd: Slots) -> None:
    for lane in crowd.writer(1).lanes():
        lane.publish(Phase.RUN, token=1, task_id=2)

    assert crowd.read(0).lanes == ()  # type: ignore[union-attr]
    assert len(crowd.read(1).lanes) == 2  # type: ignore[union-attr]


def test_token_of_a_claim_under_way_and_those_of_the_lanes_are_all_seen(crowd: Slots) -> None:
    writer = crowd.writer(0)
    writer.lanes()[0].publish(Phase.RUN, token=5, task_id=6)

    writer.publish(Phase.CLAIM, token=9)

    view = crowd.read(0)
    assert view is not None
    assert [record.token for record in view.records] == [9, 5]


def test_cleared_slot_has_no_attempt_in_its_lanes(crowd: Slots) -> None:
    crowd.writer(0).lanes()[1].publish(Phase.RUN, token=5, task_id=6)
    crowd.writer(1).lanes()[1].publish(Phase.RUN, token=7, task_id=8)

    crowd.clear(0)

    assert [view.name for view in crowd.occupied()] == ["io-1"]
    assert crowd.read(0).records == []  # type: ignore[union-attr]
    assert [record.task_id for record in crowd.read(1).records] == [8]  # type: ignore[union-attr]


def test_any_busy_sees_an_attempt_in_a_lane(crowd: Slots) -> None:
    crowd.writer(0).publish(Phase.IDLE)
    idle = crowd.any_busy()

    crowd.writer(1).lanes()[1].publish(Phase.RUN, token=5, task_id=6)

    assert (idle, crowd.any_busy()) == (False, True)


# -- asking an attempt to stop


def test_attempt_is_asked_to_stop_by_task_and_token(slots: Slots) -> None:
    writer = slots.writer(0)
    writer.publish(Phase.RUN, token=5, task_id=6)

    slots.ask_to_stop(0, {(6, 5)})

    assert writer.is_asked_to_stop(6, 5)
    assert not writer.is_asked_to_stop(6, 4)
    assert not writer.is_asked_to_stop(7, 5)


def test_attempt_that_a_slot_does_not_run_is_not_asked(slots: Slots) -> None:
    writer = slots.writer(0)
    writer.publish(Phase.RUN, token=5, task_id=6)

    slots.ask_to_stop(0, {(6, 4)})

    assert not writer.is_asked_to_stop(6, 4)


def test_only_the_lane_of_the_attempt_is_asked(crowd: Slots) -> None:
    lanes = crowd.writer(0).lanes()
    for number, lane in enumerate(lanes, 1):
        lane.publish(Phase.RUN, token=5, task_id=number)

    crowd.ask_to_stop(0, {(2, 5)})

    assert [lane.is_asked_to_stop(n, 5) for n, lane in enumerate(lanes, 1)] == [False, True, False]


def test_slot_holds_the_attempts_of_its_lanes_and_no_others(crowd: Slots) -> None:
    lanes = crowd.writer(0).lanes()
    lanes[1].publish(Phase.RUN, token=5, task_id=2, attempt=1)

    assert crowd.holds(0, 2, 5)
    assert not crowd.holds(0, 2, 4)
    assert not crowd.holds(0, 3, 5)
