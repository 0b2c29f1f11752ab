"""How long each list of orchestratorctl takes, as a whole command, interpreter start included.

    python -m benchmarks.lists [--keep DIRECTORY] [--rounds N] [--ended N] [--waiting N] [WORD]

On a database with a million ended and 100,000 waiting tasks (`filling.py`), on an embedded server
with fsync on. WORD runs only the commands with this word in them. Exit code 1 if the median of
one is above 300 ms.

`--version`, which asks no database, is run before each command that is timed. While it takes a
quarter longer than it can, somebody else has the machine, and the command waits for a minute at
most.
"""

from __future__ import annotations

import argparse
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.filling import fill
from benchmarks.server import own_server
from orchestrator.db import migrate
from orchestrator.db.connection import connect

ROOT = Path(__file__).resolve().parent.parent
LIMIT_SECONDS = 0.3

COMMANDS = """
--version
task list
task list -o json
task list -o ids --limit 500
task list --before 500000
task list --state ready
task list --state scheduled
task list --state held
task list --state running
task list --state succeeded
task list --state cancelled
task list --state expired
task list --state dead
task list --state ready --state held
task list --type sync
task list --type email:
task list --type rare:one
task list --type legacy
task list --type nothing
task list --queue cpu
task list --queue lonely
task list --queue nothing
task list --tag nightly
task list --tag tenant-7
task list --tag once
task list --tag mail
task list --tag imported
task list --tag nothing
task list --older-than 1m
task list --older-than 84h
task list --older-than 30d
task list --newer-than 1h
task list --newer-than 84h
task list --newer-than 1s
task list --error "no such user"
task list --error "list index"
task list --error nothing-like-it
task list --state succeeded --type sync
task list --state ready --type legacy
task list --state expired --type legacy
task list --state dead --type email:
task list --state dead --type rare:one
task list --state succeeded --queue lonely
task list --state ready --queue lonely
task list --state succeeded --tag imported
task list --state ready --tag imported
task list --state dead --tag nightly
task list --state dead --tag nothing
task list --state succeeded --older-than 84h
task list --state ready --newer-than 1s
task list --state dead --newer-than 1h
task list --type sync --tag mail
task list --type email: --tag imported
task list --type email: --tag nightly
task list --type legacy --older-than 1m
task list --type rare:one --older-than 84h
task list --type sync --queue lonely
task list --queue lonely --older-than 84h
task list --queue cpu --tag mail
task list --tag imported --older-than 84h
task list --tag mail --newer-than 84h
task list --type legacy --error nothing-like-it
task list --queue lonely --error "no such user"
task list --tag nightly --error nothing-like-it
task list --older-than 1m --error nothing-like-it
dead list
dead list --type email:
dead list --queue lonely
dead list --tag nightly
dead list --older-than 84h
dead list --error nothing-like-it
dead summary
dead summary --type email:
queue list
type list
stats
worker list
handlers
leader
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", type=Path, metavar="DIRECTORY")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--ended", type=int, default=1_000_000)
    parser.add_argument("--waiting", type=int, default=100_000)
    parser.add_argument("word", nargs="?", default="")
    asked = parser.parse_args()
    with own_server(asked.keep) as url, tempfile.TemporaryDirectory() as folder:
        _prepare(url, asked.ended, asked.waiting)
        config = Path(folder) / "orchestrator.toml"
        # The one node of `filling` has no daemon that would beat.
        config.write_text(
            f'[database]\nurl = "{url}"\n[node]\nworker_timeout = "52w"\n[web]\nbind = ""\n'
        )
        environ = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONPYCACHEPREFIX": f"{folder}/cache"}
        environ.pop("PYTHONDONTWRITEBYTECODE", None)
        chosen = [line for line in COMMANDS.splitlines() if line and asked.word in line]
        sys.exit(_measure(config, environ, chosen, asked.rounds))


def _prepare(url: str, ended: int, waiting: int) -> None:
    session = connect(url, schema="orchestrator", application_name="benchmark")
    migrate.migrate(session)
    with session.connection.cursor() as cursor:
        cursor.execute("select exists (select from orchestrator.task)")
        is_filled = cursor.fetchone()[0]
    if not is_filled:
        began = time.monotonic()
        fill(session, ended=ended, waiting=waiting)
        print(f"filled in {time.monotonic() - began:.0f} s", flush=True)
    session.close()


def _measure(config: Path, environ: dict[str, str], commands: list[str], rounds: int) -> int:
    slow = 0
    quiet = _Quiet(config, environ)
    print(f"{'least':>8} {'median':>8} {'largest':>8}  lines  command")
    for command in commands:
        # The first compiles modules, or reads what is not in memory: it does not count.
        _run(config, environ, command)
        took, lines = [], 0
        for _ in range(rounds):
            quiet.wait()
            seconds, lines = _run(config, environ, command)
            took.append(seconds)
        median = statistics.median(took)
        slow += median > LIMIT_SECONDS
        mark = "  SLOW" if median > LIMIT_SECONDS else ""
        print(
            f"{min(took) * 1000:5.0f} ms {median * 1000:5.0f} ms {max(took) * 1000:5.0f} ms  "
            f"{lines:5}  {command}{mark}",
            flush=True,
        )
    print(f"{len(commands)} commands, {slow} of them above {LIMIT_SECONDS * 1000:.0f} ms")
    return 1 if slow else 0


class _Quiet:
    """Waits until the machine is ours."""

    def __init__(self, config: Path, environ: dict[str, str]) -> None:
        self.config, self.environ = config, environ
        self.least = min(self._control() for _ in range(10))

    def wait(self) -> None:
        deadline = time.monotonic() + 60
        while (took := self._control()) > 1.25 * self.least and time.monotonic() < deadline:
            time.sleep(0.5)
        self.least = min(self.least, took)

    def _control(self) -> float:
        return _run(self.config, self.environ, "--version")[0]


def _run(config: Path, environ: dict[str, str], command: str) -> tuple[float, int]:
    words = shlex.split(command)
    line = [sys.executable, "-m", "orchestrator.cli.control", "-c", str(config), *words]
    began = time.perf_counter()
    done = subprocess.run(line, env=environ, capture_output=True, text=True, check=False)
    took = time.perf_counter() - began
    if done.returncode:
        raise SystemExit(f"{command}: exit code {done.returncode}\n{done.stderr}")
    return took, len(done.stdout.splitlines())


if __name__ == "__main__":
    main()
