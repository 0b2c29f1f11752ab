"""How the tests' own runs of pytest find our plugin, whether the package is installed or not."""

from __future__ import annotations

import importlib.metadata

_IS_INSTALLED = any(
    entry.value == "orchestrator.pytest_plugin"
    for entry in importlib.metadata.entry_points(group="pytest11")
)
# Loaded under two names it would be an error.
PLUGIN_OPTIONS = () if _IS_INSTALLED else ("-p", "orchestrator.pytest_plugin")
