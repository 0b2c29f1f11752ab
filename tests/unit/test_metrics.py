"""What processes count survives them, adds up, and never stops anybody.

The counting processes are real forks of the test, which itself never takes an identity.
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from orchestrator import metrics
from orchestrator.outcome import Ending


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(metrics.DIRECTORY_VARIABLE, str(tmp_path))
    return tmp_path


def in_process(identity: str, count: Callable[[], object], *, is_killed: bool = False) -> None:
    """Run `count` in a fork with this identity; it ends by SIGKILL where asked, else by exit."""
    pid = os.fork()
    if pid == 0:
        try:
            metrics.set_identity(identity)
            count()
            if is_killed:
                os.kill(os.getpid(), signal.SIGKILL)
            os._exit(0)
        except BaseException:  # noqa: BLE001 - the fork must not return into pytest
            sys.excepthook(*sys.exc_info())
            os._exit(1)
    _, status = os.waitpid(pid, 0)
    expected = -signal.SIGKILL if is_killed else 0
    assert os.waitstatus_to_exitcode(status) == expected


def scraped(directory: Path, derived: metrics.Derived | None = None) -> dict[str, float]:
    """Scrape and parse: `name{label="value"}` to value."""
    text = metrics.render(derived or {}, directory=directory).decode()
    samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f'{key}="{value}"' for key, value in sorted(sample.labels.items()))
            samples[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return samples


def succeed(type: str = "a") -> None:
    metrics.task_ended(type, Ending.SUCCEEDED, 0.02)


SUCCEEDED = 'tasks_completed_total{status="succeeded",type="a"}'


def test_counts_survive_a_sigkill_and_the_next_process_of_the_slot_goes_on(directory: Path) -> None:
    in_process("cpu-0", succeed, is_killed=True)
    in_process("cpu-0", succeed, is_killed=True)
    in_process("cpu-0", succeed)

    samples = scraped(directory)

    assert samples[SUCCEEDED] == 3
    assert samples['task_duration_seconds_count{type="a"}'] == 3
    assert samples['task_duration_seconds_sum{type="a"}'] == pytest.approx(0.06)


def test_deaths_of_a_slot_add_no_files(directory: Path) -> None:
    in_process("cpu-0", succeed, is_killed=True)
    before = sorted(directory.iterdir())

    for _ in range(20):
        in_process("cpu-0", succeed, is_killed=True)

    assert sorted(directory.iterdir()) == before


def test_processes_of_different_slots_add_up(directory: Path) -> None:
    in_process("cpu-0", succeed)
    in_process("cpu-1", succeed)
    in_process("steward", metrics.fence_rejected)

    samples = scraped(directory)

    assert samples[SUCCEEDED] == 2
    assert samples["orchestrator_fence_rejections_total"] == 1


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"", "empty"),
        (b"\x08", "shorter than its header"),
        (b"\xff\xff\x00\x00" + bytes(40), "cut off"),
        (b"\x28\x00\x00\x00" + b"\xff" * 36, "scrambled"),
    ],
)
def test_a_broken_file_does_not_fail_the_scrape(directory: Path, content: bytes, kind: str) -> None:
    in_process("cpu-0", succeed)
    (directory / "counter_cpu-9.db").write_bytes(content)

    samples = scraped(directory)

    assert samples[SUCCEEDED] == 1
    assert samples['orchestrator_metric_files{state="skipped"}'] == 1
    assert (directory / "counter_cpu-9.db").exists(), "its process may be just about to fill it"


@pytest.mark.parametrize("content", [b"", b"\x08", b"\xff\xff\x00\x00" + bytes(40)])
def test_a_slot_whose_file_is_broken_counts_anew(directory: Path, content: bytes) -> None:
    (directory / "counter_cpu-0.db").write_bytes(content)

    in_process("cpu-0", succeed)

    samples = scraped(directory)
    assert samples[SUCCEEDED] == 1
    assert samples['orchestrator_metric_files{state="skipped"}'] == 0


def test_a_fork_server_that_imported_the_module_leaves_no_file_and_spoils_no_count(
    directory: Path,
) -> None:
    script = """
        import os, sys
        import psycopg2
        from orchestrator import metrics  # as the fork server does, before the fork

        assert not os.listdir(sys.argv[1]), os.listdir(sys.argv[1])
        metrics.task_ended("a", "succeeded", 0.02)  # nobody yet: must neither count nor make a file
        assert not os.listdir(sys.argv[1]), os.listdir(sys.argv[1])
        for slot in ("cpu-0", "cpu-1"):
            if os.fork() == 0:
                metrics.set_identity(slot)
                metrics.task_ended("a", "succeeded", 0.02)
                os._exit(0)
        assert [os.wait()[1] for _ in range(2)] == [0, 0]
    """

    run_python(script, directory)

    assert {path.name for path in directory.iterdir()} == {
        f"{kind}_{slot}.db" for kind in ("counter", "histogram") for slot in ("cpu-0", "cpu-1")
    }
    assert scraped(directory)[SUCCEEDED] == 2


def test_a_metric_of_a_users_module_is_counted_under_the_slot_too(directory: Path) -> None:
    script = """
        import os
        from orchestrator import metrics  # before the user's modules
        from prometheus_client import Counter

        pages = Counter("pages", "Pages that a handler has rendered.")
        for slot in ("cpu-0", "cpu-1", "cpu-0"):
            if os.fork() == 0:
                metrics.set_identity(slot)
                pages.inc()
                os._exit(0)
            assert os.wait()[1] == 0
    """

    run_python(script, directory)

    assert scraped(directory)["pages_total"] == 3
    assert {path.name for path in directory.iterdir()} == {
        "counter_preload.db", "counter_cpu-0.db", "counter_cpu-1.db",
    }  # fmt: skip


def run_python(script: str, directory: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(directory)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr


def test_a_live_gauge_of_a_users_module_ends_with_its_process(directory: Path) -> None:
    script = """
        import os
        from orchestrator import metrics
        from prometheus_client import Gauge

        inside = Gauge("inside", "1 inside a handler.", multiprocess_mode="livesum")
        for value in (1, None):
            if os.fork() == 0:
                metrics.set_identity("cpu-0")
                if value:
                    inside.set(value)
                os._exit(0)
            assert os.wait()[1] == 0
    """

    run_python(script, directory)

    assert scraped(directory).get("inside", 0.0) == 0.0


def test_a_process_that_a_task_forks_counts_nothing(directory: Path) -> None:
    def fork_inside() -> None:
        succeed()
        pid = os.fork()
        if pid == 0:
            # Two who append to one file overwrite each other's entries.
            succeed("b")
            os._exit(0)
        os.waitpid(pid, 0)
        succeed()

    in_process("cpu-0", fork_inside)

    samples = scraped(directory)
    assert samples[SUCCEEDED] == 2
    assert not [name for name in samples if 'type="b"' in name]


def test_counting_without_a_directory_does_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv(metrics.DIRECTORY_VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)

    in_process("cpu-0", succeed)

    assert not list(tmp_path.iterdir())


def test_a_directory_that_takes_no_file_stops_nobody(directory: Path) -> None:
    def count_on_a_full_disk() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        succeed()
        metrics.claimed(0.01, 1)

    in_process("cpu-0", count_on_a_full_disk)

    assert SUCCEEDED not in scraped(directory)


def test_room_is_allocated_before_it_is_written_to(directory: Path) -> None:
    def count_many_types() -> None:
        for number in range(150):
            succeed(f"{number}:" + "\U0001f4e6" * 40)

    in_process("cpu-0", count_many_types)

    for path in directory.iterdir():
        status = path.stat()
        assert status.st_blocks * 512 >= status.st_size, f"{path.name} has holes: SIGBUS when full"
    assert len([name for name in scraped(directory) if "duration_seconds_count" in name]) == 150


def test_types_beyond_the_limit_are_added_up_as_other(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "MAX_LABEL_SETS", 3)

    in_process("cpu-0", lambda: [metrics.dead(f"type-{number}") for number in range(10)])

    dead = {k: v for k, v in scraped(directory).items() if k.startswith("tasks_dead_letter_total")}
    assert dead == {
        'tasks_dead_letter_total{type="type-0"}': 1,
        'tasks_dead_letter_total{type="type-1"}': 1,
        'tasks_dead_letter_total{type="type-2"}': 1,
        'tasks_dead_letter_total{type="other"}': 7,
    }


@pytest.mark.parametrize("ending", [Ending.SNOOZED, Ending.RELEASED])
def test_an_attempt_that_completed_nothing_is_not_counted(directory: Path, ending: Ending) -> None:
    in_process("cpu-0", lambda: metrics.task_ended("a", ending, 1.0))

    assert not [name for name in scraped(directory) if name.startswith("tasks_completed")]


def test_a_crash_of_unknown_length_counts_no_duration(directory: Path) -> None:
    in_process("steward", lambda: metrics.task_ended("a", Ending.CRASHED))

    samples = scraped(directory)

    assert samples['tasks_completed_total{status="crashed",type="a"}'] == 1
    assert 'task_duration_seconds_count{type="a"}' not in samples


def test_announced_types_are_exported_as_zero_but_patterns_are_not(directory: Path) -> None:
    in_process("steward", lambda: metrics.announce(["a", "email:"]))

    samples = scraped(directory)

    assert samples['tasks_dead_letter_total{type="a"}'] == 0
    assert samples[SUCCEEDED] == 0
    assert not [name for name in samples if "email:" in name]


def test_what_needs_no_label_from_users_is_exported_before_its_first_event(tmp_path: Path) -> None:
    samples = scraped(tmp_path)

    assert samples["orchestrator_fence_rejections_total"] == 0
    assert samples["orchestrator_rescues_total"] == 0
    assert samples['orchestrator_worker_exits_total{cause="crash"}'] == 0


def test_every_function_counts_under_the_exact_name(directory: Path) -> None:
    def count_everything() -> None:
        succeed()
        metrics.retried("a")
        metrics.dead("a")
        metrics.waited("default", 0.5)
        metrics.claimed(0.001, 1)
        metrics.fence_rejected(2)
        metrics.claim_lost()
        metrics.rescued(3)
        metrics.database_error("worker")
        metrics.worker_exited("crash")

    in_process("cpu-0", count_everything)

    samples = scraped(directory)
    assert {
        name: samples[name]
        for name in (
            SUCCEEDED,
            'tasks_retried_total{type="a"}',
            'tasks_dead_letter_total{type="a"}',
            'task_duration_seconds_bucket{le="0.025",type="a"}',
            'orchestrator_queue_wait_seconds_count{queue="default"}',
            "orchestrator_claim_duration_seconds_count",
            "orchestrator_claimed_tasks_sum",
            "orchestrator_fence_rejections_total",
            "orchestrator_claims_lost_total",
            "orchestrator_rescues_total",
            'orchestrator_database_errors_total{process="worker"}',
            'orchestrator_worker_exits_total{cause="crash"}',
        )
    } == {
        SUCCEEDED: 1,
        'tasks_retried_total{type="a"}': 1,
        'tasks_dead_letter_total{type="a"}': 1,
        'task_duration_seconds_bucket{le="0.025",type="a"}': 1,
        'orchestrator_queue_wait_seconds_count{queue="default"}': 1,
        "orchestrator_claim_duration_seconds_count": 1,
        "orchestrator_claimed_tasks_sum": 1,
        "orchestrator_fence_rejections_total": 2,
        "orchestrator_claims_lost_total": 1,
        "orchestrator_rescues_total": 3,
        'orchestrator_database_errors_total{process="worker"}': 1,
        'orchestrator_worker_exits_total{cause="crash"}': 1,
    }


def test_a_users_metric_with_a_name_of_ours_does_not_double_the_family(directory: Path) -> None:
    script = """
        from orchestrator import metrics
        from prometheus_client import Gauge

        metrics.set_identity("cpu-0")
        Gauge("tasks_running", "Not ours.", multiprocess_mode="sum").set(99)
    """
    run_python(script, directory)

    text = metrics.render({"tasks_running": [((), 2.0)]}, directory=directory).decode()

    lines = [line for line in text.splitlines() if line.startswith("tasks_running")]
    assert lines == ["tasks_running 2.0"]
    assert text.count("# TYPE tasks_running ") == 1


@pytest.mark.parametrize("name", ["cpu_0", "", "../cpu-0", "cpu.0"])
def test_a_name_that_does_not_fit_into_a_file_name_is_refused(directory: Path, name: str) -> None:
    with pytest.raises(ValueError, match="must match"):
        metrics.set_identity(name)
