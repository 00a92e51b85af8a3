"""What each small operator makes of constants: one function an operator, as `constants` walks a chain of them.

Floating-point arithmetic is done in float64 and stays unrounded; what only moves numbers keeps them as they are; Cast
rounds; integers are computed in their own type. A function reads its operands through `Reader` and raises NotConstant,
or whatever NumPy raises for operands that do not fit. Knows one node at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from training.fold.affine import Array, Float64s
from training.fold.errors import FoldError
from training.fold.graph import describe, is_standard
from training.fold.shapes import Shapes
from training.fold.weights import BFLOAT16, FLOAT_DTYPES, round_once, widen

_MAX_ELEMENTS = 1 << 28  # of a constant that an Expand or ConstantOfShape would blow up: no weight is made that way
_MAX_COMPUTED = 1 << 26  # elements that arithmetic may make: half a gigabyte in float64
NUMBERS: Mapping[ir.DataType, np.dtype[Any]] = {
    kind: np.dtype(kind.numpy())
    for kind in (
        *(ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.BOOL),
        *(ir.DataType.INT8, ir.DataType.INT16, ir.DataType.INT32, ir.DataType.INT64),
        *(ir.DataType.UINT8, ir.DataType.UINT16, ir.DataType.UINT32, ir.DataType.UINT64),
    )
}
"""Types that a chain may go through; not those of 4 or 8 bits that only weights are packed into."""


class NotConstant(Exception):
    """Unwinds a chain; its text is the reason."""


def refused(node: ir.Node, what: str) -> NotConstant:
    """Of a node whose output is no constant: which, and why."""
    return NotConstant(f"'{node.outputs[0].name}' is computed by {describe(node)}, {what}")


@dataclass(frozen=True, eq=False)
class Numbers:
    """`array` is of type `dtype`, or, behind floating-point arithmetic, float64 and not rounded to `dtype` yet.

    `exact`: no rounding, wherever in the chain a run time does it, changes any of the numbers.
    """

    array: Array
    dtype: np.dtype[Any]
    exact: bool = True

    @classmethod
    def stored(cls, array: Array) -> Numbers:
        return cls(array, array.dtype)

    @property
    def is_float(self) -> bool:
        return self.dtype in FLOAT_DTYPES

    def rounded(self) -> Array:
        return self.array if self.array.dtype == self.dtype else round_once(self.array, self.dtype)

    def made_of(self, parts: Sequence[Numbers]) -> Numbers:
        """The same, `exact` as far as its parts are, and as it needs no rounding itself."""
        exact = all(part.exact for part in parts)
        if exact and self.array.dtype != self.dtype:
            exact = np.array_equal(widen(self.rounded()), self.array, equal_nan=True)
        return replace(self, exact=exact)

    def moved(self, move: Callable[[Array], Array]) -> Numbers:
        """The same numbers in another arrangement."""
        return Numbers(move(self.array), self.dtype)


@dataclass(frozen=True)
class Reader:
    """A node of a chain, and the way to its operands."""

    node: ir.Node
    shapes: Shapes
    read: Callable[[ir.Value], Numbers]

    def operand(self, index: int) -> Numbers:
        return self.read(self._value(index))

    def operands(self) -> list[Numbers]:
        """All of them, of one type, as n-ary operators have them."""
        found = [self.operand(index) for index in range(len(self.node.inputs))]
        kinds = {numbers.dtype for numbers in found}
        if len(kinds) != 1:
            raise ValueError(f"its operands are of types {sorted(str(kind) for kind in kinds)}")
        return found

    def sizes(self, index: int) -> list[int]:
        """A constant 1-D integer operand, such as a shape or axes."""
        return [int(size) for size in np.atleast_1d(self.operand(index).array)]

    def sizes_of(self, attribute: str, index: int) -> list[int] | None:
        """What is an attribute in older opsets and an operand in newer ones; None where neither is given."""
        if attribute in self.node.attributes:
            return [int(size) for size in self.node.attributes[attribute].as_ints()]
        return self.sizes(index) if self.has(index) else None

    def axis(self, default: int) -> int:
        return self.node.attributes.get_int("axis", default)

    def has(self, index: int) -> bool:
        return index < len(self.node.inputs) and self.node.inputs[index] is not None

    def shape_sizes(self, node: ir.Node) -> Array:
        """What the Shape `node` gives, as objects: None is a size that is not known."""
        value = node.inputs[0] if node.inputs else None
        dims = None if value is None else self.shapes.dims(value)
        if dims is None:
            name = None if value is None else value.name
            raise NotConstant(f"the rank of '{name}', which {describe(node)} asks for, is not known")
        start, end = node.attributes.get_int("start", 0), node.attributes.get("end")
        return np.array(dims[start : None if end is None else end.as_int()], dtype=object)

    def picked(self, pick: Callable[[Array], Array]) -> Numbers:
        """`pick` of operand 0. Of a Shape it may leave the sizes that are not known."""
        node = self._value(0).producer()
        if node is not None and is_standard(node, "Shape"):
            return _known_sizes(self, np.asarray(pick(self.shape_sizes(node)), dtype=object))
        return self.operand(0).moved(pick)

    def dtype_of(self, index: int) -> ir.DataType | None:
        return self.shapes.dtype(self._value(index))

    def refuse(self, what: str) -> NotConstant:
        return refused(self.node, what)

    def affordable(self, shape: tuple[int, ...], limit: int = _MAX_ELEMENTS) -> tuple[int, ...]:
        elements = 1
        for size in shape:
            elements *= size
        if not 0 <= elements <= limit:
            raise self.refuse(f"whose {elements} elements are not a weight")
        return shape

    def _value(self, index: int) -> ir.Value:
        value = self.node.inputs[index] if self.has(index) else None
        if value is None:
            raise self.refuse(f"which lacks its operand {index}")
        return value


_Evaluator = Callable[[Reader], Numbers]


def numbers_of(tensor: ir.TensorProtocol | None, name: str | None) -> Array:
    if tensor is None:
        raise NotConstant(f"'{name}' is an initializer without data")
    if tensor.dtype == ir.DataType.STRING:
        raise NotConstant(f"'{name}' holds strings")
    try:
        return tensor.numpy()
    except (OSError, ValueError, TypeError) as error:  # external data that is gone, or data that does not fit its shape
        raise FoldError(f"tensor '{name}' cannot be read: {' '.join(str(error).split())}") from error


# --- Making constants ------------------------------------------------------------------------------------------------


def _constant(r: Reader) -> Numbers:
    for name, dtype in (("value_float", np.float32), ("value_floats", np.float32)):
        if name in r.node.attributes:
            return Numbers.stored(np.array(r.node.attributes[name].value, dtype=dtype))
    for name in ("value_int", "value_ints"):
        if name in r.node.attributes:
            return Numbers.stored(np.array(r.node.attributes[name].value, dtype=np.int64))
    value = r.node.attributes.get("value")
    if value is None or value.is_ref():
        raise r.refuse("which holds no dense number")
    return Numbers.stored(numbers_of(value.as_tensor(), r.node.outputs[0].name))


def _constant_of_shape(r: Reader) -> Numbers:
    attribute = r.node.attributes.get("value")
    fill = np.zeros(1, np.float32) if attribute is None else numbers_of(attribute.as_tensor(), r.node.outputs[0].name)
    return Numbers.stored(np.broadcast_to(fill.reshape(()), r.affordable(tuple(r.sizes(0)))))


def _shape(r: Reader) -> Numbers:
    return _known_sizes(r, r.shape_sizes(r.node))


def _size(r: Reader) -> Numbers:
    sizes = _known_sizes(r, r.shape_sizes(r.node)).array
    return Numbers.stored(np.array(math.prod(sizes.tolist()), dtype=np.int64))


def _range(r: Reader) -> Numbers:
    """How many there are is decided by what the run time reads: the numbers as rounded to their type."""
    parts = r.operands()
    first, limit, step = (part.rounded().reshape(()).item() for part in parts)
    if not step:
        raise ValueError("its step is 0")
    wide = np.float64 if parts[0].is_float else np.int64
    count = max(math.ceil((limit - first) / step) if wide is np.float64 else -((first - limit) // step), 0)
    r.affordable((count,), _MAX_COMPUTED)
    counted = wide(first) + wide(step) * np.arange(count, dtype=wide)
    return Numbers(counted, parts[0].dtype) if parts[0].is_float else Numbers.stored(counted.astype(parts[0].dtype))


def _known_sizes(r: Reader, sizes: Array) -> Numbers:
    if None in sizes.reshape(-1).tolist():
        raise r.refuse("of which not all sizes are known")
    return Numbers.stored(sizes.astype(np.int64))


def _cast_to(r: Reader, target: ir.DataType | None) -> Numbers:
    numbers = r.operand(0)
    dtype = None if target is None else NUMBERS.get(target)
    if dtype is None:
        raise r.refuse(f"to {target.name if target is not None else 'an unknown type'}")
    if dtype == numbers.dtype:
        return numbers
    array = numbers.rounded()
    if dtype in FLOAT_DTYPES:
        return Numbers.stored(_to_float(array, dtype))
    if numbers.is_float and dtype.kind in "iu" and not _fits(widen(array), dtype):
        raise r.refuse(f"to {dtype}, which cannot hold its numbers")  # what it gives differs from machine to machine
    return Numbers.stored(array.astype(dtype))


def _fits(array: Float64s, dtype: np.dtype[Any]) -> bool:
    """The limits of 64 bits are no doubles: rounded up, they do not fit any more."""
    limits, whole = np.iinfo(dtype), np.trunc(array)
    return bool(np.all((whole >= float(limits.min)) & (whole < float(limits.max) + (limits.bits < 53))))


def _to_float(array: Array, dtype: np.dtype[Any]) -> Array:
    """One rounding; integers beyond 2^53 are not taken through float64."""
    return round_once(widen(array), dtype) if dtype == BFLOAT16 else array.astype(dtype)


def _cast(r: Reader) -> Numbers:
    return _cast_to(r, ir.DataType(r.node.attributes["to"].as_int()))  # opset 1 has a string here: refused as failing


def _dequantize(r: Reader) -> Numbers:
    """`(x - zero_point) * scale` of a scalar or vector, such as a quantised bias.

    What has more axes is a weight that somebody quantised: to see numbers in it would invite to store them as floats.
    """
    steps, scale = r.operand(0), r.operand(1)
    if steps.array.ndim > 1:
        raise r.refuse("which keeps a weight quantised")
    if scale.array.size != 1 and scale.array.shape != steps.array.shape:  # blocks
        raise r.refuse(f"whose scale has shape {list(scale.array.shape)}")
    wide = widen(steps.array)
    if r.has(2):
        wide = wide - widen(r.operand(2).array).reshape(scale.array.shape)
    factor = widen(scale.array)
    return Numbers(wide * (factor.reshape(()) if factor.size == 1 else factor), scale.dtype)


# --- Moving numbers --------------------------------------------------------------------------------------------------


def _expand(r: Reader) -> Numbers:
    values = r.operand(0)
    shape = r.affordable(np.broadcast_shapes(values.array.shape, tuple(r.sizes(1))))
    return values.moved(lambda array: np.broadcast_to(array, shape))


def _reshape(r: Reader) -> Numbers:
    """The shape is an attribute up to opset 4; 0 keeps the size, unless `allowzero` (opset 14)."""
    values, shape = r.operand(0), r.sizes_of("shape", 1)
    if shape is None:
        raise r.refuse("which names no shape")
    if not r.node.attributes.get_int("allowzero", 0):
        shape = [values.array.shape[i] if size == 0 else size for i, size in enumerate(shape)]
    return values.moved(lambda array: array.reshape(shape))


def _flatten(r: Reader) -> Numbers:
    values, axis = r.operand(0), r.axis(1)
    rows = int(np.prod(values.array.shape[: axis if axis >= 0 else axis + values.array.ndim], dtype=np.int64))
    return values.moved(lambda array: array.reshape(rows, array.size // rows))


def _transpose(r: Reader) -> Numbers:
    values = r.operand(0)
    permutation = r.node.attributes.get_ints("perm", tuple(range(values.array.ndim))[::-1])
    return values.moved(lambda array: array.transpose(permutation))


def _squeeze(r: Reader) -> Numbers:
    axes = r.sizes_of("axes", 1)
    return r.operand(0).moved(lambda array: np.squeeze(array, None if axes is None else tuple(axes)))


def _unsqueeze(r: Reader) -> Numbers:
    axes = r.sizes_of("axes", 1)
    if axes is None:
        raise r.refuse("which names no axes")
    return r.operand(0).moved(lambda array: np.expand_dims(array, tuple(axes)))


def _concat(r: Reader) -> Numbers:
    parts = r.operands()
    if not all(part.array.ndim for part in parts):
        raise ValueError("scalars cannot be joined")
    r.affordable((sum(part.array.size for part in parts),))
    return Numbers(np.concatenate(_alike(parts), axis=r.axis(1)), parts[0].dtype)  # the default is opset 1's


def _alike(parts: list[Numbers]) -> list[Array]:
    """In float64 if one of them is behind arithmetic, else all in their own type."""
    if len({part.array.dtype for part in parts}) == 1:
        return [part.array for part in parts]
    return [widen(part.array) for part in parts]


def _gather(r: Reader) -> Numbers:
    indices, axis = r.operand(1).array, r.axis(0)

    def pick(array: Array) -> Array:
        r.affordable((array.size // max(array.shape[axis], 1), indices.size))
        return np.asarray(np.take(array, indices, axis=axis))

    return r.picked(pick)


def _slice(r: Reader) -> Numbers:
    """All but the data were attributes up to opset 9, which has no steps."""
    starts, ends = r.sizes_of("starts", 1), r.sizes_of("ends", 2)
    if starts is None or ends is None:
        raise r.refuse("which names no starts or ends")
    axes = r.sizes_of("axes", 3) or list(range(len(starts)))
    steps = r.sizes(4) if r.has(4) else [1] * len(starts)

    def pick(array: Array) -> Array:
        cut = [slice(None)] * array.ndim
        for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
            # Backwards, an end below -size is "past the first element", which Python spells None, and a start below
            # -size is the first element, where Python has none.
            size = array.shape[axis]
            cut[axis] = slice(max(start, -size), None if step < 0 and end < -size else end, step)
        return array[tuple(cut)]

    return r.picked(pick)


# --- Arithmetic ------------------------------------------------------------------------------------------------------


def _operation(function: Callable[..., Array], *, integers: Callable[..., Array] | None = None) -> _Evaluator:
    """Elementwise, in float64 for floating-point types; for integers in their own type, by `integers`, if at all."""

    def evaluate(r: Reader) -> Numbers:
        parts = r.operands()
        arrays = [part.array for part in parts]
        if len(arrays) == 2 and "axis" in r.node.attributes:
            arrays[1] = _aligned(arrays[0], arrays[1], r.axis(0))
        r.affordable(np.broadcast_shapes(*(array.shape for array in arrays)), _MAX_COMPUTED)
        if parts[0].is_float:
            return Numbers(function(*map(widen, arrays)), parts[0].dtype)
        if integers is None or parts[0].dtype.kind not in "iu":
            raise r.refuse(f"of type {parts[0].dtype}")
        return Numbers.stored(np.asarray(integers(*arrays), dtype=parts[0].dtype))

    return evaluate


def _aligned(a: Array, b: Array, axis: int) -> Array:
    """Before opset 7, `axis` said where in A's axes those of B begin."""
    return b.reshape(*b.shape, *(1,) * (a.ndim - axis % a.ndim - b.ndim))


def _truncated(a: Array, b: Array) -> Array:
    """Integer division towards zero."""
    if not b.all():
        raise ValueError("it divides by zero")
    return np.asarray(a // b + ((a % b != 0) & ((a < 0) != (b < 0))))


def _pow(r: Reader) -> Numbers:
    """The exponent may be of another type; the result has the base's."""
    base, exponent = r.operand(0), r.operand(1)
    r.affordable(np.broadcast_shapes(base.array.shape, exponent.array.shape), _MAX_COMPUTED)
    if base.dtype.kind in "iu" and exponent.dtype.kind in "iu" and exponent.array.min(initial=0) >= 0:
        if not _fits(np.power(widen(base.array), widen(exponent.array)), base.dtype):
            raise r.refuse(f"which overflows {base.dtype}")
        return Numbers.stored(np.asarray(np.power(base.array, exponent.array), dtype=base.dtype))
    if not base.is_float:
        raise r.refuse(f"of type {base.dtype}")
    return Numbers(np.power(widen(base.array), widen(exponent.array)), base.dtype)


def _clip(r: Reader) -> Numbers:
    values = r.operand(0)
    if not values.is_float:
        raise r.refuse(f"of type {values.dtype}")
    bounds = [
        r.node.attributes[name].as_float()
        if name in r.node.attributes
        else widen(r.operand(index).array)
        if r.has(index)
        else limit
        for name, index, limit in (("min", 1, -np.inf), ("max", 2, np.inf))
    ]
    return Numbers(np.minimum(np.maximum(widen(values.array), bounds[0]), bounds[1]), values.dtype)


def _where(r: Reader) -> Numbers:
    condition, a, b = (r.operand(index) for index in range(3))
    if a.dtype != b.dtype:
        raise ValueError(f"its operands are of types {a.dtype} and {b.dtype}")
    r.affordable(np.broadcast_shapes(condition.array.shape, a.array.shape, b.array.shape), _MAX_COMPUTED)
    return Numbers(np.where(condition.array, *_alike([a, b])), a.dtype)


def _reduction(function: Callable[..., Any], *, of_integers: bool = False) -> _Evaluator:
    """Axes are an attribute, then an operand (ReduceSum from opset 13, others from 18). Empty: all, or none.

    Of integers, too: where the function keeps their type.
    """

    def evaluate(r: Reader) -> Numbers:
        values, axes = r.operand(0), r.sizes_of("axes", 1)
        if not (values.is_float or (of_integers and values.dtype.kind in "iu")):
            raise r.refuse(f"of type {values.dtype}")
        r.affordable(values.array.shape, _MAX_COMPUTED)
        keeps_all = not axes and r.node.attributes.get_int("noop_with_empty_axes", 0) == 1
        over = tuple(axes) if axes else () if keeps_all else tuple(range(values.array.ndim))
        if not values.array.size:
            raise r.refuse("of nothing, for which operators have no common answer")
        keep = bool(r.node.attributes.get_int("keepdims", 1))
        array = widen(values.array) if values.is_float else values.array
        reduced = np.asarray(function(array, axis=over, keepdims=keep))
        return Numbers(reduced, values.dtype) if values.is_float else Numbers.stored(reduced.astype(values.dtype))

    return evaluate


def _all(function: Callable[[Array, Array], Array]) -> Callable[..., Array]:
    """Over any number of operands."""

    def fold(first: Array, *others: Array) -> Array:
        for other in others:
            first = function(first, other)
        return first

    return fold


_MOVERS: dict[str, _Evaluator] = {
    "Cast": _cast,
    "CastLike": lambda r: _cast_to(r, r.dtype_of(1)),
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "Identity": lambda r: r.operand(0),
    "Reshape": _reshape,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
MOVES = frozenset(_MOVERS)

EVALUATORS: dict[str, _Evaluator] = {
    **_MOVERS,
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "Range": _range,
    "Shape": _shape,
    "Size": _size,
    "DequantizeLinear": _dequantize,
    "Concat": _concat,
    "Abs": _operation(np.abs, integers=np.abs),
    "Add": _operation(np.add, integers=np.add),
    "Clip": _clip,
    "Div": _operation(np.true_divide, integers=_truncated),
    "Exp": _operation(np.exp),
    "Max": _operation(_all(np.maximum), integers=_all(np.maximum)),
    "Min": _operation(_all(np.minimum), integers=_all(np.minimum)),
    "Mul": _operation(np.multiply, integers=np.multiply),
    "Neg": _operation(np.negative, integers=np.negative),
    "Pow": _pow,
    "Relu": _operation(lambda x: np.maximum(x, 0), integers=lambda x: np.maximum(x, 0)),
    "Reciprocal": _operation(np.reciprocal),
    "Sqrt": _operation(np.sqrt),
    "Sub": _operation(np.subtract, integers=np.subtract),
    "Sum": _operation(_all(np.add)),
    "Where": _where,
    "ReduceL2": _reduction(lambda x, **where: np.sqrt((x * x).sum(**where))),
    "ReduceMax": _reduction(np.max, of_integers=True),
    "ReduceMean": _reduction(np.mean),
    "ReduceMin": _reduction(np.min, of_integers=True),
    "ReduceProd": _reduction(np.prod, of_integers=True),
    "ReduceSum": _reduction(np.sum, of_integers=True),
    "ReduceSumSquare": _reduction(lambda x, **where: (x * x).sum(**where)),
}
