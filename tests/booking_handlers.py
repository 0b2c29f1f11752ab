"""Handlers that write by `ctx.connection()`: rows of `public.booking`, which `create` makes."""

from __future__ import annotations

import os
import time
from typing import Any

import psycopg2

from orchestrator import Context, Dead, Mux, Retry

mux = Mux()

CREATE = "create table public.booking (task bigint, attempt int, pid int, number int)"


def book(ctx: Context[Any], number: int = 0) -> None:
    with ctx.connection().cursor() as cursor:
        cursor.execute(
            "insert into public.booking values (%s, %s, %s, %s)",
            (ctx.task_id, ctx.attempt, os.getpid(), number),
        )


@mux.handler("book", retry=Retry(max_attempts=20, base=0.01, cap=0.05))
def write(ctx: Context[Any], payload: dict[str, Any]) -> None:
    """Write `rows` rows, with pauses, and enqueue `pages` tasks; end by `fate`."""
    for number in range(payload["rows"]):
        book(ctx, number)
        time.sleep(payload["pause"])
    for _ in range(payload["pages"]):
        ctx.enqueue("page", {"of": ctx.task_id, "rows": 1, "pages": 0})
    if payload["fate"] == "fail once" and ctx.attempt == 1:
        raise ValueError("after all was written")
    if payload["fate"] == "die":
        raise Dead("after all was written")


@mux.handler("page", retry=Retry(max_attempts=20, base=0.01, cap=0.05))
def page(ctx: Context[Any], payload: dict[str, Any]) -> None:
    book(ctx)


# -- each does one thing that a handler should not, on its first attempt


@mux.handler("careless:")
def careless(ctx: Context[Any], payload: dict[str, Any]) -> Any:
    """Do what `statement` says, and swallow what the database says to it; then return `result`."""
    book(ctx)
    if ctx.attempt == 1 and payload.get("statement"):
        try:
            with ctx.connection().cursor() as cursor:
                cursor.execute(payload["statement"])
        except psycopg2.Error:
            pass
    return "x" * payload.get("result_bytes", 0)


@mux.handler("reckless:block")
def commit(ctx: Context[Any], payload: dict[str, Any]) -> None:
    with ctx.connection():
        book(ctx)


@mux.handler("reckless:keep")
def keep(ctx: Context[Any], payload: dict[str, Any], kept: list[Any] = []) -> None:  # noqa: B006
    """Keep the first connection that it gets, for all tasks to come."""
    if not kept:
        kept.append(ctx.connection())
    with kept[0].cursor() as cursor:
        cursor.execute("insert into public.booking (task) values (%s)", (ctx.task_id,))
