"""Handlers that say how far they are, each in its own way, and then wait to be let go."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path
from typing import Any

from orchestrator import Context, Mux

mux = Mux()


@mux.handler("say")
def say(ctx: Context[Any], payload: dict[str, Any]) -> float:
    """Say `words` words at once, then wait for the file `until`; return the seconds it took."""
    began = time.monotonic()
    for number in range(payload.get("words", 0)):
        ctx.progress(number, payload["words"], "page 1")
    seconds = time.monotonic() - began
    _wait(payload)
    return seconds


@mux.handler("say:odd")
def say_odd(ctx: Context[Any], payload: dict[str, Any]) -> None:
    ctx.progress(1, 2, "a\0b\ud800c" + "x" * 2**20 + "end")
    _wait(payload)


@mux.handler("say:thread")
def say_in_thread(ctx: Context[Any], payload: dict[str, Any]) -> None:
    """Say it in a thread, which goes on when the handler has ended."""

    def go_on() -> None:
        for number in range(100_000):
            ctx.progress(number)
            time.sleep(0.001)

    threading.Thread(target=go_on, daemon=True).start()
    _wait(payload)


@mux.handler("say:often")
def say_often(ctx: Context[Any], payload: dict[str, Any]) -> float:
    """Say a word every 10 ms until the file is there; return the longest that one took, in s."""
    longest, number = 0.0, 0
    while not Path(payload["until"]).exists():
        number += 1
        began = time.monotonic()
        ctx.progress(number)
        longest = max(longest, time.monotonic() - began)
        time.sleep(0.01)
    return longest


@mux.handler("io:say")
async def say_async(ctx: Context[Any], payload: dict[str, Any]) -> None:
    for number in range(payload["words"]):
        ctx.progress(number, payload["words"], "page 1")
        await asyncio.sleep(payload.get("pause", 0))
    await _nap(payload)


@mux.handler("io:thread")
async def say_async_in_thread(ctx: Context[Any], payload: dict[str, Any]) -> None:
    await asyncio.to_thread(ctx.progress, 7, 9, "in a thread")
    await _nap(payload)


def _wait(payload: dict[str, Any]) -> None:
    while "until" in payload and not Path(payload["until"]).exists():
        time.sleep(0.01)


async def _nap(payload: dict[str, Any]) -> None:
    while "until" in payload and not Path(payload["until"]).exists():
        await asyncio.sleep(0.01)
