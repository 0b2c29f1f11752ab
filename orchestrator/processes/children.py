"""The book-keeping of children: what should live, what has died, what to do about it.

A pure class: events come in, commands go out, time is an argument. It forks nothing, signals
nothing and reads no clock, so all of its decisions are tested without a process. The supervisor
makes the system calls; what a death means for a task is the steward's business.

The life of a node is a row of stages. Each stage names the children that should be alive in it;
`step` starts those that are missing, ends those that are too many, and moves on when a stage is
done:

    KEEPER ──ready──> CHECK ──exit 0──> RUN ──TERM──> DRAIN ──no workers──> CLOSE
    keeper, web       + check           + fork server   - workers         - leader, web, fork server
                                          steward                             │ none of them left
                                          leader                              v
                                          workers     DONE <── STOP <── SETTLE (reports answered)
                                                               - keeper   - steward

A child that dies while it is wanted is replaced at once, unless it died before it was healthy: then
after 0, 1, 2, 4 .. 60 s with jitter. Deaths during a task are the task's, not the slot's.
"""

from __future__ import annotations

import random
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum


class Kind(StrEnum):
    KEEPER = "keeper"
    CHECK = "check"
    FORK_SERVER = "forkserver"
    STEWARD = "steward"
    LEADER = "leader"
    WEB = "web"
    WORKER = "worker"


class Stage(IntEnum):
    KEEPER = 0
    CHECK = 1
    RUN = 2
    DRAIN = 3
    CLOSE = 4
    SETTLE = 5
    STOP = 6
    DONE = 7


@dataclass(frozen=True)
class Spawn:
    """Start a child. `index` is the slot of a worker, -1 for the others."""

    kind: Kind
    name: str
    incarnation: int
    index: int


@dataclass(frozen=True)
class Signal:
    """Send a signal to a child; KILL goes to its whole group."""

    incarnation: int
    signum: int


Command = Spawn | Signal


@dataclass
class Child:
    """One process, from the wish to start it until it is reaped."""

    kind: Kind
    name: str
    incarnation: int
    index: int
    spawned_at: float
    is_ready: bool = False
    is_ending: bool = False
    kill_at: float | None = None


@dataclass
class _Record:
    """How a name has fared: early deaths in a row, and when it may be started again."""

    early_deaths: int = 0
    not_before: float = 0.0


@dataclass(frozen=True)
class Plan:
    """What a node consists of. Times are in seconds; `slots` are the names of the workers."""

    slots: tuple[str, ...]
    has_keeper: bool
    has_web: bool
    graceful_timeout: float
    spawn_timeout: float
    settle_timeout: float = 3.0
    close_timeout: float = 5.0
    keeper_timeout: float = 20.0
    backoff_cap: float = 60.0
    jitter: Callable[[float, float], float] = field(default=random.uniform)


class Children:
    """Decide which processes to start and to end."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.stage = Stage.KEEPER if plan.has_keeper else Stage.CHECK
        self.exit_code = 0
        self.alive: dict[int, Child] = {}
        self._by_name: dict[str, Child] = {}
        self._records: dict[str, _Record] = {}
        self._incarnations = 0
        self._at_once = False
        self._stage_deadline: float | None = None

    # -- events

    def became_ready(self, incarnation: int) -> None:
        """A child said that it is ready; the keeper's word moves the node on."""
        child = self.alive.get(incarnation)
        if child is None:
            return
        child.is_ready = True
        if child.kind is Kind.KEEPER and self.stage is Stage.KEEPER:
            self.stage = Stage.CHECK

    def died(self, incarnation: int, now: float, *, exit_code: int | None, healthy: bool) -> None:
        """A child was reaped. `healthy` tells that it had proved itself, or that its death is a
        task's and not its own; `exit_code` is None after a signal."""
        child = self.alive.pop(incarnation)
        del self._by_name[child.name]
        if child.kind is Kind.CHECK and self.stage is Stage.CHECK:
            if exit_code == 0:
                self.stage = Stage.RUN
            else:
                self.fail(1 if exit_code is None else exit_code)
            return
        record = self._records.setdefault(child.name, _Record())
        if healthy or child.is_ending:
            self._records[child.name] = _Record()
            return
        record.early_deaths += 1
        record.not_before = now + self._pause(record.early_deaths)

    def postpone(self, incarnation: int, until: float) -> None:
        """A child could not be started now; forget it and try again at `until`."""
        child = self.alive.pop(incarnation)
        del self._by_name[child.name]
        self._records.setdefault(child.name, _Record()).not_before = until

    def drain(self, now: float) -> None:
        """Stop claiming, let running tasks finish until `graceful_timeout`, then end."""
        if self.stage >= Stage.DRAIN:
            self.stop(now)
            return
        self.stage = Stage.DRAIN
        self._stage_deadline = now + self.plan.graceful_timeout

    def stop(self, now: float) -> None:
        """End at once: workers are killed, what they ran goes back."""
        self._at_once = True
        if self.stage <= Stage.DRAIN:
            self.stage = Stage.DRAIN
            self._stage_deadline = now

    def fail(self, exit_code: int) -> None:
        """End at once with an exit code: the node cannot do its work."""
        if self.exit_code == 0:
            self.exit_code = exit_code
        self._at_once = True
        if self.stage < Stage.DRAIN:
            self.stage = Stage.DRAIN
            self._stage_deadline = 0.0

    # -- decisions

    def step(self, now: float, *, open_reports: int = 0) -> list[Command]:
        """Return what to do now. `open_reports` counts crash reports not yet answered."""
        commands: list[Command] = []
        self._advance(now, open_reports)
        wanted = self._wanted()
        for child in list(self.alive.values()):
            commands.extend(self._judge(child, now, is_wanted=child.name in wanted))
        for name, (kind, index) in wanted.items():
            if name in self._by_name or self._records.get(name, _Record()).not_before > now:
                continue
            self._incarnations += 1
            child = Child(kind, name, self._incarnations, index, spawned_at=now)
            self.alive[child.incarnation] = self._by_name[name] = child
            commands.append(Spawn(kind, name, child.incarnation, index))
        return commands

    def next_deadline(self, now: float) -> float | None:
        """Return when `step` must be called at the latest, without any event; None for never."""
        times = [self._stage_deadline] if self._stage_deadline is not None else []
        wanted = self._wanted()
        for name, record in self._records.items():
            if name in wanted and name not in self._by_name:
                times.append(record.not_before)
        for child in self.alive.values():
            if child.kill_at is not None:
                times.append(child.kill_at)
            elif child.kind is Kind.WORKER and not child.is_ready:
                times.append(child.spawned_at + self.plan.spawn_timeout)
        later = [at for at in times if at > now]
        return min(later) if later else None

    def _wanted(self) -> dict[str, tuple[Kind, int]]:
        """Name the children of the present stage, in the order of their start."""
        wanted: dict[str, tuple[Kind, int]] = {}
        stage = self.stage
        if self.plan.has_keeper and stage <= Stage.SETTLE:
            wanted["keeper"] = (Kind.KEEPER, -1)
        if self.plan.has_web and stage <= Stage.DRAIN:
            wanted["web"] = (Kind.WEB, -1)
        if stage is Stage.CHECK:
            wanted["check"] = (Kind.CHECK, -1)
        if Stage.RUN <= stage <= Stage.DRAIN:
            wanted["forkserver"] = (Kind.FORK_SERVER, -1)
            wanted["leader"] = (Kind.LEADER, -1)
        if Stage.RUN <= stage <= Stage.CLOSE:
            wanted["steward"] = (Kind.STEWARD, -1)
        if stage is Stage.RUN and self._is_ready("forkserver"):
            for index, name in enumerate(self.plan.slots):
                wanted[name] = (Kind.WORKER, index)
        elif stage is Stage.RUN:
            # Without a fork server no worker is started, but the living ones go on.
            for index, name in enumerate(self.plan.slots):
                if name in self._by_name:
                    wanted[name] = (Kind.WORKER, index)
        if stage >= Stage.DRAIN:
            # Nothing is started any more, except what the last reports need.
            needed = {"steward", "keeper"} if self.exit_code == 0 else set()
            wanted = {n: what for n, what in wanted.items() if n in self._by_name or n in needed}
        return wanted

    def _is_ready(self, name: str) -> bool:
        child = self._by_name.get(name)
        return child is not None and child.is_ready

    def _kinds_alive(self) -> set[Kind]:
        return {child.kind for child in self.alive.values()}

    def _advance(self, now: float, open_reports: int) -> None:
        """Move through the stages of the end as far as they are done."""
        kinds = self._kinds_alive()
        if self.stage is Stage.DRAIN and Kind.WORKER not in kinds and Kind.CHECK not in kinds:
            self.stage = Stage.CLOSE
            self._stage_deadline = now + self.plan.settle_timeout
        if self.stage is Stage.CLOSE:
            is_settled = open_reports == 0 or Kind.STEWARD not in kinds
            is_late = self._stage_deadline is not None and now >= self._stage_deadline
            if not kinds & {Kind.FORK_SERVER, Kind.LEADER, Kind.WEB} and (is_settled or is_late):
                self.stage = Stage.SETTLE
                self._stage_deadline = None
        if self.stage is Stage.SETTLE and Kind.STEWARD not in kinds:
            self.stage = Stage.STOP
        if self.stage is Stage.STOP and not kinds:
            self.stage = Stage.DONE

    def _judge(self, child: Child, now: float, *, is_wanted: bool) -> list[Command]:
        """Decide about one living child: let it be, ask it to end, or kill it."""
        if child.kill_at is not None and now >= child.kill_at:
            child.kill_at = now + 1.0  # once more a second later, should it still be there
            return [Signal(child.incarnation, signal.SIGKILL)]
        if is_wanted:
            is_late = now >= child.spawned_at + self.plan.spawn_timeout
            if child.kind is Kind.WORKER and not child.is_ready and is_late:
                child.kill_at = now + 1.0
                return [Signal(child.incarnation, signal.SIGKILL)]
            return []
        if child.is_ending:
            if self._at_once and child.kind is Kind.WORKER and child.kill_at is not None:
                child.kill_at = min(child.kill_at, now)
                return self._judge(child, now, is_wanted=False)
            return []
        child.is_ending = True
        child.kill_at = now + self._grace(child.kind, now)
        if child.kill_at <= now:
            child.kill_at = now + 1.0
            return [Signal(child.incarnation, signal.SIGKILL)]
        return [Signal(child.incarnation, signal.SIGTERM)]

    def _grace(self, kind: Kind, now: float) -> float:
        """Return the seconds between TERM and KILL."""
        if kind is Kind.WORKER:
            deadline = self._stage_deadline or now
            return 0.0 if self._at_once else max(0.0, deadline - now)
        if kind is Kind.KEEPER:
            return self.plan.keeper_timeout
        return self.plan.close_timeout

    def _pause(self, early_deaths: int) -> float:
        """0, 1, 2, 4 .. cap seconds, each stretched or shortened by up to a quarter."""
        if early_deaths <= 1:
            return 0.0
        pause = min(self.plan.backoff_cap, 2.0 ** (early_deaths - 2))
        return pause * self.plan.jitter(0.75, 1.25)
