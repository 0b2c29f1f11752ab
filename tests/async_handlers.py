"""The coroutines that async pools under test run."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from orchestrator import Cancelled, Context, Interrupted, Mux

mux = Mux()


@mux.handler("io:wait")
async def wait(ctx: Context[Any], payload: dict[str, Any]) -> dict[str, Any]:
    """Sleep `seconds` on the first attempt, `then` on the others; stop early on a drain."""
    seconds = payload["seconds"] if ctx.attempt == 1 else payload.get("then", 0)
    stopped = await ctx.sleep(seconds)
    return {"stopped": stopped, "pid": os.getpid(), "attempt": ctx.attempt}


@mux.handler("io:late", timeout="500ms")
async def late(ctx: Context[Any], payload: dict[str, Any]) -> None:
    await asyncio.sleep(600)


@mux.handler("io:stubborn")
async def stubborn(ctx: Context[Any], payload: dict[str, Any]) -> None:
    """Go on whatever anybody says, letting the loop go on as well."""
    while True:
        try:
            await asyncio.sleep(600)
        except asyncio.CancelledError:
            continue


@mux.handler("io:blocking", timeout="500ms")
async def blocking(ctx: Context[Any], payload: dict[str, Any]) -> None:
    """Block the event loop in C code, with the GIL held."""
    ctypes.PyDLL(None).sleep(600)


@mux.handler("io:crash")
async def crash(ctx: Context[Any], payload: dict[str, Any]) -> None:
    await asyncio.sleep(payload.get("after", 0))
    os.kill(os.getpid(), signal.SIGSEGV)


@mux.handler("io:exit")
async def leave(ctx: Context[Any], payload: dict[str, Any]) -> None:
    sys.exit("enough")


@mux.handler("io:alone")
async def alone(ctx: Context[Any], payload: dict[str, Any]) -> list[str]:
    """Write down who begins and ends, so that a test sees what ran beside what."""
    _record(payload["ledger"], f"begin {ctx.task_id} {ctx.attempt}")
    await asyncio.sleep(payload["seconds"])
    _record(payload["ledger"], f"end {ctx.task_id} {ctx.attempt}")
    return []


@mux.handler("io:mixed")
async def mixed(ctx: Context[Any], payload: dict[str, Any]) -> None:
    """Write down when it begins and ends, and whether it was told to stop."""
    _record(payload["ledger"], f"start {_run(ctx)}")
    try:
        await asyncio.sleep(payload["seconds"])
    except asyncio.CancelledError:
        _record(payload["ledger"], f"stop {_run(ctx)}")
        raise
    _record(payload["ledger"], f"end {_run(ctx)}")


@mux.handler("io:leftovers")
async def leftovers(ctx: Context[Any], payload: dict[str, Any]) -> int:
    """Die at the first attempt; leave a thread behind that nobody can stop at the second."""
    if ctx.attempt == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    asyncio.get_running_loop().run_in_executor(None, time.sleep, 600)
    return os.getpid()


@mux.handler("io:misuse")
async def misuse(ctx: Context[Any], payload: dict[str, Any]) -> dict[str, str]:
    """Try what an async pool must refuse; return what it said."""
    said = {}
    for name, call in (("wait", lambda: ctx.wait(0.01)), ("connection", ctx.connection)):
        try:
            call()
        except RuntimeError as error:
            said[name] = str(error)
    return said


@mux.handler("io:tidy")
async def tidy(ctx: Context[Any], payload: dict[str, Any]) -> None:
    """Clean up when told to stop, in a block that must not be left half done."""
    try:
        await asyncio.sleep(600)
    except asyncio.CancelledError:
        Path(payload["file"]).write_text(f"cancelled: {ctx.cancelled}")
        raise


@mux.handler("io:progress")
async def progress(ctx: Context[Any], payload: dict[str, Any]) -> None:
    ctx.progress(3, 10, "fetching")
    await asyncio.sleep(600)


@mux.handler("io:too_large")
async def too_large(ctx: Context[Any], payload: dict[str, Any]) -> str:
    await asyncio.sleep(0.2)
    return "x" * payload["size"]


@mux.handler("plain")
def plain(ctx: Context[Any], payload: dict[str, Any]) -> int:
    """A `def` handler: no async pool may run it."""
    return ctx.attempt


# -- for process pools


@mux.handler("cancel:wait")
def cancel_wait(ctx: Context[Any], payload: dict[str, Any]) -> None:
    """Sleep until interrupted, and write down how that came."""
    try:
        ctx.wait(600)
    except Interrupted as interrupted:
        Path(payload["file"]).write_text(f"{type(interrupted).__name__} {ctx.cancelled}")
        raise


@mux.handler("cancel:swallow")
def cancel_swallow(ctx: Context[Any], payload: dict[str, Any]) -> None:
    """Swallow every error, as loops do; only an Exception can be swallowed so."""
    while True:
        try:
            time.sleep(0.01)
        except Exception:  # noqa: BLE001 - what this handler is for
            continue


class Closing:
    """Says when it goes, and takes its time: Python swallows what is raised meanwhile."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    def __del__(self) -> None:
        self.path.write_text("closing")
        time.sleep(600)


@mux.handler("cancel:finalizer")
def cancel_finalizer(ctx: Context[Any], payload: dict[str, Any]) -> None:
    Closing(payload["file"])
    ctx.wait(600)


@mux.handler("cancel:shielded")
def cancel_shielded(ctx: Context[Any], payload: dict[str, Any]) -> None:
    steps = Path(payload["file"])
    with ctx.shield():
        steps.write_text("begun")
        while not ctx.cancelled:
            time.sleep(0.01)
        steps.write_text("whole")
    steps.write_text("went on")


@mux.handler("cancel:finish")
def cancel_finish(ctx: Context[Any], payload: dict[str, Any]) -> str:
    """Finish all the same, quickly enough."""
    try:
        ctx.wait(600)
    except Cancelled:
        return "finished"
    return "never told"


@mux.handler("cancel:async")
async def cancel_async(ctx: Context[Any], payload: dict[str, Any]) -> None:
    await asyncio.sleep(600)


def _run(ctx: Context[Any]) -> str:
    return f"{ctx.task_id} {ctx.attempt} {os.getpid()} {time.monotonic_ns()}"


def _record(path: str, line: str) -> None:
    fd = os.open(Path(path), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, f"{line}\n".encode())
    os.close(fd)
