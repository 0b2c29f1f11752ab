"""A new user's first hour, as QUICKSTART.md has it: every step is done and timed.

    bin/python benchmarks/first_hour.py             # from a fresh checkout, and from a wheel
    bin/python benchmarks/first_hour.py --way wheel --speed 150

Each way in a fresh folder with a fresh virtual environment and an empty cache of packages. Two
times are added up: *waiting* is measured, *typing* is estimated from the number of characters,
those of the files too, at `--speed` characters a minute (200 are the 40 words a minute of an
average typist). The indentation of files is not counted, since editors type it.

Ends with 1 when a command prints something else than the document shows, or when a way takes five
minutes or more.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

# Run as a file, from anywhere.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.blocks import ROOT, Block, blocks
from tests.checkout import copy_checkout, environment
from tests.session import Reader, Shell, typed

WAYS = {"checkout": "From a checkout", "wheel": "From a wheel"}
# It needs a server of the reader's own, and no new user has one.
LEFT_OUT = "A server of your own"
LIMIT_SECONDS = 300.0


@dataclass(frozen=True)
class Step:
    """One step: what was typed, in characters, and how long it took, in seconds."""

    text: str
    characters: int
    waited: float


def steps(reader: Reader, way: str) -> Iterator[Step]:
    """Do what the document says, one step at a time."""
    headings = {*WAYS.values(), LEFT_OUT} - {WAYS[way]}
    for block in blocks(ROOT / "QUICKSTART.md"):
        if block.heading in headings:
            continue
        if block.file is not None:
            reader.write(block)
            yield Step(f"write {block.file}", _characters(block), 0.0)
            continue
        for command in typed(block):
            printed = reader.type(command)
            yield Step(f"$ {command.command}", len(command.command) + 1, printed.seconds)


def _characters(block: Block) -> int:
    return sum(len(line.lstrip()) + 1 for line in block.content.splitlines())


@contextmanager
def beginner(way: str) -> Iterator[Reader]:
    """Give a reader who has nothing yet: a fresh home, and the checkout or the wheel."""
    with tempfile.TemporaryDirectory(prefix="orc-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        # The server of root runs as another user and must get in.
        folder.chmod(0o755)
        state, home = folder / "state", folder / "home"
        state.mkdir()
        home.mkdir()
        place = folder / "work"
        copy_checkout(place)
        if way == "wheel":
            place = _place_with_wheel(place, folder)
        pip = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
        environ = environment(state, **{**pip, "HOME": str(home)})
        shell = Shell(place, environ)
        try:
            yield Reader(shell, {"127.0.0.1:9090": environ["ORCHESTRATOR__WEB__BIND"]})
        finally:
            shell.close()


def _place_with_wheel(checkout: Path, folder: Path) -> Path:
    """Return a folder that holds the wheel of this version and nothing else."""
    place = folder / "download"
    place.mkdir()
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", place, checkout],
        check=True,
    )
    return place


def measure(way: str, speed: float) -> float:
    """Do all steps of one way, print a table, return the seconds of typing and waiting."""
    print(f"\n{WAYS[way].lower()}\n\n {'typed':>6} {'typing':>8} {'waiting':>8}  step")
    characters, waited = 0, 0.0
    began = time.monotonic()
    with beginner(way) as reader:
        for step in steps(reader, way):
            characters += step.characters
            waited += step.waited
            typing = step.characters / speed * 60
            print(f" {step.characters:6} {typing:6.1f} s {step.waited:6.1f} s  {step.text}")
    typing = characters / speed * 60
    print(f" {characters:6} {typing:6.1f} s {waited:6.1f} s  sum: {typing + waited:.0f} s")
    print(f"(the whole took {time.monotonic() - began:.0f} s, with nobody typing)")
    return typing + waited


def main() -> int:
    """Measure; 1 when a way takes too long."""
    parser = argparse.ArgumentParser(description="Time the steps of QUICKSTART.md.")
    parser.add_argument("--way", choices=sorted(WAYS), help="only this one")
    parser.add_argument("--speed", type=float, default=200.0, help="characters a minute")
    given = parser.parse_args()
    ways = [given.way] if given.way else sorted(WAYS)
    taken = [measure(way, given.speed) for way in ways]
    return 0 if max(taken) < LIMIT_SECONDS else 1


if __name__ == "__main__":
    sys.exit(main())
