"""The worker of a pool with `mode = "async"`: many coroutines at once on one event loop.

    desk (one coroutine, the only one that speaks to the database, in a thread of its own)
        turn: report what has ended, claim as many as may run ──> wait for news ──> again
    lane (one per attempt)
        RUN (published) ──handler done──> REPORT until the desk has the answer ──> free

Each lane has a record in the slot, so that the death of this process tells which attempts it ran;
the worker's own record holds the token of a claim under way until the lanes hold its tasks. There
are twice as many lanes as `concurrency`: no handler waits for the report of the one before it.

Time limits and cancels reach a handler as asyncio's CancelledError. One that goes on all the same,
or blocks the loop, is beyond our reach here: after the grace the supervisor kills the process, the
attempt it was meant for gets that cause, and the others are suspects, which run alone next. A task
that is to run alone waits until the lanes are empty, and this worker is replaced after it.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from orchestrator import config, logs
from orchestrator.context import Said
from orchestrator.db.connection import Session
from orchestrator.errors import Cancelled, DatabaseUnavailable, PayloadError
from orchestrator.interrupts import Interrupts
from orchestrator.mux import Mux
from orchestrator.outcome import Answer, Ending, Outcome
from orchestrator.processes import progress
from orchestrator.processes.claimant import Claimant
from orchestrator.processes.identity import PASSED_SIGNALS, Place
from orchestrator.processes.messages import Spawn
from orchestrator.processes.signals import STOP_ATTEMPT, end_at_latest
from orchestrator.runner import Runner, refused
from orchestrator.slots import Phase, RecordWriter
from orchestrator.store.finish import finish
from orchestrator.store.progress import Report
from orchestrator.store.record import record
from orchestrator.store.release import release
from orchestrator.task import Claim

# The most that one statement claims or finishes, and the least that it may claim.
BATCH, MIN_PORTION = 500, 10
# What handlers say is written together, at this pace.
PROGRESS_SECONDS = 0.5

T = TypeVar("T")

log = logs.get("worker")


@dataclass(eq=False)
class Lane:
    """One place for an attempt."""

    record: RecordWriter
    claim: Claim | None = None
    outcome: Outcome | None = None
    interrupts: Interrupts | None = None
    task: asyncio.Task[None] | None = None

    @property
    def is_to_stop(self) -> bool:
        claim = self.claim
        return claim is not None and self.record.is_asked_to_stop(claim.task_id, claim.token)


class AsyncWorker:
    """The event loop of one worker."""

    def __init__(self, place: Place, settings: config.Settings, mux: Mux, birth: Spawn) -> None:
        patterns = mux.async_patterns()
        self.claimant = Claimant(
            place,
            settings,
            birth,
            patterns=patterns,
            refused=sorted(set(mux.patterns()) - set(patterns)),
            signals=(*PASSED_SIGNALS, STOP_ATTEMPT),
        )
        self.slot = self.claimant.slot
        self.kill_after = settings.node.cancel_grace
        self.lanes = [Lane(record) for record in self.slot.lanes()]
        self.free = list(reversed(self.lanes))
        self.concurrency = self.claimant.pool.concurrency
        # Claimed all at once, tasks of one length would also end, and wait for us, all at once.
        self.portion = max(MIN_PORTION, min(BATCH, self.concurrency // 4))
        self.n_running = 0
        self.by_claim: dict[tuple[int, int], Lane] = {}
        self.ended: list[Lane] = []
        self.progress: dict[tuple[int, int], Said] = {}
        # Handlers may say it in threads of theirs.
        self.progress_lock = threading.Lock()
        self.progress_at = 0.0
        self.alone: Claim | None = None
        self.was_told_to_stop = False
        self.may_have_work = True
        self.is_spent = False
        self.database = ThreadPoolExecutor(1, "database")
        self.news = asyncio.Event()
        self.stop = asyncio.Event()
        self.runner = Runner(
            mux,
            defaults=self.claimant.pool.policy(settings.defaults.policy()),
            stopping=lambda: self.is_stopping,
            wake=self._refuse_to_block,
            nap=self._nap,
            cancelled=self._is_cancelled,
            progress=self._keep_progress,
        )

    @property
    def is_stopping(self) -> bool:
        """True once the node drains or this worker was told to end."""
        return self.was_told_to_stop or self.claimant.header.is_stopping

    def work(self) -> int:
        """Claim and run until told to stop; return the exit code."""
        with self.runner, self.database:
            asyncio.run(self._serve())
        self.claimant.disconnect()
        return 0

    async def _serve(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.loop.add_reader(self.claimant.inbox, self._on_signals)
        self.slot.ready()
        self.claimant.ring_bell()
        try:
            await self._keep_desk()
        finally:
            self.loop.remove_reader(self.claimant.inbox)
            self.slot.publish(Phase.IDLE)
            if self.is_spent:
                # asyncio waits for what its tasks have left behind, threads above all.
                end_at_latest(self.kill_after)

    # -- the desk

    async def _keep_desk(self) -> None:
        """Report, claim, wait; until told to stop and all that ran is reported."""
        while True:
            self.news.clear()
            await self._write_progress()
            if self.is_stopping and self.alone is not None:
                await self._give_back(self.alone)
            is_ending = self.is_stopping or self.is_spent
            if self.alone is not None and not self.by_claim:
                self.is_spent = True
                self._start(self.alone)
                self.alone = None
                self._say(Phase.RUN)
            elif self.ended or (self._wants_more() and self.claimant.may_claim()):
                await self._take_turn()
            elif is_ending and not self.by_claim:
                return
            else:
                await self._wait()

    def _wants_more(self) -> bool:
        return bool(
            self._room()
            and self.may_have_work
            and self.alone is None
            and not (self.is_stopping or self.is_spent)
        )

    def _room(self) -> int:
        """How many tasks may be claimed now."""
        return min(self.concurrency - self.n_running, len(self.free), self.portion)

    async def _wait(self) -> None:
        """Wait for news: an end, a byte of the pool's pipe, a signal, time to write progress.

        A node that must not claim now is waited for as well: its steward wakes us when it may.
        """
        is_ending = self.is_stopping or self.is_spent
        is_idle = self._room() > 0 and self.alone is None and not is_ending
        # Idle is who may be woken.
        self._say(Phase.IDLE if is_idle else Phase.RUN)
        if is_idle:
            self.claimant.ring_idle()
            self.loop.add_reader(self.claimant.waiting, self._on_wake)
        seconds = None
        if self.progress:
            seconds = max(0.0, self.progress_at + PROGRESS_SECONDS - time.monotonic())
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.news.wait(), seconds)
        if is_idle:
            self.loop.remove_reader(self.claimant.waiting)

    def _say(self, phase: Phase) -> None:
        """Publish what the worker itself does; a task that waits to run alone stays protected."""
        if self.alone is not None:
            self.slot.publish(Phase.CLAIM, token=self.alone.token)
        else:
            self.slot.publish(phase)

    def _on_wake(self) -> None:
        if self.claimant.waiting.poll(0):
            self.claimant.take_byte()
        self.may_have_work = True
        self.news.set()

    def _on_signals(self) -> None:
        signals = self.claimant.inbox.drain()
        if signal.SIGTERM in signals:
            self.was_told_to_stop = True
        if self.is_stopping:
            self.stop.set()
        if STOP_ATTEMPT in signals:
            for lane in self.by_claim.values():
                if lane.is_to_stop and lane.interrupts is not None:
                    lane.interrupts.interrupt(Cancelled("the task was cancelled"))
        self.news.set()

    async def _with_session(self, work: Callable[[Session], T]) -> T | None:
        """Do work in the database's thread; None, after a pause, when the database is away."""

        def run() -> T | None:
            session = self.claimant.connected()
            return None if session is None else work(session)

        try:
            done = await self.loop.run_in_executor(self.database, run)
        except DatabaseUnavailable as error:
            self.claimant.lost(error)
            done = None
        if done is None:
            await asyncio.sleep(self.claimant.backoff.next())
        return done

    # -- a turn: report what has ended, then claim

    async def _take_turn(self) -> None:
        """Claim for what is free and report all that has ended, in one go."""
        batch, self.ended = self.ended[:BATCH], self.ended[BATCH:]
        answers: list[Answer] = []
        is_done = await self._with_session(lambda session: self._do(session, batch, answers))
        if is_done is None:
            self.ended = [*batch, *self.ended]
            # What the old backend may still claim belongs to nobody: its token is withdrawn.
            self._say(Phase.IDLE)
        else:
            self._settle(batch, answers)

    def _do(self, session: Session, batch: list[Lane], answers: list[Answer]) -> bool:
        """The part of a turn that speaks to the database, in its thread.

        The claim comes first: places that are empty cost time, reports that wait cost none.
        """
        if self._wants_more() and self.claimant.may_claim():
            limit = self._room()
            token = secrets.randbits(62) + 1
            self.slot.publish(Phase.CLAIM, token=token)
            claims = self.claimant.claim(token=token, limit=limit)
            # A claim that was not filled has met the end of the queues: whoever enqueues wakes us.
            is_alone = any(claimed.is_alone for claimed in claims)
            self.may_have_work = is_alone or len(claims) == limit
            self.loop.call_soon_threadsafe(self._take, claims)
        answers.extend(self._record(session, batch))
        return True

    def _take(self, claims: list[Claim]) -> None:
        """Start what was claimed, beside the rest of the turn."""
        for claimed in claims:
            if claimed.is_alone:
                # It came by itself, and waits, under its token, until nothing else runs.
                self.alone = claimed
            else:
                self._start(claimed)
        self._say(Phase.RUN)

    async def _give_back(self, alone: Claim) -> None:
        """Release the task that waits to run alone: a drain has begun."""
        claims = [(alone.task_id, alone.token)]
        if await self._with_session(lambda session: release(session, claims)) is not None:
            self.alone = None

    # -- run

    def _start(self, claimed: Claim) -> None:
        lane = self.free.pop()
        self.n_running += 1
        lane.claim, lane.outcome, lane.interrupts = claimed, None, Interrupts()
        self.by_claim[claimed.task_id, claimed.token] = lane
        timeout = self.runner.policy(claimed).timeout
        started_ns = time.monotonic_ns()
        deadline_ns = 0
        if timeout is not None:
            deadline_ns = started_ns + int((timeout + self.kill_after) * 1e9)
        lane.record.publish(
            Phase.RUN,
            token=claimed.token,
            task_id=claimed.task_id,
            attempt=claimed.attempt,
            started_ns=started_ns,
            hard_deadline_ns=deadline_ns,
        )
        if len(self.by_claim) == 1:
            self.claimant.ring_bell()
        lane.task = self.loop.create_task(self._run(lane, claimed, lane.interrupts, started_ns))

    async def _run(
        self, lane: Lane, claimed: Claim, interrupts: Interrupts, started_ns: int
    ) -> None:
        lane.outcome = await self.runner.run_beside(claimed, interrupts)
        self.n_running -= 1
        lane.record.publish(
            Phase.REPORT,
            token=claimed.token,
            task_id=claimed.task_id,
            attempt=claimed.attempt,
            started_ns=started_ns,
        )
        self.ended.append(lane)
        self.news.set()

    async def _nap(self, seconds: float) -> bool:
        """Sleep for a handler; end early, with True, when the worker is told to stop."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.stop.wait(), seconds)
        return self.is_stopping

    @staticmethod
    def _refuse_to_block(seconds: float) -> bool:
        raise RuntimeError(
            f"ctx.wait({seconds:g}): blocks, and with it all tasks of this async pool: write "
            "`await ctx.sleep(...)`"
        )

    def _is_cancelled(self, claimed: Claim) -> bool:
        lane = self.by_claim.get((claimed.task_id, claimed.token))
        return lane is not None and lane.is_to_stop

    # -- progress

    def _keep_progress(self, claimed: Claim, said: Said) -> None:
        with self.progress_lock:
            is_first = not self.progress
            self.progress[claimed.task_id, claimed.token] = said
        if is_first:
            # A loop that is closed writes nothing more.
            with contextlib.suppress(RuntimeError):
                self.loop.call_soon_threadsafe(self.news.set)

    def _take_progress(self, only: Sequence[tuple[int, int]] | None = None) -> list[Report]:
        """Return what was said, by all attempts or by some, and forget it."""
        with self.progress_lock:
            keys = list(self.progress) if only is None else only
            said = [(key, self.progress.pop(key)) for key in keys if key in self.progress]
        return [Report(*key, words.done, words.total, words.message) for key, words in said]

    async def _write_progress(self) -> None:
        now = time.monotonic()
        if not self.progress or now < self.progress_at + PROGRESS_SECONDS:
            return
        self.progress_at = now
        reports = self._take_progress()
        # What cannot be kept is dropped: the next word is newer.
        await self._with_session(lambda session: progress.write(session, reports))

    # -- report

    def _settle(self, batch: list[Lane], answers: list[Answer]) -> None:
        """Count what the database has answered, and free the lanes."""
        for lane, answer in zip(batch, answers, strict=True):
            assert lane.claim is not None and lane.outcome is not None
            self.claimant.count(lane.claim, lane.outcome, answer)
            del self.by_claim[lane.claim.task_id, lane.claim.token]
            lane.claim = lane.outcome = lane.interrupts = lane.task = None
            lane.record.publish(Phase.IDLE)
            self.free.append(lane)
        self.slot.count_finished(len(batch))

    def _record(self, session: Session, batch: list[Lane]) -> list[Answer]:
        """Record ends: successes together, the others one by one; answers in their order."""
        ends = {lane: (lane.claim, lane.outcome) for lane in batch}
        # While they still count as running.
        last_words = self._take_progress(
            [(claim.task_id, claim.token) for claim, _ in ends.values() if claim is not None]
        )
        if last_words:
            progress.write(session, last_words)
        answers: dict[Lane, Answer] = {}
        successes = [
            (lane, claim, outcome)
            for lane, (claim, outcome) in ends.items()
            if claim is not None and outcome is not None and outcome.ending is Ending.SUCCEEDED
        ]
        if len(successes) > 1:
            # One that is refused must not take the others with it: then they go one by one.
            with contextlib.suppress(PayloadError):
                together = finish(session, [(claim, outcome) for _, claim, outcome in successes])
                answers.update(zip([lane for lane, _, _ in successes], together, strict=True))
        for lane, (claim, outcome) in ends.items():
            if lane in answers or claim is None or outcome is None:
                continue
            try:
                answers[lane] = record(session, claim, outcome)
            except PayloadError as error:
                lane.outcome = refused(claim, outcome, self.runner.policy(claim), error)
                answers[lane] = record(session, claim, lane.outcome)
        return [answers[lane] for lane in batch]
