"""Regions of system shared memory that clients have registered: tensors of local clients that pass the socket by.

A region is a part of a POSIX shared memory object, a file in /dev/shm that a client made (spec: Triton,
extension_shared_memory). It is read and written through its file descriptor, and never mapped:
- Whoever made the object can shrink it at any time, and a mapping that is touched behind the new end kills the process
  (SIGBUS), with everybody's requests. A read through the descriptor just comes back short.
- Whoever made the object can change it at any time. A BOOL that is neither 0 nor 1, the length of a BYTES element or an
  index that changes between its check and its use would be undefined behaviour in the runtime. So inputs are copied out
  once, in one system call, and what was checked is what runs. The copy costs what a socket's would; parsing is saved.

A region that is unregistered while a request uses it lasts until that request is done: an `Area` holds its region open.
Knows no HTTP and no tensors. Registrations change on one event loop, and are for its process alone; inputs and outputs
may also be found, read and written in threads (off_loop.py).
"""

from __future__ import annotations

import os
import resource
import stat
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from service.errors import MalformedRequest, NotFound, NotSupported, RequestMismatch, excerpt, quoted

FLAG = "--system-shared-memory"

PARAMETERS: dict[str, type] = {
    "shared_memory_region": str,
    "shared_memory_byte_size": int,
    "shared_memory_offset": int,
}
"""Of an input or a requested output: what says that, and where, the tensor is in shared memory."""

_NAMES = frozenset(PARAMETERS)
_FOLDER = Path("/dev/shm")  # noqa: S108 - where glibc's shm_open makes objects
_SEMAPHORE = "sem."  # glibc's sem_open makes its objects in the same folder
_MAX_NAME_BYTES = 255
_NAMES_SHOWN = 10
_MAX_OFFSET = 2**62


@dataclass(frozen=True, slots=True)
class RegionStatus:
    """One registered region, as the status routes tell it. `offset` and `byte_size` in bytes."""

    name: str
    key: str
    offset: int
    byte_size: int


class _Region:
    """An open shared memory object and the part of it that was registered. Closed when nobody refers to it any more."""

    def __init__(self, status: RegionStatus, descriptor: int) -> None:
        self.status = status
        self._descriptor = descriptor
        weakref.finalize(self, os.close, descriptor)

    def read(self, offset: int, size_bytes: int) -> memoryview:
        """A copy. Raises OSError, and EOFError when the object has become shorter."""
        buffer = np.empty(size_bytes, np.uint8).data
        done = 0
        while done < size_bytes:
            count = os.preadv(self._descriptor, [buffer[done:]], self.status.offset + offset + done)
            if not count:
                raise EOFError
            done += count
        return buffer

    def write(self, offset: int, data: memoryview) -> None:
        """Raises as `read` does."""
        # Or it would be made longer again; not our business, and nobody would read it there.
        if os.fstat(self._descriptor).st_size < self.status.offset + offset + len(data):
            raise EOFError
        done = 0
        while done < len(data):
            done += os.pwrite(self._descriptor, data[done:], self.status.offset + offset + done)


class Area:
    """A part of a region, for one tensor of one request."""

    __slots__ = ("_offset", "_region", "_where", "size_bytes")

    def __init__(self, region: _Region, offset: int, size_bytes: int, where: str) -> None:
        self._region = region
        self._offset = offset
        self._where = where
        self.size_bytes = size_bytes

    def read(self) -> memoryview:
        """A copy of its bytes. Raises MalformedRequest."""
        try:
            return self._region.read(self._offset, self.size_bytes)
        except (OSError, EOFError) as error:
            raise MalformedRequest(self._told(error, "read")) from error

    def write(self, data: bytes | memoryview) -> None:
        """Fills it from its beginning. Raises RequestMismatch."""
        view = memoryview(data)
        if view.nbytes > self.size_bytes:
            raise RequestMismatch(
                f"{self._where}: the shared memory size specified with the request is {self.size_bytes} bytes, "
                f"should be at least {view.nbytes} bytes to hold the results"
            )
        if not view.nbytes:
            return
        try:
            self._region.write(self._offset, view.cast("B"))
        except (OSError, EOFError) as error:
            raise RequestMismatch(self._told(error, "written")) from error

    def _told(self, error: OSError | EOFError, done: str) -> str:
        why = error.strerror if isinstance(error, OSError) else "its object has become shorter since it was registered"
        return f"{self._where}: shared memory region {quoted(self._region.status.name)} cannot be {done}: {why}"


class SharedMemory:
    """The regions that are registered."""

    def __init__(self, *, is_enabled: bool, max_request_bytes: int, folder: Path = _FOLDER) -> None:
        """max_request_bytes: how much the inputs of one request may copy out of regions, all together."""
        self.is_enabled = is_enabled
        self.max_request_bytes = max_request_bytes
        self._folder = folder
        self._regions: dict[str, _Region] = {}
        self._refusing = RequestAreas(self)
        # Each region keeps a file open, and sockets need some too.
        self._max_regions = max(1, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4)

    def register(self, name: str, key: str, offset: int, size_bytes: int) -> None:
        """Raises NotSupported when this server takes no regions, RequestMismatch when this one cannot be had."""
        if not self.is_enabled:
            raise NotSupported(f"system shared memory is off; start the server with {FLAG} to use it")
        what = f"failed to register shared memory region {quoted(name)}"
        if name in self._regions:
            raise RequestMismatch(f"shared memory region {quoted(name)} already in manager; unregister it first")
        if len(self._regions) >= self._max_regions:
            raise RequestMismatch(f"{what}: there are {len(self._regions)} already, and no more are taken")
        if not 0 <= offset <= _MAX_OFFSET or not 1 <= size_bytes <= _MAX_OFFSET:
            raise RequestMismatch(
                f"{what}: offset is {_shown(offset)} and byte_size is {_shown(size_bytes)}, "
                f"expected at least 0 and at least 1, up to 2**62"
            )
        descriptor = self._open(key, what)
        try:
            _check_object(descriptor, offset + size_bytes, f"{what}: key {quoted(key)}")
        except RequestMismatch:
            os.close(descriptor)
            raise
        self._regions[name] = _Region(RegionStatus(name, key, offset, size_bytes), descriptor)

    def unregister(self, name: str | None = None) -> None:
        """Forgets the region, or all of them. One that is not registered is no error, as in Triton."""
        if name is None:
            self._regions.clear()
        else:
            self._regions.pop(name, None)

    def status(self, name: str | None = None) -> tuple[RegionStatus, ...]:
        """Of one region, or of all. Raises NotFound."""
        if name is None:
            return tuple(region.status for region in self._regions.values())
        if name not in self._regions:
            raise NotFound(f"Unable to find system shared memory region: {quoted(name)}; {self._listed()}")
        return (self._regions[name].status,)

    def area(self, name: str, offset: int, size_bytes: int, where: str) -> Area:
        """Raises MalformedRequest, its line beginning with `where`, when the region does not hold it."""
        region = self._regions.get(name)
        if region is None:
            raise MalformedRequest(
                f"{where}: Unable to find shared memory region: {quoted(name)}; "
                + (self._listed() if self.is_enabled else f"start the server with {FLAG} to use regions")
            )
        if offset < 0 or size_bytes < 0 or offset + size_bytes > region.status.byte_size:
            raise MalformedRequest(
                f"{where}: Invalid offset + byte size for shared memory region: {quoted(name)} has "
                f"{region.status.byte_size} bytes, shared_memory_offset is {_shown(offset)}, "
                f"shared_memory_byte_size is {_shown(size_bytes)}"
            )
        return Area(region, offset, size_bytes, where)

    def for_request(self) -> RequestAreas:
        """For each request its own, unless nothing can be counted."""
        return RequestAreas(self) if self.is_enabled else self._refusing

    def _open(self, key: str, what: str) -> int:
        name = key.removeprefix("/")
        if name in ("", ".", "..") or "/" in name or "\0" in name or len(os.fsencode(name)) > _MAX_NAME_BYTES:
            raise RequestMismatch(
                f"{what}: key {quoted(key)} is not the name of a shared memory object; "
                f"expected a file name of at most {_MAX_NAME_BYTES} bytes, with or without a leading slash"
            )
        if name.startswith(_SEMAPHORE):
            raise RequestMismatch(f"{what}: key {quoted(key)} is a semaphore's, not a shared memory object's")
        try:
            # Not through links, and not waiting: a named pipe would let us wait for its other end.
            return os.open(self._folder / name, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise RequestMismatch(
                f"{what}: Unable to open shared memory region: {quoted(key)}: {error.strerror}"
            ) from error

    def _listed(self) -> str:
        names = ", ".join(map(quoted, islice(list(self._regions), _NAMES_SHOWN))) or "none"
        more = f" and {len(self._regions) - _NAMES_SHOWN} more" if len(self._regions) > _NAMES_SHOWN else ""
        return f"registered are {names}{more}"


def _check_object(descriptor: int, end: int, what: str) -> None:
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise RequestMismatch(f"{what} is not a shared memory object")
    if end > status.st_size:
        raise RequestMismatch(f"{what} has {status.st_size} bytes, offset and byte_size reach to {end}")


def _shown(number: int) -> str:
    """JSON has integers of any length."""
    return excerpt(str(number))


class RequestAreas:
    """What one request uses of the regions. `regions` None: there are none."""

    def __init__(self, regions: SharedMemory | None) -> None:
        self._regions = regions
        self._left_bytes = regions.max_request_bytes if regions else 0

    def find(self, parameters: Mapping[str, Any], where: str) -> Area | None:
        """The area that a tensor's parameters speak of; None when they speak of none.

        parameters: those in `PARAMETERS` have their types. Raises MalformedRequest, its line beginning with `where`.
        """
        if _NAMES.isdisjoint(parameters):
            return None
        given = [name for name in PARAMETERS if name in parameters]
        for name in ("shared_memory_region", "shared_memory_byte_size"):
            if name not in given:
                raise MalformedRequest(f"{where} has parameter {given[0]!r}, but no {name!r}; give both")
        if self._regions is None:
            raise MalformedRequest(f"{where}: shared memory cannot be used here")
        return self._regions.area(
            parameters["shared_memory_region"],
            parameters.get("shared_memory_offset", 0),
            parameters["shared_memory_byte_size"],
            where,
        )

    def read(self, area: Area, where: str) -> memoryview:
        """As `Area.read`, as long as the request does not copy more than it may: an object full of holes takes no
        memory of its maker's."""
        if area.size_bytes > self._left_bytes:
            assert self._regions is not None
            raise MalformedRequest(
                f"{where}: shared_memory_byte_size is {area.size_bytes}, but of the {self._regions.max_request_bytes} "
                f"bytes that one request may bring {self._left_bytes} are left; send fewer rows at a time, or start "
                f"the server with a larger --max-body-bytes"
            )
        self._left_bytes -= area.size_bytes
        return area.read()


NO_AREAS = RequestAreas(None)
"""For requests that can have none; the same for all of them, as nothing is counted."""
