"""The public surface: everything that programs and handlers import, from here and only here.

    from orchestrator import Client, Context, Mux, Retry, TaskType

Each name is loaded from its module at its first use, so that `import orchestrator` costs
nothing, and a handler's module loads no database driver unless it asks for the client.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orchestrator.async_client import AsyncClient
    from orchestrator.client import Client
    from orchestrator.context import Context
    from orchestrator.errors import (
        Cancelled,
        ConfigError,
        DatabaseUnavailable,
        Dead,
        IdempotencyConflict,
        Interrupted,
        NotDead,
        OrchestratorError,
        PayloadError,
        RetryAfter,
        SchemaError,
        Snooze,
        SoftTimeout,
        TaskFailed,
        TaskNotFound,
    )
    from orchestrator.mux import Mux
    from orchestrator.retry import Retry
    from orchestrator.task import Progress, State, Task
    from orchestrator.tasktype import TaskType

__version__ = "0.1.0"

__all__ = [
    "AsyncClient",
    "Cancelled",
    "Client",
    "ConfigError",
    "Context",
    "DatabaseUnavailable",
    "Dead",
    "IdempotencyConflict",
    "Interrupted",
    "Mux",
    "NotDead",
    "OrchestratorError",
    "PayloadError",
    "Progress",
    "Retry",
    "RetryAfter",
    "SchemaError",
    "Snooze",
    "SoftTimeout",
    "State",
    "Task",
    "TaskFailed",
    "TaskNotFound",
    "TaskType",
    "__version__",
]

_MODULES = {
    "async_client": ("AsyncClient",),
    "client": ("Client",),
    "context": ("Context",),
    "mux": ("Mux",),
    "retry": ("Retry",),
    "task": ("Progress", "State", "Task"),
    "tasktype": ("TaskType",),
    "errors": (
        "Cancelled",
        "ConfigError",
        "DatabaseUnavailable",
        "Dead",
        "IdempotencyConflict",
        "Interrupted",
        "NotDead",
        "OrchestratorError",
        "PayloadError",
        "RetryAfter",
        "SchemaError",
        "Snooze",
        "SoftTimeout",
        "TaskFailed",
        "TaskNotFound",
    ),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{home}"), name)
    # The next use does not come here again.
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
