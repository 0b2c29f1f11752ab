"""The pace at which one worker writes what its handler says, with a clock of our own."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from orchestrator.context import Said
from orchestrator.db.connection import Session
from orchestrator.errors import DatabaseUnavailable
from orchestrator.processes.progress import ProgressOfOne
from orchestrator.task import Claim
from tests.integration.test_attempts import enqueue, register, take
from tests.sql import rows, value


@dataclass
class Desk:
    """What a claimant is to it: the session, and how it is lost and opened."""

    session: Session | None
    now: float = 1000.0
    connect_seconds: float = 0.0
    tries: list[float] = field(default_factory=list)
    spare: Session | None = None

    def connected(self) -> Session | None:
        self.tries.append(self.now)
        self.now += self.connect_seconds
        self.session = self.spare
        return self.session

    def lost(self, error: DatabaseUnavailable) -> None:
        self.session = None


@pytest.fixture
def desk(session: Session) -> Desk:
    return Desk(session)


@pytest.fixture
def progress(desk: Desk) -> ProgressOfOne:
    return ProgressOfOne(desk, clock=lambda: desk.now)  # type: ignore[arg-type]


@pytest.fixture
def claimed(session: Session, progress: ProgressOfOne) -> Claim:
    enqueue(session)
    (claimed,) = take(session, register(session))
    progress.begin(claimed)
    return claimed


def said(done: float) -> Said:
    return Said(done, None, "")


def seen(session: Session) -> Any:
    return value(session, "select done from progress")


def written(session: Session, progress: ProgressOfOne, claimed: Claim, numbers: range) -> list[int]:
    """Say the numbers; return which of them were written."""
    found = []
    for number in numbers:
        progress.say(claimed, said(number))
        if seen(session) == number:
            found.append(number)
    return found


def test_ten_words_at_once_are_written_then_two_a_second(
    session: Session, desk: Desk, progress: ProgressOfOne, claimed: Claim
) -> None:
    at_once = written(session, progress, claimed, range(100))
    desk.now += 1.0
    a_second_later = written(session, progress, claimed, range(100, 200))
    desk.now += 0.5
    half_a_second_later = written(session, progress, claimed, range(200, 300))
    desk.now += 3600
    an_hour_later = written(session, progress, claimed, range(300, 400))

    assert at_once == list(range(10))
    assert a_second_later == [100, 101]
    assert half_a_second_later == [200]
    assert an_hour_later == list(range(300, 310))


def test_pace_is_that_of_the_worker_not_of_each_of_its_tasks(
    session: Session, desk: Desk, progress: ProgressOfOne, claimed: Claim
) -> None:
    written(session, progress, claimed, range(10))
    progress.end()
    progress.begin(claimed)

    assert written(session, progress, claimed, range(10, 20)) == []


def test_last_word_is_written_at_the_end_of_the_attempt_if_it_was_left_out(
    session: Session, desk: Desk, progress: ProgressOfOne, claimed: Claim
) -> None:
    written(session, progress, claimed, range(50))
    before = seen(session)

    progress.end()

    assert (before, seen(session)) == (9, 49)


def test_word_that_was_written_is_not_written_again_at_the_end(
    session: Session, desk: Desk, progress: ProgressOfOne, claimed: Claim
) -> None:
    written(session, progress, claimed, range(50))
    desk.now += 10
    progress.say(claimed, said(50))
    rows(session, "delete from progress")

    progress.end()

    assert seen(session) is None


def test_word_outside_of_the_attempt_is_nothing(
    session: Session, desk: Desk, progress: ProgressOfOne, claimed: Claim
) -> None:
    progress.end()

    progress.say(claimed, said(1))

    assert seen(session) is None


def test_tries_to_connect_cost_a_handler_that_says_much_a_tenth_of_its_time(
    session: Session, desk: Desk, progress: ProgressOfOne, claimed: Claim
) -> None:
    desk.session, desk.connect_seconds = None, 5.0
    began = desk.now

    while desk.now < began + 1000:
        progress.say(claimed, said(1))
        desk.now += 0.1

    assert 15 <= len(desk.tries) <= 20


def test_words_are_written_again_once_there_is_a_connection(
    session: Session, desk: Desk, progress: ProgressOfOne, claimed: Claim
) -> None:
    desk.session = None
    progress.say(claimed, said(1))
    desk.spare = session
    desk.now += 5

    progress.say(claimed, said(2))

    assert seen(session) == 2


def test_word_on_a_broken_connection_loses_it_and_raises_nothing(
    session: Session, dsn: str, desk: Desk, progress: ProgressOfOne, claimed: Claim
) -> None:
    session.close()

    progress.say(claimed, said(1))

    assert desk.session is None
