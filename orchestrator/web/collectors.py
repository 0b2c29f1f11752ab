"""The numbers of a scrape that no process counts: derived from the slots and from the leader.

`tasks_pending`, `tasks_enqueued_total` and the ages are facts of the database, the same on every
node. Only the node that leads exports them, from the file that its leader process writes, so that
a sum over nodes is right. The names and the text format are `metrics.py`'s.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator.metrics import MAX_LABEL_SETS, OTHER, Derived
from orchestrator.slots import SlotView
from orchestrator.web.status import STATES, Status, state_of

STATISTICS_FILE = "statistics.json"

Samples = list[tuple[tuple[str, ...], float]]


def collect(status: Status, run_directory: Path) -> Derived:
    """Return the derived metrics of one scrape: name to pairs of label values and value."""
    header = status.slots.header
    views = status.slots.wanted()
    derived: dict[str, Samples] = {
        **_of_workers(views, {pool.name: pool.concurrency for pool in status.settings.pools}),
        "leader_status": [((status.name,), float(header.is_leader))],
        "orchestrator_database_session": [((), float(header.is_session_ok))],
        "orchestrator_build_info": [((status.version,), 1.0)],
    }
    if header.last_beat_ns:
        derived["orchestrator_heartbeat_age_seconds"] = [((), header.seconds_since_beat())]
    if header.is_leader:
        derived.update(_of_leader(run_directory / STATISTICS_FILE))
    return derived


def _of_workers(views: list[SlotView], concurrency: dict[str, int]) -> dict[str, Samples]:
    # A pool without a slot is exported all the same: absence is harder to alert on than 0.
    pools = list(dict.fromkeys([*concurrency, *(view.pool for view in views)]))
    capacity: Counter[str] = Counter()
    busy: Counter[str] = Counter()
    for view in views:
        if view.is_ready:
            capacity[view.pool] += concurrency.get(view.pool, 1)
            busy[view.pool] += view.n_busy
    states = Counter((view.pool, state_of(view)) for view in views)
    return {
        "tasks_running": [((), float(busy.total()))],
        "worker_pool_utilization": [
            # Those that are being reported come on top of an async pool's concurrency.
            ((pool,), min(1.0, busy[pool] / capacity[pool]) if capacity[pool] else 0.0)
            for pool in pools
        ],
        "orchestrator_workers": [
            ((pool, state), float(states[pool, state])) for pool in pools for state in STATES
        ],
    }


def _of_leader(path: Path) -> dict[str, Samples]:
    """Read the leader's statistics; empty when there are none yet or they are not readable."""
    try:
        with path.open("rb") as file:
            age = time.time() - os.fstat(file.fileno()).st_mtime
            statistics = json.load(file)
        return {
            "tasks_enqueued_total": _bounded(statistics.get("enqueued", {})),
            "tasks_pending": _bounded(statistics.get("pending", {})),
            "orchestrator_oldest_pending_seconds": _bounded(
                statistics.get("oldest_pending_seconds", {}), add=max
            ),
            "orchestrator_pending_is_estimated": [
                ((str(type),), 1.0) for type in statistics.get("estimated", [])[:MAX_LABEL_SETS]
            ],
            "orchestrator_statistics_age_seconds": [((), max(0.0, age))],
        }
    except (OSError, ValueError, TypeError, AttributeError):
        # Removed between two leaders, or written by something else: no numbers, but a scrape.
        return {}


def _bounded(values: Mapping[str, Any], add: Any = lambda a, b: a + b) -> Samples:
    """Keep the first so many names and join the others: anybody may enqueue any type by SQL.

    In the order of the file, which the leader keeps, so that sums stay monotonic.
    """
    samples: Samples = []
    rest: float | None = None
    for position, (name, value) in enumerate(values.items()):
        if position < MAX_LABEL_SETS:
            samples.append(((name,), float(value)))
        else:
            rest = float(value) if rest is None else add(rest, float(value))
    if rest is not None:
        samples.append(((OTHER,), rest))
    return samples
