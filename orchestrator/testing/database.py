"""Databases for tests: a server that lives as long as the tests, and in it schemas that are fresh.

The server is the embedded one, without fsync. It ends with the process that started it, killed or
not; the folder that it then leaves behind is removed by the next run of tests.
"""

from __future__ import annotations

import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from orchestrator.db import embedded, migrate
from orchestrator.db.connection import connect
from orchestrator.db.layout import Layout
from orchestrator.db.statements import quoted
from orchestrator.processes.identity import is_lock_free

_PREFIX = "orc-pytest-"


@contextmanager
def embedded_server() -> Iterator[str]:
    """Run a server of its own for the length of a block; give the URL of its database.

    To be called by the main thread. Takes about 0.7 s.

    Raises:
        ConfigError: there are no programs of PostgreSQL, or no account to run them as.
    """
    # Short, for the path of the socket, and open to the account that root's server is dropped to.
    base = Path("/tmp")
    for left in base.glob(f"{_PREFIX}*"):
        if _is_left(Path(Layout(left).lock)):
            shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=base))
    folder.chmod(0o755)
    server = embedded.Server(Layout(folder), is_safe=False)
    try:
        server.lock("tests")
        server.initialise()
        server.start()
        server.wait_ready()
        yield server.layout.url()
    finally:
        server.stop()
        server.unlock()
        shutil.rmtree(folder, ignore_errors=True)


def _is_left(lock: Path) -> bool:
    """Return whether the server of this lock has ended. An empty one is about to be taken."""
    try:
        return lock.stat().st_size > 0 and is_lock_free(lock)
    except OSError:
        return False


@contextmanager
def fresh_schema(url: str) -> Iterator[str]:
    """Install an orchestrator's schema under a new name for the length of a block; give the name.

    Raises:
        DatabaseUnavailable: the server cannot be reached.
        SchemaError: the user of the URL may not make schemas.
    """
    name = f"orc_test_{secrets.token_hex(6)}"
    session = connect(url, schema=name, application_name="orchestrator tests")
    try:
        migrate.migrate(session)
        yield name
    finally:
        # What a handler still holds open must not keep the test run from ending.
        with session.connection.cursor() as cursor:
            cursor.execute("set lock_timeout = '10s'")
            cursor.execute(f"drop schema if exists {quoted(name)} cascade")
        session.close()
