"""LayerNormalization, InstanceNormalization, GroupNormalization: `y = scale * normal(x) + B`, by x's own statistics.

At the output it is a layer whose weight has one number a channel: scale and B take any gauge. At the input it is none:
`normal` divides by a deviation that epsilon was added to, and only an InstanceNormalization, which subtracts every
channel's own mean, is blind to a shift.
"""

from __future__ import annotations

from math import prod

import onnx_ir as ir

from training.fold.affine import Affine, Float64s
from training.fold.graph import describe
from training.fold.known import Known
from training.fold.linear.layer import Bias, End, Layer, read_operand, read_weight, set_bias
from training.fold.refusal import Refusal


def normalisation(node: ir.Node, known: Known) -> Layer | Refusal:
    """LayerNormalization: scale and B over the axes from `axis` on; the others: along axis 1, one number a channel.

    (1) The scale is constant and floating, the rank of x known, and the scale has that many axes. (2) B is absent, or
    constant of the scale's shape; else the output keeps its gauge. What has one number a group of channels (a
    GroupNormalization before opset 21) has another size than the channels, and no gauge for that.
    """
    weight, x = read_weight(node, 1, known), node.inputs[0]
    if isinstance(weight, Refusal):
        return weight
    rank = None if x is None else known.shapes.rank(x)
    if x is None or rank is None:
        return Refusal(f"the rank of an operand of {describe(node)} is not known")
    axes = _axes(node, rank)
    if len(weight.shape) != len(axes):
        return Refusal(
            f"scale '{weight.value.name}' of {describe(node)} has shape {list(weight.shape)}, expected {len(axes)} axes"
        )
    why = f"{describe(node)} divides '{x.name}' by its own deviation"
    return Layer(
        node,
        End(x, axes, weight.shape),
        End(node.outputs[0], axes, weight.shape),
        weight,
        _matrix,
        0 if len(axes) == 1 else None,
        _bias(node, weight.shape, known),
        x_keeps_its_shift="" if node.op_type == "InstanceNormalization" else why,
        x_keeps_its_scale=why,
        gain=0.0,  # of x's shift nothing comes through
    )


def _axes(node: ir.Node, rank: int) -> tuple[int, ...]:
    if node.op_type != "LayerNormalization":
        return (1,)
    return tuple(range(node.attributes.get_int("axis", -1) % rank, rank))


def _matrix(scale: Float64s) -> Float64s:
    """As many groups as numbers."""
    return scale.reshape(-1, 1, 1, 1)


def _bias(node: ir.Node, shape: tuple[int, ...], known: Known) -> Bias | Refusal:
    operand = read_operand(node, 2, "B", known)
    if isinstance(operand, Refusal):
        return operand
    if operand is not None and operand.shape != shape:
        found = list(operand.shape)
        return Refusal(f"B '{operand.value.name}' of {describe(node)} has shape {found}, expected {list(shape)}")
    return Bias(operand, shape, _entry_by_entry, set_bias(node, 2))


def _entry_by_entry(bias: Float64s, affine: Affine) -> Float64s:
    return affine(bias.reshape(prod(bias.shape)), axis=0).reshape(bias.shape)
