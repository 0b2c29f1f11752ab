"""What the program that enqueues and the workers that run have in common.

Light on purpose: importing it loads neither handlers nor a database driver.
"""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator import TaskType


@dataclass(frozen=True)
class Source:
    """A source file to measure. The file is passed by reference: its path."""

    module: str
    path: str


@dataclass(frozen=True)
class Measure:
    """What was found in one file.

    `branches` is the number of decisions and `complexity` that plus one: the cyclomatic
    complexity of the module taken as a whole (McCabe, "A Complexity Measure", 1976).
    """

    module: str
    size_bytes: int
    lines: int
    functions: int
    branches: int
    complexity: int
    longest_function: str | None
    longest_function_lines: int


measure = TaskType("stdlib:measure", Source, Measure)
