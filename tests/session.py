"""A reader at a shell: types the commands of a document and compares what is printed.

What is compared: the printed lines below a command, with numbers, times and the name of the host
left open and spaces counting as one; `...` stands for any lines. The ids of tasks and the pids that
the document shows are remembered with what was really printed in their place, and typed instead of
them later on.
"""

from __future__ import annotations

import os
import queue
import re
import secrets
import signal
import subprocess
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from tests.blocks import Block

_PROMPT = "$ "
_ANYTHING = "..."
# Of the documents' examples: times, numbers, the name of a host.
_TIME = r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\dZ"
_TASK = r"^\d+(?= \S)|(?<=task )\d+|(?<=running )\d+"
_PID = r"(?<![\w.])\d{4,}(?![\w.])"
_OPEN = re.compile(rf"{_TIME}|{_TASK}|{_PID}|\d+\.\d+s\b|\bvm\b|(?<=default-)\d+")
# Commands that change nothing.
_LOOKS = re.compile(r"\b(?:health|list|show)\b")
_PATIENCE_SECONDS = 20.0
# Where an id that was read off is typed again.
_TAKES_TASKS = re.compile(r"\borchestratorctl (?:task|dead) \w+ ")
# `300ms`, `2.1s` and `1m 2s` are what one and the same column may hold.
_NUMBER = r"[\d.]+(?:ms|s|m(?: \d+s)?)?"


@dataclass(frozen=True)
class Typed:
    """One command, and the lines that the document shows below it."""

    command: str
    shown: tuple[str, ...]

    @property
    def fails(self) -> bool:
        """True where the document shows the line of an error."""
        return any(re.match(r"orchestrator(d|ctl): ", line) for line in self.shown)


def typed(block: Block) -> list[Typed]:
    """Return the commands of a `console` block, or the lines of an `sh` block."""
    lines = block.content.splitlines()
    if block.language == "sh":
        return [Typed(line, ()) for line in lines if line and not line.startswith("#")]
    starts = [i for i, line in enumerate(lines) if line.startswith(_PROMPT)]
    ends = [*starts[1:], len(lines)]
    return [
        Typed(lines[begin].removeprefix(_PROMPT), tuple(lines[begin + 1 : end]))
        for begin, end in zip(starts, ends, strict=True)
    ]


@dataclass(frozen=True)
class Printed:
    """What a command did: exit code, output with errors, and seconds."""

    code: int
    output: str
    seconds: float


class Shell:
    """One bash with job control, like the one in a terminal."""

    def __init__(self, folder: Path, environ: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            ["bash", "--norc", "--noprofile"],
            cwd=folder,
            env=dict(environ),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()
        self._mark = secrets.token_hex(8)
        self._write("set -m")

    def run(self, command: str, *, timeout: float = 120.0) -> Printed:
        """Type a command and wait until the prompt would be back.

        Raises:
            AssertionError: it is not back within `timeout` seconds.
        """
        began = time.monotonic()
        self._write(f'{command}\nprintf "\\n%s %s\\n" {self._mark} "$?"')
        lines: list[str] = []
        while True:
            try:
                line = self._lines.get(timeout=max(0.0, began + timeout - time.monotonic()))
            except queue.Empty:
                said = "\n".join(lines)
                raise AssertionError(f"{command!r} does not end; it printed\n{said}") from None
            if line.startswith(self._mark):
                break
            lines.append(line)
        # The line break before the mark.
        output = "\n".join(lines).removesuffix("\n")
        return Printed(int(line.split()[1]), output, time.monotonic() - began)

    def close(self) -> None:
        """End what was started in the background, then the shell."""
        with suppress(AssertionError, OSError):
            # Not INT: where the tests run in the background of a shell, it is ignored by all.
            self.run("kill $(jobs -p) 2>/dev/null; wait", timeout=60)
        with suppress(OSError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(10)

    def _write(self, text: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{text}\n".encode())
        self._process.stdin.flush()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line.decode(errors="replace").rstrip("\n"))


@dataclass
class Reader:
    """Does what a document says, block by block, in one shell.

    `replaced` are texts of the document in whose place others are typed: the address of a server.
    """

    shell: Shell
    replaced: Mapping[str, str] = field(default_factory=dict)
    _seen: dict[str, str] = field(default_factory=dict)

    def write(self, block: Block) -> Path:
        """Write the file of a block into the shell's folder."""
        assert block.file is not None, f"{block}: which file is this?"
        path = Path(self.shell.run("pwd").output.strip(), block.file)
        path.write_text(block.content)
        return path

    def type(self, command: Typed) -> Printed:
        """Type a command, and compare what it prints.

        One that only looks is typed again, for up to 20 s, until what it shows has come about.

        Raises:
            AssertionError: it prints something else, or ends otherwise, than the document shows.
        """
        text = self._really(command.command)
        began = time.monotonic()
        while True:
            printed = self.shell.run(text)
            try:
                self._compare(text, command, printed)
                break
            except AssertionError:
                if not _LOOKS.search(text) or time.monotonic() - began > _PATIENCE_SECONDS:
                    raise
            time.sleep(0.2)
        return replace(printed, seconds=time.monotonic() - began)

    def _really(self, text: str) -> str:
        for shown, real in self.replaced.items():
            text = text.replace(shown, real)

        def read_off(number: re.Match[str]) -> str:
            is_meant = len(number[0]) >= 4 or _TAKES_TASKS.search(text)
            return self._seen.get(number[0], number[0]) if is_meant else number[0]

        return re.sub(r"(?<![\w.])\d+(?![\w.])", read_off, text)

    def _compare(self, text: str, command: Typed, printed: Printed) -> None:
        output = f"$ {text}\n{printed.output}\n(exit code {printed.code})"
        assert (printed.code != 0) == command.fails, output
        if not command.shown:
            return
        lines = [_squeezed(line) for line in printed.output.splitlines() if line.strip()]
        rest = iter(lines)
        may_skip = False
        for line in command.shown:
            if line == _ANYTHING:
                may_skip = True
                continue
            if not line.strip():
                continue
            pattern = _pattern(self._really_shown(line))
            for candidate in rest:
                if found := pattern.fullmatch(candidate):
                    self._remember(line, found.groups())
                    break
                assert may_skip, f"shown:   {line}\nprinted: {candidate}\n{output}"
            else:
                raise AssertionError(f"shown, not printed: {line}\n{output}")
            may_skip = False
        left = list(rest)
        assert may_skip or not left, f"printed, not shown: {left}\n{output}"

    def _really_shown(self, line: str) -> str:
        for shown, real in self.replaced.items():
            line = line.replace(shown, real)
        return line

    def _remember(self, line: str, values: tuple[str, ...]) -> None:
        for shown, value in zip(_OPEN.findall(_squeezed(line)), values, strict=True):
            if shown.isdigit():
                self._seen[shown] = value


def _squeezed(line: str) -> str:
    return " ".join(line.split())


def _pattern(line: str) -> re.Pattern[str]:
    """Return what a shown line matches, with one group for each part that is left open."""
    squeezed = _squeezed(line)
    parts, end = [], 0
    for found in _OPEN.finditer(squeezed):
        parts.append(re.escape(squeezed[end : found.start()]))
        is_time = re.fullmatch(_TIME, found[0])
        shape = r"\S+" if found[0] == "vm" else _TIME if is_time else _NUMBER
        parts.append(f"({shape})")
        end = found.end()
    return re.compile("".join([*parts, re.escape(squeezed[end:])]))
