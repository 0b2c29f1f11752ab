"""The web process: serves /livez, /readyz, /health and /metrics on the supervisor's socket.

The socket is opened by the supervisor and outlives this process, so while a dead web process is
replaced, connections wait in its backlog and none is refused. TERM ends it: requests under way get
2 s. What is served lies in `web/`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import uvicorn

from orchestrator import __version__, logs, metrics
from orchestrator.processes.birth import begin
from orchestrator.web import app
from orchestrator.web.status import Status

_GRACE_SECONDS = 2
_KEEP_ALIVE_SECONDS = 5
# Probes and scrapes are few; beyond it a request is answered with 503 and the connection closed.
_MAX_CONNECTIONS = 256

_TERMINAL = (signal.SIGTTIN, signal.SIGTTOU)

_log = logs.get("web")


class _Server(uvicorn.Server):
    """uvicorn without its own signal handling, which ends in killing itself with the signal."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            loop.add_signal_handler(signum, self._stop)
        # TTIN and TTOU would stop it, the others end it: they are the supervisor's alone.
        for signum in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, *_TERMINAL):
            loop.add_signal_handler(signum, _ignore)
        yield

    def _stop(self) -> None:
        self.should_exit = True


def _ignore() -> None:
    """Take a signal that means nothing here."""


def main() -> None:
    """Run the web process until TERM."""
    place, settings = begin()
    status = Status(
        place.slots(),
        settings,
        name=settings.node.name or socket.gethostname(),
        version=__version__,
    )
    application = app.create(
        status,
        run_directory=place.run_directory,
        metrics_directory=Path(
            os.environ.get(metrics.DIRECTORY_VARIABLE, place.run_directory / "metrics")
        ),
    )
    listener = socket.socket(fileno=place.listen_fd)
    config = uvicorn.Config(
        application,
        http="h11",
        loop="asyncio",
        ws="none",
        lifespan="off",
        log_config=None,
        # At "info" uvicorn also writes its access log: one line for each probe of each second.
        log_level="info" if settings.logging.level == "debug" else "warning",
        server_header=False,
        proxy_headers=False,
        limit_concurrency=_MAX_CONNECTIONS,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=_GRACE_SECONDS,
    )
    _log.info("web.started", address=_shown(listener))
    asyncio.run(_Server(config).serve(sockets=[listener]))
    _log.info("web.stopped")


def _shown(listener: socket.socket) -> str:
    address = listener.getsockname()
    if not isinstance(address, tuple):
        return str(address)
    host, port = address[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


if __name__ == "__main__":
    main()
