"""How much there is, on file trees that look like each kind of machine; and what is freed goes back to the system: the
proof with a model is in test_registry_loading.py."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Mapping
from pathlib import Path

import pytest

from service import memory

FREE = {"proc/meminfo": "MemTotal: 2000 kB\nMemFree: 1 kB\nMemAvailable:    1000 kB\n"}


@pytest.mark.parametrize(
    ("files", "available"),
    [
        pytest.param({}, math.inf, id="nothing-to-read"),
        pytest.param({"proc/meminfo": "MemTotal: 2000 kB\n"}, math.inf, id="kernel-before-3.14"),
        pytest.param(FREE, 1_024_000, id="no-cgroups"),
        pytest.param(
            FREE | {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "512000\n"}, 512_000, id="v2-limit"
        ),
        pytest.param(
            FREE | {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "max\n"}, 1_024_000, id="v2-unlimited"
        ),
        pytest.param(
            FREE | {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "9999999999\n"},
            1_024_000,
            id="limit-beyond-what-is-free",
        ),
        pytest.param(
            {
                "proc/self/cgroup": "0::/pod/app\n",
                "sys/fs/cgroup/pod/memory.max": "300000\n",
                "sys/fs/cgroup/pod/app/memory.max": "400000\n",
            },
            300_000,
            id="v2-parent-is-tighter",
        ),
        pytest.param(
            {"proc/self/cgroup": "9:memory:/docker/ab\n", "sys/fs/cgroup/memory/memory.limit_in_bytes": "200000\n"},
            200_000,
            id="v1-container-sees-the-host-path",
        ),
    ],
)
def test_available_is_the_least_of_what_is_free_and_what_cgroups_allow(
    files: Mapping[str, str], available: float, tmp_path: Path
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert memory.available_bytes(tmp_path) == available


@pytest.mark.parametrize("failure", [AttributeError("no malloc_trim"), OSError("no libc"), TypeError("no handle")])
def test_without_glibc_nothing_happens(failure: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """musl, macOS and Windows refuse in these three ways."""
    tried = []

    def refuse(name: str | None) -> object:
        tried.append(name)
        raise failure

    monkeypatch.setattr(ctypes, "CDLL", refuse)
    memory.give_back()
    assert tried == [None]


def test_it_can_be_asked_at_any_time() -> None:
    memory.give_back()
    memory.give_back()
