"""The main job from end to end, as `bin/demo` runs it: daemon, 700 tasks, one killed worker.

    start     orchestratord -c conf/orchestrator.toml, on the embedded database
    enqueue   one task per source file of the standard library
    kill      one worker with SIGKILL, provably inside a task
    check     every file was reported exactly once, and what is known about the crash
    stop      the daemon with SIGTERM (not with --keep)

Ends with 0 if all of that went as it should. What is counted and killed are the tasks of this
run, found by their tag: others may be in the same database.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from examples.stdlib_report import report
from examples.stdlib_report.tasks import Source
from orchestrator import Client, ConfigError, State, Task, config
from orchestrator.db import embedded

CHECKOUT = Path(__file__).resolve().parents[2]
CONFIGURATION = str(CHECKOUT / "conf" / "orchestrator.toml")
MODULES = "orchestrator.builtin,examples.stdlib_report.handlers"

START_SECONDS, RUN_SECONDS, STOP_SECONDS = 45.0, 120.0, 40.0
# How much must be done before a worker is killed: the workers are all busy then.
KILL_AFTER = 0.1


class Failed(Exception):
    """The demonstration did not go as it should; the message says where."""


@dataclass
class Victim:
    """The killed worker and the task that it was in."""

    slot: str
    pid: int
    task_id: int


# -- the daemon


@dataclass
class Daemon:
    """The daemon that the demonstration runs on."""

    process: subprocess.Popen[bytes]
    address: str
    log: Path

    def get(self, path: str) -> tuple[int, str]:
        """Return status and body of a page of its web server; 0 when nobody answers."""
        try:
            with urllib.request.urlopen(f"http://{self.address}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def workers(self) -> list[dict[str, Any]]:
        """Return slot, pid, state and task of each worker, as they are at this moment."""
        status, body = self.get("/health")
        return list(json.loads(body)["workers"]) if status in (200, 503) else []

    def wait_ready(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while self.get("/readyz")[0] != 200:
            if self.process.poll() is not None:
                raise Failed(f"the daemon ended with {self.process.returncode}:\n{self.tail()}")
            if time.monotonic() > deadline:
                raise Failed(f"the daemon is not ready after {START_SECONDS:g} s:\n{self.tail()}")
            time.sleep(0.05)

    def stop(self) -> int:
        """Drain the daemon and return its exit code; negative when it had to be killed."""
        if self.process.poll() is None:
            self.process.terminate()
        try:
            return self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()

    def tail(self) -> str:
        """Return the last lines of its log."""
        lines = self.log.read_text(errors="replace").splitlines()[-15:]
        return "\n".join(f"    {line}" for line in lines)


def prepare_environment() -> Path | None:
    """Set what this program and the daemon must agree on; return a folder to remove at the end.

    An ambient database may be another project's, so it is taken out. The state directory is that
    of the configuration, unless it cannot be written or another daemon runs in it.
    """
    for name in ("DATABASE_URL", "ORCHESTRATOR__DATABASE__URL"):
        os.environ.pop(name, None)
    os.environ["ORCHESTRATOR__HANDLERS__MODULES"] = MODULES
    # The daemon's children import `orchestrator` and `examples` from here.
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [str(CHECKOUT), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    reason = _unusable_state()
    if reason is None:
        return None
    directory = Path(tempfile.mkdtemp(prefix="orchestrator-demo-"))
    # The server of root runs as another user and must get in.
    directory.chmod(0o755)
    os.environ["ORCHESTRATOR__NODE__STATE_DIRECTORY"] = str(directory)
    print(f"  {reason}\n  this run uses {directory} instead")
    return directory


def _unusable_state() -> str | None:
    try:
        server = embedded.Server.of(config.load(CONFIGURATION))
        if not server.lock("demo"):
            return f"{server.layout.state} is in use by {server.holder()}"
        server.unlock()
    except ConfigError as error:
        return str(error)
    return None


def free_address() -> str:
    """Return where the daemon can listen: as configured, else at a free port."""
    address = config.load(CONFIGURATION).web.address or ("127.0.0.1", 0)
    for candidate in (address, ("127.0.0.1", 0)):
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(candidate)
            return f"{candidate[0]}:{probe.getsockname()[1]}"
    raise Failed("there is no free port on 127.0.0.1")


def start_daemon() -> Daemon:
    address = free_address()
    os.environ["ORCHESTRATOR__WEB__BIND"] = address
    log = config.state_directory(config.load(CONFIGURATION)) / "demo.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "orchestrator.cli.daemon", "-c", CONFIGURATION],
            cwd=CHECKOUT,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            # Ctrl-C is for this program, which then stops the daemon in order.
            start_new_session=True,
        )
    return Daemon(process, address, log)


# -- the worker that is killed


def kill_inside_task(daemon: Daemon, task_ids: set[int]) -> Victim | None:
    """Kill one worker while it runs one of the tasks; None if none could be caught.

    A worker is stopped first: what its slot says then stays true. If it was between two tasks it
    goes on, and the next one is tried.
    """
    for worker in daemon.workers():
        slot, pid = worker["slot"], worker["pid"]
        if worker["state"] != "running" or not _stop(pid):
            continue
        now = next((one for one in daemon.workers() if one["slot"] == slot), worker)
        is_inside = (now["pid"], now["state"]) == (pid, "running") and now["task"] in task_ids
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL if is_inside else signal.SIGCONT)
        if is_inside:
            return Victim(slot=slot, pid=pid, task_id=now["task"])
    return None


def _stop(pid: int) -> bool:
    """Stop a process and wait until it has stopped; False if it is gone."""
    deadline = time.monotonic() + 2.0
    try:
        os.kill(pid, signal.SIGSTOP)
        while time.monotonic() < deadline:
            # The state follows the name, which is in parentheses and may hold anything.
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "tT":
                return True
            time.sleep(0.001)
        os.kill(pid, signal.SIGCONT)
    except (ProcessLookupError, FileNotFoundError):
        pass
    return False


# -- watching


class Progress:
    """One line that is written over on a terminal, a line now and then elsewhere."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.is_terminal = sys.stdout.isatty()
        self._last_done = -total
        self._width = 0

    def show(self, states: Counter[State]) -> None:
        done = sum(n for state, n in states.items() if state.is_end)
        parts = [f"{done}/{self.total} done"]
        parts += [f"{n} {state}" for state, n in sorted(states.items()) if not state.is_end]
        text = ", ".join(parts)
        if self.is_terminal:
            filled = 30 * done // self.total
            text = f"  [{'#' * filled}{'.' * (30 - filled)}] {text}"
            print("\r" + text.ljust(self._width), end="", flush=True)
            self._width = len(text)
        elif done == self.total or done - self._last_done >= self.total / 5:
            print(f"  {text}", flush=True)
            self._last_done = done

    def say(self, text: str) -> None:
        """Write a line of its own."""
        if self.is_terminal and self._width:
            print("\r" + " " * self._width + "\r", end="")
        print(text, flush=True)

    def close(self) -> None:
        if self.is_terminal:
            print()


def watch(client: Client, daemon: Daemon, tag: str, task_ids: set[int]) -> Victim:
    """Show the progress until all tasks have ended; kill a worker on the way.

    Raises:
        Failed: it takes too long, the daemon ends, or no worker was caught inside a task.
    """
    progress = Progress(len(task_ids))
    deadline = time.monotonic() + RUN_SECONDS
    victim: Victim | None = None
    while True:
        states = Counter(task.state for task in client.tasks(tag=tag))
        progress.show(states)
        n_done = sum(n for state, n in states.items() if state.is_end)
        if n_done == len(task_ids):
            break
        if victim is None and n_done >= KILL_AFTER * len(task_ids):
            victim = kill_inside_task(daemon, task_ids)
            if victim is not None:
                progress.say(
                    f"  worker {victim.slot} (pid {victim.pid}) was inside task {victim.task_id}: "
                    "killed with SIGKILL"
                )
                continue
        if daemon.process.poll() is not None:
            raise Failed(f"the daemon ended with {daemon.process.returncode}:\n{daemon.tail()}")
        if time.monotonic() > deadline:
            raise Failed(f"not all tasks have ended after {RUN_SECONDS:g} s:\n{daemon.tail()}")
        time.sleep(0.02 if victim is None else 0.2)
    progress.close()
    if victim is None:
        raise Failed("no worker could be caught inside a task: run it again")
    return victim


# -- the checks at the end


def check_reports(files: Sequence[Source], tasks: Sequence[Task[Any]]) -> None:
    """Check that every file was reported exactly once.

    Raises:
        Failed: with the files that were not.
    """
    # What succeeded speaks for itself; of what did not, only the payload tells the file.
    reported = Counter(
        [one.module for one in report.measures(tasks)]
        + [task.payload["module"] for task in tasks if task.state is not State.SUCCEEDED]
    )
    expected = Counter(file.module for file in files)
    if reported != expected:
        lost, doubled = expected - reported, reported - expected
        raise Failed(f"lost: {sorted(lost)}; reported more than once: {sorted(doubled)}")
    unparsed = [task for task in tasks if task.state is not State.SUCCEEDED]
    print(f"  {len(files)} files, {len(tasks)} tasks, each reported exactly once, none lost")
    for task in unparsed:
        print(f"  task {task.id} is {task.state}: {task.error}")


def check_crash(task: Task[Any], victim: Victim) -> None:
    """Show the attempts of the killed worker's task, and check that they tell the truth.

    Raises:
        Failed: they do not.
    """
    print(f"\n  task {task.id} ({task.type}, module {task.payload['module']}):")
    for attempt in task.attempts:
        print(
            f"    attempt {attempt.number}: {attempt.outcome} in {attempt.slot}, pid {attempt.pid}"
        )
        if attempt.crash:
            print(f"      crash report: {spelled(attempt.crash)}")
    crashed = [attempt for attempt in task.attempts if attempt.outcome == "crashed"]
    if [attempt.pid for attempt in crashed] != [victim.pid] or not crashed[0].crash:
        raise Failed(f"the crash of worker {victim.slot}, pid {victim.pid}, was not recorded")
    if task.state is not State.SUCCEEDED:
        raise Failed(f"task {task.id} did not go on after the crash: it is {task.state}")


def spelled(crash: dict[str, Any]) -> str:
    """Write a crash report for people."""
    words = []
    for name, value in crash.items():
        if name == "max_rss_bytes":
            words.append(f"peak memory {value / 2**20:.0f} MiB")
        elif name == "cpu_seconds":
            words.append(f"CPU {value:.2f} s")
        elif value is not None and value is not False:
            words.append(f"{name} {value}")
    return ", ".join(words)


def show_metrics(daemon: Daemon) -> None:
    """Print where metrics and health are, and some of the metrics."""
    print(
        f"\n  http://{daemon.address}/metrics   http://{daemon.address}/health   log {daemon.log}"
    )
    wanted = ("tasks_completed_total", "tasks_retried_total", "orchestrator_worker_exits_total")
    for line in daemon.get("/metrics")[1].splitlines():
        if line.startswith(wanted) and not line.endswith(" 0.0"):
            print(f"    {line}")


# -- the whole


def demonstrate(daemon: Daemon) -> None:
    """Enqueue, watch, kill, check, print the report."""
    tag = f"demo-{secrets.token_hex(4)}"
    files = report.sources()
    with Client.from_config(CONFIGURATION) as client:
        begin = time.monotonic()
        tasks = report.enqueue(client, files, tag)
        print(f"{len(tasks)} tasks enqueued in {time.monotonic() - begin:.2f} s")
        victim = watch(client, daemon, tag, {task.id for task in tasks})
        seconds = time.monotonic() - begin
        ended = list(client.tasks(tag=tag))
        print(f"\nall ended after {seconds:.1f} s")
        check_reports(files, ended)
        check_crash(client.get(victim.task_id), victim)
    print("\nthe ten most complex modules\n")
    print(report.table(report.measures(ended)))
    print("\nmetrics and health, while the daemon runs")
    show_metrics(daemon)


@contextlib.contextmanager
def running_daemon(*, keep: bool) -> Iterator[Daemon]:
    """Run the daemon for the duration of the block; with `keep`, longer if the block succeeds."""
    directory = prepare_environment()
    begin = time.monotonic()
    daemon = start_daemon()
    is_kept = False
    try:
        daemon.wait_ready()
        print(
            f"orchestratord -c conf/orchestrator.toml, pid {daemon.process.pid}: "
            f"ready after {time.monotonic() - begin:.1f} s"
        )
        yield daemon
        is_kept = keep
    finally:
        if is_kept:
            print(f"\nthe daemon goes on: end it with  kill -TERM {daemon.process.pid}")
        else:
            code = daemon.stop()
            print(f"\nthe daemon was told to stop and ended with {code}")
            if code != 0 and sys.exception() is None:
                raise Failed(f"the daemon ended with {code} instead of 0:\n{daemon.tail()}")
            if directory is not None:
                shutil.rmtree(directory, ignore_errors=True)


def main() -> int:
    """Run the demonstration; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--keep", action="store_true", help="leave the daemon running")
    arguments = parser.parse_args()
    # So that the daemon is stopped, whoever ends this program.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        with running_daemon(keep=arguments.keep) as daemon:
            demonstrate(daemon)
    except Failed as error:
        print(f"\ndemo failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
