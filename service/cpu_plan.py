"""How many cores this process may really use: scheduler affinity and cgroup quota, whichever is less.

ONNX Runtime sizes its pools by the host's cores and knows nothing of a container's quota; 64 threads on a quota of two
cores spend their time being throttled. `plan` is pure arithmetic; `read_limits` is the only part that looks at the
machine, under a root that tests choose. Later the number of workers and instances is planned here too.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from service import cgroups


@dataclass(frozen=True, slots=True)
class CpuLimits:
    """What the machine allows. `quota_cores` is CPU time per wall time; infinite when there is no quota."""

    affinity_cores: int
    quota_cores: float


@dataclass(frozen=True, slots=True)
class CpuPlan:
    """What we will use, and why in words for the log."""

    cores: int
    reason: str

    def shared_by(self, workers: int) -> CpuPlan:
        """Of one among several processes that do the same: threads that compete for a core help none of them."""
        if workers <= 1:
            return self
        return CpuPlan(max(1, self.cores // workers), f"{self.reason}, shared by {workers} workers")


def plan(limits: CpuLimits) -> CpuPlan:
    """Whole cores to compute with: never more than either limit allows, at least one.

    A fractional quota is rounded down. The kernel answers one thread too many by stopping the whole process for the
    rest of each period, health probes included, and the fraction that is left feeds the event loop.
    """
    by_quota = limits.affinity_cores if limits.quota_cores == float("inf") else max(1, int(limits.quota_cores))
    if by_quota < limits.affinity_cores:
        return CpuPlan(by_quota, f"cgroup quota of {in_words(limits.quota_cores)}, affinity {limits.affinity_cores}")
    return CpuPlan(limits.affinity_cores, f"affinity of {limits.affinity_cores}, no lower cgroup quota")


def in_words(cores: float) -> str:
    """For the log."""
    return "1 core" if cores == 1 else f"{cores:g} cores"


def read_plan(workers: int = 1) -> CpuPlan:
    """The plan for this process on this machine, where `workers` processes serve."""
    return plan(read_limits()).shared_by(workers)


def read_limits(root: Path = Path("/")) -> CpuLimits:
    """Affinity of this process and the tightest quota of its cgroup and the cgroup's ancestors, read below `root`."""
    quotas = [*_quotas_v2(root), *_quotas_v1(root)]
    return CpuLimits(affinity_cores=_affinity_cores(), quota_cores=min(quotas, default=float("inf")))


def _affinity_cores() -> int:
    # Only Linux has an affinity to ask for.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _quotas_v2(root: Path) -> Iterator[float]:
    """cgroup v2: `cpu.max` holds "<quota_us|max> <period_us>" (kernel: admin-guide/cgroup-v2, CPU interface files)."""
    for folder in cgroups.folders_v2(root):
        yield from _quota(cgroups.words(folder / "cpu.max"))


def _quotas_v1(root: Path) -> Iterator[float]:
    """cgroup v1: `cpu.cfs_quota_us` is -1 when unlimited (kernel: scheduler/sched-bwc)."""
    for folder in cgroups.folders_v1(root, "cpu", "cpu", "cpu,cpuacct"):
        yield from _quota(cgroups.words(folder / "cpu.cfs_quota_us") + cgroups.words(folder / "cpu.cfs_period_us"))


def _quota(quota_and_period_us: list[str]) -> Iterator[float]:
    if len(quota_and_period_us) == 2 and all(word.isdecimal() and int(word) > 0 for word in quota_and_period_us):
        quota_us, period_us = map(int, quota_and_period_us)
        yield quota_us / period_us
