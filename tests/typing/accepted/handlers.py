"""Handlers in every form that the documents show; both checkers accept all of it."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, assert_type

from shared import Mail, Order, Resize, Total, anything, resize, send, total

from orchestrator import Context, Mux, Retry, TaskType


class Storage:
    def put(self, name: str) -> int:
        return len(name)


mux = Mux()


@mux.lifespan
def storage() -> Iterator[Storage]:
    yield Storage()


@mux.use
def timed(next: Callable[[Context[Any], Any], Any]) -> Callable[[Context[Any], Any], Any]:
    @functools.wraps(next)
    def call(ctx: Context[Any], payload: Any) -> Any:
        return next(ctx, payload)

    return next if inspect.iscoroutinefunction(next) else call


@mux.handler(resize, retry=Retry(max_attempts=5, dead_on=(ValueError,)), timeout="10m")
def resize_image(ctx: Context[Storage], payload: Resize) -> dict[str, int]:
    ctx.enqueue(send, {"to": "a@example.org", "subject": payload.url}, delay="5s", tags=["x"])
    ctx.enqueue("plain:text", {"any": "thing"}, idempotency_key="k")
    ctx.enqueue("no:payload")
    ctx.progress(1, 2.5, "half")
    with ctx.shield():
        ctx.wait("5ms")
    return {"bytes": ctx.state.put(payload.url)}


@mux.handler(send, timeout=None)
async def send_mail(ctx: Context[None], payload: Mail) -> None:
    if await ctx.sleep("1s"):
        return
    ctx.log.info("mail.sent", to=payload["to"])


@mux.handler(total, max_crashes=1)
async def add(ctx: Context[Storage], payload: Order) -> Total:
    await asyncio.sleep(0)
    return Total(amount=sum(payload.items))


# A handler may take more than its type promises.
@mux.handler(anything)
def count(ctx: Context[None], payload: Mapping[str, Any]) -> int:
    return len(payload)


@mux.handler("plain:")
def plain(ctx: Context[None], payload: dict[str, Any]) -> Any:
    return payload["x"]


@mux.handler("untyped:payload")
async def untyped(ctx: Context[None], payload: Any) -> Any:
    return payload


def late(ctx: Context[None], payload: Resize) -> dict[str, int]:
    return {"width": payload.width}


async def later(ctx: Context[Storage], payload: Order) -> Total:
    return Total(amount=0.0)


mux.handle(TaskType("image:late", Resize, dict[str, int]), late, timeout=5)
mux.handle(TaskType("order:later", Order, Total), later)
mux.handle("plain:late", late)
mux.mount(Mux())

# The decorator returns the function, so a test may call it.
assert_type(
    resize_image(Context(task_id=1, type="image:resize", state=Storage()), Resize("a")),
    dict[str, int],
)


async def use() -> None:
    result = await add(Context(task_id=1, type="order:total", state=Storage()), Order([1.0]))
    assert_type(result, Total)
