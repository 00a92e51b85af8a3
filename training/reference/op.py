"""What an operator function is told about its node, what it may return, and what it raises when it cannot answer.

An operator function is `f(op, *inputs) -> array | tuple of arrays`; an omitted optional input is None. It sees arrays
that `widen` has made: every floating-point type is float64, all others are as stored. It knows no graph.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from training.errors import UserError

Array = NDArray[Any]
Result = Array | tuple[Array | None, ...]
OperatorFunction = Callable[..., Result]


class UnsupportedOperator(UserError):
    """No rule evaluates this node: neither the table nor onnx.reference. Names the node, operator and domain."""

    def __init__(self, text: str, node: ir.Node) -> None:
        super().__init__(text)
        self.node = node


class Unforeseeable(Exception):
    """What an operator function raises when its answer is random. Gives the reason."""


class EvaluationFailed(UserError):
    """A node refused its inputs (shapes that do not fit, an index out of range). Names the node and gives the cause."""


@dataclass(frozen=True, slots=True)
class Op:
    """One node as its operator function sees it.

    `opset` is the version of the node's own domain, `outputs` says which outputs the graph asks for (an optional output
    with an empty name is not asked for), and `attributes` holds plain Python values and NumPy arrays.
    """

    kind: str
    opset: int
    attributes: Mapping[str, Any]
    outputs: tuple[bool, ...] = (True,)

    def get(self, name: str, default: Any = None) -> Any:
        """The attribute, or the default that the operator's page gives."""
        return self.attributes.get(name, default)

    def asks_for(self, index: int) -> bool:
        """Does the graph name output number `index`?"""
        return index < len(self.outputs) and self.outputs[index]


def widen(array: Array) -> Array:
    """float16, bfloat16, float32 and the 8-bit floats become float64 (exact); complex64 becomes complex128.

    4-bit and 2-bit integers, which NumPy computes with only through ml_dtypes, become int8 or uint8. Everything else is
    returned as it is; a float64 array is not copied.
    """
    kind = array.dtype
    if kind.kind == "f":
        return array.astype(np.float64, copy=False)
    if kind.kind == "c":
        return array.astype(np.complex128, copy=False)
    if kind in _SMALL_INTEGERS:
        return array.astype(_SMALL_INTEGERS[kind])
    if is_float(kind):  # the ml_dtypes: NumPy calls their kind "V"
        return array.astype(np.float64)
    return array


_SMALL_INTEGERS = {
    np.dtype(ml_dtypes.int4): np.int8,
    np.dtype(ml_dtypes.uint4): np.uint8,
    np.dtype(ml_dtypes.int2): np.int8,
    np.dtype(ml_dtypes.uint2): np.uint8,
}


@dataclass(frozen=True, slots=True)
class FloatFormat:
    """What one floating-point type can hold: `eps` is the distance from 1 to the next number."""

    eps: float
    smallest_normal: float
    max: float
    bits: int


@cache
def float_format(dtype: np.dtype[Any]) -> FloatFormat:
    """Of any ONNX floating-point type, bfloat16 and the 8-bit ones included. Raises ValueError for other types."""
    info = ml_dtypes.finfo(dtype)  # type: ignore[no-untyped-call]
    return FloatFormat(float(info.eps), float(info.smallest_normal), float(info.max), int(info.bits))


@cache
def is_float(dtype: np.dtype[Any]) -> bool:
    """Is this one of ONNX's floating-point types, ml_dtypes' bfloat16 and float8 included?"""
    if dtype.kind == "f":
        return True
    try:
        float_format(dtype)
    except ValueError:
        return False
    return dtype.kind != "c"
