"""Counters in memory that several processes share: one process writes a page, any may read it, at any moment.

    page     header | a few cells that nobody reads | series, one behind the other, up to `used_bytes`
    series   length, kind, number of cells, length of the key, check sum | key | cells
    key      family and labels; a cell is a float64, exact for whole numbers up to 2^53

Series are only ever appended. One is written whole, cells at zero, before `used_bytes` covers it: a reader never sees
half of one, and what a writer that was killed had not finished is written over by the next writer of the page. A cell
lies on eight bytes of its own, which processors read and write in one piece. The memory is passed in: an anonymous
mapping that was made before forking, or nothing for a page that nobody else can see. Whoever outlives the writer says
that it is dead (`mark_dead`): what it counted stays, what it measured no longer holds.

Counting never fails: where a page is full, new series count nowhere, and how many those are is told. Knows no metric.
"""

from __future__ import annotations

import json
import logging
import mmap
import os
import struct
import threading
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

log = logging.getLogger(__name__)

PAGE_BYTES = 4 * 1024 * 1024
"""Some 500 versions of models with ten batch sizes each. Of an anonymous mapping only what is written takes memory."""

Labels = tuple[tuple[str, str], ...]
"""Names and values, in the order in which they are shown."""

_MAGIC = b"foldcnt1"
# Words of the header, of eight bytes each: behind the magic.
_USED, _SIZE, _WRITER, _DROPPED = 1, 2, 3, 4
_HEADER_BYTES = 64
_WORD_BYTES = 8
MOST_CELLS = 256
"""Of one series."""
_SERIES_BEGIN = _HEADER_BYTES + MOST_CELLS * _WORD_BYTES
_NOWHERE = _HEADER_BYTES // _WORD_BYTES
# Length of the whole, kind, cells, length of the key, check sum of what stands before the cells.
_SERIES = struct.Struct("<IHHII")
# On processors that reorder what they store (ARM), `used_bytes` may be seen before what it covers. Unsure: never met.
_LOOKS = 3
_BETWEEN_LOOKS_S = 0.001


class PageDamaged(Exception):
    """The memory is no page of counters, or not of this layout. `str(error)` says what was found."""


class Kind(IntEnum):
    """How readings of several pages become one."""

    COUNTER = 1
    """Sum over all pages, those of dead processes included."""
    MAXIMUM = 2
    """Largest of all pages."""
    GAUGE = 3
    """Sum over the pages of living processes."""
    LARGEST_GAUGE = 4
    """Largest of the pages of living processes."""


_OF_THE_LIVING = (Kind.GAUGE, Kind.LARGEST_GAUGE)
_LARGEST = (Kind.MAXIMUM, Kind.LARGEST_GAUGE)


@dataclass(frozen=True, slots=True)
class Key:
    """What names a series."""

    family: str
    labels: Labels = ()

    def packed(self) -> bytes:
        return json.dumps([self.family, self.labels], ensure_ascii=False).encode("utf-8", "surrogateescape")


def _unpacked(text: bytes) -> Key:
    family, labels = json.loads(text.decode("utf-8", "surrogateescape"))
    return Key(family, tuple((name, value) for name, value in labels))


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a series lies: `start` counts cells from the beginning of the page."""

    kind: Kind
    start: int
    cells: int


# --- writing ------------------------------------------------------------------------------------------------------


class CounterPage:
    """The writer's side. `cells` and `buffer` are for adding in place, at what `series` returns.

    Any thread may ask for a series; each cell has one thread that writes it.
    """

    def __init__(self, buffer: Any = None) -> None:
        """buffer: writable memory, all zero or a page whose writer is dead, whose counts then go on; without it a page
        of this process alone. Raises PageDamaged when it holds something else."""
        self.buffer = _private() if buffer is None else buffer
        self.cells = memoryview(self.buffer).cast("B").cast("d")
        self._words = memoryview(self.buffer).cast("B").cast("Q")
        self._lock = threading.Lock()
        self._known: dict[Key, int] = {}
        self._is_full = False
        if not self._words[0]:
            self._words[_SIZE] = self.cells.nbytes
            self._words[_USED] = _SERIES_BEGIN
            memoryview(self.buffer).cast("B")[: len(_MAGIC)] = _MAGIC
        for key, place in _places(self.buffer, _SERIES_BEGIN):
            self._known[key] = place.start
            if place.kind in _OF_THE_LIVING:
                self.cells[place.start : place.start + place.cells] = memoryview(bytes(8 * place.cells)).cast("d")
        self._words[_WRITER] = os.getpid()

    def series(self, kind: Kind, family: str, labels: Labels = (), cells: int = 1) -> int:
        """The place of the first cell of a series, which is made if it is not there yet. Raises nothing."""
        key = Key(family, labels)
        with self._lock:
            start = self._known.get(key)
            if start is None:
                start = self._known[key] = self._append(kind, key, cells)
        return start

    def _append(self, kind: Kind, key: Key, cells: int) -> int:
        assert 0 < cells <= MOST_CELLS
        name = key.packed()
        padded = -len(name) % _WORD_BYTES
        begin = self._words[_USED]
        cells_begin = begin + _SERIES.size + len(name) + padded
        end = cells_begin + cells * _WORD_BYTES
        if end > self.cells.nbytes or end - begin >= 1 << 32:
            return self._drop(key)
        check = zlib.crc32(name, zlib.crc32(struct.pack("<HH", kind, cells)))
        with memoryview(self.buffer).cast("B") as memory:
            memory[cells_begin:end] = bytes(end - cells_begin)
            memory[begin:cells_begin] = _SERIES.pack(end - begin, kind, cells, len(name), check) + name + bytes(padded)
        self._words[_USED] = end
        return cells_begin // _WORD_BYTES

    def _drop(self, key: Key) -> int:
        if not self._is_full:
            self._is_full = True
            log.error("the memory for counters is full: %s and what comes later is not counted", key)
        self.cells[_DROPPED] += 1
        return _NOWHERE


def _private() -> mmap.mmap:
    """Lazily zero, and never shared with a child."""
    if hasattr(mmap, "MAP_PRIVATE"):
        return mmap.mmap(-1, PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return mmap.mmap(-1, PAGE_BYTES)


def mark_dead(buffer: Any) -> None:
    """Says that the page's writer has ended; for whoever has seen it end. The page may be given to another one."""
    memoryview(buffer).cast("B").cast("Q")[_WRITER] = 0


# --- reading ------------------------------------------------------------------------------------------------------


class PageReader:
    """The reader's side of one page; what it has parsed once it remembers."""

    def __init__(self, buffer: Any) -> None:
        self.places: dict[Key, _Place] = {}
        self._buffer = buffer
        self._cells = memoryview(buffer).cast("B").cast("d")
        self._words = memoryview(buffer).cast("B").cast("Q")
        self._parsed_bytes = _SERIES_BEGIN

    @property
    def is_alive(self) -> bool:
        """A page that nobody has begun to write is not."""
        return self._words[_WRITER] != 0

    @property
    def dropped(self) -> int:
        """Series for which there was no room."""
        return int(self._cells[_DROPPED])

    def refresh(self) -> None:
        """Looks for new series. Raises PageDamaged."""
        if not self._words[0] or self._words[_USED] == self._parsed_bytes:
            return
        for look in range(_LOOKS):
            try:
                found = list(_places(self._buffer, self._parsed_bytes))
                break
            except PageDamaged:
                if look == _LOOKS - 1:
                    raise
                time.sleep(_BETWEEN_LOOKS_S)
        self.places.update(found)
        if found:
            last = found[-1][1]
            self._parsed_bytes = (last.start + last.cells) * _WORD_BYTES

    def values(self, place: _Place) -> list[float]:
        return list(map(float, self._cells[place.start : place.start + place.cells]))


def _places(buffer: Any, begin: int) -> Iterator[tuple[Key, _Place]]:
    """Every series of a page from `begin` on. Raises PageDamaged."""
    with memoryview(buffer).cast("B") as memory, memory.cast("Q") as words:
        if bytes(memory[: len(_MAGIC)]) != _MAGIC:
            raise PageDamaged(f"no page of counters of this layout: it begins with {bytes(memory[:8])!r}")
        used, size = words[_USED], words[_SIZE]
        if size != memory.nbytes or not _SERIES_BEGIN <= used <= size:
            raise PageDamaged(f"a page of {memory.nbytes} bytes says that it has {size}, and uses {used}")
        while begin < used:
            begin, found = _place(memory, begin, used)
            yield found


def _place(memory: memoryview, begin: int, used: int) -> tuple[int, tuple[Key, _Place]]:
    if begin + _SERIES.size > used:
        raise PageDamaged(f"a series at byte {begin} is cut off at {used}")
    length, kind, cells, name_bytes, check = _SERIES.unpack_from(memory, begin)
    name_begin = begin + _SERIES.size
    name = bytes(memory[name_begin : name_begin + name_bytes])
    if (
        length != _SERIES.size + name_bytes + -name_bytes % _WORD_BYTES + cells * _WORD_BYTES
        or begin + length > used
        or check != zlib.crc32(name, zlib.crc32(struct.pack("<HH", kind, cells)))
    ):
        raise PageDamaged(f"what stands at byte {begin} is no series")
    end = begin + length
    return end, (_unpacked(name), _Place(Kind(kind), end // _WORD_BYTES - cells, cells))


class Pages:
    """All pages that a reading covers, and the one that this process writes."""

    def __init__(self, own: CounterPage | None = None, others: Iterable[Any] = ()) -> None:
        """others: the memory of the other processes' pages, whether they have begun to write or not."""
        self.own = own or CounterPage()
        self._readers = [PageReader(buffer) for buffer in (self.own.buffer, *others)]

    @property
    def living(self) -> int:
        """Processes that write, this one included."""
        return sum(reader.is_alive for reader in self._readers)

    @property
    def are_shared(self) -> bool:
        return len(self._readers) > 1

    @property
    def dropped(self) -> int:
        """Series for which a page had no room."""
        return sum(reader.dropped for reader in self._readers)

    def value(self, family: str, labels: Labels = ()) -> list[float]:
        """The cells of one series, as one reading of all pages; empty when none has it. Raises PageDamaged."""
        key = Key(family, labels)
        return _merged([(reader, reader.places[key]) for reader in self._refreshed() if key in reader.places])

    def family(self, family: str, begins: Labels = ()) -> dict[Labels, list[float]]:
        """As `value`, of every series of a family whose labels begin so, in the order in which they appeared."""
        readers = self._refreshed()
        keys = dict.fromkeys(
            key
            for reader in readers
            for key in reader.places
            if key.family == family and key.labels[: len(begins)] == begins
        )
        found = {key.labels: self.value(key.family, key.labels) for key in keys}
        return {labels: values for labels, values in found.items() if values}

    def _refreshed(self) -> Sequence[PageReader]:
        for reader in self._readers:
            reader.refresh()
        return self._readers


def _merged(found: Sequence[tuple[PageReader, _Place]]) -> list[float]:
    """Empty, too, where those that are alive alone count and none is."""
    readings = [reader.values(place) for reader, place in found if reader.is_alive or place.kind not in _OF_THE_LIVING]
    if len(readings) <= 1:
        return readings[0] if readings else []
    merge = max if found[0][1].kind in _LARGEST else sum
    return [merge(cells) for cells in zip(*readings, strict=True)]
