"""What handlers say of how far they are, on its way to the database: at a bounded pace, or dropped.

`ProgressOfOne` is for workers that run one task at a time: its words go through the worker's own
session, which is free while the handler runs. In async pools the desk gathers and writes them
(`async_worker`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

import psycopg2

from orchestrator import logs
from orchestrator.context import Said
from orchestrator.db.connection import Session
from orchestrator.errors import DatabaseUnavailable, OrchestratorError
from orchestrator.processes.claimant import Claimant
from orchestrator.store.progress import Report, report_progress
from orchestrator.task import Claim

# What a handler says is written at once up to a burst, then at this pace.
BURST, PER_SECOND = 10.0, 2.0
# While the database is away, the next try to connect waits this many times as long as the last one
# took: a handler that says much loses a tenth of its time to it, not all.
_PATIENCE = 10.0

log = logs.get("worker")


class ProgressOfOne:
    """The words of the one attempt that a worker runs.

    `say` may be called by any thread of the handler; outside `begin` and `end` it does nothing, so
    that no thread that a handler left behind shares the session with the worker.
    """

    def __init__(self, claimant: Claimant, clock: Callable[[], float] = time.monotonic) -> None:
        self._claimant = claimant
        self._clock = clock
        self._lock = threading.Lock()
        self._claim: Claim | None = None
        self._left_out: Said | None = None
        self._connect_at = 0.0
        self._allowance, self._counted_at = BURST, clock()

    def begin(self, claim: Claim) -> None:
        """Take the words of this attempt from now on."""
        with self._lock:
            self._claim, self._left_out = claim, None

    def say(self, claim: Claim, said: Said) -> None:
        """Write what a handler says, or leave it out; never raises."""
        with self._lock:
            if self._claim is not claim:
                return
            if not self._may_write():
                self._left_out = said
                return
            self._left_out = None
            self._connect()
            self._write(claim, said)

    def end(self) -> None:
        """Write the last word if it was left out, and take no more."""
        with self._lock:
            if self._claim is not None and self._left_out is not None:
                self._write(self._claim, self._left_out)
            self._claim = None

    def _may_write(self) -> bool:
        now = self._clock()
        self._allowance = min(BURST, self._allowance + (now - self._counted_at) * PER_SECOND)
        self._counted_at = now
        if self._allowance < 1.0:
            return False
        self._allowance -= 1.0
        return True

    def _connect(self) -> None:
        began = self._clock()
        if self._claimant.session is None and began >= self._connect_at:
            self._claimant.connected()
            now = self._clock()
            self._connect_at = now + max(1.0, (now - began) * _PATIENCE)

    def _write(self, claim: Claim, said: Said) -> None:
        session = self._claimant.session
        if session is None:
            return
        report = Report(claim.task_id, claim.token, said.done, said.total, said.message)
        try:
            write(session, [report])
        except DatabaseUnavailable as error:
            self._claimant.lost(error)


def write(session: Session, reports: Sequence[Report]) -> None:
    """Write what handlers said; what the database refuses is dropped, as no word is worth a task.

    Raises:
        DatabaseUnavailable: the session is gone.
    """
    try:
        report_progress(session, reports)
    except DatabaseUnavailable:
        raise
    except (OrchestratorError, psycopg2.Error) as error:
        tasks = [report.task_id for report in reports]
        log.warning("progress.refused", task_ids=tasks, reason=str(error))
