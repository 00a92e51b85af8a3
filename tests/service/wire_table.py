"""Golden bytes: tensors with the exact text and the exact bytes that stand for them. Drives decode and encode alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from service.datatypes import DATATYPES


@dataclass(frozen=True)
class Golden:
    """One tensor and its two forms on the wire.

    text: the flat JSON array, as we write it. Empty: the datatype has no JSON form.
    nested: another JSON array that means the same. Empty: there is none.
    """

    name: str
    datatype: str
    array: np.ndarray[Any, Any]
    text: bytes
    binary: bytes
    nested: bytes = b""


def tensor(datatype: str, values: list[Any], shape: list[int] | None = None) -> np.ndarray[Any, Any]:
    """An array of the datatype's dtype; for BYTES, `values` are `bytes`."""
    array = np.empty(len(values), DATATYPES[datatype].dtype)
    array[:] = values
    return array.reshape([len(values)] if shape is None else shape)


GOLDEN = (
    Golden("bool", "BOOL", tensor("BOOL", [True, False]), b"[true,false]", b"\x01\x00"),
    Golden("uint8", "UINT8", tensor("UINT8", [0, 255]), b"[0,255]", b"\x00\xff"),
    Golden("uint16", "UINT16", tensor("UINT16", [1, 65535]), b"[1,65535]", b"\x01\x00\xff\xff"),
    Golden(
        "uint32", "UINT32", tensor("UINT32", [1, 2**32 - 1]), b"[1,4294967295]", b"\x01\x00\x00\x00\xff\xff\xff\xff"
    ),
    Golden("uint64", "UINT64", tensor("UINT64", [2**64 - 1]), b"[18446744073709551615]", b"\xff" * 8),
    Golden("int8", "INT8", tensor("INT8", [-128, 127]), b"[-128,127]", b"\x80\x7f"),
    Golden("int16", "INT16", tensor("INT16", [-32768, 32767]), b"[-32768,32767]", b"\x00\x80\xff\x7f"),
    Golden("int32", "INT32", tensor("INT32", [-(2**31), -2]), b"[-2147483648,-2]", b"\x00\x00\x00\x80\xfe\xff\xff\xff"),
    Golden(
        "int64-beyond-float64",
        "INT64",
        tensor("INT64", [2**53 + 1, -(2**63)]),
        b"[9007199254740993,-9223372036854775808]",
        b"\x01\x00\x00\x00\x00\x00\x20\x00" + b"\x00" * 7 + b"\x80",
    ),
    Golden("bf16", "BF16", tensor("BF16", [0x3F80, 0xC000]), b"", b"\x80\x3f\x00\xc0"),
    Golden("fp16", "FP16", tensor("FP16", [1.0, -2.0]), b"", b"\x00\x3c\x00\xc0"),
    Golden(
        "fp32-in-its-own-shortest-form",
        "FP32",
        tensor("FP32", [0.1, -0.0, 16777216.0]),
        b"[0.1,-0.0,16777216.0]",
        b"\xcd\xcc\xcc\x3d" + b"\x00\x00\x00\x80" + b"\x00\x00\x80\x4b",
    ),
    Golden(
        "fp32-smallest-and-largest",
        "FP32",
        tensor("FP32", [1e-45, 3.4028234663852886e38]),
        b"[1e-45,3.4028235e+38]",
        b"\x01\x00\x00\x00" + b"\xff\xff\x7f\x7f",
    ),
    Golden(
        "fp32-not-finite",
        "FP32",
        tensor("FP32", [float("nan"), 1.5, float("inf"), float("-inf")]),
        b"[NaN,1.5,Infinity,-Infinity]",
        b"\x00\x00\xc0\x7f" + b"\x00\x00\xc0\x3f" + b"\x00\x00\x80\x7f" + b"\x00\x00\x80\xff",
    ),
    Golden("fp64", "FP64", tensor("FP64", [0.1]), b"[0.1]", b"\x9a\x99\x99\x99\x99\x99\xb9\x3f"),
    Golden("fp64-not-finite", "FP64", tensor("FP64", [float("inf")]), b"[Infinity]", b"\x00" * 6 + b"\xf0\x7f"),
    Golden(
        "bytes",
        "BYTES",
        tensor("BYTES", [b"", b"a\x00", "\u00e9".encode()]),
        '["","a\\u0000","\u00e9"]'.encode(),
        b"\x00\x00\x00\x00" + b"\x02\x00\x00\x00a\x00" + b"\x02\x00\x00\x00\xc3\xa9",
    ),
    Golden(
        "rank-2-is-row-major",
        "INT8",
        tensor("INT8", [1, 2, 3, 4, 5, 6], [2, 3]),
        b"[1,2,3,4,5,6]",
        b"\x01\x02\x03\x04\x05\x06",
        nested=b"[[1,2,3],[4,5,6]]",
    ),
    Golden("rank-4-of-ones", "UINT8", tensor("UINT8", [7], [1, 1, 1, 1]), b"[7]", b"\x07", nested=b"[[[[7]]]]"),
    Golden("scalar", "INT8", tensor("INT8", [5], []), b"[5]", b"\x05"),
    Golden("no-elements", "FP32", tensor("FP32", [], [0]), b"[]", b""),
    Golden("no-elements-in-rows", "FP32", tensor("FP32", [], [2, 0, 3]), b"[]", b"", nested=b"[[],[]]"),
    Golden("no-strings", "BYTES", tensor("BYTES", [], [0, 2]), b"[]", b""),
)


def same(left: np.ndarray[Any, Any], right: np.ndarray[Any, Any]) -> bool:
    """Equal in dtype, shape and every bit (NaN equals NaN, -0.0 does not equal 0.0)."""
    if left.dtype != right.dtype or left.shape != right.shape:
        return False
    if left.dtype == object:
        return bool(left.tolist() == right.tolist())
    return left.tobytes() == right.tobytes()
