"""A real node under test: that of `orchestrator.testing`, and eyes on its processes and its log."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import tomllib
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from orchestrator import Client
from orchestrator.testing import node as product
from tests.support import eventually

ROOT = Path(__file__).resolve().parent.parent

# Shorter than what users' tests have, for what only our own tests wait for.
QUICK: Mapping[str, Any] = {
    "node.heartbeat_interval": "500ms",
    "node.worker_timeout": "3s",
    "leader.term": "3s",
    "logging.format": "json",
    "logging.level": "debug",
}


class Node(product.Node):
    """One daemon. `pools` is TOML in place of the one pool `cpu`."""

    def __init__(
        self,
        dsn: str,
        directory: Path,
        processes: int = 2,
        settings: Mapping[str, Any] | None = None,
        handlers: Sequence[str] = ("tests.handlers",),
        pools: str = "",
        name: str = "node",
        path: Path = ROOT,
    ) -> None:
        super().__init__(
            dsn,
            directory,
            modules=handlers,
            pools=tomllib.loads(pools or f'pool = [{{name = "cpu", processes = {processes}}}]')[
                "pool"
            ],
            settings={**QUICK, **{key: _value(it) for key, it in (settings or {}).items()}},
            path=[str(path)],
            name=name,
        )

    # -- what it says

    def events(self, *names: str) -> list[dict[str, Any]]:
        """Return the log lines of these events, or of all, oldest first."""
        lines = [json.loads(line) for line in self.logs.splitlines() if line.startswith("{")]
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
        """List all living processes of this node, the supervisor aside."""
        return [pid for pid in super().pids() if pid != self.pid and alive(pid)]

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
        return self.stop(timeout=timeout)

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


def kill_child(parent: int, pid: int) -> bool:
    """Kill a process, if it is (still) a living child of `parent`."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        # The descriptor holds on to one process: what it is now, it is when the signal comes.
        state, parent_now = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
        if int(parent_now) != parent or state == "Z":
            return False
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        return True
    except (FileNotFoundError, ProcessLookupError):
        return False
    finally:
        os.close(pidfd)


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


def _value(value: Any) -> Any:
    """Return what a setting that is written as text stands for in TOML, where it is no duration."""
    is_plain = isinstance(value, str) and re.fullmatch(r"true|false|\[.*\]|[0-9.]+", value)
    return tomllib.loads(f"value = {value}")["value"] if is_plain else value
