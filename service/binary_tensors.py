"""Tensors as the protocol's bytes become arrays: little-endian, row-major, without gaps. The counterpart to the reading
half of json_tensors.py. Knows no request, and not where the bytes came from.
"""

from __future__ import annotations

import math

import numpy as np

from service.datatypes import Datatype, unpack_bytes
from service.errors import MalformedRequest
from service.json_tensors import shown
from service.protocol import Array


def check_size(what: str, size_bytes: int, datatype: Datatype, shape: tuple[int, ...], where: str) -> None:
    """Whether a tensor can have the size that `what` says. Of BYTES only its elements can tell.

    Raises MalformedRequest, beginning with `where`.
    """
    if datatype.item_bytes and size_bytes != math.prod(shape) * datatype.item_bytes:
        raise MalformedRequest(
            f"{where}: {what} is {shown(size_bytes)}, but shape {list(shape)} of {datatype.name} "
            f"takes {math.prod(shape) * datatype.item_bytes} bytes"
        )


def tensor_from_bytes(buffer: memoryview, datatype: Datatype, shape: tuple[int, ...], where: str) -> Array:
    """The tensor whose elements are `buffer`, whose length `check_size` has seen: a view of it, except for BYTES.

    Raises MalformedRequest, beginning with `where`.
    """
    if datatype.name == "BYTES":
        try:
            return unpack_bytes(buffer, math.prod(shape)).reshape(shape)
        except ValueError as error:
            raise MalformedRequest(f"{where}: BYTES of shape {list(shape)}: {error}") from error
    if datatype.name == "BOOL":
        _refuse_bytes_that_are_not_bool(buffer, where)
    return np.ndarray(shape, datatype.dtype, buffer)


def _refuse_bytes_that_are_not_bool(buffer: memoryview, where: str) -> None:
    """Triton passes such bytes on, but to the runtime's C++ `bool` any other value is undefined behaviour."""
    values = np.frombuffer(buffer, dtype=np.uint8)
    if values.max(initial=0) > 1:
        position = int(np.argmax(values > 1))
        raise MalformedRequest(f"{where}: element {position} is byte {values[position]}; a BOOL is 0 or 1")
