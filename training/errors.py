"""Errors a user of the command line can cause or mend. `training/__main__.py` prints one as a single line and exits 2.

A message names the thing, what was found, what was expected and the next step, and holds no line break.
"""

from pathlib import Path


class UserError(Exception):
    """Base: something about the input, not a defect of ours. `str(error)` is the one line the user sees."""


def check_the_path(path: str | Path) -> str:
    """The next step where nothing lies there. A relative path starts elsewhere when a run is gone on with elsewhere."""
    return "check the path" + ("" if Path(path).is_absolute() else f", which is looked for from {Path.cwd()}")
