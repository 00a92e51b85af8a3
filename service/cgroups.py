"""Where this process's control groups lie in the file system, version 1 and 2, and how their files are read.

Only files below `root`, which tests choose; a file that is not there says nothing. Knows no controller's meaning.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath


def folders_v2(root: Path) -> Iterator[Path]:
    """This process's cgroup and its ancestors, whose limits bind as well (kernel: admin-guide/cgroup-v2)."""
    for path in _own_cgroups(root, controller=""):
        # In hybrid hierarchies version 2 is mounted one level down.
        for mount in ("sys/fs/cgroup", "sys/fs/cgroup/unified"):
            yield from _self_and_ancestors(root / mount, path)


def folders_v1(root: Path, controller: str, *mounts: str) -> Iterator[Path]:
    """As `folders_v2`, of one controller; `mounts`: the folders' names below /sys/fs/cgroup."""
    for path in _own_cgroups(root, controller):
        for mount in mounts:
            yield from _self_and_ancestors(root / "sys/fs/cgroup" / mount, path)


def words(path: Path) -> list[str]:
    return [word for line in _lines(path) for word in line.split()]


def _own_cgroups(root: Path, controller: str) -> Iterator[PurePosixPath]:
    """Paths of this process's cgroups for a controller; `/proc/self/cgroup` lines are "id:controllers:path"."""
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controller in controllers.split(","):
            yield PurePosixPath(path.lstrip("/"))


def _self_and_ancestors(mount: Path, path: PurePosixPath) -> Iterator[Path]:
    """Seen from inside a container the path may be the host's: then only the mount's root exists, and it is the
    container's own cgroup."""
    for ancestor in (path, *path.parents):
        yield mount / ancestor


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return []
