"""How many cores this process may really use: scheduler affinity and cgroup quota, whichever is less.

ONNX Runtime sizes its pools by the host's cores and knows nothing of a container's quota; 64 threads on a quota of two
cores spend their time being throttled. `plan` is pure arithmetic; `read_limits` is the only part that looks at the
machine, under a root that tests choose. Later the number of workers and instances is planned here too.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath


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


def plan(limits: CpuLimits) -> CpuPlan:
    """Whole cores to compute with: never more than either limit allows, at least one.

    A fractional quota is rounded down. The kernel answers one thread too many by stopping the whole process for the
    rest of each period, health probes included, and the fraction that is left feeds the event loop.
    """
    by_quota = limits.affinity_cores if limits.quota_cores == float("inf") else max(1, int(limits.quota_cores))
    if by_quota < limits.affinity_cores:
        return CpuPlan(by_quota, f"cgroup quota of {limits.quota_cores:g} cores, affinity {limits.affinity_cores}")
    return CpuPlan(limits.affinity_cores, f"affinity of {limits.affinity_cores}, no lower cgroup quota")


def read_plan() -> CpuPlan:
    """The plan for this process on this machine."""
    return plan(read_limits())


def read_limits(root: Path = Path("/")) -> CpuLimits:
    """Affinity of this process and the tightest quota of its cgroup and the cgroup's ancestors, read below `root`."""
    quotas = [*_quotas_v2(root), *_quotas_v1(root)]
    return CpuLimits(affinity_cores=_affinity_cores(), quota_cores=min(quotas, default=float("inf")))


def _affinity_cores() -> int:
    # Only Linux has an affinity to ask for.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _quotas_v2(root: Path) -> Iterator[float]:
    """cgroup v2: `cpu.max` holds "<quota_us|max> <period_us>" (kernel: admin-guide/cgroup-v2, CPU interface files)."""
    for path in _own_cgroups(root, controller=""):
        # In hybrid hierarchies version 2 is mounted one level down.
        for mount in ("sys/fs/cgroup", "sys/fs/cgroup/unified"):
            for folder in _self_and_ancestors(root / mount, path):
                words = _words(folder / "cpu.max")
                if len(words) == 2:
                    yield from _quota(words[0], words[1])


def _quotas_v1(root: Path) -> Iterator[float]:
    """cgroup v1: `cpu.cfs_quota_us` is -1 when unlimited (kernel: scheduler/sched-bwc)."""
    for path in _own_cgroups(root, controller="cpu"):
        for mount in ("sys/fs/cgroup/cpu", "sys/fs/cgroup/cpu,cpuacct"):
            for folder in _self_and_ancestors(root / mount, path):
                words = _words(folder / "cpu.cfs_quota_us") + _words(folder / "cpu.cfs_period_us")
                if len(words) == 2:
                    yield from _quota(words[0], words[1])


def _own_cgroups(root: Path, controller: str) -> Iterator[PurePosixPath]:
    """Paths of this process's cgroups for a controller; `/proc/self/cgroup` lines are "id:controllers:path"."""
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controller in controllers.split(","):
            yield PurePosixPath(path.lstrip("/"))


def _self_and_ancestors(mount: Path, path: PurePosixPath) -> Iterator[Path]:
    """A quota on any ancestor binds. Seen from inside a container the path may be the host's: then only the mount's
    root exists, and it is the container's own cgroup."""
    for ancestor in (path, *path.parents):
        yield mount / ancestor


def _quota(quota_us: str, period_us: str) -> Iterator[float]:
    if quota_us.isdecimal() and period_us.isdecimal() and int(quota_us) > 0 and int(period_us) > 0:
        yield int(quota_us) / int(period_us)


def _words(path: Path) -> list[str]:
    return [word for line in _lines(path) for word in line.split()]


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return []
