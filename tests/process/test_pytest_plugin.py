"""The pytest plugin, in a project of a user: a node per test, and kills at a chosen moment."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from orchestrator.db.layout import Layout
from orchestrator.testing.database import embedded_server
from tests.node import alive
from tests.plugin import PLUGIN_OPTIONS
from tests.support import eventually

pytest_plugins = ["pytester"]

ROOT = Path(__file__).parents[2]

HANDLERS = """
import os, time
from orchestrator import Mux, Retry

mux = Mux()

@mux.handler("copy")
def copy(ctx, payload):
    # In two steps, as users' effects are; a second run must not do it twice.
    path = payload["path"]
    print("copying", path, flush=True)
    with open(path, "a") as file:
        file.write(f"begin {ctx.attempt}\\n")
    deadline = time.monotonic() + (60 if ctx.attempt <= payload.get("long", 0) else 0)
    while time.monotonic() < deadline:
        time.sleep(0.01)
    with open(path, "a") as file:
        file.write(f"end {ctx.attempt}\\n")
    return ctx.attempt

@mux.handler("fail", retry=Retry(max_attempts=1))
def fail(ctx, payload):
    raise ValueError("the reason")

@mux.handler("environment")
def environment(ctx, payload):
    return os.environ.get(payload)
"""


@pytest.fixture
def project(pytester: pytest.Pytester) -> pytest.Pytester:
    """Give the project of a user: handlers, and pytest's configuration."""
    pytester.makepyfile(myhandlers=HANDLERS)
    pytester.makefile(
        ".toml",
        pyproject=f"""
        [tool.pytest.ini_options]
        addopts = "{" ".join(PLUGIN_OPTIONS)} -p no:cacheprovider"
        pythonpath = ["."]
        orchestrator_modules = ["myhandlers"]
        """,
    )
    return pytester


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def run(project: pytest.Pytester, dsn: str, *options: str) -> pytest.RunResult:
    return project.runpytest_subprocess(f"--orchestrator-database-url={dsn}", *options)


def test_a_node_runs_the_handlers_and_survives_a_kill_at_a_chosen_moment(
    project: pytest.Pytester, dsn: str
) -> None:
    project.makepyfile(
        test_it="""
        import pytest

        def test_runs(orchestrator_node, tmp_path):
            client = orchestrator_node.client
            task = client.enqueue("copy", {"path": str(tmp_path / "x")})

            orchestrator_node.wait_idle()

            assert client.get(task).result == 1
            assert "copying" in orchestrator_node.logs

        def test_effects_are_right_after_a_crash(orchestrator_node, orchestrator_kill, tmp_path):
            client = orchestrator_node.client
            bystander = client.enqueue("copy", {"path": str(tmp_path / "y"), "long": 1})
            task = client.enqueue("copy", {"path": str(tmp_path / "x"), "long": 1})

            attempt = orchestrator_kill(
                orchestrator_node, task, when=lambda: (tmp_path / "x").exists()
            )

            assert attempt.crash["signal"] == "SIGKILL"
            assert client.result(task, timeout=20) == 2
            lines = (tmp_path / "x").read_text().split("\\n")
            assert lines == ["begin 1", "begin 2", "end 2", ""]
            assert [a.outcome for a in client.get(bystander).attempts] == [None]

        def test_a_given_attempt_and_signal(orchestrator_node, orchestrator_kill, tmp_path):
            client = orchestrator_node.client
            task = client.enqueue("copy", {"path": str(tmp_path / "x"), "long": 2})

            orchestrator_kill(orchestrator_node, task, attempt=1, signum=11)
            second = orchestrator_kill(orchestrator_node, task, attempt=2)

            assert second.number == 2
            signals = [a.crash["signal"] for a in client.get(task).attempts if a.crash]
            assert signals == ["SIGSEGV", "SIGKILL"]

        def test_each_test_has_a_schema_of_its_own(orchestrator_node):
            assert list(orchestrator_node.client.tasks()) == []

        def test_a_task_that_has_ended_cannot_be_killed(orchestrator_node, orchestrator_kill):
            task = orchestrator_node.client.enqueue("fail")
            orchestrator_node.wait_idle()
            with pytest.raises(AssertionError, match="cannot be killed, it has ended: .* dead"):
                orchestrator_kill(orchestrator_node, task, timeout=20)

        def test_a_stopped_node_exits_in_order(orchestrator_node):
            assert orchestrator_node.stop() == 0
        """
    )

    result = run(project, dsn)

    result.assert_outcomes(passed=6)


def test_nodes_can_be_configured_by_fixtures(project: pytest.Pytester, dsn: str) -> None:
    project.makepyfile(
        other="""
        from orchestrator import Mux
        mux = Mux()
        mux.handle("other", lambda ctx, payload: ctx.queue)
        """,
        test_it="""
        import pytest

        @pytest.fixture
        def orchestrator_modules():
            return ["other"]

        @pytest.fixture
        def orchestrator_pools():
            return [{"name": "io", "processes": 1, "queues": ["a"]}]

        def test_pools(orchestrator_node):
            client = orchestrator_node.client
            task, left = client.enqueue("other", queue="a"), client.enqueue("other", queue="b")
            assert client.result(task, timeout=20) == "a"
            assert client.get(left).state == "ready"
            assert len(orchestrator_node.slots().occupied()) == 1

        def test_more_nodes(orchestrator_start_node):
            shared = {"node.distributed": True}
            one = orchestrator_start_node(settings=shared, processes=1)
            two = orchestrator_start_node(settings=shared, modules=["myhandlers"], pools=[])
            task = two.client.enqueue("environment", "HOME")
            assert two.client.result(task, timeout=20)
        """,
    )

    result = run(project, dsn)

    result.assert_outcomes(passed=2)


def test_settings_of_the_environment_do_not_reach_the_node(
    project: pytest.Pytester, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://of@the/application")
    monkeypatch.setenv("WORKER_POOL_SIZE", "7")
    monkeypatch.setenv("ORCHESTRATOR__POOL__0__PROCESSES", "8")
    project.makepyfile(
        test_it="""
        def test_it(orchestrator_node):
            task = orchestrator_node.client.enqueue("environment", "DATABASE_URL")
            result = orchestrator_node.client.result(task, timeout=20)
            assert result == "postgresql://of@the/application"
            assert len(orchestrator_node.slots().occupied()) == 2
        """
    )

    result = run(project, dsn)

    result.assert_outcomes(passed=1)


def test_the_report_of_a_failing_test_holds_the_log_of_its_node(
    project: pytest.Pytester, dsn: str
) -> None:
    project.makepyfile(
        test_it="""
        def test_fails(orchestrator_node):
            task = orchestrator_node.client.enqueue("fail")
            orchestrator_node.wait_idle()
            assert orchestrator_node.client.get(task).state == "succeeded"

        def test_passes(orchestrator_node):
            pass
        """
    )

    result = run(project, dsn)

    result.assert_outcomes(failed=1, passed=1)
    result.stdout.fnmatch_lines(["*log of orchestratord node-1 (call)*", "*task.died*the reason*"])
    assert str(result.stdout).count("log of orchestratord") == 1


def test_a_node_that_cannot_start_says_why(project: pytest.Pytester, dsn: str) -> None:
    project.makepyfile(
        test_it="""
        import pytest

        @pytest.fixture
        def orchestrator_modules():
            return ["not_there"]

        def test_it(orchestrator_node):
            pass
        """
    )

    result = run(project, dsn)

    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*there is no module*not_there*"])


def test_without_handlers_the_error_says_what_to_set(project: pytest.Pytester, dsn: str) -> None:
    project.makepyfile(test_it="def test_it(orchestrator_node): pass")

    result = run(project, dsn, "-o", "orchestrator_modules=")

    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*set orchestrator_modules = *"])


def test_a_test_may_name_the_handlers_itself(project: pytest.Pytester, dsn: str) -> None:
    project.makepyfile(
        test_it="""
        def test_it(orchestrator_start_node):
            assert orchestrator_start_node(modules=["myhandlers"]).stop() == 0
        """
    )

    result = run(project, dsn, "-o", "orchestrator_modules=")

    result.assert_outcomes(passed=1)


def test_without_a_url_there_is_an_embedded_server_for_the_run(project: pytest.Pytester) -> None:
    project.makepyfile(
        test_it="""
        def test_it(orchestrator_node, orchestrator_server_url, tmp_path):
            task = orchestrator_node.client.enqueue("copy", {"path": str(tmp_path / "x")})
            assert orchestrator_node.client.result(task, timeout=20) == 1
            print("url", orchestrator_server_url)
        """
    )

    result = project.runpytest_subprocess("-s")

    result.assert_outcomes(passed=1)
    [folder] = re.findall(r"host=%2Ftmp%2F(orc-pytest-\w+)", str(result.stdout))[:1]
    assert not Path("/tmp", folder).exists()


def test_nothing_outlives_a_killed_pytest(project: pytest.Pytester) -> None:
    project.makepyfile(
        test_it="""
        import time

        def test_it(orchestrator_node, orchestrator_server_url, tmp_path):
            payload = {"path": str(tmp_path / "x"), "long": 1}
            task = orchestrator_node.client.enqueue("copy", payload)
            while orchestrator_node.client.get(task).state != "running":
                pass
            (tmp_path / "url").write_text(orchestrator_server_url)
            open("pids.new", "w").write(" ".join(map(str, orchestrator_node.pids())))
            import os
            os.rename("pids.new", "pids")
            time.sleep(600)
        """
    )
    pytest_run = subprocess.Popen([sys.executable, "-m", "pytest", "-q"], cwd=project.path)
    file = project.path / "pids"
    eventually(file.exists, timeout=40)
    pids = [int(word) for word in file.read_text().split()]

    pytest_run.kill()
    pytest_run.wait()

    assert len(pids) >= 6  # supervisor, fork server, steward, leader, two workers
    eventually(lambda: not any(map(alive, pids)), timeout=20)


def test_pytest_starts_without_loading_what_the_fixtures_need(
    project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.makepyfile(
        test_it="""
        import sys

        def test_it():
            heavy = {"psycopg2", "msgspec", "click", "prometheus_client", "orchestrator.testing"}
            assert not heavy & set(sys.modules)
        """
    )

    result = project.runpytest_subprocess()

    result.assert_outcomes(passed=1)


def test_folder_whose_lock_is_about_to_be_taken_is_left_alone() -> None:
    # As that of another process of the same test run (pytest-xdist).
    folder = Path(tempfile.mkdtemp(prefix="orc-pytest-", dir="/tmp"))
    try:
        Layout(folder).lock.touch()

        with embedded_server():
            assert folder.exists()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
