"""Odd results and exceptions through a real node: no task and no worker hangs, none is lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator import Client, State
from tests.node import running
from tests.odd import KEPT, RAISED, REFUSED

ASYNC = """
[[pool]]
name = "io"
mode = "async"
concurrency = 50
processes = 1
"""


@pytest.mark.parametrize(
    ("suffix", "pools"), [("", ""), ("_async", ASYNC)], ids=["process", "async"]
)
def test_every_odd_end_is_recorded_and_no_worker_dies(
    dsn: str, client: Client, tmp_path: Path, suffix: str, pools: str
) -> None:
    with running(dsn, tmp_path / "node", handlers=("tests.odd",), pools=pools) as node:
        before = node.workers()
        kept = client.enqueue_many(f"odd:return{suffix}", list(KEPT))
        refused = client.enqueue_many(f"odd:return{suffix}", list(REFUSED))
        raised = client.enqueue_many(f"odd:raise{suffix}", list(RAISED))

        node.wait_idle(60)

        assert node.workers() == before
    found = {name: client.get(task) for name, task in zip(KEPT, kept, strict=True)}
    assert {name: task.result for name, task in found.items()} == {
        name: wanted for name, (_, wanted) in KEPT.items()
    }
    assert {task.state for task in map(client.get, refused)} == {State.DEAD}
    assert {task.attempt for task in map(client.get, refused)} == {1}
    for name, task in zip(RAISED, map(client.get, raised), strict=True):
        assert (name, task.state, task.attempt) == (name, State.DEAD, 2)
        assert {attempt.outcome for attempt in task.attempts} == {"failed"}
