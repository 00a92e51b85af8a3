"""Sinks: operators that can store their output under a channelwise affine map, by changing constants they hold.

Each rule is a small theorem about one operator: before, after, formula, numbered conditions. `y` is the operator's
output, `(s, c, o)` the map `A(y) = s * (y - c) + o` along axis 1, C its channels. A rule asks its questions and
returns a Sink, or a Refusal that names node and tensor; the Sink later says which edits realise a given map.
Arithmetic is in weights.py, the edits in edits.py. Nothing here knows BatchNormalization: the map may come from
anywhere. RULES at the end is the one table from operator to rule.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import onnx_ir as ir

from training.fold import weights
from training.fold.affine import Affine, Array, Float64s
from training.fold.constants import Constants
from training.fold.edits import AppendAdd, BecomeGemm, Edit, SetAttribute, SetOperand
from training.fold.graph import describe, is_standard, may_change
from training.fold.refusal import Refusal
from training.fold.shapes import Shapes

# Overflow is judged by its result (see _finite) and not announced by NumPy on the way.
_overflow_is_refused = np.errstate(over="ignore", invalid="ignore")


@dataclass(frozen=True)
class Known:
    """What a rule may ask about the model."""

    shapes: Shapes
    constants: Constants
    opset: int  # of ONNX's own domain
    adds_left: int = 8  # how many more Add nodes to look through; a bound, not a tuning knob


@dataclass(frozen=True, eq=False)
class Operand:
    """A constant operand: its place, its value in the graph, its numbers in their storage dtype."""

    index: int
    value: ir.Value
    array: Array


@dataclass(frozen=True, eq=False)
class Linear:
    """`y = L(W, x) + factor * b`, with W under this node's control and b constant or absent."""

    node: ir.Node
    rank: int  # of y; axis 1 is proved to be W's
    channels: int
    weight: Operand
    scale_weight: Callable[[Float64s, Float64s], Float64s]  # (W, s) -> W'
    bias: Operand | None
    fold_bias: Callable[[Float64s, Affine], Float64s]  # (factor * b, A) -> b'; for an absent b it is given [0]
    bias_edits: Callable[[Array, ir.Value], tuple[Edit, ...]]  # (b', the constant it was made from) -> edits
    bias_factor: float = 1.0  # Gemm's beta

    @property
    def inner(self) -> Sink | None:
        return None

    @_overflow_is_refused
    def edits(self, affine: Affine) -> tuple[Edit, ...] | Refusal:
        """`W' = s * W` along the channels, `b' = A(factor * b)`; an absent b stays absent where b' would be 0."""
        old = self.weight.array
        weight = weights.round_once(self.scale_weight(weights.widen(old), affine.scale), old.dtype)
        if not _finite(weight):
            return Refusal(f"folded weight of {describe(self.node)} is not finite in {old.dtype}")
        edits: tuple[Edit, ...] = (SetOperand(self.node, self.weight.index, weight, self.weight.value, "weight"),)
        if self.bias is None and not np.any(affine.shift):
            return edits
        old_bias = np.zeros(1) if self.bias is None else weights.widen(self.bias.array) * self.bias_factor
        bias = weights.round_once(self.fold_bias(old_bias, affine), old.dtype)
        if not _finite(bias):
            return Refusal(f"folded bias of {describe(self.node)} is not finite in {old.dtype}")
        origin = self.weight.value if self.bias is None else self.bias.value
        return edits + self.bias_edits(bias, origin)


@dataclass(frozen=True, eq=False)
class AddConstant:
    """`y = u + k`, k constant: k takes the whole map, u is asked to take its scale."""

    node: ir.Node
    rank: int
    channels: int
    constant: Operand
    fold_constant: Callable[[Float64s, Affine], Float64s]
    inner: Sink

    @_overflow_is_refused
    def edits(self, affine: Affine) -> tuple[Edit, ...] | Refusal:
        """`k' = A(k)`."""
        old = self.constant.array
        constant = weights.round_once(self.fold_constant(weights.widen(old), affine), old.dtype)
        if not _finite(constant):
            return Refusal(f"folded constant of {describe(self.node)} is not finite in {old.dtype}")
        return (SetOperand(self.node, self.constant.index, constant, self.constant.value, "bias"),)


Sink = Linear | AddConstant


def sink_of(value: ir.Value, reader: ir.Node, known: Known) -> Sink | Refusal:
    """The sink that computes `value`, if only `reader` reads it and a rule knows its producer."""
    blocked = may_change(value, reader)
    if blocked is not None:
        return blocked
    producer = value.producer()
    assert producer is not None
    rule = RULES.get(producer.op_type) if is_standard(producer) else None
    if rule is None:
        return Refusal(f"producer of '{value.name}' is {describe(producer)}, which holds no weight to fold into")
    return rule(producer, known)


def conv(node: ir.Node, known: Known) -> Sink | Refusal:
    """Conv in any number of spatial axes, any group: `y = W * x + b`, W [C, C_in/group, k..].

    After: `W'[o, ..] = s[o] * W[o, ..]`, `b' = s * (b - c) + o`. Padding, strides and dilations do not matter: an
    output position that reads only padding equals b before and b' after.
    (1) W is constant, floating, of rank 3 or more. (2) b is absent, empty, or constant of shape [C].
    """
    return _convolution(node, known, lambda w: w.shape[0], partial(weights.scale_axis, axis=0))


def conv_transpose(node: ir.Node, known: Known) -> Sink | Refusal:
    """ConvTranspose, any group: W [C_in, C/group, k..].

    After: with W seen as [group, C_in/group, C/group, k..], the third axis is scaled by s seen as [group, C/group].
    The region that output_padding adds holds only bias, which becomes b' with the rest.
    (1) W is constant, floating, of rank 3 or more, and group divides C_in. (2) b is absent, empty, or constant [C].
    """
    group = node.attributes.get_int("group", 1)
    scale_weight = partial(weights.scale_transposed, group=group)
    return _convolution(node, known, lambda w: w.shape[1] * group, scale_weight)


def _convolution(
    node: ir.Node,
    known: Known,
    channels_of: Callable[[Array], int],
    scale_weight: Callable[[Float64s, Float64s], Float64s],
) -> Sink | Refusal:
    weight = _weight(node, 1, known)
    if isinstance(weight, Refusal):
        return weight
    group = node.attributes.get_int("group", 1)
    shape = weight.array.shape
    if len(shape) < 3 or group < 1 or shape[0] % group:
        return Refusal(f"weight '{weight.value.name}' of {describe(node)} has shape {list(shape)} with group={group}")
    channels = channels_of(weight.array)
    bias = _constant_operand(node, 2, "bias", known)
    if isinstance(bias, Refusal):
        return bias
    if bias is not None and bias.array.shape != (channels,):
        found = list(bias.array.shape)
        return Refusal(f"bias '{bias.value.name}' of {describe(node)} has shape {found}, expected [{channels}]")
    fold_bias = partial(_along_axis, axis=0)
    return Linear(node, len(shape), channels, weight, scale_weight, bias, fold_bias, partial(_bias_at, node, 2, ()))


def gemm(node: ir.Node, known: Known) -> Sink | Refusal:
    """Gemm: `y = alpha * A' B' + beta * C`, A' and B' transposed as transA and transB say; channels are B's columns.

    After: B' columns scaled by s, alpha as it was; `C' = s * (beta * C - c) + o` and beta = 1. C of shape [], [N],
    [1, N] becomes [N] or [1, N]; [M, 1] and [M, N] become [M, N].
    (1) B is a constant floating matrix. (2) C is absent, empty, or constant.
    """
    weight = _weight(node, 1, known)
    if isinstance(weight, Refusal):
        return weight
    if weight.array.ndim != 2:
        found = list(weight.array.shape)
        return Refusal(f"weight '{weight.value.name}' of {describe(node)} has shape {found}, expected a matrix")
    axis = 0 if node.attributes.get_int("transB", 0) else 1
    channels = weight.array.shape[axis]
    bias = _constant_operand(node, 2, "bias C", known)
    if isinstance(bias, Refusal):
        return bias
    if bias is not None and (bias.array.ndim > 2 or bias.array.shape[-1:] not in ((), (1,), (channels,))):
        found = list(bias.array.shape)
        return Refusal(f"bias '{bias.value.name}' of {describe(node)} has shape {found}, expected [{channels}]")
    # np.float32: the attribute's own type, whatever a builder of graphs in memory has put there.
    beta = float(np.float32(node.attributes.get_float("beta", 1.0)))
    attributes = (ir.AttrFloat32("beta", 1.0),) if beta != 1.0 else ()
    bias_edits = partial(_bias_at, node, 2, attributes + _gemm_broadcast(known.opset))
    scale_weight, fold_bias = partial(weights.scale_axis, axis=axis), partial(weights.fold_constant, rank=2)
    return Linear(node, 2, channels, weight, scale_weight, bias, fold_bias, bias_edits, bias_factor=beta)


def matmul(node: ir.Node, known: Known) -> Sink | Refusal:
    """MatMul with a constant operand that owns axis 1 of the output.

    The output has rank r = max(rank A, rank B). Its last axis is B's, its last but one is A's, the ones before are
    both's. So the constant owns axis 1 if that, counted in its own axes, is not the axis that is summed over: B's
    columns for r = 2; A's rows for r = 3; a batch axis for r >= 4. A Linear on [N, T, F] has its weight on axis 2:
    refused, even where T = F.
    After: `W' = s * W` along that axis. There is no bias to take the shift: for r = 2 the node becomes a Gemm, which
    has one (an Add would be one more node, and ONNX Runtime would build the same Gemm from it); otherwise one Add of
    shape [C, 1..] follows.
    (1) One operand is constant and floating. (2) Both ranks are known, and at least 2. (3) The constant owns axis 1.
    (4) For r > 2, the opset is 7 or newer: before, Add has other broadcasting.
    """
    weight = _matmul_weight(node, known)
    if isinstance(weight, Refusal):
        return weight
    is_right = weight.index == 1
    other = node.inputs[1 - weight.index]
    other_rank = known.shapes.rank(other) if other is not None else None
    if other_rank is None or other_rank < 2 or weight.array.ndim < 2:
        found = "not known" if other_rank is None else min(other_rank, weight.array.ndim)
        name = other.name if other is not None else ""
        return Refusal(f"{describe(node)}: the rank of '{name}' is {found}, so the axis of its weight is not proved")
    rank = max(other_rank, weight.array.ndim)
    axis = 1 - (rank - weight.array.ndim)
    summed = weight.array.ndim - (2 if is_right else 1)
    if axis < 0 or axis == summed:
        acts_on = rank - (1 if is_right else 2)
        return Refusal(
            f"the affine is along axis 1 of rank-{rank} '{node.outputs[0].name}', "
            f"weight '{weight.value.name}' of {describe(node)} acts on axis {acts_on}"
        )
    if rank > 2 and known.opset < 7:
        return Refusal(f"{describe(node)} would need an Add after it, which opset {known.opset} cannot broadcast")

    scale_weight, fold_bias = partial(weights.scale_axis, axis=axis), partial(weights.fold_constant, rank=rank)
    bias_edits = partial(_bias_of_new_gemm, node, known.opset) if rank == 2 else partial(_bias_of_new_add, node)
    return Linear(node, rank, weight.array.shape[axis], weight, scale_weight, None, fold_bias, bias_edits)


def _matmul_weight(node: ir.Node, known: Known) -> Operand | Refusal:
    right, left = _weight(node, 1, known), _weight(node, 0, known)
    if isinstance(right, Operand):
        return right
    if isinstance(left, Operand):
        return left
    return right


def add(node: ir.Node, known: Known) -> Sink | Refusal:
    """Add of a constant k, on either side, to a tensor u that a sink computes.

    After: `u' = s * u`, `k' = s * (k - c) + o`, k broadcast over the channels.
    (1) One operand is constant and floating, the other is not. (2) A sink computes u, for this Add alone. (3) u has the
    rank and the channels of the sum: k has no more axes than u, and 1 or C on axis 1. (4) Below opset 7, k is B, and
    its axes (as `axis` lays them) already hold the channels.
    """
    operands = [_constant_operand(node, index, "operand", known) for index in (0, 1)]
    found = [operand for operand in operands if isinstance(operand, Operand)]
    if len(found) != 1:
        which = "no constant operand" if not found else "only constant operands"
        return Refusal(f"producer is {describe(node)}, which has {which}")
    constant = found[0]
    if constant.array.dtype not in weights.FLOAT_DTYPES:
        return Refusal(f"'{constant.value.name}' of {describe(node)} is {constant.array.dtype}, expected a float type")
    u = node.inputs[1 - constant.index]
    if u is None or known.adds_left == 0:
        return Refusal(f"producer is {describe(node)}, the last of too many Add nodes in a row")
    inner = sink_of(u, node, replace(known, adds_left=known.adds_left - 1))
    if isinstance(inner, Refusal):
        return inner
    if known.opset < 7:
        return _legacy_add(node, constant, inner)
    shape = constant.array.shape
    aligned = (1,) * (inner.rank - len(shape)) + shape
    if len(aligned) != inner.rank or aligned[1] not in (1, inner.channels):
        return Refusal(
            f"'{constant.value.name}' {list(shape)} of {describe(node)} does not broadcast to "
            f"the {inner.channels} channels of rank-{inner.rank} '{u.name}'"
        )
    fold_constant = partial(weights.fold_constant, rank=inner.rank)
    return AddConstant(node, inner.rank, inner.channels, constant, fold_constant, inner)


def _legacy_add(node: ir.Node, constant: Operand, inner: Sink) -> Sink | Refusal:
    """Opsets 1 to 6: B's axes lie on A's from `axis` on (default: the last ones), and A alone gives the shape."""
    shape = constant.array.shape
    first = node.attributes.get_int("axis", inner.rank - len(shape))
    aligned = (1,) * first + shape + (1,) * (inner.rank - first - len(shape))
    if constant.index != 1 or len(aligned) != inner.rank or aligned[1] != inner.channels:
        return Refusal(f"'{constant.value.name}' {list(shape)} of {describe(node)} does not hold the channels")

    def fold_constant(values: Float64s, affine: Affine) -> Float64s:
        return affine(values.reshape(aligned), axis=1).reshape(shape)

    return AddConstant(node, inner.rank, inner.channels, constant, fold_constant, inner)


def _weight(node: ir.Node, index: int, known: Known) -> Operand | Refusal:
    weight = _constant_operand(node, index, "weight", known)
    if weight is None:
        return Refusal(f"{describe(node)} lacks its operand {index}")
    if isinstance(weight, Operand) and weight.array.dtype not in weights.FLOAT_DTYPES:
        return Refusal(
            f"weight '{weight.value.name}' of {describe(node)} is {weight.array.dtype}, expected a float type"
        )
    return weight


def _constant_operand(node: ir.Node, index: int, role: str, known: Known) -> Operand | Refusal | None:
    """None where the operand is absent, be it by length or by an empty name."""
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None:
        return None
    array = known.constants.of(value)
    if isinstance(array, Refusal):
        return Refusal(f"{role} '{value.name}' of {describe(node)} is not constant: {array.reason}")
    return Operand(index, value, array)


def _bias_at(
    node: ir.Node, index: int, attributes: tuple[ir.Attr, ...], bias: Array, origin: ir.Value
) -> tuple[Edit, ...]:
    return (SetOperand(node, index, bias, origin, role="bias"), *(SetAttribute(node, a) for a in attributes))


def _bias_of_new_gemm(node: ir.Node, opset: int, bias: Array, origin: ir.Value) -> tuple[Edit, ...]:
    return (BecomeGemm(node), *_bias_at(node, 2, _gemm_broadcast(opset), bias, origin))


def _bias_of_new_add(node: ir.Node, bias: Array, origin: ir.Value) -> tuple[Edit, ...]:
    return (AppendAdd(node, bias, origin),)


def _gemm_broadcast(opset: int) -> tuple[ir.Attr, ...]:
    """Below opset 7 a Gemm broadcasts its C only when told to."""
    return (ir.AttrInt64("broadcast", 1),) if opset < 7 else ()


def _along_axis(values: Float64s, affine: Affine, axis: int) -> Float64s:
    return affine(values, axis)


def _finite(array: Array) -> bool:
    return bool(np.isfinite(array).all())


RULES: dict[str, Callable[[ir.Node, Known], Sink | Refusal]] = {
    "Add": add,
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "Gemm": gemm,
    "MatMul": matmul,
}
