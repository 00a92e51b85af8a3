"""Tensors that are not held in memory: shown by type and shape alone, or left in the file they came in.

A model of many gigabytes is read, folded and written with a few of its weights in memory at a time. The file stays open
as long as one of its tensors is alive, so that it may be replaced or removed meanwhile; it must not be overwritten in
place. Knows bytes and files, no graph.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
import onnx_ir as ir

from training.fold.affine import Array

IN_MEMORY_BYTES = 256 << 20  # a file up to this size is simply read: nothing that happens to it can matter then
_BLOCK_BYTES = 8 << 20


class Source(Protocol):
    """Bytes that can be looked at in part."""

    size: int

    def view(self, offset: int, length: int) -> Any:
        """A read-only buffer of `length` bytes, which lives as long as whoever holds it."""

    def blocks(self, offset: int, length: int) -> Iterator[bytes | memoryview]:
        """The same bytes in pieces. Raises OSError when the file has become shorter."""


class InMemory:
    """A file's bytes."""

    def __init__(self, content: bytes) -> None:
        self._content = memoryview(content)
        self.size = len(content)

    def view(self, offset: int, length: int) -> memoryview:
        return self._content[offset : offset + length]

    def blocks(self, offset: int, length: int) -> Iterator[bytes | memoryview]:
        yield self.view(offset, length)


class OnDisk:
    """An open file. Each view is a mapping of its own: when the array on it is gone, so are its pages."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self.size = os.fstat(self._file.fileno()).st_size

    def view(self, offset: int, length: int) -> memoryview:
        start = offset // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
        mapped = mmap.mmap(self._file.fileno(), offset - start + length, offset=start, access=mmap.ACCESS_READ)
        return memoryview(mapped)[offset - start :]

    def blocks(self, offset: int, length: int) -> Iterator[bytes | memoryview]:
        self._file.seek(offset)
        while length > 0:
            block = self._file.read(min(length, _BLOCK_BYTES))
            if not block:
                raise OSError(f"'{self._file.name}' has become shorter: {length} bytes are missing at its end")
            length -= len(block)
            yield block

    def __del__(self) -> None:
        self._file.close()


def source_of(path: Path) -> Source:
    """The bytes of a file. Raises OSError."""
    return OnDisk(path) if path.stat().st_size > IN_MEMORY_BYTES else InMemory(path.read_bytes())


def _nothing() -> ir.TensorProtocol:
    raise TypeError("the tensor is shown by its type and shape, without its numbers")


class Hollow(ir.LazyTensor):
    """A tensor without its numbers: for whoever asks for nothing else. As a TensorProto it has no data."""

    def __init__(self, like: ir.TensorProtocol) -> None:
        super().__init__(_nothing, **_description(like))

    def tobytes(self) -> bytes:
        return b""


class FileTensor(ir.LazyTensor):
    """Its numbers lie in a source, from `offset` on, as little-endian bytes in row-major order."""

    def __init__(self, like: ir.TensorProtocol, source: Source, offset: int) -> None:
        super().__init__(_nothing, **_description(like))
        self._source = source
        self._offset = offset

    def numpy(self) -> Array:
        """A read-only view."""
        return _array(self._source.view(self._offset, self.nbytes), self)

    def __array__(self, dtype: Any = None) -> Array:
        return self.numpy() if dtype is None else self.numpy().astype(dtype)

    def __dlpack__(self, *, stream: Any = None) -> Any:
        return self.numpy().__dlpack__(stream=stream)

    def __dlpack_device__(self) -> tuple[Any, int]:
        return self.numpy().__dlpack_device__()

    def tobytes(self) -> bytes:
        return bytes(self._source.view(self._offset, self.nbytes))

    def tofile(self, file: BinaryIO) -> None:
        for block in self._source.blocks(self._offset, self.nbytes):
            file.write(block)


class ExternalFileTensor(ir.ExternalTensor):
    """External data, of which no more stays in memory than the arrays that are alive."""

    def __init__(self, tensor: ir.ExternalTensor, source: Source) -> None:
        super().__init__(
            tensor.location,
            tensor.offset,
            tensor.length,
            tensor.dtype,
            shape=ir.Shape(tensor.shape.numpy()),
            name=tensor.name or "",
            doc_string=tensor.doc_string,
            metadata_props=dict(tensor.metadata_props),
            base_dir=tensor.base_dir,
        )
        self._source = source

    def numpy(self) -> Array:
        """A read-only view."""
        return _array(self._source.view(self.offset or 0, self.nbytes), self)

    def __array__(self, dtype: Any = None) -> Array:
        return self.numpy() if dtype is None else self.numpy().astype(dtype)

    def tobytes(self) -> bytes:
        return bytes(self._source.view(self.offset or 0, self.nbytes))

    def tofile(self, file: BinaryIO) -> None:
        for block in self._source.blocks(self.offset or 0, self.nbytes):
            file.write(block)


def _description(tensor: ir.TensorProtocol) -> dict[str, Any]:
    """What a tensor is besides its numbers, as onnx-ir's constructors take it."""
    return {
        "dtype": tensor.dtype,
        "shape": ir.Shape(tensor.shape.numpy()),
        "name": tensor.name,
        "doc_string": tensor.doc_string,
        "metadata_props": dict(tensor.metadata_props),
    }


def is_plain(dtype: ir.DataType) -> bool:
    """Does each element have bytes of its own?"""
    return dtype not in (ir.DataType.STRING, ir.DataType.UNDEFINED) and dtype.bitwidth % 8 == 0


def _array(buffer: Any, tensor: ir.TensorProtocol) -> Array:
    numbers = np.frombuffer(buffer, dtype=tensor.dtype.numpy().newbyteorder("<"))
    return numbers.reshape(tensor.shape.numpy())
