"""Which operators a model file uses, read from its bytes: the service has no onnx, and ONNX Runtime does not tell.

Walks the few fields of onnx.proto that lead to operators, in subgraphs and local functions too, and skips everything
else unread, weights included. Says None of what is not such a file. Knows nothing of what the operators do.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

# Field numbers of onnx.proto: what is inside them is walked again, but for the name.
_OPERATOR = "operator"
_NODE: dict[int, object] = {4: _OPERATOR}
_GRAPH: dict[int, object] = {1: _NODE}
_NODE[5] = {6: _GRAPH, 11: _GRAPH}  # attribute: g, graphs
_MODEL: dict[int, object] = {7: _GRAPH, 25: {7: _NODE}}  # graph; functions: node

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_MOST_DEPTH = 64


class _NotAModel(Exception):
    """The bytes are not protobuf as onnx.proto has it."""


def operators_of(path: Path) -> frozenset[str] | None:
    """The types of all operators in an ONNX file, whatever their domain; None where it cannot be read as one."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return frozenset(_walk(data, 0, len(data), _MODEL, 0))
    except (_NotAModel, OSError, ValueError):  # mmap: an empty file
        return None


def _walk(data: mmap.mmap, at: int, end: int, fields: dict[int, object], depth: int) -> Iterator[str]:
    if depth > _MOST_DEPTH:
        raise _NotAModel
    while at < end:
        tag, at = _varint(data, at, end)
        kind, inside = tag & 7, fields.get(tag >> 3)
        if kind == _LENGTH:
            length, at = _varint(data, at, end)
            stop = at + length
            if stop > end:
                raise _NotAModel
            if inside is _OPERATOR:
                yield data[at:stop].decode("utf-8", errors="replace")
            elif isinstance(inside, dict):
                yield from _walk(data, at, stop, inside, depth + 1)
            at = stop
        elif kind == _VARINT:
            _, at = _varint(data, at, end)
        elif kind in (_FIXED64, _FIXED32):
            at += 8 if kind == _FIXED64 else 4
        else:
            raise _NotAModel
    if at != end:
        raise _NotAModel


def _varint(data: mmap.mmap, at: int, end: int) -> tuple[int, int]:
    """A number and where it ends (protobuf: seven bits a byte, the lowest first, at most ten bytes)."""
    value = shift = 0
    while at < min(end, len(data)) and shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise _NotAModel
