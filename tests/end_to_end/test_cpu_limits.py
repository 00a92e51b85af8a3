"""Cores that the real command counts where it may not use all of the machine's: a cgroup's quota, and an affinity."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from service import cgroups
from service.cpu_plan import plan, read_limits
from tests.end_to_end.running import PATIENCE_S, Foldserve, foldserve
from tests.service.handmade import DOUBLE, save_version

pytestmark = pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity") or plan(read_limits()).cores < 2,
    reason="this process may use one core, and less cannot be counted",
)


@pytest.fixture
def one_core() -> Iterator[Path]:
    """A cgroup with the time of one core, below that of the tests or one above it."""
    root = Path("/")
    limits = [
        (folder, "cpu.cfs_quota_us", "100000") for folder in cgroups.folders_v1(root, "cpu", "cpu", "cpu,cpuacct")
    ]
    limits += [(folder, "cpu.max", "100000 100000") for folder in cgroups.folders_v2(root)]
    for parent, file, quota in limits:
        group = parent / f"foldserve-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            if _is_limited(group, file, quota):
                yield group
                return
        finally:
            _remove(group)
    pytest.skip("no cgroup with a quota can be made: that takes root, and a cpu controller that may be written")


def _is_limited(group: Path, file: str, quota: str) -> bool:
    """Whether it has the quota now, and a process may enter it."""
    try:
        with (group / file).open("r+") as limit:
            limit.write(quota)
    except OSError:
        return False
    return subprocess.run([*entering(group), "true"], stderr=subprocess.DEVNULL, check=False).returncode == 0


def _remove(group: Path) -> None:
    """The kernel may take a moment to notice that the last process has gone."""
    give_up = time.monotonic() + PATIENCE_S
    while group.exists() and time.monotonic() < give_up:
        with contextlib.suppress(OSError):
            group.rmdir()
        time.sleep(0.02)


def entering(group: Path) -> list[str]:
    return ["sh", "-c", 'echo $$ > "$0" && exec "$@"', str(group / "cgroup.procs")]


def pinned_to_one_core() -> list[str]:
    core = min(os.sched_getaffinity(0))
    return [
        sys.executable,
        "-c",
        f"import os, sys; os.sched_setaffinity(0, {{{core}}}); os.execv(sys.argv[1], sys.argv[1:])",
    ]


CHOSEN = {"FOLDSERVE_WORKERS": "0"}


def cpu_plan(service: Foldserve) -> str:
    told: str = service.get("/v2/models/m/config").json()["parameters"]["cpu_plan"]["string_value"]
    return told


def test_a_quota_of_one_core_is_one_worker_with_one_thread(one_core: Path, tmp_path: Path) -> None:
    save_version(tmp_path, "m", DOUBLE)
    reason = f"cgroup quota of 1 core, affinity {len(os.sched_getaffinity(0))}"
    with foldserve("--model-repository", tmp_path, launcher=entering(one_core), environment=CHOSEN) as service:
        assert f"1 process serves: 1 core, {reason}" in service.log()
        assert cpu_plan(service) == f"1 worker x 1 instance x 1 intra-op thread; cores of a worker: 1 ({reason})"


def test_workers_that_were_asked_for_share_the_quota_and_are_warned_of(one_core: Path, tmp_path: Path) -> None:
    save_version(tmp_path, "m", DOUBLE)
    with foldserve("--model-repository", tmp_path, "--workers", "2", launcher=entering(one_core)) as service:
        assert "2 workers share 1 core: more workers than cores serve less" in service.log()
        assert cpu_plan(service).startswith("2 workers x 1 instance x 1 intra-op thread; cores of a worker: 1 (cgroup")
        assert cpu_plan(service).endswith(", shared by 2 workers)")


def test_an_affinity_to_one_core_is_one_worker_with_one_thread(tmp_path: Path) -> None:
    save_version(tmp_path, "m", DOUBLE)
    reason = "affinity of 1, no lower cgroup quota"
    with foldserve("--model-repository", tmp_path, launcher=pinned_to_one_core(), environment=CHOSEN) as service:
        assert f"1 process serves: 1 core, {reason}" in service.log()
        assert cpu_plan(service) == f"1 worker x 1 instance x 1 intra-op thread; cores of a worker: 1 ({reason})"


def test_without_either_all_cores_of_this_process_are_used(tmp_path: Path) -> None:
    save_version(tmp_path, "m", DOUBLE)
    cpu = plan(read_limits())
    with foldserve("--model-repository", tmp_path, "--workers", "1") as service:
        assert cpu_plan(service).endswith(f"; cores of a worker: {cpu.cores} ({cpu.reason})")
