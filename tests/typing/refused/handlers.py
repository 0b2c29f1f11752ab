"""Handlers that do not fit their task types, and other mistakes that only the daemon would meet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from shared import Mail, Order, Resize, Total, resize, send, total

from orchestrator import Context, Mux, Retry

mux = Mux()


@mux.handler(resize)  # error: mypy, pyright
def wrong_payload(ctx: Context[None], payload: Order) -> dict[str, int]:
    return {}


@mux.handler(resize)  # error: mypy, pyright
def wrong_result(ctx: Context[None], payload: Resize) -> str:
    return payload.url


@mux.handler(total)  # error: mypy, pyright
async def wrong_payload_of_a_coroutine(ctx: Context[None], payload: Mail) -> Total:
    return Total(amount=0.0)


@mux.handler(total)  # error: mypy, pyright
async def wrong_result_of_a_coroutine(ctx: Context[None], payload: Order) -> float:
    return 0.0


@mux.handler(total)  # error: mypy, pyright
def no_result(ctx: Context[None], payload: Order) -> None:
    pass


@mux.handler(send)  # error: mypy, pyright
def payload_without_its_type(ctx: Context[None], payload: dict[str, str]) -> None:
    pass


@mux.handler(send)  # error: mypy, pyright
def no_context(payload: Mail) -> None:
    pass


@mux.handler(send)  # error: mypy, pyright
def no_payload(ctx: Context[None]) -> None:
    pass


@mux.handler(send)  # error: mypy, pyright
def payload_by_keyword(ctx: Context[None], *, payload: Mail) -> None:
    pass


@mux.handler("plain:text")  # error: mypy, pyright
def no_payload_untyped(ctx: Context[None]) -> None:
    pass


@mux.handler(send, retries=5)  # error: mypy, pyright
def misspelt_option(ctx: Context[None], payload: Mail) -> None:
    pass


@mux.handler(send, retry=5)  # error: mypy, pyright
def number_for_a_retry(ctx: Context[None], payload: Mail) -> None:
    pass


@mux.handler(send)
def mistakes_inside(ctx: Context[None], payload: Mail) -> None:
    ctx.enqueue(resize, Order([]))  # error: mypy, pyright
    ctx.enqueue(send, {"to": "a"})  # error: mypy, pyright
    ctx.enqueue(send)  # error: mypy, pyright
    ctx.enqueue(resize, Resize("a"), dely="5s")  # error: mypy, pyright
    ctx.enqueue("plain:text", 5, conn=None)  # error: mypy, pyright
    ctx.state.anything  # error: mypy, pyright
    payload["form"]  # error: mypy, pyright


def late(ctx: Context[None], payload: Mail) -> str:
    return ""


mux.handle(resize, late)  # error: mypy, pyright
mux.handle(total, late)  # error: mypy, pyright
mux.handle(send)  # error: mypy, pyright
mux.handle(send, late, time_out=5)  # error: mypy, pyright
mux.mount(late)  # error: mypy, pyright


@mux.lifespan  # error: mypy, pyright
def not_a_generator() -> int:
    return 5


@mux.lifespan  # error: mypy, pyright
def lifespan_with_an_argument(ctx: Context[None]) -> Any:
    yield 5


@mux.use  # error: mypy, pyright
def middleware_that_returns_nothing(next: Callable[[Context[Any], Any], Any]) -> None:
    pass


@mux.use  # error: mypy, pyright
def middleware_that_is_a_handler(ctx: Context[None], payload: Any) -> Any:
    return payload


wrong_payload(5, Resize("a"))  # error: mypy, pyright
mistakes_inside(Context(task_id=1, type="mail:send"), Resize("a"))  # error: mypy, pyright
Retry(5).delay  # error: mypy, pyright
