"""What `processes = "auto"` counts: affinity and the quotas of the control groups."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from orchestrator import cpus

V2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n"
V1 = "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"


class Host:
    """A made-up host: its /proc and /sys below `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def write(self, path: str, text: str) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def in_group(self, lines: str, mounts: str) -> None:
        self.write("proc/self/cgroup", lines)
        self.write("proc/self/mountinfo", mounts)


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    return Host(tmp_path)


def test_without_control_groups_affinity_counts(host: Host) -> None:
    assert cpus.available(host.root) == 8


def test_quota_of_version_2_limits_the_number(host: Host) -> None:
    host.in_group("0::/\n", V2)
    host.write("sys/fs/cgroup/cpu.max", "300000 100000\n")

    assert cpus.available(host.root) == 3


def test_quota_of_version_1_limits_the_number(host: Host) -> None:
    host.in_group("4:cpu,cpuacct:/\n", V1)
    host.write("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "200000\n")
    host.write("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n")

    assert cpus.available(host.root) == 2


@pytest.mark.parametrize(
    ("limit", "expected"), [("50000 100000", 1), ("150000 100000", 2), ("1000 100000", 1)]
)
def test_part_of_a_cpu_counts_as_one(host: Host, limit: str, expected: int) -> None:
    host.in_group("0::/\n", V2)
    host.write("sys/fs/cgroup/cpu.max", limit)

    assert cpus.available(host.root) == expected


@pytest.mark.parametrize("limit", ["max 100000", "", "nonsense", "-1 100000"])
def test_group_without_a_limit_limits_nothing(host: Host, limit: str) -> None:
    host.in_group("0::/\n", V2)
    host.write("sys/fs/cgroup/cpu.max", limit)

    assert cpus.available(host.root) == 8


def test_own_group_counts_and_not_the_top(host: Host) -> None:
    host.in_group("0::/system.slice/orchestratord.service\n", V2)
    host.write("sys/fs/cgroup/system.slice/orchestratord.service/cpu.max", "200000 100000")
    host.write("sys/fs/cgroup/system.slice/other.service/cpu.max", "100000 100000")

    assert cpus.available(host.root) == 2


def test_groups_above_the_own_one_count_too(host: Host) -> None:
    host.in_group("0::/a.slice/b.service\n", V2)
    host.write("sys/fs/cgroup/a.slice/b.service/cpu.max", "max 100000")
    host.write("sys/fs/cgroup/a.slice/cpu.max", "400000 100000")

    assert cpus.available(host.root) == 4


@pytest.mark.parametrize(
    ("group", "mount_root"),
    [("/docker/abc", "/docker/abc"), ("/docker/abc", "/elsewhere"), ("/../other", "/")],
)
def test_top_of_the_mount_is_the_own_group_in_a_container(
    host: Host, group: str, mount_root: str
) -> None:
    host.in_group(f"0::{group}\n", V2.replace(" / ", f" {mount_root} ", 1))
    host.write("sys/fs/cgroup/cpu.max", "100000 100000")

    assert cpus.available(host.root) == 1


def test_affinity_limits_a_larger_quota(host: Host) -> None:
    host.in_group("0::/\n", V2)
    host.write("sys/fs/cgroup/cpu.max", "9900000 100000")

    assert cpus.available(host.root) == 8


def test_both_versions_side_by_side_give_the_smaller(host: Host) -> None:
    host.in_group("4:cpu,cpuacct:/\n0::/\n", V1 + V2.replace("/sys/fs/cgroup", "/sys/fs/cgroup/u"))
    host.write("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "500000")
    host.write("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000")
    host.write("sys/fs/cgroup/u/cpu.max", "300000 100000")

    assert cpus.available(host.root) == 3


def test_this_host_has_a_cpu() -> None:
    assert 1 <= cpus.available() <= (os.cpu_count() or 1)
