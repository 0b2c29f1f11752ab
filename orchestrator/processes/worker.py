"""A worker from birth to exit code: claims tasks, runs their handlers, reports the outcomes.

    pool mode    loop              runs
    process      process_worker    one task at a time: what a death means is known exactly
    async        async_worker      many coroutines at once on one event loop

The slot tells all others what the worker is doing, at any instruction at which it may be killed.
An idle worker runs no SQL and wakes for nobody else's work: it waits for one byte from its pool's
pipe. Without a database it does not exit: it keeps its outcomes and tries again, with jittered
back-off. What becomes of the tasks of a worker that died is decided by supervisor and steward.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sys
import time
import traceback

from orchestrator import config, logs, metrics
from orchestrator.mux import Mux
from orchestrator.processes import identity
from orchestrator.processes.async_worker import AsyncWorker
from orchestrator.processes.identity import Place
from orchestrator.processes.messages import Spawn
from orchestrator.processes.process_worker import ProcessWorker
from orchestrator.processes.signals import forget_inherited

log = logs.get("worker")


def live(place: Place, settings: config.Settings, mux: Mux, birth: Spawn) -> int:
    """Be a worker, from just after the fork to the exit code. Signals are blocked on entry."""
    forget_inherited()
    _await_supervisor(place.supervisor_pid)
    identity.arm_parent_death_signal(place.supervisor_pid)
    os.setpgid(0, 0)
    identity.become_subreaper()
    identity.set_title(f"orc-{birth.name}")
    logs.configure(
        settings.logging,
        identity=f"worker={birth.name} inc={birth.incarnation} pid={os.getpid()}",
    )
    random.seed()
    if "numpy" in sys.modules:
        # Its global generator is copied by the fork: every worker would draw the same numbers.
        sys.modules["numpy"].random.seed()
    metrics.set_identity(birth.name)
    pool = next(pool for pool in settings.pools if pool.name == birth.name.rpartition("-")[0])
    kind = AsyncWorker if pool.mode == "async" else ProcessWorker
    worker = kind(place, settings, mux, birth)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    try:
        code = worker.work()
    except BaseException:  # the outermost loop: nothing above it could say what happened
        log.exception("worker.failed")
        traceback.print_exc()
        code = 1
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    return code


def _await_supervisor(supervisor_pid: int) -> None:
    """Wait until the middle process is gone and the supervisor is the parent."""
    deadline = time.monotonic() + 10.0
    while os.getppid() != supervisor_pid:
        if time.monotonic() > deadline:
            os._exit(1)
        time.sleep(0.0002)
