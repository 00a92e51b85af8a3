"""Memory of the whole process: how much there is for it, handing back what was freed, and what stays.

Knows nothing of who uses it, or what for.
"""

from __future__ import annotations

import ctypes
import gc
import math
from collections.abc import Iterator
from pathlib import Path

from service import cgroups


def available_bytes(root: Path = Path("/")) -> float:
    """What this process may still take, roughly: what the machine has free, or what its cgroups allow, whichever is
    less. Infinite where neither can be read."""
    return min([*_free(root), *_limits_v2(root), *_limits_v1(root)], default=math.inf)


def _free(root: Path) -> Iterator[int]:
    """`MemAvailable` of /proc/meminfo, in KiB (kernel: filesystems/proc)."""
    words = cgroups.words(root / "proc/meminfo")
    if "MemAvailable:" in words:
        yield 1024 * int(words[words.index("MemAvailable:") + 1])


def _limits_v2(root: Path) -> Iterator[int]:
    """cgroup v2: `memory.max` is bytes or "max" (kernel: admin-guide/cgroup-v2, memory interface files)."""
    for folder in cgroups.folders_v2(root):
        yield from map(int, filter(str.isdecimal, cgroups.words(folder / "memory.max")))


def _limits_v1(root: Path) -> Iterator[int]:
    """cgroup v1: bytes, and a huge number for no limit (kernel: admin-guide/cgroup-v1/memory)."""
    for folder in cgroups.folders_v1(root, "memory", "memory"):
        yield from map(int, filter(str.isdecimal, cgroups.words(folder / "memory.limit_in_bytes")))


def give_back() -> None:
    """glibc keeps what was freed in pieces, for the next allocation: a model of gigabytes that was unloaded would stay
    in the process's size for good. Elsewhere this does nothing."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # no glibc
        return
    trim(0)


def keep_what_is_there() -> None:
    """What start-up has made (modules, routes, models) stays until the end. The cycle collector would look through all
    of it now and then, some 50 ms at a time, in the middle of somebody's request."""
    gc.collect()
    gc.freeze()
