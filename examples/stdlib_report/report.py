"""The client's side: finds the files, enqueues one task for each, prints the report.

With a daemon running that has `examples.stdlib_report.handlers` among its modules:

    python -m examples.stdlib_report.report

`demo.py` does the same and brings the daemon along.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from examples.stdlib_report.tasks import Measure, Source, measure
from orchestrator import Client, State, Task

# Folders whose files are tests, no modules, or not of the standard library.
_LEFT_OUT = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}


def sources(directory: Path | None = None) -> list[Source]:
    """Return the modules of the standard library, or below `directory`, largest file first.

    In this order the last worker to finish has a small file in hand.
    """
    root = directory or Path(sysconfig.get_path("stdlib"))
    files = list(_files(root))
    files.sort(key=lambda path: (-path.stat().st_size, path))
    return [Source(module=_module(path.relative_to(root)), path=str(path)) for path in files]


def _files(root: Path) -> Iterator[Path]:
    for folder, folders, names in os.walk(root):
        # In place: os.walk does not enter what is taken out, and site-packages may be large.
        folders[:] = [name for name in folders if name not in _LEFT_OUT]
        for name in names:
            path = Path(folder, name)
            if path.suffix == ".py" and path.is_file():
                yield path


def _module(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


def enqueue(client: Client, files: Sequence[Source], tag: str) -> list[Task[Measure]]:
    """Enqueue one task per file; `tag` finds the tasks of this report again."""
    return client.enqueue_many(measure, files, tags=[tag])


def measures(tasks: Iterable[Task[Any]]) -> list[Measure]:
    """Return the results of those tasks that succeeded, most complex module first."""
    found = [
        msgspec.convert(task.result, Measure) for task in tasks if task.state is State.SUCCEEDED
    ]
    return sorted(found, key=lambda one: (-one.complexity, one.module))


def table(found: Sequence[Measure], n: int = 10) -> str:
    """Return the first `n` measures as a table, and the sums of all."""
    rows = [
        ("module", "complexity", "functions", "lines", "KiB", "longest function"),
        *(
            (
                one.module,
                str(one.complexity),
                str(one.functions),
                str(one.lines),
                f"{one.size_bytes / 1024:.0f}",
                f"{one.longest_function} ({one.longest_function_lines} lines)"
                if one.longest_function
                else "-",
            )
            for one in found[:n]
        ),
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.ljust(width) if column in (0, 5) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    total = (
        f"{len(found)} modules, {sum(one.lines for one in found)} lines, "
        f"{sum(one.functions for one in found)} functions, "
        f"{sum(one.branches for one in found)} branches"
    )
    return "\n".join([*lines, "", total])


def main() -> int:
    """Enqueue, wait for all results, print; 1 when a task did not succeed."""
    with Client.from_config() as client:
        tasks = [client.wait(task) for task in enqueue(client, sources(), "stdlib-report")]
    print(table(measures(tasks)))
    failed = [task for task in tasks if task.state is not State.SUCCEEDED]
    for task in failed:
        print(f"task {task.id} is {task.state}: {task.error}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
