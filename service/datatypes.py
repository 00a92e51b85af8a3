"""One table: protocol datatype, NumPy dtype, ONNX Runtime type, bytes per element. And BYTES packing.

Everything that asks "what is an FP32?" asks here. Pure: no model, no request, no I/O.

Sources: Open Inference Protocol "Tensor Data Types"; Triton extension_binary_data (byte sizes, BYTES packing);
ONNX Runtime's type strings as returned by `InferenceSession.get_inputs()[i].type`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Datatype:
    """One row of the table.

    dtype: little-endian NumPy dtype; for BYTES the object dtype, whose elements are `bytes`; for BF16, which NumPy does
        not have, that of its bit patterns (the upper half of a float32).
    item_bytes: size of one element on the wire; 0 for BYTES, whose elements carry their own length.
    in_json: whether the protocol lets it travel as JSON numbers (FP16 and BF16 do not: Triton, extension_binary_data).
    """

    name: str
    dtype: np.dtype[np.generic]
    ort_type: str
    item_bytes: int
    in_json: bool = True


DATATYPES: dict[str, Datatype] = {
    row.name: row
    for row in (
        Datatype("BOOL", np.dtype("?"), "tensor(bool)", 1),
        Datatype("UINT8", np.dtype("<u1"), "tensor(uint8)", 1),
        Datatype("UINT16", np.dtype("<u2"), "tensor(uint16)", 2),
        Datatype("UINT32", np.dtype("<u4"), "tensor(uint32)", 4),
        Datatype("UINT64", np.dtype("<u8"), "tensor(uint64)", 8),
        Datatype("INT8", np.dtype("<i1"), "tensor(int8)", 1),
        Datatype("INT16", np.dtype("<i2"), "tensor(int16)", 2),
        Datatype("INT32", np.dtype("<i4"), "tensor(int32)", 4),
        Datatype("INT64", np.dtype("<i8"), "tensor(int64)", 8),
        Datatype("BF16", np.dtype("<u2"), "tensor(bfloat16)", 2, in_json=False),
        Datatype("FP16", np.dtype("<f2"), "tensor(float16)", 2, in_json=False),
        Datatype("FP32", np.dtype("<f4"), "tensor(float)", 4),
        Datatype("FP64", np.dtype("<f8"), "tensor(double)", 8),
        Datatype("BYTES", np.dtype(object), "tensor(string)", 0),
    )
}

BY_ORT_TYPE: dict[str, Datatype] = {row.ort_type: row for row in DATATYPES.values()}


def widened_bf16(bits: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    """Bit patterns of BF16 as the float32 that they are the upper half of: the same numbers."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


_LENGTH = struct.Struct("<I")


def pack_bytes(elements: Iterable[bytes]) -> bytes:
    """BYTES elements to the wire: each is a 4-byte little-endian length, then its bytes."""
    return b"".join(_LENGTH.pack(len(element)) + element for element in elements)


def unpack_bytes(buffer: memoryview, count: int) -> npt.NDArray[np.object_]:
    """The wire form of `count` BYTES elements to an object array of `bytes`, shape [count].

    Raises ValueError, with the element's position, when a length runs past the buffer or bytes are left over.
    """
    # A hostile count must not make us allocate: every element takes at least its 4 length bytes.
    if count * 4 > len(buffer):
        raise ValueError(f"{len(buffer)} bytes cannot hold {count} elements of at least 4 bytes each")
    # One copy up front: every element becomes a `bytes` of its own anyway, and slicing bytes is twice as fast.
    data = bytes(buffer)
    elements = np.empty(count, dtype=object)
    offset = 0
    for position in range(count):
        start = offset + 4
        end = start + _LENGTH.unpack_from(data, offset)[0] if start <= len(data) else start
        if end > len(data):
            raise ValueError(f"element {position} ends at byte {end}, but there are {len(data)} bytes")
        elements[position] = data[start:end]
        offset = end
    if offset != len(buffer):
        raise ValueError(f"{len(buffer) - offset} bytes are left over after {count} elements")
    return elements
