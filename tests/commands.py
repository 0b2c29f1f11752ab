"""orchestratorctl under test: called in this process, or as a program of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from orchestrator.cli.control import main

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Commands:
    """The command line on one database."""

    config: Path

    @classmethod
    def of(cls, dsn: str, folder: Path) -> Commands:
        config = folder / "orchestrator.toml"
        config.write_text(f'[database]\nurl = "{dsn}"\n[web]\nbind = ""\n')
        return cls(config)

    def __call__(self, *words: str, input: str | None = None) -> Result:
        """Run a command; what it raises other than its exit is an error of the test."""
        result = CliRunner().invoke(main, ["-c", str(self.config), *words], input=input)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.output
        return result

    def json(self, *words: str) -> Any:
        """Run a command that must succeed, with `-o json`; return what it prints."""
        result = self(*words, "-o", "json")
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    def ids(self, *words: str) -> list[int]:
        """Run a command that must succeed, with `-o ids`; return them."""
        result = self(*words, "-o", "ids")
        assert result.exit_code == 0, result.output
        return [int(line) for line in result.stdout.splitlines()]

    def words(self, *words: str) -> list[str]:
        """Return the words that run it as a program."""
        return [
            sys.executable, "-m", "orchestrator.cli.control", "-c", str(self.config), *words,
        ]  # fmt: skip

    def start(
        self, *words: str, environ: Mapping[str, str] | None = None, **streams: Any
    ) -> subprocess.Popen[str]:
        """Start it as a program that Ctrl-C ends, even where the tests run with INT ignored.

        Its output is piped unless `streams` say otherwise.
        """
        piped = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(
            self.words(*words),
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), **(environ or {})},
            preexec_fn=_heed_interrupts,  # noqa: PLW1509 - the tests that use it have one thread
            **{**piped, **streams},
        )


def _heed_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
