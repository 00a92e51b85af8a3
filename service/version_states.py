"""The states that a version passes through, and reasons for them that more than one file tells.

    (found on disk) -> LOADING -> READY -> UNLOADING -> UNAVAILABLE "unloaded", or gone when another took its place
                          |
                          +--> UNAVAILABLE (with a reason)

Who moves them is the registry.
"""

from __future__ import annotations

from enum import Enum

STARTING = "the first scan of the model repository is not finished"
DRAINING = "the server is stopping; it still answers, but send nothing here any more"
UNLOADED = "unloaded"
"""The reason of what somebody took out of service; any other is a failure."""


class ModelState(Enum):
    """Triton's words, as in its repository index."""

    LOADING = "LOADING"
    READY = "READY"
    UNLOADING = "UNLOADING"
    UNAVAILABLE = "UNAVAILABLE"
