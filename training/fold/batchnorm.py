"""A BatchNormalization node of any opset as one record: its input, its output, and the affine map it applies.

Knows the operator's history (opsets 1, 6, 7, 9, 14, 15), not what comes before or after the node.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from training.fold.affine import Affine, Array, Float64s, from_batchnorm
from training.fold.constants import Constants
from training.fold.graph import describe
from training.fold.refusal import Refusal

_PARAMETERS = ("scale", "B", "input_mean", "input_var")  # operands 1 to 4, by the names of the operator page


@dataclass(frozen=True)
class BatchNorm:
    """Y = affine(X) along axis 1. X, Y of type T; parameters of T1, T2 (opset 15), here float64.

    `affine.center` is the mean; `spread` is variance + epsilon.
    """

    node: ir.Node
    x: ir.Value
    y: ir.Value
    affine: Affine
    spread: Float64s
    epsilon: float


def read_batchnorm(node: ir.Node, opset: int, constants: Constants) -> BatchNorm | Refusal:
    """The record of `node`, a BatchNormalization under `opset`, or why it is no constant map.

    Refused: (1) training mode, in any opset's way of saying it; (2) extra outputs in use; (3) `spatial=0` (opsets 1 to
    8: one scale per element); (4) a missing or non-constant parameter; (5) parameters that are not four vectors of one
    length; (6) variance + epsilon not positive and finite, or a map that is not.
    """
    mode = _refuse_mode(node, opset)
    if mode is not None:
        return mode
    operands = list(node.inputs) + [None] * (5 - len(node.inputs))
    x, *parameters = operands[:5]
    if x is None:
        return Refusal(f"{describe(node)} lacks its operand X")
    epsilon = float(np.float32(node.attributes.get_float("epsilon", 1e-5)))  # as the attribute stores it
    key = (node, *parameters, epsilon)
    if key not in constants.notes:  # one pass asks some nine times
        constants.notes[key] = _map(node, parameters, epsilon, constants)
    found: tuple[Affine, Float64s] | Refusal = constants.notes[key]
    return found if isinstance(found, Refusal) else BatchNorm(node, x, node.outputs[0], *found, epsilon)


def _map(
    node: ir.Node, parameters: Sequence[ir.Value | None], epsilon: float, constants: Constants
) -> tuple[Affine, Float64s] | Refusal:
    """The affine map, and variance + epsilon."""
    vectors: list[Array] = []
    for name, value in zip(_PARAMETERS, parameters, strict=True):
        if value is None:
            return Refusal(f"{describe(node)} lacks its operand {name}")
        vector = constants.exact(value)
        if isinstance(vector, Refusal):
            return Refusal(f"{name} is not constant: {vector.reason}")
        if vector.ndim != 1 or (vectors and len(vector) != len(vectors[0])):
            expected = f"[{len(vectors[0])}], as {_PARAMETERS[0]}" if vectors else "one axis"
            return Refusal(f"{name} '{value.name}' has shape {list(vector.shape)}, expected {expected}")
        vectors.append(vector)
    gamma, beta, mean, variance = vectors
    affine = from_batchnorm(gamma, beta, mean, variance, epsilon)
    if isinstance(affine, Refusal):
        return affine
    return affine, np.asarray(variance, dtype=np.float64) + epsilon


def _refuse_mode(node: ir.Node, opset: int) -> Refusal | None:
    """Does this node normalise with its own batch's statistics, or hand out statistics?

    Opsets 1 to 6: `is_test`, whose default 0 is training. 7 to 13: whichever outputs are named decide. From 14 on:
    `training_mode`, default 0.
    """
    extra = [output for output in node.outputs[1:] if output.name]
    used = [output for output in extra if output.uses() or output.is_graph_output()]
    if opset >= 14 and node.attributes.get_int("training_mode", 0) != 0:
        return Refusal("training_mode=1: it normalises with the statistics of each batch")
    if opset < 7 and node.attributes.get_int("is_test", 0) == 0:
        return Refusal(f"is_test=0 (opset {opset}): it normalises with the statistics of each batch")
    if used:
        return Refusal(f"its output '{used[0].name}' (running statistics) is used")
    if extra and 7 <= opset < 14:
        return Refusal(f"it has {1 + len(extra)} outputs, which in opset {opset} means training mode")
    if opset < 9 and node.attributes.get_int("spatial", 1) == 0:
        return Refusal("spatial=0: its scale differs within a channel")
    return None
