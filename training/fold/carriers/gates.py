"""Products of computed tensors, and choices between them: what carries a gauge through, and what only steers.

    (s x) g = s (x g)                  Mul, Div by g, and MatMul along the axes that are not contracted; no shift:
    (s x + t) g = s (x g) + t g        t g is no constant
    P (s v + t) = s (P v) + t          if every row of P sums to one: P is a Softmax over its last axis
    where(c, s a + t, s b + t) = s where(c, a, b) + t

Of two factors that both could carry a scale one is the carrier and the other, the gate, is stored as it is. Which one
is a question of the graph alone, not of where the solver comes from.
Which products are channelwise affine maps is lift.py's question; this file takes what is left.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from training.fold.broadcasting import operand_port, output_axes
from training.fold.carriers.ends import Axes
from training.fold.graph import describe, is_standard
from training.fold.known import Known, Rule
from training.fold.laws import Equal, Law, NoShift, Port, Positive
from training.fold.refusal import Refusal
from training.fold.zeros import holds_zeros

_BROADCASTING = 7  # the opset from which operands broadcast as NumPy's do
_LAST_AXIS_SOFTMAX = 13  # the opset from which Softmax works along one axis, by default the last

# Functions without a rule: their outputs have no gauge but the identity, so nothing is lost by taking them for gates.
_ROOTED = frozenset(
    {"Celu", "Cos", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish", "Log", "LogSoftmax", "Mish", "Reciprocal"}
    | {"Selu", "Sigmoid", "Sin", "Softmax", "Softplus", "Softsign", "Sqrt", "Swish", "Tanh"}
)
_BOUNDED = frozenset({"Clip", "HardSigmoid", "Sigmoid", "Softmax", "Tanh"})  # what gates are made of, constants aside


def dynamic_mul(node: ir.Node, port: Port, known: Known) -> tuple[Law, ...] | Refusal:
    """Mul that is no channelwise map: the carrier and the output have equal scales and no shift.

    The carrier, by the first of these that tells the factors apart: (1) the one that is not constant; (2) the one
    that is computed by an operator whose output can be rescaled, and is no input of the graph; (3) the one that is
    not spread over an axis of the other; (4) the one that is not a bounded function, up to constant factors and
    summands (hard sigmoids written out); (5) the first.
    Refused: the square of a tensor, whose scale is a square; a gauge on the gate; two constants.
    """
    gate = _gate(node, known)
    if isinstance(gate, Refusal):
        return gate
    return _scaling(node, port, 1 - gate, known)


def dynamic_div(node: ir.Node, port: Port, known: Known) -> tuple[Law, ...] | Refusal:
    """Div that is no channelwise map: the numerator and the output have equal scales and no shift.

    Refused: a gauge on the denominator, which would turn upside down; a tensor divided by itself.
    """
    if len(node.inputs) != 2 or node.inputs[0] is node.inputs[1]:
        return Refusal(f"{describe(node)} divides a tensor by itself, or has not two operands")
    return _scaling(node, port, 0, known)


def _scaling(node: ir.Node, port: Port, place: int, known: Known) -> tuple[Law, ...] | Refusal:
    """Equal scales on operand `place` and the output, which may be larger than it; opset 7 on, or of one shape."""
    carrier, gate = node.inputs[place], node.inputs[1 - place]
    if carrier is None or gate is None or port.value is gate:
        return Refusal(f"'{port.value.name}' scales the other operand of {describe(node)}")
    if known.opset < _BROADCASTING and known.dims(carrier) != known.dims(node.outputs[0]):
        return Refusal(f"'{carrier.name}' of {describe(node)} differs in shape from the output, in opset {known.opset}")
    axes = output_axes(node, port, known)
    if isinstance(axes, Refusal):
        return axes
    tie = _tie(node, carrier, axes, known)
    if isinstance(tie, Refusal):
        return tie
    return tie, NoShift(tie.a, f"{describe(node)} multiplies '{carrier.name}' by '{gate.name}'")


def _tie(node: ir.Node, value: ir.Value, axes: Axes, known: Known) -> Equal | Refusal:
    """An operand, and the output along `axes`, under one gauge; where the operand is spread, by an index."""
    out = known.port(node.outputs[0], axes, node)
    if isinstance(out, Refusal):
        return out
    operand = operand_port(node, value, axes, known)
    if isinstance(operand, Refusal):
        return operand
    return Equal(operand[0], out, operand[1])


def _gate(node: ir.Node, known: Known) -> int | Refusal:
    """The place of the factor of a Mul that steers and carries nothing."""
    a, b = node.inputs if len(node.inputs) == 2 else (None, None)
    if a is None or b is None:
        return Refusal(f"{describe(node)} has not two operands")
    if a is b:
        return Refusal(f"{describe(node)} squares '{a.name}'")
    constant = [known.constant(value) is not None for value in (a, b)]
    if all(constant):
        return Refusal(f"{describe(node)} multiplies constants")
    rooted, bounded = [_is_rooted(v) for v in (a, b)], [_is_bounded(v, known) for v in (a, b)]
    for signs in (constant, rooted, [_is_spread(a, b, known), _is_spread(b, a, known)], bounded):
        if signs[0] != signs[1]:
            return signs.index(True)
    return 1


def _is_rooted(value: ir.Value) -> bool:
    """Is it an input of the graph, or computed by an operator of the table above?"""
    node = _source(value).producer()
    return node is None or (is_standard(node) and node.op_type in _ROOTED)


def _is_bounded(value: ir.Value, known: Known) -> bool:
    """Is it a bounded function of something, times and plus constants?"""
    node = _source(value).producer()
    while node is not None and is_standard(node) and node.op_type in ("Add", "Div", "Mul", "Sub"):
        dynamic = [operand for operand in node.inputs if operand is not None and known.constant(operand) is None]
        if len(dynamic) != 1:
            return False
        node = _source(dynamic[0]).producer()
    return node is not None and is_standard(node) and node.op_type in _BOUNDED


def _source(value: ir.Value) -> ir.Value:
    """`value`, seen through Identity nodes."""
    node = value.producer()
    while node is not None and is_standard(node, "Identity") and node.inputs[0] is not None:
        value = node.inputs[0]
        node = value.producer()
    return value


def _is_spread(value: ir.Value, other: ir.Value, known: Known) -> bool:
    """Has `value` fewer axes than `other`, or an axis of size 1 where `other` has not?"""
    mine, its = known.dims(value), known.dims(other)
    if mine is None or its is None:
        return False
    if len(mine) < len(its):
        return True
    return any(a == 1 and b != 1 for a, b in zip(mine[::-1], its[::-1], strict=False))


def where(node: ir.Node, port: Port, known: Known) -> tuple[Law, ...] | Refusal:
    """Where: both branches under the output's gauge, spread over it by an index where they are smaller.

    1. The gauge is not on the condition.
    2. A constant branch is stored under the same gauge, so it has a size along its axes. Two kinds stay as they are:
       zeros that have none, or one that a caller decides, `s 0 + 0 = 0` without shift, and infinities,
       `s inf + t = inf` for s > 0.
    """
    if len(node.inputs) != 3 or None in node.inputs or port.value is node.inputs[0]:
        return Refusal(f"'{port.value.name}' is the condition of {describe(node)}, or it has not three operands")
    if port.reader is None and holds_zeros(port.value, known):
        return ()
    axes = output_axes(node, port, known)
    if isinstance(axes, Refusal):
        return axes
    out = known.port(node.outputs[0], axes, node)
    if isinstance(out, Refusal):
        return out
    laws: list[Law] = []
    for value in node.inputs[1:]:
        assert value is not None
        law = _fixed_branch(node, value, out, known) or _tie(node, value, axes, known)
        if isinstance(law, Refusal):
            return law
        laws.append(law)
    return tuple(laws)


def _fixed_branch(node: ir.Node, value: ir.Value, out: Port, known: Known) -> NoShift | Positive | None:
    """The law of a constant branch that stays as it is; None for any other branch."""
    numbers = known.constant(value)
    zeros = NoShift(out, f"{describe(node)} puts zeros into '{out.value.name}'")
    if numbers is None:
        return zeros if holds_zeros(value, known) else None
    if np.all(np.isinf(numbers.astype(np.float64))):
        return Positive(out, f"{describe(node)} puts infinities into '{out.value.name}'", infinite=True)
    operand = operand_port(node, value, out.axes, known)
    has_size = not isinstance(operand, Refusal) and operand[1] is None
    if has_size or np.any(numbers != 0):
        return None
    return zeros


def dynamic_matmul(node: ir.Node, port: Port, known: Known) -> tuple[Law, ...] | Refusal:
    """MatMul of two computed tensors `[.., M, K] x [.., K, N]`: a scale passes along M on the left, N on the right.

    1. Neither operand is constant, and they are two tensors.
    2. Both have rank 2 or more.
    3. The gauge lies along the last axis but one (on the left, or of the output), or along the last (on the right, or
       of the output), not both, and perhaps along batch axes too, as a value per head and feature does. Along the
       contracted axis, or batch axes alone, it is refused.
    4. The other operand, or both for the output's sake, is stored as it is. On the right a shift passes too if the
       left operand is a Softmax over its last axis: its rows sum to one.
    """
    operands = tuple(value for value in node.inputs if value is not None)
    ranks = [len(known.dims(value) or ()) for value in (*operands, node.outputs[0])]
    if len(operands) != 2 or operands[0] is operands[1] or min(ranks) < 2:
        return Refusal(f"{describe(node)} has not two different operands of rank 2 or more")
    if any(known.constant(value) is not None for value in operands):
        return Refusal(f"{describe(node)} has a constant operand")
    axes = output_axes(node, port, known)
    if isinstance(axes, Refusal):
        return axes
    free = [place for place, axis in enumerate((ranks[2] - 2, ranks[2] - 1)) if axis in axes]
    if len(free) != 1 or port.value not in (operands[free[0]], node.outputs[0]):
        return Refusal(f"{describe(node)} carries rows of its left or columns of its right operand, not {port.axes}")
    tie = _tie(node, operands[free[0]], axes, known)
    if isinstance(tie, Refusal):
        return tie
    if free == [1] and _rows_sum_to_one(operands[0], known):
        return (tie,)
    return tie, NoShift(tie.a, f"{describe(node)} multiplies '{operands[0].name}' by '{operands[1].name}'")


def _rows_sum_to_one(value: ir.Value, known: Known) -> bool:
    """Is it a Softmax over its last axis? Before opset 13 Softmax works over `axis` (1) and all after it."""
    node, rank = _source(value).producer(), len(known.dims(value) or ())
    if node is None or not is_standard(node, "Softmax"):
        return False
    axis = node.attributes.get_int("axis", -1 if known.opset >= _LAST_AXIS_SOFTMAX else 1)
    return axis in (-1, rank - 1)


def dynamic_einsum(node: ir.Node, port: Port, known: Known) -> tuple[Law, ...] | Refusal:
    """Einsum: a scale passes along labels that are summed nowhere, from the one operand that has them all.

        sum_k (s[i] a[i, k]) b[k, j] = s[i] sum_k a[i, k] b[k, j]

    1. The equation is written out, `terms -> result`: no ellipsis, no label twice in a term, one label an axis.
    2. Every label of the gauge is in the result, where it may stand in another order.
    3. Exactly one operand has all of them: it carries, the others are gates, be they constant or not.
    """
    terms = _labels(node, known)
    if isinstance(terms, Refusal):
        return terms
    values = (*node.inputs, node.outputs[0])
    place = values.index(port.value)
    if len(set(values)) != len(values) or max(port.axes) >= len(terms[place]):
        return Refusal(f"{describe(node)} reads a tensor twice, or '{port.value.name}' has no axis {port.axes}")
    labels = {terms[place][axis] for axis in port.axes}
    having = [place for place, term in enumerate(terms) if labels <= set(term)]
    if len(having) != 2 or having[1] != len(node.inputs) or place not in having:
        return Refusal(f"{describe(node)} carries along labels of its result and of one operand, not {sorted(labels)}")
    return _einsum_laws(node, terms[having[0]], terms[-1], labels, having[0], known)


def _labels(node: ir.Node, known: Known) -> tuple[str, ...] | Refusal:
    """The labels of each operand and, last, of the result. Condition 1."""
    equation = node.attributes.get_string("equation", "").replace(" ", "")
    left, arrow, result = equation.partition("->")
    terms = (*left.split(","), result)
    values = (*node.inputs, node.outputs[0])
    whole = arrow and "." not in equation and all(len(set(term)) == len(term) for term in terms)
    if not whole or len(terms) != len(values):
        return Refusal(f"the equation {equation!r} of {describe(node)} is not written out, or has a label twice")
    ranks = [None if value is None else known.shapes.rank(value) for value in values]
    if ranks != [len(term) for term in terms]:
        return Refusal(f"the equation {equation!r} of {describe(node)} does not fit the ranks {ranks}")
    return terms


def _einsum_laws(
    node: ir.Node, term: str, result: str, labels: set[str], place: int, known: Known
) -> tuple[Law, ...] | Refusal:
    """Equal scales along `labels`, whose order in the result is that of the index."""
    carrier = known.port(node.inputs[place], tuple(i for i, label in enumerate(term) if label in labels), node)
    out = known.port(node.outputs[0], tuple(i for i, label in enumerate(result) if label in labels), node)
    if isinstance(carrier, Refusal):
        return carrier
    if isinstance(out, Refusal):
        return out
    dims, out_dims = known.dims(carrier.value) or (), known.dims(out.value) or ()
    sizes = {term[axis]: dims[axis] or 0 for axis in carrier.axes}
    if sizes != {result[axis]: out_dims[axis] or 0 for axis in out.axes}:
        return Refusal(f"'{carrier.value.name}' of {describe(node)} is spread along {sorted(labels)}")
    order = [list(sizes).index(result[axis]) for axis in out.axes]
    entries = np.arange(int(np.prod(list(sizes.values())))).reshape(list(sizes.values()))
    why = f"{describe(node)} multiplies '{carrier.value.name}' by computed tensors"
    return Equal(carrier, out, entries.transpose(order).reshape(-1)), NoShift(carrier, why)


RULES: dict[str, Rule] = {"Where": where}
