"""The processes below another one, as Linux lists them in /proc."""

from __future__ import annotations

from pathlib import Path


def children(parent: int) -> list[int]:
    """Process ids of the children that have not ended, in ascending order."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            # Behind the name, which may hold spaces and brackets (proc_pid_stat(5)).
            state, its_parent = stat.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue  # it has just ended
        if int(its_parent) == parent and state != "Z":
            found.append(int(stat.parent.name))
    return sorted(found)
