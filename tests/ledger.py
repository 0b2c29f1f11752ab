"""What handlers say about themselves, outside the database: a witness against its records.

Handlers of `tests.handlers` append `start TASK ATTEMPT PID` and `end TASK ATTEMPT PID`, each line
with one O_APPEND write of its own, so a line that is there was written by a process that lived. A
start without an end was cut short.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple


class Run(NamedTuple):
    """One run of one attempt, by the process that ran it."""

    task: int
    attempt: int
    pid: int


class Ledger:
    """The runs that a ledger file tells of, in the order of their lines."""

    def __init__(self, path: Path) -> None:
        self.started: list[Run] = []
        self.ended: list[Run] = []
        for line in path.read_text().splitlines() if path.exists() else []:
            word, *numbers = line.split()
            runs = self.started if word == "start" else self.ended
            runs.append(Run(*map(int, numbers)))

    @property
    def cut_short(self) -> set[Run]:
        return set(self.started) - set(self.ended)
