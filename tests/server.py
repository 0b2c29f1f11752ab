"""A PostgreSQL of a test's own, that may be stopped, killed and started again."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from orchestrator.db import embedded, migrate
from orchestrator.db.connection import connect
from orchestrator.errors import ConfigError, DatabaseUnavailable
from tests.support import eventually

SCHEMA = "orchestrator"


class OwnServer:
    """One server with one migrated database. All calls from the main thread (see `embedded`)."""

    def __init__(self, state: Path, parameters: Mapping[str, str], *, is_safe: bool) -> None:
        self.server = embedded.Server(
            embedded.Layout(state), parameters=parameters, is_safe=is_safe
        )

    @property
    def dsn(self) -> str:
        return self.server.layout.url()

    def start(self) -> float:
        """Start it and wait until it takes connections; return the time.monotonic() of that."""

        def is_started() -> bool:
            # After a SIGKILL its processes hold the shared memory until they notice.
            with suppress(ConfigError, DatabaseUnavailable):
                self.server.start()
                self.server.wait_ready(30)
                return True
            return False

        eventually(is_started, timeout=60, interval=0.2, message="the server does not start")
        return time.monotonic()

    def end(self, signum: int) -> None:
        """Send the postmaster a signal: INT is a fast shutdown, QUIT an immediate one."""
        process = self.server.process
        assert process is not None
        os.kill(process.pid, signum)
        process.wait(30)


@contextmanager
def own_server(
    parameters: Mapping[str, str] | None = None, *, is_safe: bool = False
) -> Iterator[OwnServer]:
    """Run a server for the length of a block; with `is_safe` it waits for the disk."""
    # Open to the user that the server is dropped to, and short, for the path of its socket.
    state = Path(tempfile.mkdtemp(prefix="orc-", dir="/tmp"))
    state.chmod(0o755)
    own = OwnServer(state, parameters or {}, is_safe=is_safe)
    server = own.server
    try:
        assert server.lock("tests")
        server.initialise()
        own.start()
        session = connect(own.dsn, schema=SCHEMA, application_name="tests")
        migrate.migrate(session)
        session.close()
        yield own
    finally:
        server.stop()
        server.unlock()
        shutil.rmtree(state, ignore_errors=True)


FAST, IMMEDIATE, CRASH = signal.SIGINT, signal.SIGQUIT, signal.SIGKILL
