"""ONNX's container as a stream: the bytes of large weights are neither parsed nor copied.

A ModelProto is a list of fields, each a number and a payload; so is the graph in it, and so is each initializer there.
`cut` takes the payload of large initializers out of a file's bytes, and what is left is small enough to be parsed;
`Splice` puts payloads back while writing. The result is byte for byte what protobuf itself would write.
Knows field numbers (onnx.proto), not what they mean for a network.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import onnx_ir as ir

LARGE_BYTES = 1 << 16  # payloads above this are cut out; of smaller ones there are too many to gain anything

_GRAPH = 7  # in ModelProto
_INITIALIZER = 5  # in GraphProto
_RAW_DATA = 9  # in TensorProto
_OTHER_DATA = frozenset({3, 4, 5, 6, 7, 10, 11, 13, 14})  # segments, typed lists, external data
_LENGTH_DELIMITED = 2
_FIXED_BYTES = {1: 8, 5: 4}  # wire type to size
_LONGEST_VARINT = 10  # bytes


@dataclass(frozen=True, slots=True)
class Payload:
    """Where the bytes of an initializer lie in the file."""

    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class _Field:
    """`begin` is where its tag begins, `start` where its payload does, `end` where both end."""

    number: int
    wire: int
    begin: int
    start: int
    end: int

    def is_message(self, number: int) -> bool:
        return self.number == number and self.wire == _LENGTH_DELIMITED


def cut(model: memoryview) -> tuple[bytes, list[Payload | None]]:
    """A serialized ModelProto without the large payloads, and one entry for each of the graph's initializers in order.

    Raises ValueError for bytes that are no fields.
    """
    payloads: list[Payload | None] = []
    pieces: list[bytes | memoryview] = []
    for field in _fields(model, 0, len(model)):
        if field.is_message(_GRAPH):
            pieces += _message(_GRAPH, _cut_graph(model, field, payloads))
        else:
            pieces.append(model[field.begin : field.end])
    return b"".join(pieces), payloads


def _cut_graph(model: memoryview, graph: _Field, payloads: list[Payload | None]) -> bytes:
    pieces: list[bytes | memoryview] = []
    for field in _fields(model, graph.start, graph.end):
        payload = None
        if field.is_message(_INITIALIZER):
            payload = _large_payload(model, field)
            payloads.append(None if payload is None else Payload(payload.start, payload.end - payload.start))
        if payload is None:
            pieces.append(model[field.begin : field.end])
        else:
            rest = bytes(model[field.start : payload.begin]) + bytes(model[payload.end : field.end])
            pieces += _message(_INITIALIZER, rest)
    return b"".join(pieces)


def _large_payload(model: memoryview, tensor: _Field) -> _Field | None:
    """The `raw_data` of a tensor that has just this one large payload."""
    if tensor.end - tensor.start <= LARGE_BYTES:
        return None
    fields = list(_fields(model, tensor.start, tensor.end))
    raw = [field for field in fields if field.is_message(_RAW_DATA)]
    if len(raw) != 1 or raw[0].end - raw[0].start <= LARGE_BYTES or any(f.number in _OTHER_DATA for f in fields):
        return None
    return raw[0]


class Splice:
    """A serialized ModelProto into whose initializers payloads are put while it is written.

    `payloads` has one entry for each of the graph's initializers, in order: a tensor whose bytes go there, or None.
    """

    def __init__(self, skeleton: bytes, payloads: Sequence[ir.TensorProtocol | None]) -> None:
        self._bytes = memoryview(skeleton)
        self._graph = next(field for field in _fields(self._bytes, 0, len(skeleton)) if field.is_message(_GRAPH))
        waiting = iter(payloads)
        self._parts = [
            (field, next(waiting) if field.is_message(_INITIALIZER) else None)
            for field in _fields(self._bytes, self._graph.start, self._graph.end)
        ]
        sizes = (_grown(field, tensor) for field, tensor in self._parts)
        self._graph_size = sum(sizes)

    @property
    def size(self) -> int:
        """Of the whole, in bytes."""
        head = len(self._bytes) - (self._graph.end - self._graph.begin)
        return head + len(_head(_GRAPH, self._graph_size)) + self._graph_size

    def write(self, file: BinaryIO) -> None:
        """Raises OSError, and ValueError where a tensor has other bytes than its type and shape say."""
        file.write(self._bytes[: self._graph.begin])
        file.write(_head(_GRAPH, self._graph_size))
        for field, tensor in self._parts:
            if tensor is None:
                file.write(self._bytes[field.begin : field.end])
            else:
                self._write_tensor(file, field, tensor)
        file.write(self._bytes[self._graph.end :])

    def _write_tensor(self, file: BinaryIO, field: _Field, tensor: ir.TensorProtocol) -> None:
        inside = _fields(self._bytes, field.start, field.end)
        where = next((other.begin for other in inside if other.number > _RAW_DATA), field.end)
        file.write(_head(_INITIALIZER, _tensor_size(field, tensor)))
        file.write(self._bytes[field.start : where])
        file.write(_head(_RAW_DATA, tensor.nbytes))
        write_numbers(tensor, file)
        file.write(self._bytes[where : field.end])


def write_numbers(tensor: ir.TensorProtocol, file: BinaryIO) -> None:
    """A tensor's bytes, as `raw_data` and external data have them. Raises ValueError where they are too many or few."""
    start = file.tell()
    if isinstance(tensor, ir.LazyTensor | ir.ExternalTensor | ir.Tensor):
        tensor.tofile(file)
    else:
        file.write(tensor.tobytes())
    written = file.tell() - start
    if written != tensor.nbytes:
        raise ValueError(f"tensor '{tensor.name}' has {written} bytes, its type and shape need {tensor.nbytes}")


def _tensor_size(field: _Field, tensor: ir.TensorProtocol) -> int:
    return field.end - field.start + len(_head(_RAW_DATA, tensor.nbytes)) + tensor.nbytes


def _grown(field: _Field, tensor: ir.TensorProtocol | None) -> int:
    """Bytes of a field of the graph, tag included, once its payload is in it."""
    if tensor is None:
        return field.end - field.begin
    size = _tensor_size(field, tensor)
    return len(_head(_INITIALIZER, size)) + size


def _fields(buffer: memoryview, start: int, end: int) -> Iterator[_Field]:
    while start < end:
        tag, payload = _varint(buffer, start, end)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            _, stop = _varint(buffer, payload, end)
        elif wire == _LENGTH_DELIMITED:
            length, payload = _varint(buffer, payload, end)
            stop = payload + length
        elif wire in _FIXED_BYTES:
            stop = payload + _FIXED_BYTES[wire]
        else:
            raise ValueError(f"wire type {wire}")
        if stop > end or number == 0:
            raise ValueError("a field reaches beyond its message, or has no number")
        yield _Field(number, wire, start, payload, stop)
        start = stop


def _varint(buffer: Any, start: int, end: int) -> tuple[int, int]:
    """Seven bits a byte, lowest first; the number, and where it ends."""
    value = 0
    for index in range(min(_LONGEST_VARINT, end - start)):
        byte = buffer[start + index]
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, start + index + 1
    raise ValueError("a number does not end")


def _message(number: int, content: bytes) -> list[bytes | memoryview]:
    return [_head(number, len(content)), content]


def _head(number: int, length: int) -> bytes:
    """Tag and length of a length-delimited field."""
    head = bytearray()
    for value in (number << 3 | _LENGTH_DELIMITED, length):
        rest = value
        while rest >= 0x80:
            head.append(rest & 0x7F | 0x80)
            rest >>= 7
        head.append(rest)
    return bytes(head)
