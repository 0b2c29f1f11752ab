"""A real node under test: the daemon as a user would start it, and eyes on its processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator import Client
from orchestrator.processes.identity import MARKER, all_pids, has_marker
from tests.support import eventually

ROOT = Path(__file__).resolve().parent.parent

# Short times, so that what takes a minute in production takes seconds here.
QUICK = {
    "node.heartbeat_interval": "500ms",
    "node.worker_timeout": "3s",
    "node.kill_grace": "1s",
    "node.claim_interval": "200ms",
    "node.graceful_timeout": "10s",
    "leader.term": "3s",
    "leader.promote_interval": "200ms",
    "defaults.backoff_base": "50ms",
    "defaults.backoff_cap": "500ms",
}


@dataclass
class Node:
    """One daemon. `settings` are dotted keys; values are TOML without quotes for durations."""

    dsn: str
    directory: Path
    processes: int = 2
    settings: dict[str, str] = field(default_factory=dict)
    handlers: str = "tests.handlers"
    name: str = "node"
    process: subprocess.Popen[bytes] | None = None

    def start(self, *, wait: bool = True) -> Node:
        """Start the daemon; by default wait until its workers are ready and registered."""
        self.directory.mkdir(parents=True, exist_ok=True)
        environ = {name: value for name, value in os.environ.items() if name != MARKER}
        environ["PYTHONPATH"] = str(ROOT)
        self.log_path.touch()
        with self.log_path.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "orchestrator.cli.daemon", "-c", str(self._write_config())],
                env=environ,
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        if wait:
            self.wait_ready()
        return self

    def _write_config(self) -> Path:
        values: dict[str, dict[str, str]] = {
            "database": {"url": self.dsn},
            "handlers": {},
            "web": {"bind": ""},
            "node": {"name": self.name, "state_directory": str(self.directory / "state")},
            "logging": {"format": "json", "level": "debug"},
        }
        for key, value in {**QUICK, **self.settings}.items():
            section, _, name = key.partition(".")
            values.setdefault(section, {})[name] = value
        lines = []
        for section, content in values.items():
            lines.append(f"[{section}]")
            lines.extend(f"{name} = {_toml(value)}" for name, value in content.items())
            if section == "handlers":
                lines.append(f'path = ["{ROOT}"]\nmodules = ["{self.handlers}"]')
        if "pool" not in values:
            lines.append(f'[[pool]]\nname = "cpu"\nprocesses = {self.processes}')
        path = self.directory / "orchestrator.toml"
        path.write_text("\n".join(lines) + "\n")
        return path

    @property
    def log_path(self) -> Path:
        return self.directory / "log"

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def wait_ready(self, *, timeout: float = 30.0) -> None:
        """Wait until the node is registered and every worker has shown itself in its beat."""

        def is_ready() -> bool:
            assert self.process is not None
            assert self.process.poll() is None, f"the daemon ended:\n{self.log()}"
            return len(self.workers()) == self.processes

        eventually(is_ready, timeout=timeout, message="the node is not ready")

    # -- what it says

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def events(self, name: str | None = None) -> list[dict[str, Any]]:
        """Return the log lines of one event, oldest first."""
        lines = [json.loads(line) for line in self.log().splitlines() if line.startswith("{")]
        return [line for line in lines if name is None or line["event"] == name]

    @property
    def run_id(self) -> str:
        """The marker of its processes (of the last start)."""
        return str(eventually(lambda: self.events("supervisor.started"))[-1]["run"])

    # -- its processes

    def pids(self) -> list[int]:
        """List all living processes of this run, the supervisor aside."""
        return [
            pid
            for pid in all_pids()
            if pid != self.pid and has_marker(pid, self.run_id) and alive(pid)
        ]

    def workers(self) -> dict[str, int]:
        """Return slot -> pid of the workers that are born, as the kernel sees them."""
        found = {}
        for pid in _children(self.pid):
            title = _title(pid)
            if title.startswith("orc-cpu-"):
                found[title.removeprefix("orc-")] = pid
        return found

    def child(self, kind: str) -> int:
        """Return the pid of the steward, leader, web or forkserver process."""

        def found() -> int | None:
            return next((p for p in _children(self.pid) if _title(p) == f"orc-{kind}"), None)

        return eventually(found)

    # -- its end

    def terminate(self, *, timeout: float = 30.0) -> int:
        """Send TERM and return the exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout)

    def kill_everything(self) -> None:
        """Make sure that nothing of it is left, whatever the test did."""
        if self.process is None:
            return
        run_id = self.run_id
        for pid in [self.pid, *[pid for pid in all_pids() if has_marker(pid, run_id)]]:
            for signum in (signal.SIGCONT, signal.SIGKILL):
                try:
                    os.kill(pid, signum)
                except ProcessLookupError:
                    break
        self.process.wait(10)


@contextmanager
def running(dsn: str, directory: Path, **fields: Any) -> Iterator[Node]:
    """Run a node for the length of a block."""
    node = Node(dsn, directory, **fields)
    try:
        yield node.start()
    finally:
        node.kill_everything()


def client(dsn: str) -> Client:
    return Client(dsn)


def alive(pid: int) -> bool:
    """Tell whether a process runs; a zombie does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in ("Z", "X")


def zombies_of(pid: int) -> list[int]:
    return [child for child in _children(pid) if not alive(child)]


def _children(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def _toml(value: str) -> str:
    is_plain = value in ("true", "false") or value.replace(".", "", 1).isdigit()
    return value if is_plain or value.startswith("[") else json.dumps(value)
