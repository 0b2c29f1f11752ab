"""What a line looks like, who writes it, and that writing never hurts."""

from __future__ import annotations

import json
import logging
import os
import re
import select
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator import logs
from orchestrator.config import LoggingSettings
from tests.support import eventually

ROOT = Path(__file__).parents[2]
IDENTITY = "worker=cpu-0 gen=1 pid=4711"


class Stream:
    """A file to log to, and its lines so far."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("log", os.MFD_CLOEXEC)

    def text(self) -> str:
        return os.pread(self.fd, 1 << 20, 0).decode()

    def lines(self) -> list[str]:
        return self.text().splitlines()

    def objects(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines()]


@pytest.fixture
def stream() -> Iterator[Stream]:
    made = Stream()
    yield made
    os.close(made.fd)


@pytest.fixture(autouse=True)
def _own_logging() -> Iterator[None]:
    """Give each test the logging that it found."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    logs.unconfigure()
    root.handlers[:], root.level = handlers, level


Configure = Callable[..., None]


@pytest.fixture
def configure(stream: Stream) -> Configure:
    def _configure(**settings: Any) -> None:
        logs.configure(LoggingSettings(**settings), identity=IDENTITY, stream_fd=stream.fd)

    return _configure


# -- lines -----------------------------------------------------------------------------------------


def test_console_line_begins_with_time_level_event_and_identity(
    stream: Stream, configure: Configure
) -> None:
    configure(format="console")

    logs.get("worker").warning("claim.lost", task_id=17, reason="taken back")

    assert re.fullmatch(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z WARNING claim\.lost worker=cpu-0 gen=1 pid=4711 "
        r'task_id=17 reason="taken back"\n',
        stream.text(),
    )


def test_json_line_begins_with_time_level_event_and_identity(
    stream: Stream, configure: Configure
) -> None:
    configure(format="json")

    logs.get("worker").info("task.claimed", task_id=17, queues=["a"], waited=0.5)

    [line] = stream.objects()
    assert list(line)[:4] == ["ts", "level", "event", "identity"]
    line.pop("ts")
    assert line == {
        "level": "info",
        "event": "task.claimed",
        "identity": IDENTITY,
        "task_id": 17,
        "queues": ["a"],
        "waited": 0.5,
    }


def test_auto_is_json_on_what_is_no_terminal(stream: Stream, configure: Configure) -> None:
    configure(format="auto")

    logs.get("worker").info("task.claimed")

    assert stream.objects()[0]["event"] == "task.claimed"


def test_auto_is_console_on_a_terminal() -> None:
    controller, terminal = os.openpty()
    try:
        assert logs.settled(LoggingSettings(), stream_fd=terminal).format == "console"
        assert logs.settled(LoggingSettings(format="json"), stream_fd=terminal).format == "json"
    finally:
        os.close(controller)
        os.close(terminal)


def test_less_urgent_events_are_left_out(stream: Stream, configure: Configure) -> None:
    configure(format="json", level="warning")

    for level in ("debug", "info", "warning", "error"):
        getattr(logs.get("worker"), level)(f"{level}.logged")

    assert [line["event"] for line in stream.objects()] == ["warning.logged", "error.logged"]


def test_bound_fields_stand_in_every_line_of_that_logger(
    stream: Stream, configure: Configure
) -> None:
    configure(format="json")
    parent = logs.get("steward")
    bound = parent.bound(node=3)

    bound.info("node.registered", address="a")
    bound.bound(lock=True).info("lock.taken")
    parent.info("beat.sent")

    assert [line.get("node") for line in stream.objects()] == [3, 3, None]
    assert stream.objects()[1]["lock"] is True


def test_fields_of_the_running_task_stand_in_its_lines(
    stream: Stream, configure: Configure
) -> None:
    configure(format="json")
    reset = logs.task_fields.set({"task_id": 5, "attempt": 2})

    logs.get("worker").info("task.finished")
    logging.getLogger("app").info("from a handler")
    logs.task_fields.reset(reset)
    logs.get("worker").info("worker.idled")

    assert [line.get("task_id") for line in stream.objects()] == [5, 5, None]


def test_fields_cannot_pose_as_the_head_of_the_line(stream: Stream, configure: Configure) -> None:
    configure(format="json")

    logs.get("worker").info("task.claimed", level="low", identity="me", ts=1)

    [line] = stream.objects()
    assert (line["level"], line["identity"]) == ("info", IDENTITY)
    assert (line["level_"], line["identity_"], line["ts_"]) == ("low", "me", 1)


def test_fields_without_a_value_are_left_out(stream: Stream, configure: Configure) -> None:
    configure(format="console")

    logs.get("worker").info("task.claimed", reason=None, count=0)

    assert stream.text().endswith("pid=4711 count=0\n")


def test_value_cannot_break_a_console_line(stream: Stream, configure: Configure) -> None:
    configure(format="console")

    logs.get("worker").info("task.failed", error="two\nlines", empty="", pair="a=b", esc="\x1b[31m")

    [line] = stream.lines()
    assert r'error="two\nlines" empty="" pair="a=b" esc="\u001b[31m"' in line


def test_exception_is_logged_with_its_traceback(stream: Stream, configure: Configure) -> None:
    configure(format="json")

    try:
        raise ValueError("bad")
    except ValueError:
        logs.get("worker").exception("sweep.failed")

    [line] = stream.objects()
    assert line["level"] == "error"
    assert line["error"] == "ValueError: bad"
    assert 'raise ValueError("bad")' in line["traceback"]


def test_traceback_on_the_console_is_indented_below_its_line(
    stream: Stream, configure: Configure
) -> None:
    configure(format="console")

    try:
        raise ValueError("bad")
    except ValueError:
        logs.get("worker").exception("sweep.failed")

    first, *rest = stream.lines()
    assert first.endswith('error="ValueError: bad"')
    assert rest
    assert all(line.startswith("    ") for line in rest)


def test_each_process_writes_under_its_last_identity(stream: Stream) -> None:
    settings = LoggingSettings(format="json")
    logger = logs.get("worker")

    logs.configure(settings, identity="forkserver gen=1", stream_fd=stream.fd)
    logs.configure(settings, identity="worker=cpu-1", stream_fd=stream.fd)
    logger.info("worker.started")
    logging.getLogger("app").info("hello")

    assert [line["identity"] for line in stream.objects()] == ["worker=cpu-1"] * 2


# -- records of the standard library ---------------------------------------------------------------


def test_records_of_handlers_become_lines(stream: Stream, configure: Configure) -> None:
    configure(format="json")

    logging.getLogger("app.images").warning("resized %d", 3, extra={"size_bytes": 9})

    [line] = stream.objects()
    line.pop("ts")
    assert line == {
        "level": "warning",
        "event": "log.written",
        "identity": IDENTITY,
        "logger": "app.images",
        "message": "resized 3",
        "size_bytes": 9,
    }


def test_records_with_an_exception_carry_the_traceback(
    stream: Stream, configure: Configure
) -> None:
    configure(format="json")

    try:
        raise ValueError("bad")
    except ValueError:
        logging.getLogger("app").exception("oh")

    assert "ValueError: bad" in stream.objects()[0]["traceback"]


def test_record_whose_arguments_do_not_fit_is_written_all_the_same(
    stream: Stream, configure: Configure
) -> None:
    # pytest's own handler would raise.
    logging.getLogger().handlers.clear()
    configure(format="json")

    logging.getLogger("app").warning("%d apples", "many")

    [line] = stream.objects()
    assert line["message"] == "%d apples"
    assert "format_error" in line


def test_records_are_left_alone_when_told_so(stream: Stream, configure: Configure) -> None:
    root = logging.getLogger()
    theirs = logging.StreamHandler()
    root.addHandler(theirs)

    configure(format="json", configure=False)
    root.warning("theirs")
    logs.get("worker").info("worker.started")

    assert theirs in root.handlers
    assert [line["event"] for line in stream.objects()] == ["worker.started"]


def test_records_are_not_written_twice_where_a_module_set_up_logging(
    stream: Stream, configure: Configure, tmp_path: Path
) -> None:
    root = logging.getLogger()
    console = logging.StreamHandler()
    file = logging.FileHandler(tmp_path / "app.log")
    root.addHandler(console)
    root.addHandler(file)

    configure(format="json")

    assert console not in root.handlers
    assert file in root.handlers
    file.close()


def test_without_configure_events_go_to_the_program_s_own_logging(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)

    logs.get("client").info("connection.lost", tries=2)

    assert caplog.record_tuples == [
        ("orchestrator.client", logging.INFO, "connection.lost tries=2")
    ]


# -- writing never hurts ---------------------------------------------------------------------------


class Unshowable:
    def __str__(self) -> str:
        raise RuntimeError("no")

    __repr__ = __str__


@pytest.mark.parametrize("format", ["console", "json"])
@pytest.mark.parametrize(
    "value",
    [Unshowable(), float("nan"), "\ud800", b"\xff", {1: Unshowable()}, {(1, 2): 3}, object()],
    ids=["unshowable", "nan", "surrogate", "bytes", "nested", "key", "object"],
)
def test_value_that_cannot_be_encoded_still_gives_a_line(
    stream: Stream, configure: Configure, format: str, value: object
) -> None:
    configure(format=format)

    logs.get("worker").error("task.failed", value=value)

    [line] = stream.lines()
    assert "task.failed" in line
    if format == "json":
        assert json.loads(line)["event"] == "task.failed"


def test_cycle_still_gives_a_line(stream: Stream, configure: Configure) -> None:
    configure(format="json")
    cycle: list[object] = []
    cycle.append(cycle)

    logs.get("worker").info("task.claimed", value=cycle)

    assert stream.objects()[0]["event"] == "task.claimed"


@pytest.mark.parametrize("format", ["console", "json"])
def test_mistake_in_a_call_does_not_end_its_caller(
    stream: Stream, configure: Configure, format: str
) -> None:
    configure(format=format)

    logs.get("worker").info(3)  # type: ignore[arg-type]
    logs.get("worker").info("worker.started")

    assert "worker.started" in stream.lines()[-1]


def test_closed_stream_is_survived(configure: Configure) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    logs.configure(LoggingSettings(), identity=IDENTITY, stream_fd=writing)
    os.close(writing)

    logs.get("worker").info("task.claimed")


def test_reader_that_has_gone_is_survived() -> None:
    reading, writing = os.pipe()
    logs.configure(LoggingSettings(), identity=IDENTITY, stream_fd=writing)
    os.close(reading)

    logs.get("worker").info("task.claimed")

    os.close(writing)


@pytest.mark.parametrize("is_blocking", [True, False])
def test_lines_nobody_reads_are_dropped_counted_and_reported(
    monkeypatch: pytest.MonkeyPatch, is_blocking: bool
) -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, is_blocking)
    monkeypatch.setattr(logs, "_impatient", {writing})
    logs.configure(LoggingSettings(format="json"), identity=IDENTITY, stream_fd=writing)
    logger = logs.get("supervisor")

    for number in range(1000):
        logger.info("child.exited", number=number, filler="x" * 300)
    seen = read_all(reading)
    logger.info("child.started")
    seen += read_all(reading)

    os.close(reading)
    os.close(writing)
    lines = [json.loads(line) for line in seen.splitlines()]
    numbers = [line["number"] for line in lines if line["event"] == "child.exited"]
    n_reported = sum(line["lines"] for line in lines if line["event"] == "log.dropped")
    assert 0 < len(numbers) < 1000
    assert n_reported == 1000 - len(numbers)
    assert [line["event"] for line in lines[-2:]] == ["log.dropped", "child.started"]


def test_line_torn_by_a_full_stream_is_completed_later(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    monkeypatch.setattr(logs, "_impatient", {writing})
    logs.configure(LoggingSettings(format="json"), identity=IDENTITY, stream_fd=writing)
    logger = logs.get("supervisor")

    logger.info("status.dumped", filler="x" * 200_000)
    seen = read_all(reading)
    for _ in range(10):
        logger.info("child.started")
        seen += read_all(reading)

    os.close(reading)
    os.close(writing)
    lines = [json.loads(line) for line in seen.splitlines()]
    assert lines[0]["event"] == "status.dumped"
    assert len(lines[0]["filler"]) == 200_000
    assert lines[-1]["event"] == "child.started"


def test_patient_process_waits_for_its_reader() -> None:
    # What a child writes into a pipe must arrive, even if others made the pipe non-blocking.
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    pid = os.fork()
    if pid == 0:
        try:
            logs.configure(LoggingSettings(format="json"), identity=IDENTITY, stream_fd=writing)
            for number in range(1000):
                logs.get("steward").info("beat.sent", number=number, filler="x" * 300)
        finally:
            os._exit(0)
    eventually(lambda: not select.select([], [writing], [], 0)[1], message="the pipe is not full")
    os.close(writing)
    with os.fdopen(reading) as file:
        numbers = [json.loads(line)["number"] for line in file]
    os.waitpid(pid, 0)

    assert numbers == list(range(1000))


def read_all(fd: int) -> bytes:
    """Read what lies in a pipe now."""
    content = b""
    while select.select([fd], [], [], 0)[0]:
        content += os.read(fd, 65536)
    return content


# -- nonblocking_stderr ----------------------------------------------------------------------------

FLOOD = """
import os
from orchestrator import logs
from orchestrator.config import LoggingSettings
from tests.support import eventually
fd = logs.nonblocking_stderr()
logs.configure(LoggingSettings(format="json"), identity="supervisor", stream_fd=fd)
for number in range(3000):
    logs.get("supervisor").info("child.exited", number=number, filler="x" * 200)
print("2 blocks:", os.get_blocking(2), "ours blocks:", os.get_blocking(fd), flush=True)
"""


def flood(stderr: int, **options: Any) -> str:
    """Log 3,000 lines in a process with this standard error; return what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", FLOOD],
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        timeout=60,
        cwd=ROOT,
        check=True,
        **options,
    )
    return done.stdout.strip()


def test_full_pipe_does_not_stop_the_process_and_stays_blocking_for_others() -> None:
    reading, writing = os.pipe()

    printed = flood(writing)

    os.close(reading)
    os.close(writing)
    assert printed == "2 blocks: True ours blocks: False"


def test_full_socket_does_not_stop_the_process() -> None:
    # What systemd gives to its services; it cannot be opened anew.
    ours, theirs = socket.socketpair()
    with ours, theirs:
        printed = flood(theirs.fileno())
        received = ours.recv(1 << 20)

    assert printed == "2 blocks: True ours blocks: True"
    assert received.startswith(b'{"ts":')


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a pipe away")
def test_full_pipe_of_another_user_does_not_stop_the_process() -> None:
    reading, writing = os.pipe()
    os.fchmod(writing, stat.S_IRUSR | stat.S_IWUSR)
    drop = "import os; os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
    check = (
        "try:\n    os.close(os.open('/proc/self/fd/2', os.O_WRONLY))\n"
        "except PermissionError:\n    pass\nelse:\n    raise SystemExit('could open it')\n"
    )
    # Imported before the drop: the checkout may be closed to that user.
    program = FLOOD.replace("fd = logs", drop + check + "fd = logs", 1)

    done = subprocess.run(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=writing,
        text=True,
        timeout=60,
        cwd=ROOT,
    )

    os.close(reading)
    os.close(writing)
    assert (done.returncode, done.stdout.strip()) == (0, "2 blocks: True ours blocks: True")


def test_file_shared_with_children_keeps_the_lines_of_both(tmp_path: Path) -> None:
    # A second description of a file without O_APPEND would be written over by the first.
    path = tmp_path / "daemon.log"
    program = FLOOD.replace("range(3000)", "range(10)") + "os.write(2, b'of a child\\n' * 10)\n"

    with path.open("wb") as file:
        subprocess.run(
            [sys.executable, "-c", program],
            stdout=subprocess.DEVNULL,
            stderr=file,
            cwd=ROOT,
            check=True,
        )

    lines = path.read_text().splitlines()
    assert lines.count("of a child") == 10
    assert sum(line.startswith('{"ts":') for line in lines) == 10


def test_closed_standard_error_is_survived() -> None:
    done = subprocess.run(
        ["/bin/sh", "-c", 'exec "$0" -c "$1" 2>&-', sys.executable, FLOOD.replace("print", "#")],
        cwd=ROOT,
        timeout=60,
    )

    assert done.returncode == 0
