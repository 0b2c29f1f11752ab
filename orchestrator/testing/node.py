"""A real node for a test: the daemon as a user would start it, and a sure hand for its workers.

Its processes are looked at through its slots, the shared memory in which each worker says what it
does (`orchestrator.slots`), so nothing has to be polled from logs or tables. The daemon dies with
the process that started it (`launch`). What a fixture makes of it is in `pytest_plugin`.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar

from orchestrator import config
from orchestrator.client import Client
from orchestrator.config_reader import VARIABLE_PREFIX
from orchestrator.processes.identity import KIND, MARKER, all_pids
from orchestrator.slots import Phase, Slots
from orchestrator.task import Attempt, State, Task

T = TypeVar("T")

# Short times, so that what takes a minute in production takes a second in a test.
QUICK: Mapping[str, Any] = {
    "node.heartbeat_interval": "1s",
    "node.worker_timeout": "10s",
    "node.kill_grace": "1s",
    "node.claim_interval": "200ms",
    "node.graceful_timeout": "10s",
    "leader.term": "10s",
    "leader.promote_interval": "200ms",
    "defaults.backoff_base": "50ms",
    "defaults.backoff_cap": "500ms",
    "logging.format": "console",
}

# All processes of a node inherit it, those that tasks leave behind too.
_OWN_MARKER = "ORCHESTRATOR_TEST_NODE"
_SLOTS_FILE = "/memfd:orchestrator-slots"
_PACKAGE_PARENT = str(Path(__file__).resolve().parents[2])
# A retry that is due within this time is waited for by `wait_idle`.
_SOON = timedelta(seconds=2)
_QUIT_SECONDS = 10.0
# A system call that cannot be interrupted may keep a process from stopping.
_STOP_SECONDS = 5.0
_LONGEST_LOG = 8000


class _Run(NamedTuple):
    """A worker in the middle of an attempt."""

    pid: int
    attempt: int
    token: int


@dataclass
class Node:
    """One daemon; started by `start`, and to be ended by `close` whatever the test did.

    `settings` are those of the configuration file, "section.key" and any value that TOML can hold;
    `pools` are its `[[pool]]`s, without any there is one of `processes` workers. `path` is where
    `modules` are found, by default where the test itself finds its modules.
    """

    url: str
    directory: Path
    modules: Sequence[str]
    processes: int = 2
    schema: str = "orchestrator"
    pools: Sequence[Mapping[str, Any]] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    path: Sequence[str] | None = None
    name: str = "node"
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self._mark = secrets.token_hex(8)
        self._client: Client | None = None
        self._slots: tuple[int, Slots] | None = None

    # -- its beginning

    def start(self, *, wait: bool = True) -> Self:
        """Start the daemon; by default wait until its workers are ready. In the main thread.

        Raises:
            AssertionError: it ended, or was not ready in 30 s; the message holds its log.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        file = self._write_config()
        with self.log_path.open("ab") as output:
            self.process = subprocess.Popen(
                # -P: a file of the current directory must not stand in for a module.
                [
                    sys.executable, "-P", "-m", "orchestrator.testing.launch", str(os.getpid()),
                    "-c", str(file),
                ],
                env=self._environment(),
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )  # fmt: skip
        if wait:
            self.wait_ready()
        return self

    def wait_ready(self, *, timeout: float = 30.0) -> None:
        """Wait until the node is registered and all of its workers can claim.

        Raises:
            AssertionError: it ended, or was not ready within `timeout` seconds.
        """
        expected = sum(pool.processes for pool in config.load(str(self._config), environ={}).pools)

        def is_ready() -> bool:
            if self._running_process().poll() is not None:
                raise AssertionError(
                    f"the node ended with exit code {self._running_process().returncode}:"
                    f"\n{self.tail()}"
                )
            slots = self.slots()
            if slots is None or not slots.header.is_session_ok:
                return False
            return sum(view.is_ready for view in slots.occupied()) == expected

        self._eventually(is_ready, timeout, "the node was not ready")

    def _environment(self) -> dict[str, str]:
        """Return the environment of the test, without what would act on the settings."""
        short = set(config.SHORT_VARIABLES) - {"DATABASE_URL"}
        environ = {
            name: value
            for name, value in os.environ.items()
            if name not in {*short, MARKER, KIND, "ORCHESTRATOR_CONFIG"}
            and not name.startswith(VARIABLE_PREFIX)
        }
        if "DATABASE_URL" in environ:
            # The handlers may read it; the node must not.
            environ[f"{VARIABLE_PREFIX}DATABASE__URL"] = self.url
        environ[_OWN_MARKER] = self._mark
        if "site-packages" not in _PACKAGE_PARENT:
            search = [_PACKAGE_PARENT, *filter(None, [environ.get("PYTHONPATH")])]
            environ["PYTHONPATH"] = os.pathsep.join(search)
        return environ

    def _sections(self) -> dict[str, dict[str, Any]]:
        """Return the configuration, section by section."""
        values: dict[str, dict[str, Any]] = {
            "database": {"url": self.url, "schema": self.schema},
            "handlers": {
                "path": list(own_path() if self.path is None else self.path),
                "modules": list(self.modules),
            },
            "web": {"bind": ""},
            "node": {"name": self.name, "state_directory": str(self.directory / "state")},
        }
        for key, value in {**QUICK, **self.settings}.items():
            section, _, name = key.partition(".")
            values.setdefault(section, {})[name] = value
        return values

    @property
    def _config(self) -> Path:
        return self.directory / "orchestrator.toml"

    def _write_config(self) -> Path:
        lines = []
        for section, content in self._sections().items():
            lines += [f"[{section}]", *(f"{name} = {toml(it)}" for name, it in content.items())]
        for pool in self.pools or [{"name": "default", "processes": self.processes}]:
            lines += ["[[pool]]", *(f"{name} = {toml(value)}" for name, value in pool.items())]
        self._config.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return self._config

    # -- what it says and does

    @property
    def client(self) -> Client:
        """A client of the node's database."""
        if self._client is None:
            self._client = Client(self.url, schema=self.schema)
        return self._client

    @property
    def log_path(self) -> Path:
        return self.directory / "log"

    @property
    def logs(self) -> str:
        """What the node and its handlers wrote to their log and output up to now."""
        try:
            return self.log_path.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return ""

    def tail(self) -> str:
        """Return the end of the log, at most 8,000 characters."""
        logs = self.logs
        if len(logs) <= _LONGEST_LOG:
            return logs
        return f"... (the beginning is in {self.log_path})\n{logs[-_LONGEST_LOG:]}"

    @property
    def pid(self) -> int:
        """The pid of the supervisor."""
        return self._running_process().pid

    def _running_process(self) -> subprocess.Popen[bytes]:
        if self.process is None:
            raise AssertionError("the node was not started: call start()")
        return self.process

    def slots(self) -> Slots | None:
        """Return the node's slots; None while it has none, or has none any more."""
        if self._slots is None or self._slots[0] != self.pid:
            found = _mapped_slots(self.pid)
            self._slots = None if found is None else (self.pid, found)
        return None if self._slots is None else self._slots[1]

    def wait_idle(self, timeout: float = 30.0) -> None:
        """Wait until no task is ready or running, and none is due within 2 seconds.

        Tasks that are held, or scheduled for later, are not waited for.

        Raises:
            AssertionError: some are left after `timeout` seconds; the message names them and holds
                the node's log.
        """
        left: list[Task[Any]] = []

        def is_idle() -> bool:
            left[:] = self._busy_tasks()
            return not left

        def told() -> str:
            names = ", ".join(f"{task.id} ({task.type}, {task.state})" for task in left[:10])
            return f"the node was not idle, {len(left)} tasks are left: {names}"

        self._eventually(is_idle, timeout, told)

    def _busy_tasks(self) -> list[Task[Any]]:
        states = (State.READY, State.RUNNING, State.SCHEDULED)
        soon = datetime.now(UTC) + _SOON
        return [
            task
            for task in self.client.tasks(state=states)
            if task.state is not State.SCHEDULED or task.run_at is None or task.run_at <= soon
        ]

    # -- the death of a worker

    def kill(
        self,
        task: Task[Any] | int,
        *,
        attempt: int | None = None,
        when: Callable[[], object] = lambda: True,
        signum: int = signal.SIGKILL,
        timeout: float = 30.0,
    ) -> Attempt:
        """Kill the worker in the middle of a task; return the attempt with its crash report.

        Waits until a worker runs the task (that attempt of it, where one is given) and `when()` is
        true: of what the handler has done by then. Then it stops the process, looks once more, and
        sends the signal, so that exactly this attempt is hit.

        Raises:
            AssertionError: the attempt ended before, did not begin within `timeout` seconds, or has
                no crash report of this signal.
        """
        task_id = task if isinstance(task, int) else task.id

        def hit() -> _Run | None:
            found = self._running(task_id, attempt)
            if found is None:
                self._check_still_comes(task_id, attempt)
                return None
            if not when():
                return None

            def is_still_running() -> bool:
                return self._running(task_id, attempt) == found

            return found if _signal_while(signum, found.pid, is_still_running) else None

        victim = self._eventually(
            hit, timeout, f"{_spelled(task_id, attempt)} was not to be killed"
        )
        assert victim is not None
        return self._crashed(task_id, victim.attempt, signum)

    def _running(self, task_id: int, attempt: int | None) -> _Run | None:
        """Find the worker that runs an attempt of a task."""
        slots = self.slots()
        for view in [] if slots is None else slots.occupied():
            for record in (view, *view.lanes):
                is_it = record.task_id == task_id and record.phase is Phase.RUN
                if is_it and attempt in (None, record.attempt):
                    return _Run(view.pid, record.attempt, record.token)
        return None

    def _check_still_comes(self, task_id: int, attempt: int | None) -> None:
        task: Task[Any] = self.client.get(task_id)
        is_past = attempt is not None and any(
            one.number >= attempt and one.outcome is not None for one in task.attempts
        )
        if not task.state.is_end and not is_past:
            return
        raise AssertionError(
            f"{_spelled(task_id, attempt)} cannot be killed, it has ended: the task is "
            f"{task.state} after {task.attempt} attempts. Let the handler take longer, or kill an "
            "earlier attempt"
        )

    def _crashed(self, task_id: int, number: int, signum: int) -> Attempt:
        def ended() -> Attempt | None:
            attempts = self.client.get(task_id).attempts
            return next((one for one in attempts if one.number == number and one.outcome), None)

        name = signal.Signals(signum).name
        found = self._eventually(ended, 30.0, f"{_spelled(task_id, number)} was not reported")
        if found is None or found.crash is None or found.crash["signal"] != name:
            how = "nothing" if found is None else f"{found.outcome}, {found.crash or found.error}"
            raise AssertionError(
                f"{_spelled(task_id, number)} was sent {name} and did not die of it: {how}"
            )
        return found

    # -- its end

    def stop(self, *, timeout: float = 30.0) -> int:
        """Have the node drain and end; return the exit code."""
        process = self._running_process()
        process.send_signal(signal.SIGTERM)
        return process.wait(timeout)

    def close(self) -> None:
        """End the node at once and make sure that nothing of it is left."""
        if self._client is not None:
            self._client.close()
            self._client = None
        if self.process is None:
            return
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.send_signal(signal.SIGQUIT)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(_QUIT_SECONDS)
        self.kill_everything()

    def kill_everything(self) -> None:
        """Kill all processes of the node that there are, the supervisor first."""
        if self.process is None:
            return
        self.process.kill()
        self.process.wait(10)
        # A process that forks just now is found by the next pass.
        while left := self.pids():
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.005)

    def pids(self) -> list[int]:
        """List all living processes of this node, whoever their parent is by now."""
        mark = f"{_OWN_MARKER}={self._mark}".encode()
        found = []
        for pid in all_pids():
            with suppress(OSError):
                if mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                    found.append(pid)
        return found

    def _eventually(
        self, condition: Callable[[], T], timeout: float, message: str | Callable[[], str]
    ) -> T:
        deadline = time.monotonic() + timeout
        while not (value := condition()):
            if time.monotonic() > deadline:
                told = message if isinstance(message, str) else message()
                raise AssertionError(f"{told}, within {timeout:g} s; its log:\n{self.tail()}")
            time.sleep(0.01)
        return value


def own_path() -> list[str]:
    """Return the entries of `sys.path` that are neither the interpreter's nor of packages."""
    paths = sysconfig.get_paths()
    installed = [Path(paths[name]) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    found = []
    for entry in sys.path:
        place = Path(entry or os.getcwd()).resolve()
        is_installed = any(folder in (place, *place.parents) for folder in installed)
        if place.exists() and not is_installed:
            found.append(str(place))
    return list(dict.fromkeys(found))


def toml(value: Any) -> str:
    """Write a value for the configuration file."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(k)} = {toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(toml, value)) + "]"
    return json.dumps(str(value), ensure_ascii=False)


def _mapped_slots(supervisor_pid: int) -> Slots | None:
    """Map the slots of a supervisor of this user; None where it has none."""
    folder = f"/proc/{supervisor_pid}/fd"
    with suppress(OSError, ValueError):
        for fd in os.listdir(folder):
            if os.readlink(f"{folder}/{fd}").startswith(_SLOTS_FILE):
                own = os.open(f"{folder}/{fd}", os.O_RDWR | os.O_CLOEXEC)
                try:
                    return Slots.attach(own)
                finally:
                    os.close(own)
    return None


def _signal_while(signum: int, pid: int, is_true: Callable[[], bool]) -> bool:
    """Send a signal to a process that is held still, if `is_true` then; return whether it was."""
    try:
        os.kill(pid, signal.SIGSTOP)
        deadline = time.monotonic() + _STOP_SECONDS
        while _state(pid) not in "TtZX" and time.monotonic() < deadline:
            time.sleep(0.0005)
        try:
            if _state(pid) not in "Tt" or not is_true():
                return False
            os.kill(pid, signum)
            return True
        finally:
            # KILL needs no continuing; every other signal waits for it.
            os.kill(pid, signal.SIGCONT)
    except ProcessLookupError:
        return False


def _state(pid: int) -> str:
    """Return the letter of a process's state, "X" when it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "X"


def _spelled(task_id: int, attempt: int | None) -> str:
    return f"task {task_id}" if attempt is None else f"attempt {attempt} of task {task_id}"
