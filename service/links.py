"""Links in a model repository that lead out of it: what they lead to is not the repository's, and is not served.

Whoever may write into one model's folder could otherwise have the server read any file that it may read itself, and a
client could ask for the load. A link from one place of the repository to another is as good as a copy (Kubernetes
mounts volumes so). Who changes a link in the instant between this look and the reading is not caught.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def leads_out(repository: Path, folder: Path) -> Path | None:
    """The first entry of a model's folder, relative to the repository, that is or holds something outside; None when
    all is inside. Entries whose names begin with "." are not served, and not looked at."""
    root = Path(os.path.realpath(repository))
    seen: set[Path] = set()
    waiting = [folder]
    while waiting:
        place = waiting.pop()
        real = Path(os.path.realpath(place))
        if not real.is_relative_to(root):
            return place.relative_to(repository)
        if real in seen:
            continue
        seen.add(real)
        # What cannot be listed, or is gone by now, is for loading to tell.
        with contextlib.suppress(OSError), os.scandir(place) as entries:
            waiting += [
                Path(entry.path)
                for entry in entries
                if not entry.name.startswith(".") and (entry.is_symlink() or entry.is_dir())
            ]
    return None
