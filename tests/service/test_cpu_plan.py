"""Cores from affinity and quota, on file trees that look like each kind of machine."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from service.cpu_plan import CpuLimits, plan, read_limits, read_plan

UNLIMITED = float("inf")


@pytest.mark.parametrize(
    ("affinity", "quota", "cores"),
    [
        pytest.param(8, UNLIMITED, 8, id="no-quota"),
        pytest.param(8, 2.0, 2, id="quota-below-affinity"),
        pytest.param(2, 6.0, 2, id="affinity-below-quota"),
        pytest.param(4, 4.0, 4, id="equal"),
        pytest.param(8, 1.5, 1, id="fraction-is-rounded-down"),
        pytest.param(8, 0.25, 1, id="at-least-one"),
        pytest.param(1, UNLIMITED, 1, id="one-core"),
    ],
)
def test_plan_takes_the_lesser_limit_in_whole_cores(affinity: int, quota: float, cores: int) -> None:
    assert plan(CpuLimits(affinity, quota)).cores == cores


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        pytest.param({}, UNLIMITED, id="no-cgroups-at-all"),
        pytest.param(
            {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"}, 1.5, id="v2-container"
        ),
        pytest.param(
            {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, UNLIMITED, id="v2-unlimited"
        ),
        pytest.param(
            {
                "proc/self/cgroup": "0::/user.slice/job\n",
                "sys/fs/cgroup/user.slice/cpu.max": "200000 100000",
                "sys/fs/cgroup/user.slice/job/cpu.max": "400000 100000",
            },
            2.0,
            id="v2-parent-is-tighter",
        ),
        pytest.param(
            {
                "proc/self/cgroup": "4:cpu,cpuacct:/docker/ab:cd\n0::/\n",
                "sys/fs/cgroup/cpu,cpuacct/docker/ab:cd/cpu.cfs_quota_us": "50000\n",
                "sys/fs/cgroup/cpu,cpuacct/docker/ab:cd/cpu.cfs_period_us": "100000\n",
            },
            0.5,
            id="v1-host-path-with-a-colon",
        ),
        pytest.param(
            {
                "proc/self/cgroup": "2:cpu:/docker/abcd\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "300000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            3.0,
            id="v1-container-sees-the-host-path",
        ),
        pytest.param(
            {
                "proc/self/cgroup": "2:cpu:/\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            UNLIMITED,
            id="v1-unlimited",
        ),
        pytest.param(
            {"proc/self/cgroup": "1:cpu:/\n0::/\n", "sys/fs/cgroup/unified/cpu.max": "100000 100000"},
            1.0,
            id="hybrid",
        ),
        pytest.param(
            {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "what 7\n"}, UNLIMITED, id="v2-unreadable-words"
        ),
        pytest.param({"proc/self/cgroup": "nonsense\n"}, UNLIMITED, id="unreadable-cgroup-line"),
        pytest.param(
            {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "100000 0\n"}, UNLIMITED, id="period-zero"
        ),
    ],
)
def test_quota_is_found_on_every_kind_of_machine(files: Mapping[str, str], quota: float, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert read_limits(tmp_path).quota_cores == quota


def test_this_machine_has_a_plan_within_its_affinity() -> None:
    assert 1 <= read_plan().cores <= len(os.sched_getaffinity(0))


def test_the_reason_names_the_limit_that_decided() -> None:
    assert "quota of 1.5" in plan(CpuLimits(8, 1.5)).reason
    assert "affinity of 8" in plan(CpuLimits(8, UNLIMITED)).reason
