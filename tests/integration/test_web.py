"""The web process as the supervisor starts it: a real process, a real socket, made-up slots."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from support import eventually

from orchestrator import config, metrics
from orchestrator.slots import Phase, Slots

N_SLOTS = 12
N_DEATHS = 500
N_TYPES = 20


class Web:
    """A web process and what its supervisor holds of it."""

    def __init__(self, run_directory: Path) -> None:
        self.run_directory = run_directory
        self.metrics_directory = run_directory / "metrics"
        self.metrics_directory.mkdir()
        self.slots = Slots.create()
        header = self.slots.header
        header.supervisor_pid = os.getpid()
        header.started_ns = time.monotonic_ns()
        header.node_id = 7
        header.is_session_ok = True
        header.last_beat_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        self.slots.lease(0, "default-0", 1)
        self.slots.writer(0).ready()
        self.settings_fd = os.memfd_create("settings")
        os.write(self.settings_fd, config.encode(config.Settings()))
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.process = self.start()

    @property
    def fds(self) -> tuple[int, ...]:
        return (self.settings_fd, self.slots.fd, self.listener.fileno())

    def environment(self, supervisor_pid: int) -> dict[str, str]:
        return {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(sys.path),
            "ORCHESTRATOR_RUN": "web-test",
            "ORCHESTRATOR_KIND": "web",
            "ORCHESTRATOR_INCARNATION": "3",
            "ORCHESTRATOR_SUPERVISOR_PID": str(supervisor_pid),
            "ORCHESTRATOR_RUN_DIRECTORY": str(self.run_directory),
            "ORCHESTRATOR_SETTINGS_FD": str(self.settings_fd),
            "ORCHESTRATOR_SLOTS_FD": str(self.slots.fd),
            "ORCHESTRATOR_LISTEN_FD": str(self.listener.fileno()),
            metrics.DIRECTORY_VARIABLE: str(self.metrics_directory),
        }

    def start(self) -> subprocess.Popen[bytes]:
        with (self.run_directory / "web.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "orchestrator.processes.web"],
                env=self.environment(os.getpid()),
                pass_fds=self.fds,
                stdin=subprocess.DEVNULL,
                stderr=log,
            )

    def request(
        self, method: str, path: str, *, timeout: float = 10.0
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request(method, path)
            response = connection.getresponse()
            return response.status, response.headers, response.read()
        finally:
            connection.close()

    def get(self, path: str, *, timeout: float = 10.0) -> tuple[int, dict[str, object]]:
        status, _, body = self.request("GET", path, timeout=timeout)
        return status, json.loads(body)

    def log(self) -> str:
        return (self.run_directory / "web.log").read_text()

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self.listener.close()
        os.close(self.settings_fd)


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Web]:
    web = Web(tmp_path)
    yield web
    web.end()


def test_livez_answers_even_when_the_node_is_not_ready(web: Web) -> None:
    web.slots.header.is_session_ok = False

    assert web.get("/livez") == (200, {"status": "alive"})


def test_readyz_follows_the_session(web: Web) -> None:
    green = web.get("/readyz")
    web.slots.header.is_session_ok = False
    red = web.get("/readyz")
    web.slots.header.is_session_ok = True
    green_again = web.get("/readyz")

    assert green == green_again == (200, {"status": "ready", "reasons": []})
    assert red == (
        503,
        {"status": "not ready", "reasons": ["no database: the steward has no session"]},
    )


def test_health_answers_503_with_all_it_knows_while_the_node_stops(web: Web) -> None:
    web.slots.header.is_stopping = True

    status, health = web.get("/health")

    assert status == 503
    assert health["status"] == "not ready"
    assert health["node"] == {"id": 7, "name": config.Settings().node.name or socket.gethostname()}
    assert [worker["slot"] for worker in health["workers"]] == ["default-0"]  # type: ignore[attr-defined]


def test_metrics_adds_what_processes_counted_to_what_the_slots_say(web: Web) -> None:
    count_in_a_process(web, "default-0")
    web.slots.writer(0).publish(Phase.RUN, token=1, task_id=17, attempt=1)

    status, headers, body = web.request("GET", "/metrics")

    samples = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
    }
    assert status == 200
    assert headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert samples["tasks_completed_total", "succeeded", "a"] == 1
    assert samples[("tasks_running",)] == 1
    assert samples["worker_pool_utilization", "default"] == 1


def count_in_a_process(web: Web, slot: str) -> None:
    script = """
        import sys
        from orchestrator import metrics
        metrics.set_identity(sys.argv[1])
        metrics.task_ended("a", "succeeded", 0.02)
    """
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), slot],
        env=web.environment(os.getpid()),
        check=True,
        timeout=30,
    )


def test_a_scrape_that_hangs_keeps_no_probe_waiting(web: Web) -> None:
    # Opening a pipe for reading waits for a writer: like a disk that does not answer.
    pipe = web.metrics_directory / "counter_stuck.db"
    os.mkfifo(pipe)
    answers: list[int] = []
    scrape = threading.Thread(target=lambda: answers.append(web.request("GET", "/metrics")[0]))
    scrape.start()
    writer = eventually(lambda: opened_for_writing(pipe))

    alive = web.get("/livez", timeout=2.0)

    assert alive == (200, {"status": "alive"})
    assert not answers
    pipe.unlink()
    os.close(writer)
    scrape.join(timeout=10)
    assert answers == [200]


def opened_for_writing(pipe: Path) -> int | None:
    try:
        return os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
    except OSError:
        return None  # nobody reads yet


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/health", "/metrics"])
def test_head_answers_with_the_headers_alone(web: Web, path: str) -> None:
    status, headers, body = web.request("HEAD", path)

    assert status == 200
    assert int(headers["content-length"]) > 0
    assert body == b""


def test_an_unknown_path_is_a_404_in_json(web: Web) -> None:
    assert web.get("/nope") == (404, {"error": "no such path: /nope"})


def test_another_method_is_refused_in_json(web: Web) -> None:
    status, headers, body = web.request("POST", "/health")

    assert status == 405
    assert set(headers["allow"].split(", ")) == {"GET", "HEAD"}
    assert json.loads(body) == {"error": "Method Not Allowed: /health"}


@pytest.mark.parametrize("path", ["/livez", "/metrics", "/nope"])
def test_every_answer_forbids_caching_and_sniffing(web: Web, path: str) -> None:
    _, headers, _ = web.request("GET", path)

    assert headers["cache-control"] == "no-store"
    assert headers["x-content-type-options"] == "nosniff"
    assert "server" not in headers


def test_probes_leave_no_line_in_the_log(web: Web) -> None:
    web.get("/livez")
    before = web.log()

    web.get("/readyz")
    web.get("/nope")
    web.request("GET", "/metrics")

    assert "web.started" in before
    assert web.log() == before


def test_term_ends_it_though_a_client_keeps_its_connection(web: Web) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", web.port, timeout=10)
    connection.request("GET", "/livez")
    connection.getresponse().read()

    web.process.send_signal(signal.SIGTERM)

    assert web.process.wait(timeout=5) == 0
    assert "web.stopped" in web.log()
    connection.close()


def test_no_connection_is_refused_while_a_dead_web_process_is_replaced(web: Web) -> None:
    web.get("/livez")
    web.process.kill()
    web.process.wait()
    answers: list[tuple[int, dict[str, object]]] = []
    client = threading.Thread(target=lambda: answers.append(web.get("/livez")))
    client.start()

    web.process = web.start()

    client.join(timeout=10)
    assert answers == [(200, {"status": "alive"})]


def test_it_dies_with_its_supervisor(web: Web, tmp_path: Path) -> None:
    script = """
        import os, subprocess, sys
        os.environ["ORCHESTRATOR_SUPERVISOR_PID"] = str(os.getpid())
        child = subprocess.Popen(
            [sys.executable, "-m", "orchestrator.processes.web"], close_fds=False
        )
        print(child.pid, flush=True)
        child.wait()
    """
    web.process.kill()
    web.process.wait()
    supervisor = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        env=web.environment(0),
        pass_fds=web.fds,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert supervisor.stdout is not None
    pid = int(supervisor.stdout.readline())
    try:
        assert web.get("/livez")[0] == 200

        supervisor.kill()
        supervisor.wait()

        assert eventually(lambda: has_ended(pid), timeout=5)
    finally:
        supervisor.stdout.close()
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def has_ended(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return True
    # Nobody may be there to reap it: a zombie has ended as well.
    return stat.rpartition(")")[2].split()[0] == "Z"


def work_and_be_killed(slot: str) -> None:
    """Fork a worker that counts one attempt of each type and is killed while it lives on."""
    pid = os.fork()
    if pid == 0:
        metrics.set_identity(slot)
        for number in range(N_TYPES):
            metrics.claimed(0.002, 1)
            metrics.waited("default", 0.05)
            metrics.task_ended(f"type-{number}", "succeeded", 0.02)
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)


@pytest.mark.slow
def test_a_scrape_stays_quick_and_exact_after_500_deaths(
    web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Print the figures of docs/metrics.md; `-s` shows them."""
    monkeypatch.setenv(metrics.DIRECTORY_VARIABLE, str(web.metrics_directory))
    for number in range(N_DEATHS):
        work_and_be_killed(f"default-{number % N_SLOTS}")

    connection = http.client.HTTPConnection("127.0.0.1", web.port, timeout=10)
    seconds: list[float] = []
    for _ in range(20):
        began = time.perf_counter()
        connection.request("GET", "/metrics")
        body = connection.getresponse().read()
        seconds.append(time.perf_counter() - began)
    connection.close()

    files = list(web.metrics_directory.iterdir())
    completed = sum(
        sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
        if sample.name == "tasks_completed_total"
    )
    median = statistics.median(seconds)
    print(
        f"\n{N_DEATHS} deaths, {N_SLOTS} slots, {N_TYPES} types: scrape {median * 1000:.1f} ms "
        f"(median of {len(seconds)}, worst {max(seconds) * 1000:.1f}), {len(files)} files, "
        f"{sum(path.stat().st_size for path in files) / 2**20:.1f} MiB, {len(body)} bytes"
    )
    assert completed == N_DEATHS * N_TYPES
    assert len(files) == 2 * N_SLOTS
    assert median < 0.5, "a pid for a name would cost 545 ms"
