"""Lifts: maps that a graph applies channel by channel, be it BatchNormalization or a Mul, Div, Add or Sub by constants.

A lift is gone when its output is stored as its input is. One that stays is rewritten for the gauges around it, as
itself or as what is left of it: a BatchNormalization whose scale went away is an Add, one whose shift did is a Mul.
Formulas: `y = s x + t`, `x' = A x + B`, `y' = C y + D` give `y' = m x' + k`, `m = C s / A`, `k = C t + D - m B`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from training.fold.affine import Array, Float64s
from training.fold.batchnorm import read_batchnorm
from training.fold.broadcasting import aligned, along, outgrows
from training.fold.carriers.ends import same_ends
from training.fold.carriers.gates import dynamic_div, dynamic_mul
from training.fold.carriers.junctions import junction
from training.fold.edits import Become, Edit, SetOperand
from training.fold.graph import describe, is_standard, number_readers
from training.fold.known import Known, Rule
from training.fold.laws import Gauge, Gauges, Law, Lift, Port, Sum, Term
from training.fold.linear import unheld_shift
from training.fold.refusal import Refusal
from training.fold.weights import round_once, widen


@dataclass(frozen=True, eq=False)
class Operands:
    """An elementwise node of one tensor and one constant: which is which, and the constant aligned with the tensor."""

    x: ir.Value
    index: int  # the constant's place
    constant: Float64s  # float64, with the tensor's rank
    dtype: np.dtype[np.generic]


def operands_of(node: ir.Node, known: Known) -> Operands | Refusal:
    """(1) Exactly one of two operands is constant and floating. (2) It does not enlarge the other."""
    if len(node.inputs) != 2 or None in node.inputs:
        return Refusal(f"{describe(node)} has {len(node.inputs)} operands")
    arrays = [known.constant(value) for value in node.inputs]
    index = next((i for i, array in enumerate(arrays) if array is not None), None)
    if index is None or arrays[1 - index] is not None:
        return Refusal(f"{describe(node)} has no constant operand, or only constant ones")
    array, x = arrays[index], node.inputs[1 - index]
    assert array is not None and x is not None
    if not np.issubdtype(array.dtype, np.floating) and array.dtype.name != "bfloat16":
        return Refusal(f"the constant of {describe(node)} is {array.dtype}")
    if known.opset < 7 and array.ndim:
        axis = node.attributes.get_int("axis", len(known.dims(x) or ()) - array.ndim)
        array = array.reshape(array.shape + (1,) * (len(known.dims(x) or ()) - axis - array.ndim))
    constant = aligned(widen(array), x, known)
    return constant if isinstance(constant, Refusal) else Operands(x, index, constant, array.dtype)


def lift(node: ir.Node, port: Port, known: Known) -> tuple[Law, ...] | Refusal:
    """BatchNormalization, and Mul, Div, Add, Sub with a constant operand: one Lift, or what is left to say of them."""
    if node.op_type == "BatchNormalization":
        return _batchnorm(node, port, known)
    constants = [known.constant(value) is not None for value in node.inputs]
    if not any(constants):
        return _DYNAMIC[node.op_type](node, port, known)
    parts = operands_of(node, known)
    if isinstance(parts, Refusal):
        return parts
    pair = same_ends(node, port, known, 1 - parts.index)
    if isinstance(pair, Refusal):
        return pair
    return _MAPS[node.op_type](node, parts, *pair, along(parts.constant, pair[0], known), known)


def _batchnorm(node: ir.Node, port: Port, known: Known) -> tuple[Law, ...] | Refusal:
    record = read_batchnorm(node, known.opset, known.constants)
    if isinstance(record, Refusal):
        return record
    if port.axes != (1,):
        return Refusal(f"{describe(node)} maps axis 1, '{port.value.name}' is stored along axis {port.axes}")
    pair = same_ends(node, port, known)
    if isinstance(pair, Refusal):
        return pair
    dims = known.dims(record.x)
    if dims is None or dims[1] != record.affine.channels:
        return Refusal(f"{describe(node)} has {record.affine.channels} channels, its input {dims and dims[1]}")
    return (Lift(*pair, record.affine.scale, record.affine.shift, node, holds_scale=True, holds_shift=True),)


def _sum(
    node: ir.Node, parts: Operands, x: Port, y: Port, vector: Float64s | None, known: Known
) -> tuple[Law, ...] | Refusal:
    if not np.isfinite(parts.constant).all():
        return Refusal(f"the constant of {describe(node)} is not finite: a mask, not a shift")
    reversed_sub = node.op_type == "Sub" and parts.index == 0
    if vector is None or reversed_sub or _is_bias(parts.x, known):
        dims = known.dims(parts.x) or ()
        if outgrows(parts.constant.shape, {axis: dims[axis] or 1 for axis in x.axes}):
            return Refusal(f"the constant of {describe(node)} {list(parts.constant.shape)} would have to grow")
        return (Sum(y, (Term(x, -1.0 if reversed_sub else 1.0),), holds_shift=True),)
    shift = -vector if node.op_type == "Sub" else vector
    return (Lift(x, y, np.ones_like(vector), shift, node, holds_scale=False, holds_shift=True),)


def _product(
    node: ir.Node, parts: Operands, x: Port, y: Port, vector: Float64s | None, known: Known
) -> tuple[Law, ...] | Refusal:
    if node.op_type == "Div" and parts.index == 0:
        return Refusal(f"{describe(node)} divides by a tensor")
    if vector is None:
        return _DYNAMIC[node.op_type](node, x, known)
    if not np.isfinite(vector).all() or (node.op_type == "Div" and not vector.all()):
        return Refusal(f"the constant of {describe(node)} is not finite, or divides by zero")
    scale = 1.0 / vector if node.op_type == "Div" else vector
    if not np.isfinite(scale).all():
        return Refusal(f"the constant of {describe(node)} is too small to divide by")
    return (Lift(x, y, scale, np.zeros_like(vector), node, holds_scale=True, holds_shift=False),)


def _is_bias(x: ir.Value, known: Known) -> bool:
    """Is a constant that is added to `x` the bias of a product, rather than a map of its own? Where a MatMul has other
    readers and is one of matrices, it can hold a bias itself, as a Gemm."""
    producer = x.producer()
    if producer is None or producer.op_type not in ("Einsum", "MatMul"):
        return False
    return known.shapes.rank(x) != 2 or len(number_readers(x)) == 1


_DYNAMIC: dict[str, Rule] = {"Add": junction, "Sub": junction, "Mul": dynamic_mul, "Div": dynamic_div}
_Map = Callable[[ir.Node, Operands, Port, Port, "Float64s | None", Known], "tuple[Law, ...] | Refusal"]
_MAPS: dict[str, _Map] = {"Add": _sum, "Sub": _sum, "Mul": _product, "Div": _product}

RULES: dict[str, Rule] = {"BatchNormalization": lift, **dict.fromkeys(_MAPS, lift)}


def is_map(node: ir.Node, known: Known) -> bool:
    """Is `node`, if it is no BatchNormalization, a map that could be lifted?"""
    return is_standard(node) and node.op_type in _MAPS and seeds(node, known) is not None


def seeds(node: ir.Node, known: Known) -> tuple[int, ...] | None:
    """The axes along which `node` is a map; none of them if it is one along any, as of a single number, and no operator
    next to it tells; None if it is no map."""
    if node.op_type == "BatchNormalization":
        return (1,)
    if node.op_type not in _MAPS:
        return None
    parts = operands_of(node, known)
    if isinstance(parts, Refusal) or (
        node.op_type in ("Add", "Sub") and (_is_bias(parts.x, known) or (parts.index == 0 and node.op_type == "Sub"))
    ):
        return None
    axes = tuple(axis for axis, size in enumerate(parts.constant.shape) if size != 1)
    if len(axes) > 1:
        return None  # a picture added or multiplied: no map of channels
    return axes or known.native_axes(parts.x) or known.native_axes(node.outputs[0]) or ()


@dataclass(frozen=True, eq=False)
class Residue:
    """`y' = m x' + k`: what a lift that stays has to do, float64 vectors over its port's entries."""

    m: Float64s
    k: Float64s


def residue(law: Lift, x: Gauge | None, y: Gauge | None) -> Residue:
    """Of a lift between two gauges (formula in the file's head). A dead channel of `x` (A = 0) is stored as `B`.

    Where nobody reads `y` anything will do: the identity.
    """
    one, zero = np.ones_like(law.scale), np.zeros_like(law.scale)
    (a, b), (c, d) = _read(x, law.scale), _read(y, law.scale)
    m = np.divide(c * law.scale, a, out=np.ones_like(law.scale), where=a != 0)
    read = one > 0 if y is None else ~y.unread
    return Residue(np.where(read, m, one), np.where(read, c * law.shift + d - m * b, zero))


def _read(gauge: Gauge | None, like: Float64s) -> tuple[Float64s, Float64s]:
    """Scale and shift; the identity's where nobody reads what is stored."""
    if gauge is None:
        return np.ones_like(like), np.zeros_like(like)
    return np.where(gauge.unread, 1.0, gauge.scale), gauge.shift


def keep(law: Lift, gauges: Gauges, known: Known) -> tuple[Edit, ...] | Refusal:
    """A lift that stays as what it is, between other gauges than before."""
    x, y = gauges.of(law.x.value, law.x.reader), gauges.of(law.y.value)
    if x is None and y is None:
        return ()
    if law.node.op_type == "BatchNormalization":
        return _keep_batchnorm(law, x, y, known)
    return rewrite(law.node, gauges, known)


def _keep_batchnorm(law: Lift, x: Gauge | None, y: Gauge | None, known: Known) -> tuple[Edit, ...] | Refusal:
    """`gamma' = C gamma sign(A)`, `beta' = C beta + D`, `mean' = A mean + B`, `var' = A^2 (var + eps) - eps`: the
    statistics of what is stored now, which is what a later pass judges digits by.

    Where such a variance is not above zero and finite in its type, and where A = 0, it stays, and gamma' is
    C gamma / A. A is 0 for a dead channel only: gamma is 0 too, and gamma' 0.
    """
    record = read_batchnorm(law.node, known.opset, known.constants)
    assert not isinstance(record, Refusal)
    gamma, beta, mean, variance = (widen(_array(law.node, index, known)) for index in (1, 2, 3, 4))
    (a, b), (c, d) = _read(x, gamma), _read(y, gamma)
    with np.errstate(over="ignore"):
        moved = np.where(np.abs(a) == 1, variance, a**2 * record.spread - record.epsilon)
    rounded = widen(round_once(moved, _array(law.node, 4, known).dtype))
    follows = (np.abs(a) == 1) | ((a != 0) & (rounded > 0) & np.isfinite(rounded))
    left = np.where(follows, np.sign(a), np.divide(1.0, a, out=np.zeros_like(a), where=a != 0))
    operands = {1: c * gamma * left, 2: c * beta + d, 3: a * mean + b, 4: np.where(follows, moved, variance)}
    return _set(law.node, operands, known)


def _array(node: ir.Node, index: int, known: Known) -> Array:
    array = known.constant(node.inputs[index])
    assert array is not None
    return array


def _set(node: ir.Node, operands: dict[int, Float64s], known: Known) -> tuple[Edit, ...] | Refusal:
    edits = []
    for index, values in operands.items():
        origin = node.inputs[index]
        assert origin is not None
        before = _array(node, index, known)
        array = round_once(values, before.dtype)
        if not np.isfinite(array).all():
            return Refusal(f"a constant of {describe(node)} is not finite in {array.dtype}")
        if not np.array_equal(array, before):
            edits.append(SetOperand(node, index, array, origin, role="constant"))
    return tuple(edits)


def reduce(law: Lift, op_type: str, gauges: Gauges, known: Known) -> tuple[Edit, ...] | Refusal:
    """A BatchNormalization of which only an Add or a Mul is left."""
    left = residue(law, gauges.of(law.x.value, law.x.reader), gauges.of(law.y.value))
    dims, dtype = known.dims(law.x.value), known.shapes.dtype(law.x.value)
    if dims is None or dtype is None:
        return Refusal(f"the type of '{law.x.value.name}' is not known")
    constant = round_once(left.k if op_type == "Add" else left.m, dtype.numpy())
    if not np.isfinite(constant).all():
        return Refusal(f"what is left of {describe(law.node)} is not finite in {constant.dtype}")
    if known.opset < 7:
        return (Become(law.node, op_type, 0, constant, (ir.AttrInt64("axis", 1), ir.AttrInt64("broadcast", 1))),)
    return (Become(law.node, op_type, 0, constant.reshape(-1, *[1] * (len(dims) - 2))),)


def rewrite(node: ir.Node, gauges: Gauges, known: Known) -> tuple[Edit, ...] | Refusal:
    """Mul, Div, Add, Sub with a constant, between other gauges: the constant moves, the operator stays."""
    parts = operands_of(node, known)
    if isinstance(parts, Refusal):
        return ()  # of two tensors: its laws need no edit
    x, y = gauges.of(parts.x), gauges.of(node.outputs[0])
    rank = parts.constant.ndim
    (a, b), (c, d) = _spread(x, rank), _spread(y, rank)
    if node.op_type == "Mul":  # 1 for a dead channel of x (A = 0): it is stored as what y is
        moved = np.where(a == 0, 1.0, parts.constant * (c / np.where(a == 0, 1.0, a)))
    elif node.op_type == "Div":
        moved = parts.constant * (a / c)
    else:
        moved = _moved_summand(node, parts, b, c, d, unheld=_unheld(parts, gauges, known, rank))
    moved = _shrunk(moved, parts.constant.shape)
    if moved.shape == parts.constant.shape and (moved == parts.constant).all():
        return ()
    array = round_once(moved, parts.dtype)
    if not np.isfinite(array).all():
        return Refusal(f"the constant of {describe(node)} is not finite in {parts.dtype}")
    if known.opset < 7:
        return _legacy_operand(node, parts, array)
    origin = node.inputs[parts.index]
    assert origin is not None
    shape = array.shape
    while len(shape) > np.ndim(_array(node, parts.index, known)) and shape[0] == 1:
        shape = shape[1:]
    return (SetOperand(node, parts.index, array.reshape(shape), origin, role="bias"),)


def _spread(gauge: Gauge | None, rank: int) -> tuple[Float64s, Float64s]:
    """Scale and shift against a rank-`rank` tensor; the identity's where there is no gauge, or nobody reads."""
    if gauge is None:
        return np.ones(()), np.zeros(())
    scale, shift = _read(gauge, gauge.scale)
    return gauge.spread(scale, rank), gauge.spread(shift, rank)


def _shrunk(moved: Float64s, shape: tuple[int, ...]) -> Float64s:
    """`moved`, which broadcasting gave the size of a gauge, without the axes along which it holds one number anyway."""
    for axis, size in enumerate(shape):
        first = moved.take([0], axis=axis)
        if size == 1 and moved.shape[axis] > 1 and (moved == first).all():
            moved = first
    return moved


def _moved_summand(node: ir.Node, parts: Operands, b: Array, c: Array, d: Array, unheld: Array) -> Float64s:
    """From `y = f x + g k` (f, g: 1 or -1) and `y' = f x' + g k'`: `k' = c k + g (d - f b)`, u: unheld."""
    f = -1.0 if node.op_type == "Sub" and parts.index == 0 else 1.0
    g = -1.0 if node.op_type == "Sub" and parts.index == 1 else 1.0
    return np.asarray(c * parts.constant + g * (d - f * (b + unheld)))


def _unheld(parts: Operands, gauges: Gauges, known: Known, rank: int) -> Array:
    producer = parts.x.producer()
    extra = None if producer is None else unheld_shift(producer, gauges, known)
    return np.zeros(()) if extra is None else extra.reshape((1,) * (rank - extra.ndim) + extra.shape)


def _legacy_operand(node: ir.Node, parts: Operands, array: Array) -> tuple[Edit, ...] | Refusal:
    """Opsets 1 to 6: the constant keeps its shape, for `axis` speaks of that."""
    origin = node.inputs[parts.index]
    assert origin is not None
    if parts.index != 1 or array.shape != parts.constant.shape:
        return Refusal(f"the constant of {describe(node)} would have to change its shape")
    shape = [size for size in array.shape if size != 1] or [1]
    attributes = (
        ir.AttrInt64("axis", next((i for i, s in enumerate(array.shape) if s != 1), 0)),
        ir.AttrInt64("broadcast", 1),
    )
    return (Become(node, node.op_type, 0, array.reshape(shape), attributes),)


REWRITES = dict.fromkeys(_MAPS, rewrite)
