"""Handlers that ship with the package: `modules = ["orchestrator.builtin"]`.

One module per task type; each is an example of how a handler is written.
"""

from __future__ import annotations

from orchestrator.builtin import example, failing
from orchestrator.mux import Mux

mux = Mux()
mux.mount(example.mux)
mux.mount(failing.mux)
