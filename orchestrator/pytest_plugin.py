"""The pytest plugin: a real node for a test, and the death of a worker at a chosen moment.

    orchestrator_node              a node that runs, ended with the test
    orchestrator_start_node        starts more nodes, or nodes with other settings
    orchestrator_kill              kills the worker in the middle of a given task
    orchestrator_client            a client of a fresh schema, with a node or without
    to be overridden               orchestrator_modules, orchestrator_database_url,
                                   orchestrator_schema, orchestrator_settings, orchestrator_pools

The same can be said by options and in pytest's configuration; docs/testing.md has them all. pytest
imports this module at every start of its own, so it imports nothing that costs: the work is in
`orchestrator.testing`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from orchestrator.client import Client
    from orchestrator.task import Attempt, Task
    from orchestrator.testing.node import Node

_NODES: pytest.StashKey[list[Node]] = pytest.StashKey()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("orchestrator", "task-orchestrator")
    group.addoption(
        "--orchestrator-database-url",
        metavar="URL",
        help="PostgreSQL for nodes under test; without it, an embedded server for this run",
    )
    parser.addini("orchestrator_database_url", "the same, for good", default="")
    parser.addini(
        "orchestrator_modules",
        'the handlers of nodes under test, as in [handlers] modules: "myapp.handlers[:mux]"',
        type="args",
        default=[],
    )


@pytest.fixture(scope="session")
def orchestrator_server_url(pytestconfig: pytest.Config) -> Iterator[str]:
    """The URL of a database: of the option or the ini value, else of an embedded server."""
    given = pytestconfig.getoption("--orchestrator-database-url") or pytestconfig.getini(
        "orchestrator_database_url"
    )
    if given:
        yield str(given)
        return
    from orchestrator.testing.database import embedded_server

    with embedded_server() as url:
        yield url


@pytest.fixture
def orchestrator_database_url(orchestrator_server_url: str) -> str:
    """The database of nodes under test; override it to name one of your own."""
    return orchestrator_server_url


@pytest.fixture
def orchestrator_schema(orchestrator_database_url: str) -> Iterator[str]:
    """A schema that is fresh for each test, so that no test sees another's tasks."""
    from orchestrator.testing.database import fresh_schema

    with fresh_schema(orchestrator_database_url) as name:
        yield name


@pytest.fixture
def orchestrator_client(
    orchestrator_database_url: str, orchestrator_schema: str
) -> Iterator[Client]:
    """A client of the test's database and schema, with a node or without."""
    from orchestrator.client import Client

    with Client(orchestrator_database_url, schema=orchestrator_schema) as client:
        yield client


@pytest.fixture
def orchestrator_modules(pytestconfig: pytest.Config) -> Sequence[str]:
    """The modules with the handlers; override it, or set orchestrator_modules in pytest's ini."""
    modules: list[str] = pytestconfig.getini("orchestrator_modules")
    return modules


@pytest.fixture
def orchestrator_settings() -> Mapping[str, Any]:
    """Settings of nodes under test, {"section.key": value}; override it where you need any."""
    return {}


@pytest.fixture
def orchestrator_pools() -> Sequence[Mapping[str, Any]]:
    """The `[[pool]]`s of nodes under test; none: one pool with two workers. Override at will."""
    return ()


@pytest.fixture
def orchestrator_start_node(
    request: pytest.FixtureRequest,
    orchestrator_database_url: str,
    orchestrator_schema: str,
    orchestrator_modules: Sequence[str],
    orchestrator_settings: Mapping[str, Any],
    orchestrator_pools: Sequence[Mapping[str, Any]],
    tmp_path: Path,
) -> Iterator[Callable[..., Node]]:
    """Start nodes by `start(modules=, processes=, pools=, settings=, name=)`; all is optional."""
    from orchestrator.testing.node import Node

    nodes = request.node.stash.setdefault(_NODES, [])

    def start(
        *,
        modules: Sequence[str] = orchestrator_modules,
        processes: int = 2,
        pools: Sequence[Mapping[str, Any]] = orchestrator_pools,
        settings: Mapping[str, Any] | None = None,
        name: str | None = None,
    ) -> Node:
        if not modules:
            raise pytest.UsageError(
                "a node needs to know your handlers: set orchestrator_modules = myapp.handlers in "
                "pytest's configuration, override the fixture orchestrator_modules, or say "
                "orchestrator_start_node(modules=...)"
            )
        number = len(nodes) + 1
        node = Node(
            orchestrator_database_url,
            tmp_path / f"orchestrator-{number}",
            modules=modules,
            processes=processes,
            schema=orchestrator_schema,
            pools=pools,
            settings={**orchestrator_settings, **(settings or {})},
            name=name or f"node-{number}",
        )
        nodes.append(node)
        return node.start()

    yield start
    for node in reversed(nodes):
        node.close()


@pytest.fixture
def orchestrator_node(orchestrator_start_node: Callable[..., Node]) -> Node:
    """A node that runs your handlers: `.client`, `.wait_idle()`, `.logs`, `.kill()`, `.stop()`."""
    return orchestrator_start_node()


@pytest.fixture
def orchestrator_kill() -> Callable[..., Attempt]:
    """Kill the worker in the middle of a task: `kill(node, task, attempt=, when=, signum=)`.

    It waits until the task runs, and returns the attempt with its crash report (`Node.kill`).
    """

    def kill(node: Node, task: Task[Any] | int, **options: Any) -> Attempt:
        return node.kill(task, **options)

    return kill


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Put the logs of a failing test's nodes into its report."""
    report = yield
    if report.failed:
        for node in item.stash.get(_NODES, []):
            report.sections.append((f"log of orchestratord {node.name} ({call.when})", node.tail()))
    return report
