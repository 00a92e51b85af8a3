"""Whole directories appear at once or not at all: lock, staging, fsync, rename, exchange. What the system promises.

Knows nothing of models. Assumes a local POSIX file system, or a network one with flock and atomic rename. Everything is
prepared under names that start with ".", inside the directory it will appear in: no rename crosses a file system.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from training.errors import UserError

LOCK_FILE = ".publish.lock"
STAGING_PREFIX = ".publish-"
SET_ASIDE_PREFIX = ".replaced-"
LOCK_POLL_S = 0.05

_AT_FDCWD = -100  # linux/fcntl.h: paths are relative to the working directory
_RENAME_EXCHANGE = 2  # linux/fs.h, for renameat2(2)
_NO_EXCHANGE_HERE = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP}  # old kernel, or a file system without it


class Busy(UserError):
    """Another process holds the lock and does not let go."""


@contextmanager
def exclusive(directory: Path, timeout_s: float = 60.0) -> Iterator[None]:
    """Hold `directory`'s lock, waiting up to `timeout_s` for it. Raises Busy.

    flock(2) ends with the process that holds it, however that dies. The file is unlinked before the lock is let go, so
    whoever gets a lock makes sure that it is on the file that is there now.
    """
    path = directory / LOCK_FILE
    deadline = time.monotonic() + timeout_s
    while (descriptor := _try_lock(path)) is None:
        if time.monotonic() >= deadline:
            raise Busy(f"{path} is held by another publish for more than {timeout_s:g} s; wait for it or stop it")
        time.sleep(LOCK_POLL_S)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _try_lock(path: Path) -> int | None:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(descriptor), path.stat()):
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


@contextmanager
def staging(directory: Path, prefix: str = ".foldtrain-") -> Iterator[Path]:
    """A fresh invisible directory inside `directory`, removed again with whatever is left in it.

    Only the holder of `exclusive(directory)` may take `STAGING_PREFIX`: what bears it is removed as stale by the next.
    """
    path = Path(tempfile.mkdtemp(prefix=prefix, dir=directory))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def remove_stale_staging(directory: Path) -> None:
    """Remove what killed processes left. Only under `exclusive(directory)`: then no living process owns any of it."""
    for path in directory.glob(f"{STAGING_PREFIX}*/"):
        shutil.rmtree(path)


def sync_tree(directory: Path) -> None:
    """fsync every file and directory below `directory`, and itself: after a power cut they are whole."""
    for root, _, files in os.walk(directory, topdown=False):
        for name in files:
            sync(Path(root, name))
        sync(Path(root))


def sync(path: Path) -> None:
    """fsync one file, or a directory's list of names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def move(source: Path, target: Path) -> None:
    """Rename and make it durable. A directory's `target` must be absent or empty; a file's is replaced."""
    source.rename(target)
    sync(target.parent)
    sync(source.parent)


def swap(staged: Path, live: Path) -> None:
    """Exchange two directories. In one step where the kernel and the file system can (Linux: renameat2).

    Elsewhere in two renames: for a moment `live` is absent, and a process killed in that moment leaves the old one
    beside it, under a name that `restore_set_aside` recognises.
    """
    if not _exchanged(staged, live):
        set_aside = live.with_name(f"{SET_ASIDE_PREFIX}{live.name}")
        live.rename(set_aside)
        try:
            staged.rename(live)
        except BaseException:
            set_aside.rename(live)
            raise
        set_aside.rename(staged)
    sync(live.parent)
    sync(staged.parent)


def restore_set_aside(directory: Path) -> None:
    """Finish a `swap` that was killed between its renames: put the old one back, or drop it when the new is there."""
    for set_aside in directory.glob(f"{SET_ASIDE_PREFIX}*/"):
        live = set_aside.with_name(set_aside.name.removeprefix(SET_ASIDE_PREFIX))
        if live.exists():
            shutil.rmtree(set_aside)
        else:
            move(set_aside, live)


def _exchanged(first: Path, second: Path) -> bool:
    """Whether renameat2(RENAME_EXCHANGE) did it; False where kernel, C library or file system has no such thing."""
    if sys.platform != "linux":
        return False
    with suppress(AttributeError):  # not every C library has the wrapper
        call = ctypes.CDLL(None, use_errno=True).renameat2
        call.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
        if call(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE) == 0:
            return True
        code = ctypes.get_errno()
        if code not in _NO_EXCHANGE_HERE:
            raise OSError(code, os.strerror(code), str(first), None, str(second))
    return False
