"""Starts `orchestratord` for a test: `python -m orchestrator.testing.launch PID -c FILE`.

The daemon ends with the process PID, its parent, however that ends: the kernel kills it, and what
it has forked ends as after any death of a supervisor. Everything else is the daemon's.
"""

from __future__ import annotations

import runpy
import sys

from orchestrator.processes.identity import arm_parent_death_signal

if __name__ == "__main__":
    arm_parent_death_signal(int(sys.argv.pop(1)))
    runpy.run_module("orchestrator.cli.daemon", run_name="__main__", alter_sys=True)
