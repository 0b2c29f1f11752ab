"""The handlers that ship with the package do what their documentation says."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import Any

import pytest

from orchestrator import builtin
from orchestrator.builtin.failing import Failing, fail
from orchestrator.context import Context


def attempt(number: int, **payload: Any) -> dict[str, Any]:
    ctx: Context[Any] = Context(task_id=1, type="failing", attempt=number)
    return fail(ctx, Failing(**payload))


def status_of_process(**payload: Any) -> int:
    """Run one attempt in a process of its own; its status as `wait` gives it."""
    code = (
        "from orchestrator.builtin.failing import Failing, fail\n"
        "from orchestrator.context import Context\n"
        f"fail(Context(task_id=1, type='failing'), Failing(**{payload!r}))\n"
    )
    # A core dump would be left in the checkout.
    script = f"import resource; resource.setrlimit(resource.RLIMIT_CORE, (0, 0))\n{code}"
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run([sys.executable, "-c", script], env=environ).returncode


def test_both_types_are_served() -> None:
    assert builtin.mux.patterns() == ["example", "failing"]


def test_example_gives_its_payload_back() -> None:
    route = builtin.mux.resolve("example")
    assert route is not None

    assert route.call(Context(task_id=1, type="example"), route.decode('{"x": [1]}')) == {"x": [1]}


def test_failing_fails_as_often_as_asked_and_then_succeeds() -> None:
    for number in (1, 2):
        with pytest.raises(RuntimeError, match="no luck"):
            attempt(number, times=2, message="no luck")

    assert attempt(3, times=2) == {"attempt": 3, "mode": "fail"}


def test_exit_ends_the_process_with_its_code() -> None:
    assert status_of_process(mode="exit", code=7) == 7


def test_crash_is_a_real_segmentation_fault() -> None:
    assert status_of_process(mode="crash") == -signal.SIGSEGV


def test_hang_takes_its_time_and_succeeds() -> None:
    begin = time.monotonic()

    result = attempt(1, mode="hang", seconds=0.05)

    assert time.monotonic() - begin >= 0.05
    assert result == {"attempt": 1, "mode": "hang"}


def test_busy_hang_runs_no_signal_handler_meanwhile() -> None:
    at: list[float] = []
    before = signal.signal(signal.SIGALRM, lambda *_: at.append(time.monotonic()))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        attempt(1, mode="hang", seconds=0.5, busy=True)
        end = time.monotonic()
        for _ in range(1000):
            if at:
                break
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)

    assert end - at[0] < 0.05


def test_memory_is_really_used() -> None:
    with open("/proc/self/clear_refs", "w") as clear:
        clear.write("5")
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    attempt(1, mode="memory", megabytes=100)

    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before > 80 * 1024
