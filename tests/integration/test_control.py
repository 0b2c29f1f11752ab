"""orchestratorctl on a real database: what it prints, where, and its exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from orchestrator import Client
from orchestrator.cli.control import main
from orchestrator.db.connection import Session
from orchestrator.outcome import Budget, Ending, Outcome
from orchestrator.payload import clean_result
from orchestrator.store import nodes
from orchestrator.store.fail import fail
from orchestrator.store.finish import finish
from tests.integration.test_attempts import failure, register, take
from tests.sql import rows

TASK_FIELDS = [
    "id",
    "type",
    "queue",
    "state",
    "priority",
    "attempt",
    "max_attempts",
    "payload",
    "result",
    "error",
    "progress",
    "tags",
    "headers",
    "idempotency_key",
    "created_at",
    "run_at",
    "started_at",
    "finished_at",
    "attempts",
]
ATTEMPT_FIELDS = [
    "number",
    "outcome",
    "error",
    "traceback",
    "started_at",
    "ended_at",
    "node",
    "slot",
    "pid",
]
CRASH_FIELDS = {"cause", "signal", "exit_code", "max_rss_bytes", "cpu_seconds"}

Control = Callable[..., Result]


def configuration(path: Path, url: str, **sections: str) -> Path:
    """Write a configuration; nothing listens at its web address unless a test sees to it."""
    sections = {"web": 'bind = ""', **sections}
    text = "".join(f"[{name}]\n{lines}\n" for name, lines in sections.items())
    path.write_text(f'[database]\nurl = "{url}"\n{text}')
    return path


@pytest.fixture
def config(dsn: str, tmp_path: Path) -> Path:
    return configuration(tmp_path / "orchestrator.toml", dsn)


@pytest.fixture
def control(config: Path) -> Control:
    """Run orchestratorctl with some words; further ones by `input=` on standard input."""

    def run(*words: str, input: str | None = None) -> Result:
        result = CliRunner().invoke(main, ["-c", str(config), *words], input=input)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.output
        return result

    return run


def json_of(result: Result) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def crash(session: Session, task_type: str = "a") -> None:
    """Let the first ready task crash, and stay in line."""
    node = register(session)
    (claimed,) = take(session, node, token=5)
    outcome = failure(Budget.CRASHES, ending=Ending.CRASHED, delay=0.0)
    report = {"cause": "crash", "signal": "SIGSEGV", "exit_code": None, "phase": "run"}
    fail(session, task_id=claimed.task_id, token=5, outcome=outcome, crash=report)


def succeed(session: Session, result: Any) -> None:
    node = register(session)
    (claimed,) = take(session, node, token=6)
    outcome = Outcome(ending=Ending.SUCCEEDED, result=clean_result(result))
    finish(session, [(claimed, outcome)])


def kill(session: Session) -> None:
    """Let the first ready task die."""
    node = register(session)
    (claimed,) = take(session, node, token=7)
    outcome = failure(dead_reason="enough", delay=0.0)
    fail(session, task_id=claimed.task_id, token=7, outcome=outcome)


# -- enqueue


def test_enqueue_takes_the_options_of_the_client(control: Control, client: Client) -> None:
    result = control(
        "-o", "ids", "enqueue", "mail", '{"to": ["a"]}', "--queue", "q", "--priority", "-5",
        "--key", "k", "--max-attempts", "3", "--timeout", "1m", "--ttl", "2h", "--tag", "x",
        "--tag", "y", "--headers", '{"h": 1}', "--run-at", "2039-01-02T03:04:05+01:00",
    )  # fmt: skip

    assert result.exit_code == 0
    task = client.get(int(result.stdout))
    assert (task.type, task.payload, task.queue, task.priority) == ("mail", {"to": ["a"]}, "q", -5)
    assert (task.idempotency_key, task.max_attempts, task.tags) == ("k", 3, ("x", "y"))
    assert task.headers == {"h": 1}
    assert str(task.run_at) == "2039-01-02 02:04:05+00:00"


def test_enqueue_reads_standard_input_and_says_what_was_there(control: Control) -> None:
    first = json_of(control("enqueue", "a", "-", "--key", "k", "-o", "json", input="[1, 2]"))
    again = json_of(control("enqueue", "a", "3", "--key", "k", "-o", "json"))

    assert (first["payload"], first["existing"]) == ([1, 2], False)
    assert (again["id"], again["payload"], again["existing"]) == (first["id"], [1, 2], True)


def test_enqueue_says_when_nobody_would_run_it(control: Control, session: Session) -> None:
    nobody = control("enqueue", "a", "-o", "ids")
    nodes.register(
        session, name="n", host="h", pid=1, run="r", version="0", lock_path="",
        distributed=True, handlers=["a", "mail:"], queues=["default"],
    )  # fmt: skip
    somebody = control("enqueue", "mail:send", "-o", "ids")
    no_handler = control("enqueue", "b", "-o", "ids")
    no_queue = control("enqueue", "a", "--queue", "q", "-o", "ids")

    assert "no node is running" in nobody.stderr
    assert somebody.stderr == ""
    assert "no running node has a handler for 'b'" in no_handler.stderr
    assert "no running node serves queue 'q'" in no_queue.stderr
    assert [r.stdout.strip() for r in (nobody, somebody, no_handler, no_queue)] == list("1234")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("enqueue", "a", "{"), "no JSON"),
        (("enqueue", "a", "[NaN]"), "no JSON"),
        (("enqueue", "a", '{"x": ["\\u0000"]}'), "payload.x[0]: holds a NUL"),
        (("enqueue", "a", "--priority", "40000"), "priority = 40000: must be"),
        (("enqueue", "a", "--run-at", "tomorrow"), "--run-at = 'tomorrow': must be ISO 8601"),
        (("enqueue", "a", "--run-at", "2030-01-01T00:00:00"), "no time zone"),
        (("enqueue", "a", "--delay", "soon"), "delay: 'soon' is not a duration"),
        (("enqueue", "a:"), "task type 'a:'"),
        (("enqueue", "a", "--wait-timeout", "1s"), "needs --wait"),
        (("enqueue",), "Missing argument"),
        (("task", "show", "seven"), "not a valid integer"),
        (("task", "list", "--state", "lost"), "is not one of"),
        (("dead", "redrive"), "--all"),
        (("dead", "redrive", "1", "--all"), "--all"),
        (("dead", "redrive", "1", "--type", "a"), "not both"),
        (("migrate", "--check", "--print-sql"), "exclude each other"),
        (("frobnicate",), "No such command"),
    ],
)
def test_wrong_use_exits_with_2_and_leaves_nothing(
    control: Control, client: Client, words: tuple[str, ...], message: str
) -> None:
    result = control(*words)

    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr
    assert list(client.tasks()) == []


def test_wait_prints_the_end_and_exits_with_1_unless_it_succeeded(
    control: Control, session: Session
) -> None:
    ender = threading.Thread(target=lambda: _end_next(session))
    ender.start()
    good = control("enqueue", "a", "--wait", "--wait-timeout", "10s", "-o", "json")
    ender.join()
    late = control("enqueue", "a", "--wait", "--wait-timeout", "200ms")

    assert json_of(good)["result"] == {"n": 1}
    assert late.exit_code == 1
    assert "is still ready after 0.2 s" in late.stderr


def _end_next(session: Session) -> None:
    node = register(session)
    while not (claimed := take(session, node, token=6)):
        pass
    finish(session, [(claimed[0], Outcome(ending=Ending.SUCCEEDED, result=b'{"n": 1}'))])


# -- tasks


def test_json_of_a_task_has_the_documented_fields(
    control: Control, client: Client, session: Session
) -> None:
    client.enqueue("a", {"n": 1})
    crash(session)
    succeed(session, {"n": 2})

    shape = json_of(control("task", "show", "1", "-o", "json"))
    (listed,) = json_of(control("-o", "json", "task", "list"))

    assert list(shape) == TASK_FIELDS
    assert listed == shape
    assert (shape["state"], shape["attempt"], shape["result"]) == ("succeeded", 2, {"n": 2})
    crashed, succeeded = shape["attempts"]
    assert list(crashed) == [*ATTEMPT_FIELDS, "crash"]
    assert list(succeeded) == ATTEMPT_FIELDS
    assert (crashed["number"], crashed["outcome"]) == (1, "crashed")
    assert (crashed["error"], crashed["traceback"]) == ("ValueError: no", "tb")
    assert (crashed["node"], crashed["slot"], crashed["pid"]) == ("n", "cpu-0", 7)
    assert set(crashed["crash"]) >= CRASH_FIELDS
    assert (crashed["crash"]["cause"], crashed["crash"]["signal"]) == ("crash", "SIGSEGV")
    for name in ("created_at", "started_at", "finished_at"):
        assert shape[name].endswith("Z")


def test_show_tells_everything_to_people(
    control: Control, client: Client, session: Session
) -> None:
    client.enqueue("a", {"n": 1})
    crash(session)

    text = control("task", "show", "1").stdout

    for part in (
        '{"n":1}',
        "1: crashed",
        "worker cpu-0, pid 7, node n",
        "ValueError: no",
        "SIGSEGV",
    ):
        assert part in text


def test_show_of_several_prints_those_there_are_and_names_the_others(
    control: Control, client: Client
) -> None:
    client.enqueue_many("a", [1, 2])

    result = control("task", "show", "2", "99", "1", "-o", "json")

    assert result.exit_code == 1
    assert [task["id"] for task in json.loads(result.stdout)] == [2, 1]
    assert result.stderr.startswith("orchestratorctl: no task has the id 99")
    assert result.stderr.count("\n") == 1


def test_list_filters_and_pages_newest_first(control: Control, client: Client) -> None:
    client.enqueue_many("a", range(4))
    client.enqueue("b", queue="q", tags=["x"])
    client.cancel(2)

    def ids(*words: str) -> list[int]:
        return [int(line) for line in control("task", "list", "-o", "ids", *words).stdout.split()]

    assert ids() == [5, 4, 3, 2, 1]
    assert ids("--limit", "2") == [5, 4]
    assert ids("--limit", "2", "--before", "4") == [3, 2]
    assert ids("--state", "cancelled") == [2]
    assert ids("--state", "cancelled", "--state", "ready", "--type", "a") == [4, 3, 2, 1]
    assert ids("--queue", "q") == ids("--tag", "x") == ids("--type", "b") == [5]
    assert ids("--type", "unheard-of") == []


def test_empty_list_says_so_on_standard_error_only(control: Control) -> None:
    result = control("task", "list")

    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "no such tasks\n")
    assert json_of(control("task", "list", "-o", "json")) == []


def test_cancel_says_what_became_of_each(
    control: Control, client: Client, session: Session
) -> None:
    client.enqueue_many("a", range(3))
    succeed(session, 1)
    take(session, register(session), token=8)

    result = control("task", "cancel", "1", "2", "3", "99", "-o", "json")

    assert result.exit_code == 1
    states = {task["id"]: task["state"] for task in json.loads(result.stdout)}
    assert states == {2: "running", 3: "cancelled"}
    assert "task 2 is running; it ends as cancelled unless it succeeds" in result.stderr
    assert "task 1 is succeeded: there is nothing to cancel" in result.stderr
    assert "no task has the id 99" in result.stderr
    assert control("task", "cancel", "3").exit_code == 0


# -- the dead letter queue


def test_dead_tasks_are_listed_and_redriven_by_id_and_by_kind(
    control: Control, client: Client, session: Session
) -> None:
    client.enqueue_many("a", range(4), queue="q")
    for _ in range(4):
        kill(session)

    listed = control("dead", "list")
    by_id = control("dead", "redrive", "2", "-o", "ids")
    by_kind = control("dead", "redrive", "--all", "--type", "a", "--queue", "q", "--limit", "2")
    rest = control("dead", "redrive", "--all", "-o", "json")

    assert "ValueError: no" in listed.stdout
    assert by_id.stdout == "2\n"
    assert [line.split()[0] for line in by_kind.stdout.splitlines()] == ["ID", "1", "3"]
    assert [(task["id"], task["state"]) for task in json_of(rest)] == [(4, "ready")]
    assert control("dead", "list").stderr == "no dead tasks\n"
    assert control("dead", "redrive", "--all").exit_code == 0


def test_redrive_names_what_it_cannot_redrive_and_does_the_others(
    control: Control, client: Client, session: Session
) -> None:
    client.enqueue("a", idempotency_key="k")
    client.enqueue("a")
    kill(session)
    kill(session)
    client.enqueue("a", idempotency_key="k")

    result = control("dead", "redrive", "--all", "-o", "ids")
    alive = control("dead", "redrive", "3")

    assert (result.exit_code, result.stdout) == (1, "2\n")
    assert "task 1 cannot be redriven: its idempotency key k is held by task 3" in result.stderr
    assert (alive.exit_code, alive.stdout) == (1, "")
    assert "task 3 is ready: only dead tasks can be redriven" in alive.stderr


# -- queues, workers, handlers, leader, numbers


@pytest.fixture
def node(session: Session) -> int:
    """A node with two workers, one of which runs a task."""
    node = nodes.register(
        session, name="n1", host="h", pid=1, run="r", version="0", lock_path="",
        distributed=True, handlers=["a", "mail:"], queues=["default"],
    )  # fmt: skip
    workers = [
        {"slot": f"cpu-{n}", "pid": 70 + n, "incarnation": n, "state": "idle"} for n in range(2)
    ]
    nodes.beat(session, node=node, workers=json.dumps(workers))
    return node


def test_queue_list_counts_and_says_who_serves(control: Control, client: Client, node: int) -> None:
    client.enqueue_many("a", range(3))
    client.enqueue("a", queue="lonely", delay="1h")

    result = control("queue", "list", "-o", "json")

    default, lonely = json_of(result)
    assert (default["name"], default["ready"], default["served_by"]) == ("default", 3, ["n1"])
    assert 0 <= default["oldest_seconds"] < 60
    assert (lonely["scheduled"], lonely["oldest_seconds"], lonely["served_by"]) == (1, None, [])
    assert "no running node serves queue 'lonely'" in control("queue", "list").stderr


def test_worker_list_shows_what_runs_now(
    control: Control, client: Client, session: Session, node: int
) -> None:
    client.enqueue("a")
    take(session, node, token=3, slot="cpu-1", pid=171)

    idle, busy = json_of(control("worker", "list", "-o", "json"))

    assert (idle["node"], idle["slot"], idle["state"], idle["task"]) == (
        "n1",
        "cpu-0",
        "idle",
        None,
    )
    assert (busy["slot"], busy["state"], busy["task"], busy["type"]) == ("cpu-1", "running", 1, "a")
    assert (busy["pid"], busy["attempt"]) == (171, 1)  # of `running`, newer than the last beat
    assert control("worker", "list", "-o", "ids").stdout == "n1/cpu-0\nn1/cpu-1\n"


def test_node_that_fell_silent_counts_no_more(
    control: Control, session: Session, node: int
) -> None:
    rows(session, "update node set beat_at = now() - interval '31 s'")

    assert control("worker", "list").stderr == "no node is running\n"
    assert control("handlers").stderr == "no node is running\n"


def test_handlers_come_from_nodes_or_from_the_modules(control: Control, node: int) -> None:
    served = json_of(control("handlers", "-o", "json"))
    loaded = json_of(control("handlers", "--load", "-o", "json"))

    assert served == [
        {"pattern": "a", "nodes": ["n1"]},
        {"pattern": "mail:", "nodes": ["n1"]},
    ]
    assert "example" in [handler["pattern"] for handler in loaded]
    assert loaded[0]["max_attempts"] == 10


def test_leader_is_shown_or_that_there_is_none(
    control: Control, session: Session, node: int
) -> None:
    nobody = control("leader")
    rows(
        session,
        "update leader set holder = 1, node = %(node)s, term = 4, renewed_at = now()",
        node=node,
    )

    shape = json_of(control("leader", "-o", "json"))

    assert (nobody.exit_code, nobody.stderr) == (0, "nobody leads\n")
    assert (shape["is_held"], shape["node"], shape["term"]) == (True, "n1", 4)


def test_stats_count_by_type_and_state(control: Control, client: Client, session: Session) -> None:
    client.enqueue_many("a", range(5))
    client.enqueue("b", delay="1h")
    client.cancel(5)
    succeed(session, None)
    kill(session)
    take(session, register(session), token=8)

    a, b = json_of(control("stats", "-o", "json"))

    counts = ("ready", "scheduled", "running", "succeeded", "cancelled", "dead")
    assert [a[name] for name in counts] == [1, 0, 1, 1, 1, 1]
    assert [b[name] for name in counts] == [0, 1, 0, 0, 0, 0]
    assert control("stats").stdout.splitlines()[-1].startswith("(all)")


# -- migrate


def test_migrate_checks_installs_and_prints(empty_dsn: str, tmp_path: Path) -> None:
    config = configuration(tmp_path / "c.toml", empty_dsn)

    def run(*words: str) -> Result:
        return CliRunner().invoke(main, ["-c", str(config), "migrate", *words])

    missing, done, again, check = run("--check"), run(), run(), run("--check")

    assert missing.exit_code == 1
    assert "run `orchestratorctl migrate`" in missing.stderr
    assert (done.exit_code, done.stdout) == (0, "applied 0001_base\n")
    assert "is up to date" in again.stdout
    assert (check.exit_code, "is up to date" in check.stdout) == (0, True)


def test_print_sql_needs_no_database(tmp_path: Path) -> None:
    config = configuration(tmp_path / "c.toml", "postgresql://nobody@127.0.0.1:1/x")

    result = CliRunner().invoke(main, ["-c", str(config), "migrate", "--print-sql"])

    assert result.exit_code == 0
    assert result.stdout.startswith("-- 0001_base\nbegin;\ncreate schema if not exists")
    assert result.stdout.endswith("commit;\n")


# -- health


class Health(BaseHTTPRequestHandler):
    """Answers /health the way the web process of a daemon does, or somebody else."""

    code, body = 200, b""

    def do_GET(self) -> None:
        self.send_response(self.code)
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def web(dsn: str, tmp_path: Path) -> Iterator[Path]:
    """A configuration at whose web address something answers."""
    with HTTPServer(("127.0.0.1", 0), Health) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        bind = f'bind = ":{server.server_port}"'
        yield configuration(tmp_path / "web.toml", dsn, web=bind)
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("code", "body", "exit_code", "asked"),
    [
        (200, b'{"status": "ready", "reasons": []}', 0, "http"),
        (503, b'{"status": "not ready", "reasons": ["no database"]}', 1, "http"),
        (200, b"<html>Prometheus</html>", 1, "database"),
        (404, b"nothing here", 1, "database"),
        (200, b"[]", 1, "database"),
    ],
)
def test_health_asks_the_daemon_and_else_the_database(
    web: Path, code: int, body: bytes, exit_code: int, asked: str
) -> None:
    Health.code, Health.body = code, body

    result = CliRunner().invoke(main, ["-c", str(web), "-o", "json", "health"])

    shape = json.loads(result.stdout)
    assert result.exit_code == exit_code
    assert shape["asked"].startswith(asked)
    assert shape["status"] == ("ready" if exit_code == 0 else "not ready")


def test_health_without_a_daemon_is_that_of_the_nodes_in_the_database(
    control: Control, session: Session
) -> None:
    nobody = control("health", "-o", "json")
    register(session, "n1")
    somebody = control("health", "-o", "json")

    assert (nobody.exit_code, json.loads(nobody.stdout)["status"]) == (1, "not ready")
    assert json_of(somebody) == {
        "asked": "database", "status": "ready", "reasons": [], "nodes": ["n1"],
    }  # fmt: skip


def test_health_without_a_database_is_not_ready_and_exits_with_1(tmp_path: Path) -> None:
    config = configuration(tmp_path / "c.toml", "postgresql://nobody@127.0.0.1:1/x")

    result = CliRunner().invoke(main, ["-c", str(config), "health", "-o", "json"])

    assert result.exit_code == 1
    assert "cannot connect" in json.loads(result.stdout)["reasons"][0]


# -- errors, as a user meets them


def run_as_user(*words: str, environ: dict[str, str] | None = None) -> Any:
    return subprocess.run(
        [sys.executable, "-m", "orchestrator.cli.control", *words],
        capture_output=True,
        text=True,
        timeout=60,
        env={"PYTHONPATH": str(Path(__file__).parents[2]), "HOME": "/nowhere", **(environ or {})},
    )


@pytest.mark.parametrize(
    ("words", "environ", "exit_code"),
    [
        (("task", "list"), {"DATABASE_URL": "postgresql://x:secret@127.0.0.1:1/x"}, 69),
        (("task", "list"), {"DATABASE_URL": "nonsense"}, 78),
        (("-c", "/nowhere/c.toml", "task", "list"), {}, 78),
    ],
)
def test_error_is_one_line_without_traceback_or_password(
    words: tuple[str, ...], environ: dict[str, str], exit_code: int
) -> None:
    result = run_as_user(*words, environ=environ)

    assert (result.returncode, result.stdout) == (exit_code, "")
    assert result.stderr.startswith("orchestratorctl: ")
    assert result.stderr.count("\n") == 1
    assert "secret" not in result.stderr


def test_missing_schema_is_one_line_with_what_to_run(empty_dsn: str) -> None:
    for words in (("task", "list"), ("stats",), ("enqueue", "a"), ("dead", "redrive", "1")):
        result = run_as_user(*words, environ={"DATABASE_URL": empty_dsn})

        assert result.returncode == 1
        assert "run `orchestratorctl migrate`" in result.stderr
        assert result.stderr.count("\n") == 1


def test_embedded_server_runs_for_the_length_of_a_command(pgdata: Path, tmp_path: Path) -> None:
    state = pgdata.parent
    config = configuration(tmp_path / "c.toml", "embedded", node=f'state_directory = "{state}"')

    enqueued = run_as_user("-c", str(config), "enqueue", "a", '{"n": 1}', "-o", "ids")
    is_gone = not (pgdata / "postmaster.pid").exists()
    listed = run_as_user("-c", str(config), "task", "list", "-o", "json")
    waited = run_as_user("-c", str(config), "enqueue", "a", "--wait")

    assert (enqueued.returncode, enqueued.stdout) == (0, "1\n")
    assert is_gone
    assert [task["payload"] for task in json.loads(listed.stdout)] == [{"n": 1}]
    assert (waited.returncode, waited.stdout) == (1, "")
    assert "start orchestratord first" in waited.stderr
