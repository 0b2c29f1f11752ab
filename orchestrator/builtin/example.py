"""`example`: gives its payload back, to try the way from an enqueue to a result."""

from __future__ import annotations

from typing import Any

from orchestrator.context import Context
from orchestrator.mux import Mux

mux = Mux()


@mux.handler("example")
def echo(ctx: Context[None], payload: Any) -> Any:
    """Return the payload."""
    ctx.log.info("example.echoed")
    return payload
