"""`Node.kill` hits the attempt that it was told to, and no other, however short attempts are."""

from __future__ import annotations

from orchestrator import Client
from tests.node import Node


def test_of_many_short_attempts_only_those_that_were_named_die(node: Node, client: Client) -> None:
    tasks = client.enqueue_many("burn", [{"milliseconds": 3}] * 600)
    hit = {}

    for task in tasks[40::40]:
        try:
            hit[task.id] = node.kill(task, timeout=10).number
        except AssertionError as error:
            # It was over before it was seen, which is the one other answer.
            assert "it has ended" in str(error)

    node.wait_idle()
    crashed = {
        task.id: attempt.number
        for task in map(client.get, tasks)
        for attempt in task.attempts
        if attempt.crash
    }
    assert crashed == hit
    assert hit
