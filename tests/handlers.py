"""The handlers that nodes under test run. They record their executions outside the database."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from orchestrator import Context, Dead, Mux, Retry, Snooze

mux = Mux()
# Of nodes that are started with `tests.handlers:late` as well: for the others, a type without
# handler.
late = Mux()


@late.handler("late")
def come_late(ctx: Context[Any], payload: dict[str, Any]) -> int:
    return ctx.attempt


@mux.handler("sleep")
def sleep(ctx: Context[Any], payload: dict[str, Any]) -> dict[str, Any]:
    """Sleep in small steps, `then` seconds after the first attempt; record where asked to."""
    seconds = payload["seconds"] if ctx.attempt == 1 else payload.get("then", payload["seconds"])
    _record(payload, f"start {ctx.task_id} {ctx.attempt} {os.getpid()}")
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        time.sleep(0.01)
    _record(payload, f"end {ctx.task_id} {ctx.attempt} {os.getpid()}")
    return {"slept": seconds}


@mux.handler("burn")
def burn(ctx: Context[Any], payload: dict[str, Any]) -> int:
    """Burn CPU for some milliseconds; record start and end where `ledger` names a file."""
    _record(payload, f"start {ctx.task_id} {ctx.attempt} {os.getpid()}")
    deadline = time.process_time() + payload["milliseconds"] / 1000
    rounds = 0
    while time.process_time() < deadline:
        rounds += 1
    _record(payload, f"end {ctx.task_id} {ctx.attempt} {os.getpid()}")
    return rounds


@mux.handler("patient")
def patient(ctx: Context[Any], payload: dict[str, Any]) -> dict[str, bool]:
    """Wait until told to stop, or for the given seconds."""
    return {"stopped": ctx.wait(payload["seconds"])}


@mux.handler("segfault")
def segfault(ctx: Context[Any], payload: dict[str, Any]) -> None:
    ctypes.string_at(0)


@mux.handler("exit")
def leave(ctx: Context[Any], payload: dict[str, Any]) -> None:
    os._exit(payload["code"])


@mux.handler("killed")
def killed(ctx: Context[Any], payload: dict[str, Any]) -> int:
    """Die of SIGKILL on the first `times` attempts."""
    if ctx.attempt <= payload.get("times", 1):
        os.kill(os.getpid(), signal.SIGKILL)
    return ctx.attempt


@mux.handler("fail", retry=Retry(max_attempts=3, base=0.01, cap=0.05))
def fail(ctx: Context[Any], payload: dict[str, Any]) -> None:
    raise ValueError(f"attempt {ctx.attempt}")


@mux.handler("die")
def die(ctx: Context[Any], payload: dict[str, Any]) -> None:
    raise Dead("enough")


@mux.handler("snooze")
def snooze(ctx: Context[Any], payload: dict[str, Any]) -> int:
    if ctx.attempt <= payload["times"]:
        raise Snooze(0.05)
    return ctx.attempt


@mux.handler("stuck", timeout=1)
def stuck(ctx: Context[Any], payload: dict[str, Any]) -> None:
    """Hang in C code with the GIL held and every signal that can be blocked, blocked."""
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    libc = ctypes.PyDLL(None)
    libc.sleep(payload.get("seconds", 60))


@mux.handler("orphan")
def orphan(ctx: Context[Any], payload: dict[str, Any]) -> int:
    """Leave a daemonised grandchild behind; stay with it, or die as well, where asked to."""
    script = "import os, time; os.setsid(); (os.fork() and os._exit(0)) or time.sleep(600)"
    child = subprocess.Popen([sys.executable, "-c", script])
    child.wait()
    time.sleep(payload.get("stay", 0))
    if payload.get("die"):
        os.kill(os.getpid(), signal.SIGKILL)
    return child.pid


@mux.handler("where")
def where(ctx: Context[Any], payload: dict[str, Any]) -> dict[str, Any]:
    return {"pid": os.getpid(), "ppid": os.getppid(), "attempt": ctx.attempt}


@mux.handler("chain")
def chain(ctx: Context[Any], payload: dict[str, Any]) -> str:
    """Enqueue one more task with the success; fail after that where asked to."""
    ctx.enqueue("where", {"from": ctx.task_id})
    if payload.get("fail") and ctx.attempt == 1:
        raise ValueError("after the enqueue")
    return "ok"


def _record(payload: dict[str, Any], line: str) -> None:
    path = payload.get("ledger")
    if path:
        # One O_APPEND write per line: whole, whoever writes beside us.
        fd = os.open(Path(path), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(fd, f"{line}\n".encode())
        os.close(fd)
