"""Long arrays of numbers in JSON text, read in slices, so that others get the interpreter in between.

orjson keeps the interpreter to itself from the first byte to the last, also in a thread: 9 ms a MiB in which nobody
else is served. So the text is taken apart first. `cut_out` finds the arrays that are long and hold nothing but numbers
or truths, nested or not, and puts a short string in place of each. JSON is context-free: where an array is the value of
a member any other value may stand, so what is left is parsed as ever, and each array is read by itself.

Changes no result and no refusal. Whatever is not exactly as expected raises Unsliceable: then the text has to be read
whole, by those who know what to say. Knows no request.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import TypeVar

import numpy as np

from service.datatypes import Datatype
from service.errors import MalformedRequest
from service.json_tensors import Json, Pause, elements_from_json, parse_json, reads_alike
from service.protocol import Array, InputTensor

ReadT = TypeVar("ReadT")

# An array that takes the event loop less than some 300 us is not worth the trouble.
LONG_BYTES = 32 * 1024
# Half a millisecond of parsing; a pause behind each costs a tenth of that.
_SLICE_BYTES = 64 * 1024
# Looking for the ends of arrays is a hundred times as fast as parsing.
_BLOCK_BYTES = 1024 * 1024
# Between a member's name and its array there is a colon and, if any, some blanks; behind the array likewise.
_EDGE_BYTES = 64
# Of an array, up to its first element, however it is indented.
_BEGINNING_BYTES = 4096


class Unsliceable(MalformedRequest):
    """Read the text whole."""


@dataclass(frozen=True, slots=True, eq=False)
class LongArray:
    """The text of one array of a JSON object's member."""

    text: memoryview
    pause: Pause

    def elements(self, datatype: Datatype, shape: tuple[int, ...], where: str) -> Array:
        """As `elements_from_json`: flat or nested like `shape`. Raises Unsliceable."""
        flat, nesting = self._read(datatype, where)
        if nesting not in (shape, (math.prod(shape),)):
            raise Unsliceable(f"{where}: nested as {nesting}")
        return flat.reshape(shape)

    def nested(self, datatype: Datatype, where: str) -> Array:
        """Its nesting is its shape. Raises Unsliceable."""
        flat, nesting = self._read(datatype, where)
        return flat.reshape(nesting)

    def _read(self, datatype: Datatype, where: str) -> tuple[Array, tuple[int, ...]]:
        """All elements, flat, and how they are nested."""
        parts: list[Array] = []
        separators: list[bytes] = []
        rank = _leading_brackets(bytes(self.text[:_BEGINNING_BYTES]))
        if rank > _MOST_DIMENSIONS:
            raise Unsliceable("more dimensions than NumPy has")
        depth = 0  # of arrays that are open where a slice begins
        for piece, is_last in self._slices():
            behind = depth + piece.count(b"[") - piece.count(b"]")
            if not (behind == 0 if is_last else 0 < behind <= rank):
                raise Unsliceable("brackets in odd places")
            values = _elements(piece, depth, behind, rank)
            try:
                parts.append(elements_from_json(values, datatype, (len(values),), where))
            except MalformedRequest as error:
                raise Unsliceable(str(error)) from error
            is_flat = b"[" not in piece and b"]" not in piece
            separators.append(b"," * (len(values) - 1) if is_flat else piece.translate(None, _NO_SEPARATORS))
            depth = behind
            self.pause()
        flat = np.concatenate(parts)
        flat.flags.writeable = False
        return flat, _nesting(b",".join(separators), len(flat))

    def _slices(self) -> Iterator[tuple[bytes, bool]]:
        """The text, cut at commas, which go; and whether this is the last."""
        start = 0
        while len(self.text) - start > _SLICE_BYTES:
            piece = bytes(self.text[start : start + _SLICE_BYTES])
            comma = piece.rfind(b",")
            if comma < 0:
                raise Unsliceable("a number that fills a slice")
            yield piece[:comma], False
            start += comma + 1
        yield bytes(self.text[start:]), True


# No client can know it, so no client's own string is taken for an array.
_STAND_IN = f"long array {secrets.token_hex(16)} "


class LongArrays:
    """Those that have been cut out, each to be taken once."""

    def __init__(self) -> None:
        self._left: dict[str, LongArray] = {}

    def __len__(self) -> int:
        """How many have not been taken: these stand where no array of numbers belongs."""
        return len(self._left)

    def add(self, array: LongArray) -> str:
        """What is to stand in its place."""
        stand_in = f"{_STAND_IN}{len(self._left)}"
        self._left[stand_in] = array
        return stand_in

    def stands(self, value: Json) -> bool:
        """Does `value` stand for one of those that are left?"""
        return type(value) is str and value in self._left

    def take(self, value: Json) -> LongArray | None:
        """The array that `value` stands for, if it stands for one."""
        return self._left.pop(value, None) if type(value) is str else None


def cut_out(text: memoryview, pause: Pause) -> tuple[bytes, LongArrays]:
    """`text` with a string for each long array that is the value of a member, and these arrays."""
    found = LongArrays()
    kept: list[bytes | memoryview] = []
    behind = 0
    for gap_start, gap_end in _gaps(text, pause):
        start, end = _array_between(text, gap_start, gap_end)
        if end - start < LONG_BYTES:
            continue
        # Should the array stand inside a string, these quotes end that string, and nothing can be parsed any more.
        kept += [text[behind:start], f'"{found.add(LongArray(text[start:end], pause))}"'.encode("ascii")]
        behind = end
    return b"".join([*kept, text[behind:]]), found


def _gaps(text: memoryview, pause: Pause) -> Iterator[tuple[int, int]]:
    """Where for a long time no string and no object begins or ends."""
    last = 0
    for start in range(0, len(text), _BLOCK_BYTES):
        block = np.frombuffer(text[start : start + _BLOCK_BYTES], dtype=np.uint8)
        ends = np.flatnonzero((block == ord('"')) | (block == ord("{")) | (block == ord("}"))) + start
        if len(ends):
            befores = np.concatenate(([last], ends[:-1] + 1))
            for index in np.flatnonzero(ends - befores >= LONG_BYTES).tolist():
                yield int(befores[index]), int(ends[index])
            last = int(ends[-1]) + 1
        pause()


def _array_between(text: memoryview, start: int, end: int) -> tuple[int, int]:
    """From its first bracket to behind its last one, if it is the value of a member; otherwise nothing."""
    before, found, _ = bytes(text[start : start + _EDGE_BYTES]).partition(b"[")
    behind = bytes(text[end - _EDGE_BYTES : end]).rfind(b"]") + 1
    if before.strip(_WHITESPACE) != b":" or not found or not behind:
        return start, start
    return start + len(before), end - _EDGE_BYTES + behind


def read_in_slices(
    text: memoryview,
    pause: Pause,
    read: Callable[[memoryview, LongArrays], ReadT],
    tensors_of: Callable[[ReadT], Iterable[InputTensor]],
) -> ReadT | None:
    """What `read` makes of `text` without its long arrays, and of these: it takes them all, or raises Unsliceable. None
    where there is nothing long in it, or anything is amiss: whoever reads it whole knows what to say."""
    left, arrays = cut_out(text, pause)
    if not arrays:
        return None
    try:
        found = read(memoryview(left), arrays)
    except MalformedRequest:
        return None
    return found if _all_finite(tensors_of(found)) or reads_alike(left) else None


def _all_finite(tensors: Iterable[InputTensor]) -> bool:
    """Without bare words, then: no number in JSON is infinite."""
    return all(tensor.data.dtype.kind != "f" or bool(np.isfinite(tensor.data).all()) for tensor in tensors)


# --- how an array is nested ---------------------------------------------------------------------------------------

_MOST_DIMENSIONS = 64  # NumPy's own limit
_WHITESPACE = b" \t\r\n"
_NO_SEPARATORS = bytes(byte for byte in range(256) if byte not in b"[],")


def _leading_brackets(text: bytes) -> int:
    return text[: len(text) - len(text.lstrip(b"[" + _WHITESPACE))].count(b"[")


def _elements(piece: bytes, depth: int, behind: int, rank: int) -> list[Json]:
    """Of a slice that begins inside `depth` arrays and ends inside `behind`. With these opened before it and closed
    behind it, it is JSON if and only if the whole is, and all elements are as deep as in the whole."""
    try:
        values = parse_json(memoryview(b"[" * depth + piece + b"]" * behind))
        for _ in range(rank - 1):
            values = list(chain.from_iterable(values))
    except (MalformedRequest, TypeError) as error:  # TypeError: an element where there should be an array
        raise Unsliceable(str(error)) from error
    if type(values) is not list:
        raise Unsliceable("not an array")
    return values


def _nesting(separators: bytes, size: int) -> tuple[int, ...]:
    """The shape of an array of `size` elements whose brackets and commas these are. Raises Unsliceable if ragged.

    From inside out: what the first array of each depth is like tells what the whole must be like.
    """
    rank = len(separators) - len(separators.lstrip(b"["))
    shape: list[int] = []
    array = b""  # the first one of the depth before; of an element nothing is left
    for depth in range(rank):
        end = separators.find(b"]" * (depth + 1)) + depth
        length = end - (rank - depth)  # of what is between its brackets
        count, rest = divmod(length + 1, len(array) + 1)
        if length < 0 or rest:
            raise Unsliceable("a ragged array")
        shape.insert(0, count)
        array = b"[%b]" % ((array + b",") * count)[:-1]
    if array != separators or math.prod(shape) != size:
        raise Unsliceable("a ragged array")
    return tuple(shape)
