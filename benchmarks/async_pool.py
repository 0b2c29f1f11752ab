"""10,000 tasks of 100 ms in one worker of an async pool: how near is it to the ideal time?

    python -m benchmarks.async_pool [tasks] [concurrency] [milliseconds]

Makes a server of its own that waits for the disk, enqueues everything, starts a node with one
worker, and reads the times from the database: from the first claim to the last end. Ideal is
tasks * milliseconds / concurrency.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path
from typing import Any

from orchestrator import Client, Context, Mux
from tests.node import running
from tests.server import own_server
from tests.sql import opened, rows
from tests.support import eventually

mux = Mux()


@mux.handler("benchmark:io")
async def io(ctx: Context[Any], payload: float) -> None:
    await asyncio.sleep(payload)


def main() -> None:
    given = [int(word) for word in sys.argv[1:]]
    n, concurrency, milliseconds = [*given, *(10_000, 200, 100)[len(given) :]]
    pool = (
        f'[[pool]]\nname = "io"\nmode = "async"\nconcurrency = {concurrency}\nprocesses = 1\n'
        'queues = ["io"]'
    )
    with tempfile.TemporaryDirectory() as folder, own_server(is_safe=True) as own:
        with Client(own.dsn) as client:
            client.enqueue_many("benchmark:io", [milliseconds / 1000] * n, queue="io")
        with (
            opened(own.dsn) as session,
            running(
                own.dsn,
                Path(folder),
                pools=pool,
                processes=1,
                handlers=("benchmarks.async_pool",),
                settings={"logging.level": "info"},
            ),
        ):
            eventually(
                lambda: rows(session, "select count(*) from outcome") == [(n,)],
                timeout=600,
                interval=0.5,
            )
            [(seconds, states)] = rows(
                session,
                "select extract(epoch from max(finished_at) - min(started_at))::float, "
                "array_agg(distinct state) from outcome",
            )
    ideal = n * milliseconds / 1000 / concurrency
    assert states == ["succeeded"]
    print(
        f"{n} tasks of {milliseconds} ms, concurrency {concurrency}: {seconds:.2f} s, "
        f"ideal {ideal:.2f} s, ratio {seconds / ideal:.2f}"
    )


if __name__ == "__main__":
    main()
