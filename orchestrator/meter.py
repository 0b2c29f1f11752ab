"""What an attempt uses: wall time, CPU time, peak memory of this process.

The supervisor measures attempts whose process died from the rusage of the dead process; this is
for those that end in order.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from typing import Self

from orchestrator.outcome import Usage

with contextlib.suppress(ImportError):  # Not a Unix: handlers can be tested there all the same.
    import resource

# ru_maxrss is in KiB on Linux and in bytes on macOS.
_MAXRSS_UNIT = 1 if sys.platform == "darwin" else 1024


class Meter:
    """Measures one attempt after the other: `begin`, then `end`.

    Peak memory is that of the attempt and not of the process's life, because writing 5 to
    `/proc/self/clear_refs` resets the kernel's high-water mark (proc(5)); where that is refused,
    it is the life's.
    """

    def __init__(self) -> None:
        self._clear_refs: int | None = None
        self._wall = 0.0
        self._cpu = 0.0
        self._children_maxrss = 0

    def __enter__(self) -> Self:
        # Kept open, so that a handler that uses up all descriptors changes nothing here.
        try:
            self._clear_refs = os.open("/proc/self/clear_refs", os.O_WRONLY | os.O_CLOEXEC)
        except OSError:
            self._clear_refs = None
        return self

    def __exit__(self, *_: object) -> None:
        if self._clear_refs is not None:
            os.close(self._clear_refs)
            self._clear_refs = None

    def begin(self) -> None:
        """Start to measure."""
        if self._clear_refs is not None:
            try:
                os.write(self._clear_refs, b"5")
            except OSError:
                self._clear_refs = None
        self._cpu, _, self._children_maxrss = _read()
        self._wall = time.monotonic()

    def end(self) -> Usage:
        """Return what was used since `begin`, by this process and by children it waited for."""
        wall = time.monotonic() - self._wall
        cpu, own_maxrss, children_maxrss = _read()
        # The children's mark covers all that were ever waited for: it tells about this attempt
        # only where it rose.
        is_risen = children_maxrss > self._children_maxrss
        return Usage(
            wall_seconds=wall,
            cpu_seconds=max(0.0, cpu - self._cpu),
            max_rss_bytes=max(own_maxrss, children_maxrss if is_risen else 0),
        )


def _read() -> tuple[float, int, int]:
    """Return CPU seconds (self and children), and peak bytes of self and of the largest child."""
    if "resource" not in globals():
        return time.process_time(), 0, 0
    own = resource.getrusage(resource.RUSAGE_SELF)
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime
    return cpu, own.ru_maxrss * _MAXRSS_UNIT, children.ru_maxrss * _MAXRSS_UNIT
