"""Cores and memory by the files of the kernel, of machines that we do not have: faked trees, and a real quota."""

import os

import pytest

from deit.allowance import usable_cores, usable_memory_bytes
from serving.settings.decoding import decoders_for

GIB = 2**30


def fake(root, files):
    for name, text in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")
    return root


@pytest.mark.parametrize("visible", [1, 2, 8, 16, 64, 128])
def test_without_a_quota_the_visible_cores_are_usable(tmp_path, visible):
    assert usable_cores(tmp_path, visible=visible) == visible
    fake(tmp_path, {"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "max 100000"})
    assert usable_cores(tmp_path, visible=visible) == visible


@pytest.mark.parametrize("visible", [1, 2, 8, 16, 64, 128])
@pytest.mark.parametrize(("quota", "cores"), [("50000 100000", 1), ("200000 100000", 2), ("250000 100000", 2)])
def test_a_quota_of_a_container_counts(tmp_path, visible, quota, cores):
    fake(tmp_path, {"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": quota})
    assert usable_cores(tmp_path, visible=visible) == min(visible, cores)


def test_a_quota_of_a_group_above_counts(tmp_path):
    """Such as a systemd slice around a service."""
    group = "sys/fs/cgroup/system.slice"
    fake(tmp_path, {"proc/self/cgroup": "0::/system.slice/deit.service", f"{group}/cpu.max": "400000 100000"})
    fake(tmp_path, {f"{group}/deit.service/cpu.max": "max 100000", f"{group}/memory.max": f"{3 * GIB}"})
    assert usable_cores(tmp_path, visible=64) == 4
    assert usable_memory_bytes(tmp_path) == 3 * GIB


def test_control_groups_of_version_1(tmp_path):
    fake(tmp_path, {"proc/self/cgroup": "4:memory:/docker/0123\n2:cpu,cpuacct:/docker/0123\n0::/"})
    cpu, memory = "sys/fs/cgroup/cpu", "sys/fs/cgroup/memory"
    fake(tmp_path, {f"{cpu}/cpu.cfs_quota_us": "250000", f"{cpu}/cpu.cfs_period_us": "100000"})
    fake(tmp_path, {f"{memory}/memory.limit_in_bytes": str(2 * GIB)})
    assert usable_cores(tmp_path, visible=64) == 2
    assert usable_memory_bytes(tmp_path) == 2 * GIB
    fake(tmp_path, {f"{cpu}/cpu.cfs_quota_us": "-1", f"{memory}/memory.limit_in_bytes": "9223372036854771712"})
    assert usable_cores(tmp_path, visible=64) == 64
    assert usable_memory_bytes(tmp_path) is None


def test_this_process_may_use_no_more_than_it_may_run_on():
    assert 1 <= usable_cores() <= len(os.sched_getaffinity(0))
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert usable_cores() == 1
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.parametrize(
    ("cores", "memory_bytes", "decoders"),
    [
        (1, None, 2),
        (2, None, 3),
        (16, None, 17),
        (2, 2 * GIB, 3),
        (16, 2 * GIB, 16),
        (64, 2 * GIB, 16),  # 65 would hold 1.6 GiB while they have nothing to do
        (128, 2 * GIB, 16),
        (64, None, 32),
        (128, None, 32),
        (64, 128 * 2**20, 2),
    ],
)
def test_decoders_follow_cores_and_stay_below_a_quarter_of_the_memory(cores, memory_bytes, decoders):
    assert decoders_for(cores, memory_bytes) == decoders
