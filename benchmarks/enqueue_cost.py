"""What the indexes that serve lists cost an enqueue of many tasks (docs/decisions/0021).

    python -m benchmarks.enqueue_cost [--tasks N] [--rounds N]

`Client.enqueue_many`, with and without the indexes `task_kind` and `task_tags`, into tables that
grow alike, in turns; without tags, and with two tags a task. An embedded server with fsync on.
"""

from __future__ import annotations

import argparse
import statistics
import time

from benchmarks.server import own_server
from orchestrator import Client
from orchestrator.db import migrate
from orchestrator.db.connection import connect

KINDS = {"with": (), "without": ("task_kind", "task_tags")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=7)
    asked = parser.parse_args()
    payloads = [{"user": n, "url": f"https://example.org/{n}"} for n in range(asked.tasks)]
    took: dict[tuple[str, bool], list[float]] = {}
    with own_server() as url:
        for kind, dropped in KINDS.items():
            session = connect(url, schema=f"{kind}_indexes", application_name="benchmark")
            migrate.migrate(session)
            with session.connection.cursor() as cursor:
                for index in dropped:
                    cursor.execute(f"drop index {session.schema}.{index}")
            session.close()
        for round_number in range(asked.rounds):
            for tags in ((), ("nightly", f"tenant-{round_number}")):
                for kind in sorted(KINDS, reverse=bool(round_number % 2)):
                    took.setdefault((kind, bool(tags)), []).append(
                        _enqueue(url, f"{kind}_indexes", payloads, tags)
                    )
    for has_tags in (False, True):
        means = {kind: statistics.median(took[kind, has_tags]) for kind in KINDS}
        least = {kind: min(took[kind, has_tags]) for kind in KINDS}
        more = {
            name: m["with"] / m["without"] - 1 for name, m in (("median", means), ("least", least))
        }
        print(
            f"{'two tags' if has_tags else 'no tags'}: median {means['without']:.2f} s without, "
            f"{means['with']:.2f} s with the indexes ({more['median']:+.1%}); "
            f"least {least['without']:.2f} s, {least['with']:.2f} s ({more['least']:+.1%})"
        )


def _enqueue(url: str, schema: str, payloads: list[object], tags: tuple[str, ...]) -> float:
    with Client(url, schema=schema) as client:
        session = connect(url, schema=schema, application_name="benchmark")
        with session.connection.cursor() as cursor:
            # Everybody begins with nothing to be written by a checkpoint.
            cursor.execute("checkpoint")
        session.close()
        began = time.perf_counter()
        client.enqueue_many("email:send", payloads, tags=tags)
        return time.perf_counter() - began


if __name__ == "__main__":
    main()
