"""The decisions about children, proved without a single process."""

from __future__ import annotations

import signal

import pytest

from orchestrator.processes.children import Children, Command, Kind, Plan, Signal, Spawn, Stage


def plan(**changes: object) -> Plan:
    values: dict[str, object] = {
        "slots": ("cpu-0", "cpu-1"),
        "has_keeper": False,
        "has_web": True,
        "graceful_timeout": 30.0,
        "spawn_timeout": 60.0,
        "jitter": lambda low, high: 1.0,
    }
    return Plan(**{**values, **changes})  # type: ignore[arg-type]


class Played:
    """A `Children` with everything that its commands ask for carried out at once."""

    def __init__(self, **changes: object) -> None:
        self.children = Children(plan(**changes))
        self.now = 0.0
        self.reports = 0
        self.signals: list[tuple[str, int]] = []

    def step(self) -> list[Command]:
        commands = self.children.step(self.now, open_reports=self.reports)
        for command in commands:
            if isinstance(command, Signal):
                child = self.children.alive[command.incarnation]
                self.signals.append((child.name, command.signum))
        return commands

    def named(self, name: str) -> int:
        return next(c.incarnation for c in self.children.alive.values() if c.name == name)

    def names(self) -> set[str]:
        return {child.name for child in self.children.alive.values()}

    def ready(self, name: str) -> None:
        self.children.became_ready(self.named(name))

    def dies(self, name: str, *, exit_code: int | None = None, healthy: bool = False) -> None:
        self.children.died(self.named(name), self.now, exit_code=exit_code, healthy=healthy)

    def to_run(self) -> Played:
        """Bring the node to where its workers are ready."""
        self.step()
        if self.children.stage is Stage.KEEPER:
            self.ready("keeper")
            self.step()
        self.dies("check", exit_code=0)
        self.step()
        self.ready("forkserver")
        self.step()
        for name in self.children.plan.slots:
            self.ready(name)
        return self


def test_keeper_is_ready_before_the_schema_is_checked() -> None:
    played = Played(has_keeper=True)

    played.step()

    assert played.names() == {"keeper", "web"}
    played.ready("keeper")
    played.step()
    assert played.names() == {"keeper", "web", "check"}


def test_workers_wait_for_the_fork_server() -> None:
    played = Played()
    played.step()
    played.dies("check", exit_code=0)

    played.step()

    assert played.names() == {"web", "forkserver", "steward", "leader"}
    played.ready("forkserver")
    played.step()
    assert {"cpu-0", "cpu-1"} < played.names()


def test_failed_check_ends_the_node_with_its_exit_code() -> None:
    played = Played()
    played.step()
    played.dies("check", exit_code=75)
    played.step()

    assert played.names() == {"web"}
    played.dies("web")
    played.step()
    assert (played.children.stage, played.children.exit_code) == (Stage.DONE, 75)


def test_dead_child_is_replaced_at_once_under_a_new_incarnation() -> None:
    played = Played().to_run()
    before = played.named("cpu-0")

    played.dies("cpu-0", healthy=True)
    commands = played.step()

    assert commands == [Spawn(Kind.WORKER, "cpu-0", played.named("cpu-0"), 0)]
    assert played.named("cpu-0") > before


def test_early_deaths_in_a_row_are_answered_after_0_1_2_4_up_to_60_seconds() -> None:
    played = Played().to_run()
    pauses = []

    for _ in range(9):
        played.dies("cpu-0")
        began = played.now
        while "cpu-0" not in played.names():
            if not any(isinstance(c, Spawn) for c in played.step()):
                played.now = played.children.next_deadline(played.now) or 0.0
        pauses.append(played.now - began)

    assert pauses == [0, 1, 2, 4, 8, 16, 32, 60, 60]


def test_health_clears_the_early_deaths() -> None:
    played = Played().to_run()
    for _ in range(4):
        played.dies("cpu-0")
        played.now += 100
        played.step()

    played.dies("cpu-0", healthy=True)
    played.step()
    played.dies("cpu-0")

    assert any(isinstance(command, Spawn) for command in played.step())


def test_crash_loop_of_one_slot_leaves_the_others_alone() -> None:
    played = Played().to_run()
    neighbour = played.named("cpu-1")

    for _ in range(3):
        played.dies("cpu-0")
        played.step()
        played.now += 100
        played.step()

    assert played.named("cpu-1") == neighbour
    assert "cpu-1" not in {name for name, _ in played.signals}


def test_worker_that_never_becomes_ready_is_killed_after_the_spawn_timeout() -> None:
    played = Played()
    played.step()
    played.dies("check", exit_code=0)
    played.step()
    played.ready("forkserver")
    played.step()
    played.ready("cpu-0")

    played.now = 60.0
    played.step()

    assert played.signals == [("cpu-1", signal.SIGKILL)]


def test_lost_fork_server_leaves_the_workers_alone_and_starts_none() -> None:
    played = Played().to_run()

    played.dies("forkserver", healthy=True)
    played.dies("cpu-0", healthy=True)
    played.step()

    assert "cpu-1" in played.names()
    assert "cpu-0" not in played.names()
    played.ready("forkserver")
    played.step()
    assert "cpu-0" in played.names()


def test_drain_ends_workers_first_then_leader_web_and_fork_server_then_steward_then_keeper() -> (
    None
):
    played = Played(has_keeper=True).to_run()
    order = []

    played.children.drain(played.now)
    while played.children.stage is not Stage.DONE:
        played.signals.clear()
        played.step()
        asked = {name for name, _ in played.signals}
        if asked:
            order.append(asked)
        for name in asked:
            played.dies(name, exit_code=0)

    assert order == [
        {"cpu-0", "cpu-1"},
        {"leader", "web", "forkserver"},
        {"steward"},
        {"keeper"},
    ]
    assert played.children.exit_code == 0


def test_drain_gives_a_busy_worker_the_graceful_timeout_and_then_kills_it() -> None:
    played = Played().to_run()

    played.children.drain(played.now)
    played.step()
    played.now = 29.9
    played.step()
    before = [signum for name, signum in played.signals if name == "cpu-0"]
    played.now = 30.0
    played.step()

    assert before == [signal.SIGTERM]
    assert ("cpu-0", signal.SIGKILL) in played.signals


def test_second_drain_kills_at_once() -> None:
    played = Played().to_run()
    played.children.drain(played.now)
    played.step()

    played.children.drain(played.now)
    played.step()

    assert ("cpu-0", signal.SIGKILL) in played.signals
    assert ("cpu-1", signal.SIGKILL) in played.signals


def test_stop_kills_workers_without_a_term() -> None:
    played = Played().to_run()

    played.children.stop(played.now)
    played.step()

    assert set(played.signals) == {("cpu-0", signal.SIGKILL), ("cpu-1", signal.SIGKILL)}


def test_steward_stays_until_the_last_report_is_answered() -> None:
    played = Played().to_run()
    played.reports = 1
    played.children.stop(played.now)
    played.step()
    for name in ("cpu-0", "cpu-1"):
        played.dies(name)
    played.step()
    for name in ("leader", "web", "forkserver"):
        played.dies(name, exit_code=0)
    played.step()
    while_open = ("steward", signal.SIGTERM) in played.signals

    played.reports = 0
    played.step()

    assert not while_open
    assert ("steward", signal.SIGTERM) in played.signals


def test_steward_lost_in_a_drain_is_replaced_because_reports_may_come() -> None:
    played = Played().to_run()
    played.children.drain(played.now)
    played.step()

    played.dies("steward", healthy=True)
    played.step()

    assert "steward" in played.names()


@pytest.mark.parametrize("name", ["leader", "forkserver", "web"])
def test_nothing_else_is_started_in_a_drain(name: str) -> None:
    played = Played().to_run()
    played.children.drain(played.now)
    played.step()

    played.dies(name, healthy=True)
    played.step()

    assert name not in played.names()


def test_child_that_ignores_term_is_killed_after_its_grace() -> None:
    played = Played().to_run()
    played.children.drain(played.now)
    played.step()
    for name in ("cpu-0", "cpu-1"):
        played.dies(name, exit_code=0)
    played.step()

    played.now = 5.0
    played.step()

    assert ("web", signal.SIGKILL) in played.signals
