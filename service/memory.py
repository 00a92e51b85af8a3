"""Memory of the whole process: hands what was freed back to the system, and tells the cycle collector what stays.

Knows nothing of who freed it, or what it is.
"""

from __future__ import annotations

import ctypes
import gc


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
