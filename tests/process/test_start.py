"""A start without a database, or on a schema that does not fit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator import Client, State
from tests.node import Node, free_address, running
from tests.server import FAST, OwnServer, own_server
from tests.support import eventually, never

EXIT_TEMPORARY = 75


@pytest.fixture
def own() -> Iterator[OwnServer]:
    with own_server() as server:
        yield server


def complaints(node: Node) -> Counter[str]:
    """Count the warnings about the database, per process."""
    events = node.events("database.unavailable", "database.lost")
    return Counter(event["identity"] for event in events)


def test_daemon_that_starts_before_its_database_waits_for_it(
    own: OwnServer, tmp_path: Path
) -> None:
    client = Client(own.dsn)
    task = client.enqueue("where", {})
    own.end(FAST)

    with running(own.dsn, tmp_path, wait=False, settings={"web.bind": free_address()}) as node:
        eventually(lambda: complaints(node))
        eventually(lambda: node.fetch("/readyz")[0] == 503)
        assert node.fetch("/livez")[0] == 200
        never(lambda: node.process is None or node.process.poll() is not None, during=3)
        own.start()

        assert client.wait(task, timeout=20).state is State.SUCCEEDED
        eventually(lambda: node.fetch("/readyz")[0] == 200)
        # Tried often, said once.
        assert set(complaints(node).values()) == {1}
    client.close()


def test_node_waits_for_a_server_that_goes_away_before_it_was_ever_ready(
    own: OwnServer, tmp_path: Path
) -> None:
    client = Client(own.dsn)
    task = client.enqueue("where", {})
    with running(own.dsn, tmp_path, wait=False) as node:
        eventually(lambda: node.events("supervisor.started"), interval=0.002)
        for _ in range(3):
            own.end(FAST)
            own.start()

        assert client.wait(task, timeout=30).state is State.SUCCEEDED
        assert node.terminate() == 0
    client.close()


def test_daemon_without_a_schema_ends_and_says_what_to_run(empty_dsn: str, tmp_path: Path) -> None:
    with running(empty_dsn, tmp_path, wait=False) as node:
        assert node.process is not None
        exit_code = node.process.wait(20)

    (refusal,) = node.events("schema.refused")
    assert exit_code == EXIT_TEMPORARY
    assert "orchestratorctl migrate" in refusal["reason"]
