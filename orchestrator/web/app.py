"""The routes of a node: /livez, /readyz, /health, /metrics.

A probe never waits for anything: it reads shared memory. A scrape reads files and runs in a thread
of its own, one at a time; who asks meanwhile gets the same answer. What is said lies in
`status.py` and `collectors.py`; sockets, signals and limits of the server in `processes/web.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from orchestrator import metrics
from orchestrator.web import collectors
from orchestrator.web.status import NOT_READY, READY, Status

# Prometheus gives up after 10 s by default; an answer that nobody waits for helps nobody.
SCRAPE_SECONDS = 8.0

_HEADERS = {"cache-control": "no-store", "x-content-type-options": "nosniff"}


def create(status: Status, *, run_directory: Path, metrics_directory: Path) -> Starlette:
    """Build the ASGI application of one node."""
    scrape = _Scrape(
        lambda: metrics.render(
            collectors.collect(status, run_directory), directory=metrics_directory
        )
    )

    async def livez(request: Request) -> Response:
        return _json({"status": "alive"})

    async def readyz(request: Request) -> Response:
        reasons = status.reasons()
        return _json({"status": NOT_READY if reasons else READY, "reasons": reasons})

    async def health(request: Request) -> Response:
        return _json(status.health())

    async def metrics_page(request: Request) -> Response:
        try:
            text = await scrape.text()
        except TimeoutError:
            return _error(503, f"the metrics could not be read within {SCRAPE_SECONDS:g} s")
        return Response(text, media_type=metrics.CONTENT_TYPE, headers=_HEADERS)

    return Starlette(
        routes=[
            Route("/livez", livez),
            Route("/readyz", readyz),
            Route("/health", health),
            Route("/metrics", metrics_page),
        ],
        exception_handlers={HTTPException: _refused, Exception: _failed},
    )


class _Scrape:
    """Reads the metrics in one thread, for all who ask at the same time."""

    def __init__(self, read: Callable[[], bytes], *, limit_seconds: float = SCRAPE_SECONDS) -> None:
        self._read = read
        self._limit_seconds = limit_seconds
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="scrape")
        self._running: asyncio.Future[bytes] | None = None
        self._began_at = 0.0

    async def text(self) -> bytes:
        """Return the text of a scrape.

        Raises:
            TimeoutError: the reading, perhaps begun for somebody else, takes too long.
        """
        loop = asyncio.get_running_loop()
        if self._running is None or self._running.done():
            self._running = loop.run_in_executor(self._thread, self._read)
            self._began_at = loop.time()
        left = self._began_at + self._limit_seconds - loop.time()
        # Shielded: one client that goes away must not take the answer from the others.
        return await asyncio.wait_for(asyncio.shield(self._running), max(0.0, left))


def _json(content: dict[str, Any]) -> Response:
    code = 503 if content["status"] == NOT_READY else 200
    return JSONResponse(content, status_code=code, headers=_HEADERS)


def _error(code: int, message: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse(
        {"error": message}, status_code=code, headers={**_HEADERS, **(headers or {})}
    )


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = request.url.path[:200]
    message = f"no such path: {path}" if error.status_code == 404 else f"{error.detail}: {path}"
    return _error(error.status_code, message, dict(error.headers or {}))


async def _failed(request: Request, error: Exception) -> Response:
    # Starlette raises it again after this answer, and the server logs it with its traceback.
    return _error(500, "internal error; the log of the web process says more")
