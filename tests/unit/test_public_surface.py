"""What `from orchestrator import ...` gives, and what importing it costs."""

from __future__ import annotations

import configparser
import subprocess
import sys
from pathlib import Path

import pytest

import orchestrator

ROOT = Path(__file__).parents[2]
HEAVY = ("psycopg2", "prometheus_client", "starlette", "uvicorn", "jinja2", "click", "msgspec")


def loaded_by(statement: str) -> set[str]:
    """Return the top-level modules that a fresh interpreter has after a statement."""
    program = f"{statement}\nimport sys\nprint(*sorted(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    return {name.split(".")[0] for name in done.stdout.split()}


@pytest.mark.parametrize("name", orchestrator.__all__)
def test_every_name_of_the_surface_can_be_imported(name: str) -> None:
    value = getattr(orchestrator, name)

    assert value is not None
    assert name in dir(orchestrator)
    assert getattr(value, "__name__", name) == name


def test_importing_the_package_loads_none_of_its_dependencies() -> None:
    assert loaded_by("import orchestrator").isdisjoint(HEAVY)


def test_what_a_handler_imports_loads_no_driver() -> None:
    loaded = loaded_by("from orchestrator import Context, Dead, Mux, Retry, TaskType")

    assert loaded.isdisjoint({"psycopg2", "prometheus_client"})


@pytest.mark.parametrize("module", ["config", "logs", "cli.daemon"])
def test_what_the_supervisor_imports_loads_no_driver(module: str) -> None:
    loaded = loaded_by(f"import orchestrator.{module}")

    assert loaded.isdisjoint({"psycopg2", "prometheus_client", "starlette", "uvicorn", "jinja2"})


def test_unknown_name_is_an_ordinary_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Worker'"):
        _ = orchestrator.Worker
    assert not hasattr(orchestrator, "Worker")


def test_version_is_that_of_the_distribution() -> None:
    metadata = configparser.ConfigParser()
    metadata.read(ROOT / "setup.cfg", encoding="utf-8")
    stated = metadata["metadata"]["version"]

    assert stated in (orchestrator.__version__, "attr: orchestrator.__version__")


def test_package_says_that_it_is_typed() -> None:
    assert (ROOT / "orchestrator/py.typed").is_file()
