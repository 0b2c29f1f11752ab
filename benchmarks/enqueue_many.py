"""How long `enqueue_many` of 100,000 tasks takes, and how much memory, for each way to enqueue.

    python -m benchmarks.enqueue_many [tasks]

Makes a server of its own that waits for the disk. Each way runs in a process of its own, since the
peak of memory is a process's. The payload is a small dict.
"""

from __future__ import annotations

import asyncio
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from orchestrator import AsyncClient, Client
from tests.server import own_server

TYPE = "benchmark:enqueue_many"


def payloads(n: int) -> list[dict[str, Any]]:
    return [{"n": i, "url": f"https://example.org/images/{i}.png"} for i in range(n)]


def plain(url: str, n: int, on_progress: Callable[[int, int], None]) -> None:
    with Client(url) as client:
        client.enqueue_many(TYPE, payloads(n), on_progress=on_progress)


def with_keys(url: str, n: int, on_progress: Callable[[int, int], None]) -> None:
    keys = [f"key-{i}" for i in range(n)]
    with Client(url) as client:
        client.enqueue_many(TYPE, payloads(n), on_progress=on_progress, idempotency_keys=keys)


def on_psycopg2(url: str, n: int, on_progress: Callable[[int, int], None]) -> None:
    import psycopg2

    with psycopg2.connect(url) as conn:
        Client().enqueue_many(TYPE, payloads(n), on_progress=on_progress, conn=conn)


def on_psycopg(url: str, n: int, on_progress: Callable[[int, int], None]) -> None:
    import psycopg

    with psycopg.connect(url) as conn:
        Client().enqueue_many(TYPE, payloads(n), on_progress=on_progress, conn=conn)


def on_sqlalchemy(url: str, n: int, on_progress: Callable[[int, int], None]) -> None:
    import sqlalchemy
    from sqlalchemy.orm import Session

    engine = sqlalchemy.create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    with Session(engine) as session, session.begin():
        Client(url).enqueue_many(TYPE, payloads(n), on_progress=on_progress, conn=session)


def on_django(url: str, n: int, on_progress: Callable[[int, int], None]) -> None:
    import django
    from django.conf import settings
    from django.db import connection, transaction
    from psycopg2.extensions import parse_dsn

    parts = parse_dsn(url)
    place = {name: parts.get(name.lower(), "") for name in ("USER", "PASSWORD", "HOST", "PORT")}
    engine = "django.db.backends.postgresql"
    settings.configure(DATABASES={"default": {"ENGINE": engine, "NAME": parts["dbname"], **place}})
    django.setup()
    with transaction.atomic():
        Client(url).enqueue_many(TYPE, payloads(n), on_progress=on_progress, conn=connection)


def awaited(url: str, n: int, on_progress: Callable[[int, int], None]) -> None:
    async def main() -> None:
        async with AsyncClient(url) as client:
            await client.enqueue_many(TYPE, payloads(n), on_progress=on_progress)

    asyncio.run(main())


WAYS = (plain, with_keys, on_psycopg2, on_psycopg, on_sqlalchemy, on_django, awaited)


def measure(name: str, url: str, n: int) -> None:
    """Run one way in this process and print its line."""
    way = {way.__name__: way for way in WAYS}[name]
    calls: list[tuple[int, int]] = []
    begin = time.monotonic()
    way(url, n, lambda *progress: calls.append(progress))
    took = time.monotonic() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    assert calls[-1] == (n, n)
    print(
        f"{name:14} {took:6.2f} s  {n / took:8,.0f} tasks/s  peak {peak:4.0f} MiB  "
        f"{len(calls)} calls of on_progress"
    )


def main() -> None:
    if len(sys.argv) == 4:
        measure(sys.argv[1], sys.argv[2], int(sys.argv[3]))
        return
    n = sys.argv[1] if len(sys.argv) == 2 else "100000"
    with own_server(is_safe=True) as server:
        for way in WAYS:
            command = [sys.executable, "-m", "benchmarks.enqueue_many", way.__name__, server.dsn, n]
            subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
