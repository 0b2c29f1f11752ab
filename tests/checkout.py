"""A copy of this checkout, as a reader of the documents has it, for tests that write into it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.blocks import ROOT
from tests.node import free_address

_LEFT_OUT = shutil.ignore_patterns(
    ".git", ".venv", ".venv.lock", "__pycache__", ".*_cache", ".hypothesis", "build", "dist",
    "*.egg-info",
)  # fmt: skip
# What a shell of a reader has. Above all no settings and no Python path of ours.
_KEPT = (
    "PATH",
    "HOME",
    "LANG",
    "LC_ALL",
    "TERM",
    "TMPDIR",
    "USER",
    "LOGNAME",
    "ORCHESTRATOR_PG_BIN",
)


def copy_checkout(target: Path) -> Path:
    """Copy what a checkout holds, without environments and caches."""
    shutil.copytree(ROOT, target, ignore=_LEFT_OUT)
    return target


def lend_environment(checkout: Path) -> None:
    """Make this interpreter's environment that of a checkout, in place of setting one up."""
    program = checkout / ".venv/bin/python"
    program.parent.mkdir(parents=True)
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    program.chmod(0o755)
    # As bin/bootstrap.sh does it.
    sum_of_checkout = subprocess.run(
        "cat -- setup.cfg pyproject.toml | cksum | tr ' \\t' '--'",
        shell=True,
        cwd=checkout,
        capture_output=True,
        text=True,
        check=True,
    )
    (checkout / ".venv/.stamp").write_text(f"{sum_of_checkout.stdout.strip()} test\n")


def environment(state: Path, **more: str) -> Mapping[str, str]:
    """Return the environment of a reader whose daemon keeps its things in `state`.

    The port is a free one: the documents' own may be taken.
    """
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    return {
        **kept,
        "ORCHESTRATOR__NODE__STATE_DIRECTORY": str(state),
        "ORCHESTRATOR__WEB__BIND": free_address(),
        **more,
    }
