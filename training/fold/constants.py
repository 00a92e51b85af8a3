"""Which numbers does a tensor always hold? Initializers, Constant nodes, and chains of shape-changing nodes over them.

Exporters write a vector of zeros as Constant -> CastLike -> Expand(Shape(..)), and a Linear's weight as a Transpose:
these chains are seen through, with the arithmetic the run time would do. Anything that a caller of the model can
override (an initializer that is also a graph input) or that needs data is refused with the node's name.
Knows no BatchNormalization, edits nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from training.fold.affine import Array
from training.fold.errors import FoldError
from training.fold.graph import describe, is_standard
from training.fold.refusal import Refusal
from training.fold.shapes import Shapes
from training.fold.weights import BFLOAT16, round_once, widen

_MAX_CHAIN = 64  # nodes; exporters' chains have about five
_MAX_ELEMENTS = 1 << 28  # of a constant that an Expand or ConstantOfShape would blow up: no weight is made that way
_CASTABLE = {
    ir.DataType.FLOAT: np.dtype(np.float32),
    ir.DataType.DOUBLE: np.dtype(np.float64),
    ir.DataType.FLOAT16: np.dtype(np.float16),
    ir.DataType.BFLOAT16: BFLOAT16,
    ir.DataType.INT32: np.dtype(np.int32),
    ir.DataType.INT64: np.dtype(np.int64),
}


class _NotConstant(Exception):
    """Unwinds a chain; becomes a Refusal at the door of this file."""


class Constants:
    """Answers for one model. Arrays are views where possible: never write into them."""

    def __init__(self, shapes: Shapes) -> None:
        self._shapes = shapes

    def of(self, value: ir.Value) -> Array | Refusal:
        """The value's numbers in its own dtype, or why they are not constant ("'w' is computed by Relu 'r'")."""
        try:
            return self._read(value, depth=0)
        except _NotConstant as no:
            return Refusal(str(no))

    def _read(self, value: ir.Value, depth: int) -> Array:
        if depth > _MAX_CHAIN:
            raise _NotConstant(f"'{value.name}' lies behind more than {_MAX_CHAIN} nodes")
        if value.is_graph_input():
            extra = " with a default that a caller may override" if value.is_initializer() else ""
            raise _NotConstant(f"'{value.name}' is a graph input{extra}")
        if value.is_initializer():
            return _numbers(value.const_value, value.name)
        node = value.producer()
        if node is None:
            raise _NotConstant(f"'{value.name}' is not computed in this graph")
        evaluate = _EVALUATORS.get(node.op_type) if is_standard(node) else None
        if evaluate is None:
            raise _NotConstant(f"'{value.name}' is computed by {describe(node)}")
        try:
            return evaluate(_Reader(node, self, depth))
        except (ValueError, LookupError, TypeError) as error:  # operands that do not fit together: the node is at fault
            why = " ".join(str(error).split())
            raise _NotConstant(f"'{value.name}' is computed by {describe(node)}, which fails: {why}") from error


@dataclass(frozen=True)
class _Reader:
    """A node of a chain, and the way to its operands."""

    node: ir.Node
    constants: Constants
    depth: int

    def operand(self, index: int) -> Array:
        return self.constants._read(self._value(index), self.depth + 1)

    def sizes(self, index: int) -> list[int]:
        """A constant 1-D integer operand, such as a shape or axes."""
        return [int(size) for size in np.atleast_1d(self.operand(index))]

    def has(self, index: int) -> bool:
        return index < len(self.node.inputs) and self.node.inputs[index] is not None

    def static_dims(self, index: int) -> tuple[int | None, ...]:
        value = self._value(index)
        dims = self.constants._shapes.dims(value)
        if dims is None:
            raise _NotConstant(f"the rank of '{value.name}', which {describe(self.node)} asks for, is not known")
        return dims

    def dtype_of(self, index: int) -> ir.DataType | None:
        return self.constants._shapes.dtype(self._value(index))

    def refuse(self, what: str) -> _NotConstant:
        return _NotConstant(f"'{self.node.outputs[0].name}' is computed by {describe(self.node)}, {what}")

    def _value(self, index: int) -> ir.Value:
        value = self.node.inputs[index] if self.has(index) else None
        if value is None:
            raise self.refuse(f"which lacks its operand {index}")
        return value


def _numbers(tensor: ir.TensorProtocol | None, name: str | None) -> Array:
    if tensor is None:
        raise _NotConstant(f"'{name}' is an initializer without data")
    if tensor.dtype == ir.DataType.STRING:
        raise _NotConstant(f"'{name}' holds strings")
    try:
        return tensor.numpy()
    except (OSError, ValueError, TypeError) as error:  # external data that is gone, or data that does not fit its shape
        raise FoldError(f"tensor '{name}' cannot be read: {' '.join(str(error).split())}") from error


def _constant(r: _Reader) -> Array:
    for name, dtype in (("value_float", np.float32), ("value_floats", np.float32)):
        if name in r.node.attributes:
            return np.array(r.node.attributes[name].value, dtype=dtype)
    for name in ("value_int", "value_ints"):
        if name in r.node.attributes:
            return np.array(r.node.attributes[name].value, dtype=np.int64)
    value = r.node.attributes.get("value")
    if value is None or value.is_ref():
        raise r.refuse("which holds no dense number")
    return _numbers(value.as_tensor(), r.node.outputs[0].name)


def _cast_to(r: _Reader, target: ir.DataType | None) -> Array:
    values = r.operand(0)
    dtype = None if target is None else _CASTABLE.get(target)
    if dtype is None:
        raise r.refuse(f"to {target.name if target is not None else 'an unknown type'}")
    if dtype == BFLOAT16:
        return round_once(widen(values), dtype)
    with np.errstate(all="ignore"):  # overflow to inf is what the run time does; folding then refuses the inf
        return values.astype(dtype)


def _cast(r: _Reader) -> Array:
    return _cast_to(r, ir.DataType(r.node.attributes["to"].as_int()))  # opset 1 has a string here: refused as failing


def _expand(r: _Reader) -> Array:
    values = r.operand(0)
    return np.broadcast_to(values, _affordable(r, np.broadcast_shapes(values.shape, tuple(r.sizes(1)))))


def _constant_of_shape(r: _Reader) -> Array:
    attribute = r.node.attributes.get("value")
    fill = np.zeros(1, np.float32) if attribute is None else _numbers(attribute.as_tensor(), r.node.outputs[0].name)
    return np.broadcast_to(fill.reshape(()), _affordable(r, tuple(r.sizes(0))))


def _affordable(r: _Reader, shape: tuple[int, ...]) -> tuple[int, ...]:
    elements = 1
    for size in shape:
        elements *= size
    if not 0 <= elements <= _MAX_ELEMENTS:
        raise r.refuse(f"whose {elements} elements are not a weight")
    return shape


def _reshape(r: _Reader) -> Array:
    """Opset 5 on has the shape as operand; 0 keeps the size, unless `allowzero` (opset 14)."""
    values, shape = r.operand(0), r.sizes(1)
    if not r.node.attributes.get_int("allowzero", 0):
        shape = [values.shape[i] if size == 0 else size for i, size in enumerate(shape)]
    return values.reshape(shape)


def _transpose(r: _Reader) -> Array:
    values = r.operand(0)
    return values.transpose(r.node.attributes.get_ints("perm", tuple(range(values.ndim))[::-1]))


def _axes(r: _Reader) -> tuple[int, ...] | None:
    """Squeeze and Unsqueeze: an attribute up to opset 12, an operand after."""
    if "axes" in r.node.attributes:
        return tuple(r.node.attributes["axes"].as_ints())
    return tuple(r.sizes(1)) if r.has(1) else None


def _unsqueeze(r: _Reader) -> Array:
    axes = _axes(r)
    if axes is None:
        raise r.refuse("which names no axes")
    return np.expand_dims(r.operand(0), axes)


def _shape(r: _Reader) -> Array:
    start, end = r.node.attributes.get_int("start", 0), r.node.attributes.get("end")
    dims = r.static_dims(0)[start : None if end is None else end.as_int()]
    if None in dims:
        raise r.refuse("of which not all sizes are known")
    return np.array(dims, dtype=np.int64)


_EVALUATORS: dict[str, Callable[[_Reader], Array]] = {
    "Cast": _cast,
    "CastLike": lambda r: _cast_to(r, r.dtype_of(1)),
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "Expand": _expand,
    "Identity": lambda r: r.operand(0),
    "Reshape": _reshape,
    "Shape": _shape,
    "Squeeze": lambda r: np.squeeze(r.operand(0), _axes(r)),
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
