"""What the indexes that serve lists cost an enqueue of many tasks (docs/decisions/0021).

    python -m benchmarks.enqueue_cost [--tasks N] [--rounds N]

`Client.enqueue_many`, with and without the indexes `task_kind` and `task_tags`, into tables that
grow alike, in turns; without tags, and with two tags a task. An embedded server with fsync on.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.server import own_server
from orchestrator import Client
from orchestrator.db import migrate
from orchestrator.db.connection import Session, connect

KINDS = {"with": (), "without": ("task_kind", "task_tags")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=7)
    asked = parser.parse_args()
    payloads = [{"user": n, "url": f"https://example.org/{n}"} for n in range(asked.tasks)]
    took: dict[tuple[str, bool], list[Cost]] = {}
    with own_server() as url:
        for kind, dropped in KINDS.items():
            with opened(url, kind) as session:
                migrate.migrate(session)
                with session.connection.cursor() as cursor:
                    for index in dropped:
                        cursor.execute(f"drop index {session.schema}.{index}")
        for round_number in range(asked.rounds):
            for tags in ((), ("nightly", f"tenant-{round_number}")):
                for kind in sorted(KINDS, reverse=bool(round_number % 2)):
                    took.setdefault((kind, bool(tags)), []).append(
                        _enqueue(url, kind, payloads, tags)
                    )
    for has_tags in (False, True):
        print("two tags:" if has_tags else "no tags:")
        for name in Cost._fields:
            costs = {
                kind: statistics.median(getattr(cost, name) for cost in took[kind, has_tags])
                for kind in KINDS
            }
            more = costs["with"] / costs["without"] - 1
            print(
                f"  {name:16} {costs['without']:8.2f}, {costs['with']:8.2f} with them, {more:+.1%}"
            )


class Cost(NamedTuple):
    """What one call took: by the clock, in CPU time of its session's process, in WAL."""

    seconds: float
    server_seconds: float
    wal_mebibytes: float


@contextmanager
def opened(url: str, kind: str) -> Iterator[Session]:
    session = connect(url, schema=f"{kind}_indexes", application_name="benchmark")
    yield session
    session.close()


def _enqueue(url: str, kind: str, payloads: list[Any], tags: tuple[str, ...]) -> Cost:
    with Client(url, schema=f"{kind}_indexes") as client, opened(url, kind) as session:
        client.ring()
        with session.connection.cursor() as cursor:

            def ask(statement: str) -> Any:
                cursor.execute(statement)
                return cursor.fetchone()[0]

            # Everybody begins with nothing to be written by a checkpoint.
            cursor.execute("checkpoint")
            pid = ask(
                "select pid from pg_stat_activity where application_name = 'orchestrator client'"
            )
            wal = ask("select pg_current_wal_insert_lsn()")
            cpu, began = _cpu_seconds(pid), time.perf_counter()
            client.enqueue_many("email:send", payloads, tags=tags)
            took, used = time.perf_counter() - began, _cpu_seconds(pid) - cpu
            written = ask(f"select pg_current_wal_insert_lsn() - '{wal}'::pg_lsn")
            return Cost(took, used, float(written) / 2**20)


def _cpu_seconds(pid: int) -> float:
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


if __name__ == "__main__":
    main()
