import os
from pathlib import Path

import pytest

from deit.machine import usable_cores


@pytest.fixture(params=[1, 2, 16, 128])
def cores(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """A machine that is not here; what the kernel says about cgroups is written into a folder."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(request.param)))
    return int(request.param)


def within(folder: Path, membership: str, files: dict[str, str]) -> int:
    for name, content in files.items():
        file = folder / "cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    (folder / "self").write_text(membership)
    return usable_cores(folder / "cgroup", folder / "self")


def test_without_a_quota_every_core_counts(tmp_path: Path, cores: int) -> None:
    assert usable_cores(tmp_path / "nowhere", tmp_path / "nothing") == cores
    assert within(tmp_path, "0::/\n", {"cpu.max": "max 100000\n"}) == cores


@pytest.mark.parametrize(("quota", "allowed"), [(50_000, 1), (100_000, 1), (250_000, 2), (400_000, 4), (6_400_000, 64)])
def test_a_quota_counts_by_whole_cores(tmp_path: Path, cores: int, quota: int, allowed: int) -> None:
    assert within(tmp_path, "0::/\n", {"cpu.max": f"{quota} 100000\n"}) == min(cores, allowed)


def test_the_least_quota_of_the_cgroups_above_counts(tmp_path: Path, cores: int) -> None:
    files = {"pod/cpu.max": "300000 100000\n", "pod/container/cpu.max": "max 100000\n"}
    assert within(tmp_path, "0::/pod/container\n", files) == min(cores, 3)


def test_cgroups_of_version_1_count_too(tmp_path: Path, cores: int) -> None:
    """In a container, where the path is the host's and only its root is seen."""
    files = {"cpu/cpu.cfs_quota_us": "150000\n", "cpu/cpu.cfs_period_us": "50000\n"}
    assert within(tmp_path, "5:devices:/docker/1f\n3:cpu,cpuacct:/docker/1f\n", files) == min(cores, 3)
    files["cpu/cpu.cfs_quota_us"] = "-1\n"
    assert within(tmp_path, "3:cpu,cpuacct:/docker/1f\n", files) == cores


def test_this_machine_has_what_the_kernel_says() -> None:
    assert 1 <= usable_cores() <= len(os.sched_getaffinity(0))
