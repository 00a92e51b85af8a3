"""The keys that clients show, and what each of them opens: the file that lists them, read anew when it changes.

    # one key a line, behind what it opens; several lines of one scope let keys be replaced one after the other
    infer: 5f1d...            inference, and all that can only be read (metadata, statistics, metrics, documentation)
    control: 90ab...          load, unload, shared memory; and all that can only be read
    read: 77c0...             for a monitor
    infer, control: 0e6f...   both

A key is kept as its SHA-256 only, so comparing takes equally long for every key, of whatever length; all are compared.
Knows neither routes nor headers. No key is ever part of a message.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import stat
from enum import Enum
from pathlib import Path

from service.knobs import SettingsError

log = logging.getLogger(__name__)

# 128 bits, if somebody writes them down as text; `openssl rand -hex 32` makes twice as much.
SHORTEST_KEY = 16
# RFC 6750, 2.1: what a bearer token may be made of.
_KEY = re.compile(r"[A-Za-z0-9._~+/-]+=*")
_LARGEST_FILE_BYTES = 1 << 20


class Scope(Enum):
    """What a key opens. Whatever else it opens, every key may read."""

    READ = "read"
    INFER = "infer"
    CONTROL = "control"


class Keys:
    """A set of keys."""

    def __init__(self, scopes: dict[bytes, frozenset[Scope]]) -> None:
        """scopes: by the SHA-256 of each key."""
        self._scopes = tuple(scopes.items())

    def __len__(self) -> int:
        return len(self._scopes)

    def scopes_of(self, key: bytes) -> frozenset[Scope]:
        """What `key` opens; empty when it is none of ours."""
        shown = hashlib.sha256(key).digest()
        found: frozenset[Scope] = frozenset()
        for digest, scopes in self._scopes:
            if hmac.compare_digest(digest, shown):
                found = scopes
        return found


def read_keys(text: str) -> Keys:
    """The keys that a file's text lists. Raises ValueError, with the line and without what it says."""
    scopes: dict[bytes, frozenset[Scope]] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        words, colon, key = line.partition(":")
        try:
            opened = frozenset(Scope(word.strip()) for word in words.split(",")) if colon else frozenset()
        except ValueError:
            opened = frozenset()
        if not opened:
            raise ValueError(f"line {number} is not 'SCOPE: KEY', where SCOPE is infer, control, read, or several")
        key = key.strip()
        if not _KEY.fullmatch(key):
            raise ValueError(f"line {number}: a key is made of letters, digits and '._~+/-', with '=' only at its end")
        if len(key) < SHORTEST_KEY:
            raise ValueError(
                f"line {number}: the key has {len(key)} characters, at least {SHORTEST_KEY} are needed; "
                f"`openssl rand -hex 32` makes one"
            )
        digest = hashlib.sha256(key.encode("ascii")).digest()
        if digest in scopes:
            raise ValueError(f"line {number} gives a key again; name all that it opens in one line: infer, control")
        scopes[digest] = opened | {Scope.READ}
    if not scopes:
        raise ValueError("it lists no key; a line is 'infer: KEY' or 'control: KEY'")
    return Keys(scopes)


class KeyFile:
    """A file of keys, as it was when it could last be read."""

    def __init__(self, path: Path) -> None:
        """Raises SettingsError when it cannot be used; warns when others may read it."""
        self._path = path
        self._told = ""
        try:
            self._seen = _look(path)
            self.keys = self._read()
            if path.stat().st_mode & stat.S_IROTH:
                log.warning("--api-key-file %s can be read by every user of this machine; chmod o-r it", path)
        except (OSError, ValueError) as error:
            raise SettingsError(f"--api-key-file: {_told(path, error)}") from error

    def refresh(self) -> bool:
        """Reads the file again if it has changed; returns whether the keys have. One that cannot be used leaves the
        keys as they are, and is told in the log."""
        try:
            if (seen := _look(self._path)) == self._seen:
                return False
            self._seen = seen
            self.keys = self._read()
        except (OSError, ValueError) as error:
            if (told := _told(self._path, error)) != self._told:
                log.error("the keys stay as they were: %s", told)
            self._told = told
            return False
        self._told = ""
        log.info("%s has changed: keys: %d", self._path, len(self.keys))
        return True

    def _read(self) -> Keys:
        with self._path.open("rb") as file:
            content = file.read(_LARGEST_FILE_BYTES + 1)
        if len(content) > _LARGEST_FILE_BYTES:
            raise ValueError(f"it is longer than {_LARGEST_FILE_BYTES} bytes")
        try:
            return read_keys(content.decode("utf-8"))
        except UnicodeDecodeError:
            raise ValueError("it is not text in UTF-8") from None


def _look(path: Path) -> tuple[int, ...]:
    """What changes when the file does: edited in place, renamed over, or behind another link (Kubernetes' secrets)."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise ValueError("it is not a regular file")
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _told(path: Path, error: OSError | ValueError) -> str:
    reason = f"cannot be read: {error.strerror}" if isinstance(error, OSError) else str(error)
    return f"{str(path)!r}: {reason}"
