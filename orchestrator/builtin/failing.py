"""`failing`: fails on purpose, in the ways that tasks fail, to see what follows.

    {"times": 2, "message": "no luck"}     raise on the first two attempts, then succeed
    {"mode": "exit", "code": 3}            end the process (os._exit)
    {"mode": "crash"}                      read address 0: a real segmentation fault
    {"mode": "hang", "seconds": 60}        sleep; with "busy": true, in C code that no signal ends
    {"mode": "memory", "megabytes": 512}   allocate, write to it, and go on

`times` (1) says in each mode how many attempts do it; the next one succeeds. `hang` and `memory`
succeed by themselves when they have the time and the memory for it.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import time
from typing import Any, Literal

import msgspec

from orchestrator.context import Context
from orchestrator.mux import Mux
from orchestrator.tasktype import TaskType

mux = Mux()


class Failing(msgspec.Struct, frozen=True, kw_only=True):
    """How to fail. Sizes in MiB, times in seconds."""

    mode: Literal["fail", "exit", "crash", "hang", "memory"] = "fail"
    times: int = 1
    message: str = "failing on purpose"
    code: int = 1
    seconds: float = 60.0
    busy: bool = False
    megabytes: int = 256


failing_task = TaskType("failing", Failing)


@mux.handler(failing_task)
def fail(ctx: Context[None], payload: Failing) -> dict[str, Any]:
    """Fail as the payload says on the first `times` attempts, then return the attempt's number."""
    if ctx.attempt <= payload.times:
        _fail(ctx, payload)
    return {"attempt": ctx.attempt, "mode": payload.mode}


def _fail(ctx: Context[None], payload: Failing) -> None:
    match payload.mode:
        case "fail":
            raise RuntimeError(payload.message)
        case "exit":
            os._exit(payload.code)
        case "crash":
            ctypes.string_at(0)
        case "hang" if payload.busy:
            _compute(payload.seconds)
        case "hang":
            time.sleep(payload.seconds)
        case "memory":
            # Unlike bytes, which ask the kernel for zeros, a bytearray writes its own: the pages
            # are really in memory.
            block = bytearray(payload.megabytes * 2**20)
            ctx.log.info("memory.allocated", size_bytes=len(block))


def _compute(seconds: float) -> None:
    """Compute in C for about `seconds`: no signal handler of Python's runs meanwhile."""
    begin = time.perf_counter()
    _derive(50_000)
    rounds_per_second = 50_000 / (time.perf_counter() - begin)
    # OpenSSL counts the rounds in 31 bits.
    _derive(min(2**31 - 1, max(1, int(seconds * rounds_per_second))))


def _derive(rounds: int) -> None:
    hashlib.pbkdf2_hmac("sha256", b"failing", b"on purpose", rounds)
