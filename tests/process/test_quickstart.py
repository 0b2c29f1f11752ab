"""QUICKSTART.md, as its reader types it, in a copy of the checkout: it prints what it says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.first_hour import beginner, steps
from orchestrator import __version__
from tests.blocks import ROOT, Block, blocks
from tests.checkout import copy_checkout, environment, lend_environment
from tests.session import Reader, Shell, typed

QUICKSTART = ROOT / "QUICKSTART.md"
# It takes a while, and .ci/run runs it by itself.
DEMO = "bin/demo"
SERVER = "postgresql://user:password@host:5432/database"


@pytest.fixture
def reader(tmp_path: Path, state: Path, empty_dsn: str) -> Iterator[Reader]:
    checkout = copy_checkout(tmp_path / "checkout")
    lend_environment(checkout)
    environ = environment(state)
    shell = Shell(checkout, environ)
    yield Reader(shell, {SERVER: empty_dsn, "127.0.0.1:9090": environ["ORCHESTRATOR__WEB__BIND"]})
    shell.close()


def chosen(*, leave_out: str) -> list[Block]:
    """Return all blocks but those of one of the two ways to get it."""
    return [block for block in blocks(QUICKSTART) if block.heading != leave_out]


def test_every_command_of_the_quickstart_prints_what_it_says(reader: Reader) -> None:
    for block in chosen(leave_out="From a wheel"):
        if block.file is not None:
            reader.write(block)
            continue
        for command in typed(block):
            if command.command != DEMO:
                printed = reader.type(command)
                print(f"{printed.seconds:6.2f} s  {command.command}")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_every_command_of_the_quickstart_works_from_a_wheel_in_a_fresh_environment() -> None:
    with beginner("wheel") as reader:
        done = list(steps(reader, "wheel"))

    assert any("pip install" in step.text for step in done)
    assert done[-1].text == "$ kill %1"


def test_wheel_of_the_quickstart_is_the_one_that_this_version_makes() -> None:
    assert f"task_orchestrator-{__version__}-py3-none-any.whl" in QUICKSTART.read_text()
