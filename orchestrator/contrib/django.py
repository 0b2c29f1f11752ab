"""Django in handlers: a middleware that does for a task what Django does for a request.

Django closes a connection that broke, or that is older than CONN_MAX_AGE, when a request begins and
ends. In a worker there are no requests, so without this a restart of the server would fail every
later task of the worker. `django.setup()` is the setting `[handlers] setup`'s.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from asgiref.sync import sync_to_async
from django.db import close_old_connections


def middleware(next: Callable[..., Any]) -> Callable[..., Any]:
    """Close Django's stale connections before and after each task: `mux.use(middleware)`.

    Connections inside `atomic()` are left alone. With the default CONN_MAX_AGE = 0 each task opens
    its own; a larger one keeps them.
    """

    @functools.wraps(next)
    def call(ctx: Any, payload: Any) -> Any:
        close_old_connections()
        try:
            return next(ctx, payload)
        finally:
            close_old_connections()

    @functools.wraps(next)
    async def call_async(ctx: Any, payload: Any) -> Any:
        # In the thread where Django's asynchronous interface keeps its connections.
        await sync_to_async(close_old_connections)()
        try:
            return await next(ctx, payload)
        finally:
            await sync_to_async(close_old_connections)()

    return call_async if inspect.iscoroutinefunction(next) else call
