"""A real node under test: the daemon as a user would start it, and eyes on its processes."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator import Client
from orchestrator.processes.identity import MARKER, all_pids, has_marker
from tests.support import eventually

NODE_REGISTERED = "node.registered"
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
    """One daemon. `settings` are dotted keys; values are TOML without quotes for durations.

    `pools` is TOML in place of the one pool `cpu`; `processes` is then their number in all.
    """

    dsn: str
    directory: Path
    processes: int = 2
    settings: dict[str, str] = field(default_factory=dict)
    handlers: tuple[str, ...] = ("tests.handlers",)
    pools: str = ""
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
                lines.append(f'path = ["{ROOT}"]\nmodules = {json.dumps(self.handlers)}')
        lines.append(self.pools or f'[[pool]]\nname = "cpu"\nprocesses = {self.processes}')
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
        """Wait until the node is registered and every worker is born."""

        def is_ready() -> bool:
            assert self.process is not None
            assert self.process.poll() is None, f"the daemon ended:\n{self.log()}"
            names = [event["event"] for event in self.events("supervisor.started", NODE_REGISTERED)]
            return len(self.workers()) == self.processes and names[-1:] == [NODE_REGISTERED]

        eventually(is_ready, timeout=timeout, message="the node is not ready")

    # -- what it says

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def events(self, *names: str) -> list[dict[str, Any]]:
        """Return the log lines of these events, or of all, oldest first."""
        lines = [json.loads(line) for line in self.log().splitlines() if line.startswith("{")]
        return [line for line in lines if not names or line["event"] in names]

    @property
    def run_id(self) -> str:
        """The marker of its processes (of the last start)."""

        def started() -> list[dict[str, Any]]:
            mine = f"supervisor pid={self.pid}"
            return [e for e in self.events("supervisor.started") if e["identity"] == mine]

        return str(eventually(started)[-1]["run"])

    def fetch(self, path: str) -> tuple[int, str]:
        """Get a page of its web process: status and text; (0, reason) when nobody answers."""
        try:
            with urllib.request.urlopen(
                f"http://{self.settings['web.bind']}{path}", timeout=5
            ) as page:
                return int(page.status), page.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError as error:
            return 0, str(error)

    def metric(self, name: str) -> float:
        """Scrape it; return the sum of all samples of one metric, 0 where there is none."""
        status, text = self.fetch("/metrics")
        assert status == 200, text
        samples = re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text, re.M)
        return sum(float(sample) for sample in samples)

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
            slot = re.fullmatch(r"orc-(.+-\d+)", _title(pid))
            if slot:
                found[slot[1]] = pid
        return found

    def child(self, kind: str) -> int:
        """Return the pid of the steward, leader, web or forkserver process."""

        def found() -> int | None:
            return next((p for p in _children(self.pid) if _title(p) == f"orc-{kind}"), None)

        return eventually(found)

    def signal_all(self, signum: int) -> None:
        """Send a signal to every process, the supervisor first (it replaces what is missing)."""
        for pid in [self.pid, *self.pids()]:
            with suppress(ProcessLookupError):
                os.kill(pid, signum)

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
        eventually(lambda: self.process.poll() is not None or self._runs())
        self.process.send_signal(signal.SIGCONT)
        self.process.kill()
        runs = self._runs()
        for pid in [pid for pid in all_pids() if any(has_marker(pid, run) for run in runs)]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait(10)

    def _runs(self) -> list[str]:
        return [event["run"] for event in self.events("supervisor.started")]


@contextmanager
def running(dsn: str, directory: Path, *, wait: bool = True, **fields: Any) -> Iterator[Node]:
    """Run a node for the length of a block; without `wait`, one that may not get ready."""
    node = Node(dsn, directory, **fields)
    try:
        yield node.start(wait=wait)
    finally:
        node.kill_everything()


def free_address() -> str:
    """Return a loopback address whose port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        host, port = probe.getsockname()
    return f"{host}:{port}"


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
