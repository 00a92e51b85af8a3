"""Gemm with one constant operand, on either side: a constant B makes the columns of y, a constant A the rows."""

from __future__ import annotations

from functools import partial

import onnx_ir as ir

from training.fold.affine import Float64s
from training.fold.broadcasting import outgrows
from training.fold.graph import describe
from training.fold.known import Known
from training.fold.linear.layer import Bias, End, Layer, Operand, read_operand, read_weight, set_bias
from training.fold.linear.quantised import QuantisedWeight
from training.fold.refusal import Refusal
from training.fold.weights import fold_constant

BROADCASTING = 7  # the opset from which the constants of Add and Gemm may have any shape


def gemm(node: ir.Node, known: Known) -> Layer | Refusal:
    """Gemm: `y = alpha * A' B' + beta * C`, A' and B' transposed as transA and transB say, one of them constant.

    Channels are B's columns, along axis 1 of y, or, where A is the constant, A's rows, along axis 0.
    After: W rescaled, alpha as it was; `C' = s * (beta * C - alpha W (B / A)) + o` and beta = 1. Of columns: C of shape
    [], [N], [1, N] becomes [N] or [1, N]; [M, 1] and [M, N] become [M, N]. Of rows: [], [1, 1], [M, 1] become [M, 1],
    all others [M, N].
    (1) W is a constant floating matrix. (2) C is absent, or constant and does not outgrow its limit; else the output
    keeps its gauge, the input its shift.
    """
    weight = only_weight(node, known)
    if isinstance(weight, Refusal):
        return weight
    right = _is_right(node, weight)
    x = node.inputs[1 - int(right)]
    if len(weight.shape) != 2 or x is None:
        found = list(weight.shape)
        return Refusal(f"weight '{weight.value.name}' of {describe(node)} has shape {found}, expected a matrix")
    turned_weight, turned_x = (node.attributes.get_int(name, 0) != 0 for name in ("transB", "transA")[:: 2 * right - 1])
    has_rows = turned_weight if right else not turned_weight  # of outputs
    outputs, inputs = weight.shape if has_rows else weight.shape[::-1]
    ends = End(x, (int(right) ^ turned_x,), (inputs,)), End(node.outputs[0], (int(right),), (outputs,))
    matrix, output_axis = (_rows, 0) if has_rows else (_columns, 1)
    bias = _gemm_bias(node, outputs, int(right), known)
    return Layer(node, *ends, weight, matrix, output_axis, bias, gain=_float(node, "alpha"))


def _gemm_bias(node: ir.Node, outputs: int, axis: int, known: Known) -> Bias | Refusal:
    operand = read_operand(node, 2, "bias C", known)
    if isinstance(operand, Refusal):
        return operand
    shape = () if operand is None else (1,) * (2 - len(operand.shape)) + operand.shape
    if operand is not None and (len(shape) != 2 or shape[axis] not in (1, outputs)):
        found, expected = list(operand.shape), [outputs] if axis else [outputs, 1]
        return Refusal(f"bias '{operand.value.name}' of {describe(node)} has shape {found}, expected {expected}")
    if operand is not None and outgrows(shape, {axis: outputs}):
        grown = [outputs if i == axis else size for i, size in enumerate(shape)]
        return Refusal(f"bias '{operand.value.name}' of {describe(node)} would grow from {list(shape)} to {grown}")
    if axis == 0 and known.opset < BROADCASTING:
        return Refusal(f"{describe(node)} adds no column to a matrix in opset {known.opset}")
    beta = _float(node, "beta")
    attributes = (ir.AttrFloat32("beta", 1.0),) if beta != 1.0 else ()
    edits = set_bias(node, 2, *attributes, *gemm_broadcast(known.opset))
    return Bias(operand, bias_shape(outputs, axis), partial(fold_constant, rank=2, axis=axis), edits, factor=beta)


def bias_shape(outputs: int, axis: int) -> tuple[int, ...]:
    return (outputs,) if axis else (outputs, 1)


def _float(node: ir.Node, name: str) -> float:
    """A factor of Gemm, as the float32 that the attribute is, whatever a builder of graphs in memory has put there."""
    return float(ir.AttrFloat32(name, node.attributes.get_float(name, 1.0)).as_float())


def gemm_broadcast(opset: int) -> tuple[ir.Attr, ...]:
    """Below opset 7 a Gemm broadcasts its C only when told to."""
    return (ir.AttrInt64("broadcast", 1),) if opset < BROADCASTING else ()


def _columns(weight: Float64s) -> Float64s:
    """[K, N] as one group of N outputs and K inputs."""
    return weight.reshape(1, *weight.shape, 1).swapaxes(1, 2)


def _rows(weight: Float64s) -> Float64s:
    """[M, K] as one group of M outputs and K inputs."""
    return weight.reshape(1, *weight.shape, 1)


def only_weight(node: ir.Node, known: Known) -> Operand | QuantisedWeight | Refusal:
    """The only constant operand; if there is none, why the right one is not constant."""
    right, left = read_weight(node, 1, known), read_weight(node, 0, known)
    if isinstance(left, Refusal):
        return right
    return left if isinstance(right, Refusal) else Refusal(f"{describe(node)} has only constant operands")


def _is_right(node: ir.Node, weight: Operand | QuantisedWeight) -> bool:
    return weight.value is node.inputs[1]
