"""The layers: who may import whom, and what must not be loaded where (docs/architecture.md)."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "orchestrator"

# From the ground up. A module imports from lower lines, and from its own folder in its own line.
# A folder's name stands for all in it.
LAYERS = [
    # values, no I/O
    "errors outcome options retry durations task payload tasktype enqueueing failure",
    # machinery: of the process, then of the database, whose settings come from config
    "config config_files config_reader config_rules config_text cpus logs metrics slots",
    "db",
    # one function = one transaction
    "store",
    # what users import, and what the processes run
    "client async_client verbs batch mux context interrupts loading runner meter duties web",
    # handlers of our own, which use nothing that users could not
    "builtin contrib",
    "processes",
    "cli",
    # what users test with: over all that it runs
    "testing",
    "pytest_plugin",
]

# What a supervisor must never load, however indirectly: it has to survive what they cannot.
HEAVY = ("psycopg2", "psycopg", "prometheus_client", "starlette", "uvicorn", "jinja2", "asyncio")


def modules() -> dict[str, Path]:
    """Return all modules by name: `mux`, `db.connection`, `db` for a folder's __init__."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if name:
            found[name] = path
    return found


MODULES = modules()


@cache
def imports(name: str) -> frozenset[str]:
    """Return what a module imports anywhere in it: ours as `mux`, others as `psycopg2`."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            # `from orchestrator import logs` imports a module, not a name.
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    ours = set()
    for full in found:
        top, _, rest = full.partition(".")
        if top != "orchestrator":
            ours.add(top)
        elif rest:
            ours.add(rest if rest in MODULES else rest.rpartition(".")[0])
    return frozenset(ours - {""})


def rank(name: str) -> int:
    for number, line in enumerate(LAYERS):
        if name.partition(".")[0] in line.split():
            return number
    raise AssertionError(f"{name} stands in no layer: add it to LAYERS and docs/architecture.md")


def folder(name: str) -> Path:
    return MODULES[name].parent


@pytest.mark.parametrize("name", MODULES)
def test_a_module_imports_only_lower_layers_and_its_own_folder(name: str) -> None:
    wrong = [
        other
        for other in imports(name)
        if other in MODULES
        and not (rank(other) < rank(name))
        and not (rank(other) == rank(name) and folder(other) == folder(name))
    ]

    assert not wrong, f"{name} must not import {wrong}"


def reached(name: str) -> set[str]:
    """Return everything that importing a module can load, ours and others."""
    seen: set[str] = set()
    todo = [name]
    while todo:
        current = todo.pop()
        for other in imports(current) - seen:
            seen.add(other)
            if other in MODULES:
                todo.append(other)
    return seen


@pytest.mark.parametrize("name", ["runner", "mux", "context", "loading"])
def test_what_handlers_run_in_loads_no_database_driver(name: str) -> None:
    assert not reached(name) & {"psycopg2", "psycopg", "db.connection"}


def test_only_metrics_imports_prometheus_client() -> None:
    assert [name for name in MODULES if "prometheus_client" in imports(name)] == ["metrics"]


@pytest.mark.parametrize("name", ["config", "logs", "processes.children"])
def test_what_the_supervisor_shares_loads_nothing_heavy(name: str) -> None:
    assert not reached(name) & set(HEAVY)


def test_the_supervisor_loads_nothing_heavy() -> None:
    code = "import sys, orchestrator.processes.supervisor; print(*sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}

    loaded = subprocess.check_output([sys.executable, "-c", code], text=True, env=environment)

    assert not set(HEAVY) & set(loaded.split())
