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
