"""How soon a death is noticed: the replacement works, and the report is in the database.

Prints the figures (`-s` shows them); a limit on them would fail on a busy machine.
"""

from __future__ import annotations

import os
import signal
import statistics
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from orchestrator import Client
from orchestrator.db.connection import Session
from tests.ledger import Ledger
from tests.node import running
from tests.sql import rows
from tests.support import eventually

N_KILLS = 20

# A crashed task must not come back and be the next one.
SETTINGS = {"defaults.backoff_base": "1h", "defaults.backoff_cap": "1h"}


def test_every_killed_worker_is_on_record_and_has_a_successor_at_work(
    dsn: str, tmp_path: Path, session: Session
) -> None:
    ledger = tmp_path / "ledger"
    client = Client(dsn)
    client.enqueue_many("sleep", [{"seconds": 600, "ledger": str(ledger)}] * (N_KILLS + 1))

    with running(dsn, tmp_path / "node", processes=1, settings=SETTINGS):
        times = [kill_once(session, ledger, n_before=number) for number in range(N_KILLS)]

    to_report, to_next_claim = zip(*times, strict=True)
    print("from the kill to the report in the database:", spread(to_report))
    print("from the kill to the next claim of its slot:", spread(to_next_claim))
    assert len(to_report) == len(to_next_claim) == N_KILLS
    client.close()


def kill_once(session: Session, ledger: Path, *, n_before: int) -> tuple[float, float]:
    """Kill the worker inside its task; return the seconds to the report and to the next claim."""
    # By the ledger: between the claim and the handler's first line it would charge nobody.
    eventually(lambda: len(Ledger(ledger).started) > n_before)
    victim = Ledger(ledger).started[-1]
    killed_at = time.time()
    os.kill(victim.pid, signal.SIGKILL)
    reported_at = eventually(lambda: report_of(session, victim.task))
    claimed_at = eventually(lambda: claim_after(session, victim.pid))
    return reported_at.timestamp() - killed_at, claimed_at.timestamp() - killed_at


def claim_after(session: Session, pid: int) -> datetime | None:
    found = rows(session, "select claimed_at from running where pid <> %(pid)s", pid=pid)
    return found[0][0] if found else None


def report_of(session: Session, task_id: int) -> datetime | None:
    found = rows(session, "select ended_at from attempt where id = %(id)s", id=task_id)
    return found[0][0] if found else None


def spread(seconds: Sequence[float]) -> str:
    ordered = sorted(seconds)
    return (
        f"median {statistics.median(ordered) * 1000:.1f} ms, largest {ordered[-1] * 1000:.1f} ms, "
        f"{len(ordered)} kills"
    )
