"""How many CPUs this process may use: the meaning of `processes = "auto"`.

The smallest of three: the CPUs it is bound to (affinity, cpusets), and the CPU quotas of its
control group and of the groups above it, as containers and systemd set them (version 2:
`cpu.max`; version 1: `cpu.cfs_quota_us`). A quota of a part of a CPU counts as a whole one.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple


class _Mount(NamedTuple):
    """One mounted hierarchy of control groups; `root` is the group that lies at `point`."""

    root: PurePosixPath
    point: PurePosixPath
    is_version_2: bool


def available(root: Path = Path("/")) -> int:
    """Return the number of CPUs, at least 1. `root` is where /proc and /sys are found."""
    try:
        bound = len(os.sched_getaffinity(0))
    except (AttributeError, OSError):
        bound = os.cpu_count() or 1
    quota = quota_cpus(root)
    return bound if quota is None else max(1, min(bound, math.ceil(quota)))


def quota_cpus(root: Path = Path("/")) -> float | None:
    """Return the smallest CPU quota of the own control groups in CPUs; None without one."""
    quotas = [
        quota
        for directory, is_version_2 in _group_directories(root)
        if (quota := _quota(directory, is_version_2=is_version_2)) is not None
    ]
    return min(quotas, default=None)


def _group_directories(root: Path) -> Iterator[tuple[Path, bool]]:
    """Yield the folder of each control group with CPU quotas that this process is in."""
    groups = _own_groups(_lines(root / "proc/self/cgroup"))
    for mount in _mounts(_lines(root / "proc/self/mountinfo")):
        group = groups.get(mount.is_version_2)
        if group is None:
            continue
        try:
            below = group.relative_to(mount.root)
        except ValueError:
            # A container's mount shows another part of the tree: its top is our group.
            below = PurePosixPath()
        top = root / mount.point.relative_to("/")
        for depth in range(len(below.parts), -1, -1):
            yield top.joinpath(*below.parts[:depth]), mount.is_version_2


def _own_groups(lines: list[str]) -> dict[bool, PurePosixPath]:
    """Read /proc/self/cgroup, lines of `hierarchy:controllers:path`; keyed by "is version 2"."""
    groups: dict[bool, PurePosixPath] = {}
    for line in lines:
        hierarchy, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if hierarchy == "0" and not controllers:
            groups[True] = PurePosixPath(path)
        elif "cpu" in controllers.split(","):
            groups[False] = PurePosixPath(path)
    return groups


def _mounts(lines: list[str]) -> Iterator[_Mount]:
    """Read /proc/self/mountinfo: `id parent dev root point options ... - type source options`."""
    for line in lines:
        before, _, after = line.partition(" - ")
        fields, kind = before.split(" "), after.split(" ")
        if len(fields) < 5 or len(kind) < 3:
            continue
        where = PurePosixPath(fields[3]), PurePosixPath(fields[4])
        if kind[0] == "cgroup2":
            yield _Mount(*where, is_version_2=True)
        elif kind[0] == "cgroup" and "cpu" in kind[2].split(","):
            yield _Mount(*where, is_version_2=False)


def _quota(directory: Path, *, is_version_2: bool) -> float | None:
    if is_version_2:
        words = " ".join(_lines(directory / "cpu.max")).split()
    else:
        words = _lines(directory / "cpu.cfs_quota_us") + _lines(directory / "cpu.cfs_period_us")
    try:
        quota, period = int(words[0]), int(words[1])
    except (IndexError, ValueError):
        # No such file (the root group), or "max": no limit here.
        return None
    return quota / period if quota > 0 and period > 0 else None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
