"""LSTM, GRU, RNN: linear in their input X, whose features are axis 2 in both layouts; nothing else of them is.

Each direction computes `W X + Wb` before anything that is not linear, so that a gauge of X goes into W [directions,
gates * hidden, features] and Wb, the first half of each row of B [directions, 2 * gates * hidden]. A GRU's
`linear_before_reset` concerns R and Rb alone; `clip` and peepholes see the sum, which stays the same. Outputs, and
operands that are read after the first activation, stay as they are.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from training.fold.affine import Affine, Float64s
from training.fold.graph import describe
from training.fold.known import Known
from training.fold.linear.layer import Bias, End, Layer, read_operand, read_weight, set_bias
from training.fold.refusal import Refusal

_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
_X, _W, _B = 0, 1, 3


def recurrent(node: ir.Node, known: Known) -> Layer | Refusal:
    """(1) W is constant, floating, of rank 3. (2) B is absent, or constant of the size that W asks for; else X keeps
    its shift. A B that is absent is made, with Rb = 0, where X has a shift.
    """
    weight = read_weight(node, _W, known)
    if isinstance(weight, Refusal):
        return weight
    x = node.inputs[_X]
    if x is None or len(weight.shape) != 3 or weight.shape[1] % _GATES[node.op_type]:
        return Refusal(f"weight '{weight.value.name}' of {describe(node)} has shape {list(weight.shape)}")
    directions, rows, features = weight.shape
    y = Refusal(f"{describe(node)} is linear in its input alone")
    return Layer(node, End(x, (2,), (features,)), y, weight, _matrix, None, _bias(node, (directions, 2 * rows), known))


def _matrix(weight: Float64s) -> Float64s:
    """All directions and gates read the same features: one matrix with a row for each of them."""
    return weight.reshape(1, -1, weight.shape[2], 1)


def _bias(node: ir.Node, shape: tuple[int, int], known: Known) -> Bias | Refusal:
    operand = read_operand(node, _B, "bias", known)
    if isinstance(operand, Refusal):
        return operand
    if operand is not None and operand.shape != shape:
        found = list(operand.shape)
        return Refusal(f"bias '{operand.value.name}' of {describe(node)} has shape {found}, expected {list(shape)}")
    return Bias(operand, shape, _into_input_half, set_bias(node, _B))


def _into_input_half(bias: Float64s, affine: Affine) -> Float64s:
    """B with the map on its Wb."""
    of_input, of_state = np.split(bias, 2, axis=1)
    return np.concatenate([affine(of_input.reshape(-1), axis=0).reshape(of_input.shape), of_state], axis=1)
