"""A listening unix socket at a path: made with its permissions, in place of one that a dead server left; and removed.

Knows no server and no settings. The file is the door: who may open it is a matter of its mode and of the folder's.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from pathlib import Path

_PROBE_S = 1.0


class UnixSocket:
    """One that this process listens on."""

    def __init__(self, path: Path, mode: int, backlog: int) -> None:
        """Raises OSError, whose strerror says why, where it cannot be had: another server listens there, too."""
        _make_room(path)
        self.path = path
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self.sock.bind(str(path))
            # Before anybody can connect, which listening allows.
            path.chmod(mode)
            self.sock.listen(backlog)
            self._file = _identity(path)
        except OSError as error:
            self.sock.close()
            # "AF_UNIX path too long" comes without a number.
            raise OSError(error.errno or 0, error.strerror or str(error)) from error

    def remove(self) -> None:
        """Takes the file away, unless it is another server's by now."""
        with contextlib.suppress(OSError):
            if _identity(self.path) == self._file:
                self.path.unlink()


def _make_room(path: Path) -> None:
    """Removes a socket that nobody listens on. Raises OSError when somebody does, or when it is something else."""
    try:
        kind = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(kind):
        raise FileExistsError(0, "there is a file of that name that is not a socket")
    if _is_answered(path):
        raise FileExistsError(0, "another server listens there")
    path.unlink()


def _is_answered(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_PROBE_S)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return False
        except (TimeoutError, BlockingIOError):
            return True  # its backlog is full
    return True


def _identity(path: Path) -> tuple[int, int]:
    found = os.lstat(path)
    return found.st_dev, found.st_ino
