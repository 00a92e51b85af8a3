"""Gemm and MatMul with one constant operand, on either side.

A constant matrix on the right owns the last axis at both ends: it sums over x's and makes y's. On the left it owns the
last axis but one. Every other axis only comes along: along it x and y share their scale, and a shift of x, summed
over the weights, is no longer one number an entry. A MatMul holds no bias, so that a shift needs a place: the Add of
a constant behind it, or, between matrices, the Gemm that the MatMul becomes.
"""

from __future__ import annotations

from functools import partial

import onnx_ir as ir

from training.fold.affine import Affine, Array, Float64s
from training.fold.broadcasting import aligned, outgrows
from training.fold.carriers.ends import same_ends
from training.fold.carriers.gates import dynamic_matmul
from training.fold.edits import BecomeGemm, Edit
from training.fold.graph import describe, is_standard, number_readers
from training.fold.known import Known
from training.fold.laws import Equal, Gauges, Law, NoShift, Port
from training.fold.linear.layer import (
    Bias,
    End,
    Layer,
    Operand,
    laws,
    map_of,
    overflow_is_refused,
    read_operand,
    read_weight,
    rewrite,
    set_bias,
    spilt,
)
from training.fold.linear.quantised import QuantisedWeight
from training.fold.refusal import Refusal
from training.fold.weights import FLOAT_DTYPES, fold_constant, widen

_BROADCASTING = 7  # the opset from which the constants of Add and Gemm may have any shape


def gemm(node: ir.Node, known: Known) -> Layer | Refusal:
    """Gemm: `y = alpha * A' B' + beta * C`, A' and B' transposed as transA and transB say, one of them constant.

    Channels are B's columns, along axis 1 of y, or, where A is the constant, A's rows, along axis 0.
    After: W rescaled, alpha as it was; `C' = s * (beta * C - alpha W (B / A)) + o` and beta = 1. Of columns: C of shape
    [], [N], [1, N] becomes [N] or [1, N]; [M, 1] and [M, N] become [M, N]. Of rows: [], [1, 1], [M, 1] become [M, 1],
    all others [M, N].
    (1) W is a constant floating matrix. (2) C is absent, or constant and does not outgrow its limit; else the output
    keeps its gauge, the input its shift.
    """
    weight = _only_weight(node, known)
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
    ends = End(x, int(right) ^ turned_x, inputs), End(node.outputs[0], int(right), outputs)
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
    if axis == 0 and known.opset < _BROADCASTING:
        return Refusal(f"{describe(node)} adds no column to a matrix in opset {known.opset}")
    beta = _float(node, "beta")
    attributes = (ir.AttrFloat32("beta", 1.0),) if beta != 1.0 else ()
    edits = set_bias(node, 2, *attributes, *_gemm_broadcast(known.opset))
    return Bias(operand, _bias_shape(outputs, axis), partial(fold_constant, rank=2, axis=axis), edits, factor=beta)


def _bias_shape(outputs: int, axis: int) -> tuple[int, ...]:
    return (outputs,) if axis else (outputs, 1)


def _float(node: ir.Node, name: str) -> float:
    """A factor of Gemm, as the float32 that the attribute is, whatever a builder of graphs in memory has put there."""
    return float(ir.AttrFloat32(name, node.attributes.get_float(name, 1.0)).as_float())


def _gemm_broadcast(opset: int) -> tuple[ir.Attr, ...]:
    """Below opset 7 a Gemm broadcasts its C only when told to."""
    return (ir.AttrInt64("broadcast", 1),) if opset < _BROADCASTING else ()


def _columns(weight: Float64s) -> Float64s:
    """[.., K, N] as one group of N outputs and K inputs."""
    return weight.reshape(1, *weight.shape[-2:], 1).swapaxes(1, 2)


def _rows(weight: Float64s) -> Float64s:
    """[.., M, K] as one group of M outputs and K inputs."""
    return weight.reshape(1, *weight.shape[-2:], 1)


def matmul(node: ir.Node, known: Known) -> Layer | Refusal:
    """MatMul with one constant operand W [K, N] on the right or [M, K] on the left, as the layer along W's axes.

    (1) Exactly one operand is constant, floating, and one matrix (axes before the last two have size 1). (2) The
    other's rank is known, and at least W's and 2. (3) Shifts: where one Add of a constant reads y, and nobody else
    does, that Add takes what a shift of x spills (`unheld_shift`), unless its constant would outgrow its limit, and y
    keeps its own shift; else between matrices the node becomes a Gemm, whose C takes the shifts of both; else both ends
    keep theirs.
    """
    weight = _only_weight(node, known)
    if isinstance(weight, Refusal):
        return weight
    right, shape = _is_right(node, weight), weight.shape
    x, y = node.inputs[1 - int(right)], node.outputs[0]
    assert x is not None
    rank = known.shapes.rank(x)
    if rank is None or rank < 2:
        found = "not known" if rank is None else rank
        return Refusal(f"{describe(node)}: the rank of '{x.name}' is {found}, so the axis of its weight is not proved")
    if not 2 <= len(shape) <= rank or any(size != 1 for size in shape[:-2]):
        return Refusal(f"weight '{weight.value.name}' of {describe(node)} has shape {list(shape)}, expected a matrix")
    inputs, outputs = shape[-2:] if right else shape[:-3:-1]
    axis = rank - (1 if right else 2)
    matrix, output_axis = (_columns, len(shape) - 1) if right else (_rows, len(shape) - 2)
    layer = partial(Layer, node, End(x, axis, inputs), End(y, axis, outputs), weight, matrix, output_axis)
    why = f"{describe(node)} holds no bias"
    add = bias_behind(node, known)
    if add is not None:
        constant = _constant_of(add, y, known)
        assert constant is not None
        grows = f"the constant {list(constant.shape)} of {describe(add)} would have to grow by {outputs} channels"
        grows = grows if outgrows(constant.shape, {axis: outputs}) else ""
        return layer(None, x_keeps_its_shift=grows, y_keeps_its_shift=f"{why}: the Add behind it does")
    if rank == 2 and (right or known.opset >= _BROADCASTING):
        bias = Bias(None, _bias_shape(outputs, axis), _along_first, partial(_bias_of_new_gemm, node, known.opset))
        return layer(bias)
    return layer(None, x_keeps_its_shift=why, y_keeps_its_shift=why)


def _along_first(bias: Float64s, affine: Affine) -> Float64s:
    return affine(bias, axis=0)


def _bias_of_new_gemm(node: ir.Node, opset: int, bias: Array, origin: ir.Value) -> tuple[Edit, ...]:
    return (BecomeGemm(node), *set_bias(node, 2, *_gemm_broadcast(opset))(bias, origin))


def _only_weight(node: ir.Node, known: Known) -> Operand | QuantisedWeight | Refusal:
    """The only constant operand; if there is none, why the right one is not constant."""
    right, left = read_weight(node, 1, known), read_weight(node, 0, known)
    if isinstance(left, Refusal):
        return right
    return left if isinstance(right, Refusal) else Refusal(f"{describe(node)} has only constant operands")


def _is_right(node: ir.Node, weight: Operand | QuantisedWeight) -> bool:
    return weight.value is node.inputs[1]


def bias_behind(node: ir.Node, known: Known) -> ir.Node | None:
    """The Add that is the bias of a MatMul: whose other operand is a constant, and which alone reads the product.

    Below opset 7 the constant may not grow: none. Its rewrite has to follow the MatMul's (see `unheld_shift`).
    """
    y = node.outputs[0]
    readers = number_readers(y)
    if known.opset < _BROADCASTING or y.is_graph_output() or len(readers) != 1:
        return None
    add = readers[0]
    if not is_standard(add, "Add") or add.graph is not node.graph or len(add.inputs) != 2:
        return None
    return None if _constant_of(add, y, known) is None else add


def _constant_of(add: ir.Node, y: ir.Value, known: Known) -> Float64s | None:
    """What an Add adds to `y`, with y's rank; None where that is not constant and floating, or enlarges y."""
    constant = known.constant(add.inputs[1] if add.inputs[0] is y else add.inputs[0])
    if constant is None or constant.dtype not in FLOAT_DTYPES:
        return None
    found = aligned(widen(constant), y, known)
    return None if isinstance(found, Refusal) else found


def matmul_laws(node: ir.Node, port: Port, known: Known) -> tuple[Law, ...] | Refusal:
    """MatMul: the layer's laws along W's axes, one shared scale along the others; without W, as `dynamic_matmul`."""
    layer = matmul(node, known)
    if isinstance(layer, Refusal):
        dynamic = all(isinstance(read_operand(node, index, "operand", known), Refusal) for index in (0, 1))
        return dynamic_matmul(node, port, known) if dynamic else layer
    if layer.x.axis in port.axes:
        return laws(layer, port, known)
    return _carried(layer, port, known)


def _carried(layer: Layer, port: Port, known: Known) -> tuple[Law, ...] | Refusal:
    """`W (A x) = A (W x)` along axes that W does not touch. (1) They are the same at both ends, and as long."""
    node, row_axis = layer.node, layer.x.axis
    pair = same_ends(node, port, known, 1 - int(_is_right(node, layer.weight)))
    if isinstance(pair, Refusal):
        return pair
    x, y = pair
    return (
        Equal(x, y),
        NoShift(x, f"{describe(node)} sums over axis {row_axis} of '{x.value.name}', a shift along others is lost"),
    )


@overflow_is_refused
def unheld_shift(node: ir.Node, gauges: Gauges, known: Known) -> Float64s | None:
    """What the rewritten `node` puts out on top of its output's gauge, a number an entry of the axis that W makes.

    A MatMul `y = x W` with a `bias_behind`, under x' = A x + B and y' = C y, gives `x' W' = C y + u`,
    `u = C (W (B / A))`. The Add behind it, `y + k`, has to subtract u, whether or not it is under a gauge itself. None
    where there is nothing to subtract, and for every other node. float64 [N] or, with W on the left, [M, 1]: it
    broadcasts against y.
    """
    if not is_standard(node, "MatMul"):
        return None
    layer = matmul(node, known)
    if isinstance(layer, Refusal) or layer.bias is not None or layer.x_keeps_its_shift or isinstance(layer.y, Refusal):
        return None
    spill, y = spilt(layer, map_of(layer.x, gauges)), map_of(layer.y, gauges)
    if spill is None:
        return None
    return (spill if y is None else y.scale * spill).reshape(_bias_shape(-1, int(_is_right(node, layer.weight))))


def matmul_rewrite(node: ir.Node, gauges: Gauges, known: Known) -> tuple[Edit, ...] | Refusal:
    """Nothing where the gauges lie along axes that W does not touch, or where there is no W."""
    layer = matmul(node, known)
    return () if isinstance(layer, Refusal) else rewrite(layer, gauges)
