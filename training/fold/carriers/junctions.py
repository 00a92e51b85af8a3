"""Junctions: sums of tensors. All operands are stored under one scale; their shifts add up to the output's.

    s (a + b) + (t + u) = (s a + t) + (s b + u)

This is the freedom that residual networks fold by: a shift may enter a sum through any of its operands.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from training.fold.broadcasting import operand_port, output_axes
from training.fold.carriers.ends import same_ends
from training.fold.graph import describe
from training.fold.known import Known, Rule
from training.fold.laws import Law, Port, Sum, Term
from training.fold.refusal import Refusal

_BROADCASTING = 7  # the opset from which operands broadcast as NumPy's do


def junction(node: ir.Node, port: Port, known: Known) -> tuple[Law, ...] | Refusal:
    """Add, Sub, Sum of tensors. (1) No operand is constant (lift.py has those). (2) Opset 7 on, or equal shapes."""
    negative = node.op_type == "Sub"
    factors = [-1.0 if negative and place == 1 else 1.0 for place in range(len(node.inputs))]
    return weighted_sum(node, port, factors, _BROADCASTING, known)


def weighted_sum(
    node: ir.Node, port: Port, factors: Sequence[float], broadcasting: int, known: Known
) -> tuple[Law, ...] | Refusal:
    """The sum of all operands, each times its factor. `broadcasting`: the opset from which shapes may differ."""
    axes = output_axes(node, port, known)
    if isinstance(axes, Refusal):
        return axes
    out = known.port(node.outputs[0], axes, node)
    if isinstance(out, Refusal):
        return out
    terms = []
    for value, factor in zip(node.inputs, factors, strict=True):
        if value is not None and known.opset < broadcasting and known.dims(value) != known.dims(out.value):
            return Refusal(f"the operands of {describe(node)} differ in shape, under opset {known.opset}")
        found = operand_port(node, value, axes, known)
        if isinstance(found, Refusal):
            return found
        terms.append(Term(found[0], factor, found[1]))
    return (Sum(out, tuple(terms)),)


def negation(node: ir.Node, port: Port, known: Known) -> tuple[Law, ...] | Refusal:
    """Neg: `-(s x + t) = s (-x) - t`."""
    pair = same_ends(node, port, known)
    if isinstance(pair, Refusal):
        return pair
    x, y = pair
    return (Sum(y, (Term(x, -1.0),)),)


RULES: dict[str, Rule] = {"Neg": negation, "Sum": junction}
