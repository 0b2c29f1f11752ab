"""The fixtures of all tests: a real PostgreSQL, and in it a fresh database for each test.

One server per test run, started through our own embedded layer, so that root and ordinary users
can run the tests without any PostgreSQL set up. The schema is migrated once, into a template; each
test that asks for `dsn` gets a clone of it, in 20 to 60 ms. Tests in `unit/` touch no database.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from pytest_postgresql import factories
from pytest_postgresql.janitor import DatabaseJanitor

from orchestrator import Client
from orchestrator.db import embedded, migrate
from orchestrator.db.connection import Session, connect

TESTS = Path(__file__).parent
SCHEMA = "orchestrator"

# What other programs, or the developer's own daemon, may have put into the environment.
_AMBIENT = (
    "DATABASE_URL", "WORKER_POOL_SIZE", "CLAIM_INTERVAL", "DISTRIBUTED_MODE", "HEARTBEAT_INTERVAL",
    "WORKER_TIMEOUT", "LEADER_TERM", "CLEANUP_INTERVAL",
)  # fmt: skip

# These tell with which PostgreSQL to test, and which draw of a random test to repeat.
_FOR_TESTS = ("ORCHESTRATOR_PG_BIN", "ORCHESTRATOR_TEST_SEED")


def pytest_configure(config: pytest.Config) -> None:
    for name in list(os.environ):
        if name in _AMBIENT or (name.startswith("ORCHESTRATOR_") and name not in _FOR_TESTS):
            del os.environ[name]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        is_unit = (TESTS / "unit") in item.path.parents
        if is_unit and "pg_server" in getattr(item, "fixturenames", ()):
            raise pytest.UsageError(f"{item.nodeid}: a unit test must not use a database")


def _public_folder() -> Path:
    # Not pytest's own: root's is closed to the user that the server is dropped to, and the path
    # of a socket must be short.
    folder = Path(tempfile.mkdtemp(prefix="orc-", dir="/tmp"))
    folder.chmod(0o755)
    return folder


@dataclass(frozen=True)
class RunningServer:
    """The server of this test run, in the shape that `postgresql_noproc` reads."""

    server: embedded.Server
    host: str
    port: int = 5432
    user: str = embedded.SUPERUSER
    password: None = None
    options: str = ""
    maintenance_dbname: str = "postgres"
    template_dbname: None = None

    def url(self, database: str) -> str:
        return self.server.layout.url(database)


@pytest.fixture(scope="session")
def pg_server() -> Iterator[RunningServer]:
    """Run a PostgreSQL without fsync, for as long as the tests run."""
    state = _public_folder()
    server = embedded.Server(
        embedded.Layout(state),
        parameters={"max_connections": "300", "log_min_duration_statement": "5s"},
        is_safe=False,
    )
    try:
        assert server.lock("tests")
        server.initialise()
        server.start()
        server.wait_ready()
        yield RunningServer(server, host=str(server.layout.sockets))
    finally:
        server.stop()
        server.unlock()
        shutil.rmtree(state, ignore_errors=True)


def _load_schema(*, host: str, port: int, user: str, dbname: str, **_: object) -> None:
    session = connect(
        f"host={host} port={port} user={user} dbname={dbname}",
        schema=SCHEMA,
        application_name="tests template",
    )
    try:
        migrate.migrate(session)
    finally:
        session.close()


pg_template = factories.postgresql_noproc(depends_on="pg_server", dbname="orc", load=[_load_schema])


def _fresh_database(server: RunningServer, name: str, *, template: str | None) -> DatabaseJanitor:
    return DatabaseJanitor(
        user=server.user,
        host=server.host,
        port=server.port,
        dbname=name,
        template_dbname=template,
        maintenance_dbname=server.maintenance_dbname,
        password=None,
    )


@pytest.fixture
def dsn(pg_server: RunningServer, pg_template: object) -> Iterator[str]:
    """Give the URL of a fresh database that holds the migrated schema `orchestrator`."""
    template = getattr(pg_template, "template_dbname")  # noqa: B009 - its type is private
    with _fresh_database(pg_server, "orc_test", template=template):
        yield pg_server.url("orc_test")


@pytest.fixture
def empty_dsn(pg_server: RunningServer) -> Iterator[str]:
    """Give the URL of a fresh database with nothing in it."""
    with _fresh_database(pg_server, "orc_empty", template=None):
        yield pg_server.url("orc_empty")


@pytest.fixture
def session(dsn: str) -> Iterator[Session]:
    """Give a session on a fresh migrated database."""
    opened = connect(dsn, schema=SCHEMA, application_name="tests")
    yield opened
    opened.close()


@pytest.fixture
def state() -> Iterator[Path]:
    """Give an empty state directory for an embedded server of the test's own."""
    folder = _public_folder()
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def _made_pgdata() -> Iterator[Path]:
    folder = _public_folder()
    server = embedded.Server(embedded.Layout(folder), is_safe=False)
    try:
        assert server.lock("tests")
        server.initialise()
        yield server.data
    finally:
        server.unlock()
        shutil.rmtree(folder)


@pytest.fixture
def pgdata(state: Path, _made_pgdata: Path) -> Path:
    """Put a data directory into `state`: a copy, in a fifth of the time of making one."""
    subprocess.run(["cp", "-a", str(_made_pgdata), str(state)], check=True)
    return state / _made_pgdata.name


@pytest.fixture
def client(dsn: str) -> Iterator[Client]:
    """Give a client of a fresh migrated database."""
    with Client(dsn) as client:
        yield client
