"""An incident from its discovery to its end, with the commands that docs/operations.md names.

Tasks of three types die of two errors. The dead letter queue says of what; the worst type is
paused, so that what comes in meanwhile waits instead of dying; its handler is mended and the node
started again; the type is resumed, and its dead tasks are put back at 100 a second, the others left
where they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from orchestrator import Client
from orchestrator.db.connection import Session
from tests.commands import Commands
from tests.node import Node
from tests.sql import count, rows
from tests.support import eventually

RATE = 100
ARRIVALS = 20
CAUSES = {
    "mail:send": "ConnectionError: HTTP # from #",
    "mail:digest": "ConnectionError: HTTP # from #",
    "report": "KeyError: #",
}

BROKEN = """
from orchestrator import Mux, Retry

mux = Mux()


@mux.handler("mail:", retry=Retry(max_attempts=2, base=0.01))
def mail(ctx, payload):
    raise ConnectionError(f'HTTP 503 from "https://mail-{payload}.example.org"')


@mux.handler("report", retry=Retry(max_attempts=1))
def report(ctx, payload):
    return {"total": {}[f"column {payload}"]}
"""
MENDED = BROKEN.replace(
    """    raise ConnectionError(f'HTTP 503 from "https://mail-{payload}.example.org"')""",
    """    return {"sent": payload}""",
)


@pytest.fixture
def node(dsn: str, tmp_path: Path) -> Iterator[Node]:
    modules = tmp_path / "modules"
    modules.mkdir()
    (modules / "incident.py").write_text(BROKEN)
    node = Node(dsn, tmp_path / "node", path=modules, handlers=("incident",))
    yield node
    node.kill_everything()


@pytest.mark.parametrize(
    "number", [180, pytest.param(5000, marks=[pytest.mark.slow, pytest.mark.timeout(600)])]
)
def test_incident_is_found_mended_and_undone(
    node: Node, dsn: str, client: Client, session: Session, tmp_path: Path, number: int
) -> None:
    control = Commands.of(dsn, tmp_path)
    sizes = {"mail:send": number // 2, "mail:digest": number // 4, "report": number // 4}
    for name, size in sizes.items():
        client.enqueue_many(name, range(size))
    node.start()
    eventually(lambda: count(session, "dead") == number, timeout=number / 20, interval=0.1)

    # Why?
    summary = control.json("dead", "summary")
    sample = control.json("task", "show", str(summary[0]["sample"]))
    assert {row["type"]: (row["count"], row["error"]) for row in summary} == {
        name: (size, CAUSES[name]) for name, size in sizes.items()
    }
    assert summary[0]["type"] == "mail:send"
    assert "https://mail-" in sample["error"]
    assert "raise ConnectionError(f'HTTP 503" in sample["attempts"][-1]["traceback"]

    # No more of it.
    assert control("type", "pause", "mail:send").exit_code == 0
    arrivals = client.enqueue_many("mail:send", range(ARRIVALS))
    eventually(lambda: count(session, "held") == ARRIVALS)

    # Mended, and what waited is run.
    (tmp_path / "modules/incident.py").write_text(MENDED)
    assert node.terminate() == 0
    node.start()
    assert count(session, "held") == ARRIVALS
    assert control("type", "resume", "mail:send").exit_code == 0
    for task in arrivals:
        client.result(task, timeout=30)

    # Undone, for one type, at a pace that the mail server bears.
    others = untouched(session)
    words = ("dead", "redrive", "--type", "mail:send", "--error", "http 503", "--rate", str(RATE))
    dry = control.json(*words, "--dry-run")
    result = control(*words, "--yes")
    assert dry["count"] == sizes["mail:send"]
    assert (result.exit_code, f"redrive: {sizes['mail:send']:,} tasks match" in result.stderr) == (
        0, True,
    )  # fmt: skip
    ended = sizes["mail:send"] + ARRIVALS
    eventually(lambda: count(session, "outcome") == ended, timeout=60)

    started = starts_of_second_runs(session)
    per_second, most = pace(started)
    print(f"{len(started)} tasks redriven at {per_second:.1f} a second, at most {most} in one")
    assert len(started) == sizes["mail:send"]
    assert per_second <= RATE * 1.05
    assert most <= RATE * 1.5
    assert untouched(session) == others
    assert len(others) == sizes["mail:digest"] + sizes["report"]


def untouched(session: Session) -> list[Any]:
    """Everything that is recorded of the dead tasks of the other types, and of their attempts."""
    return rows(
        session,
        "select to_jsonb(d), (select jsonb_agg(a order by a.attempt) from attempt a "
        "where a.id = d.id) from dead d join type t on t.id = d.type "
        "where t.name <> 'mail:send' order by d.id",
    )


def starts_of_second_runs(session: Session) -> list[datetime]:
    """When the redriven tasks were run, by the clock of the database."""
    return [
        at for (at,) in rows(
            session,
            "select started_at from outcome where state = 'succeeded' and attempt > 1 order by 1",
        )
    ]  # fmt: skip


def pace(moments: list[datetime]) -> tuple[float, int]:
    """Return the mean per second, a slice of a tenth aside, and the most within any second."""
    took = (moments[-1] - moments[0]).total_seconds()
    first = 0
    most = 0
    for last, moment in enumerate(moments):
        while (moment - moments[first]).total_seconds() >= 1:
            first += 1
        most = max(most, last - first + 1)
    return (len(moments) - RATE // 10) / took, most
