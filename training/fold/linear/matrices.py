"""Gemm and MatMul with one constant operand.

A constant matrix on the right owns the last axis at both ends: it sums over x's and makes y's. On the left it owns the
last axis but one. Every other axis only comes along: along it x and y share their scale, and a shift of x, summed
over the weights, is no longer one number an entry. A MatMul holds no bias, so that a shift needs a place: the Add of
a constant behind it, or, between matrices, the Gemm that the MatMul becomes.
"""

from __future__ import annotations

from functools import partial

import onnx_ir as ir

from training.fold.affine import Affine, Array, Float64s
from training.fold.broadcasting import aligned
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

_BROADCASTING_ADD = 7  # the opset from which an Add's constant may have any shape


def gemm(node: ir.Node, known: Known) -> Layer | Refusal:
    """Gemm: `y = alpha * A' B' + beta * C`, A' and B' transposed as transA and transB say; channels are B's columns.

    After: B' rescaled, alpha as it was; `C' = s * (beta * C - alpha W (B / A)) + o` and beta = 1. C of shape [], [N],
    [1, N] becomes [N] or [1, N]; [M, 1] and [M, N] become [M, N].
    (1) B is a constant floating matrix. (2) C is absent, or constant; else the output keeps its gauge, A its shift.
    """
    weight, a = read_weight(node, 1, known), node.inputs[0]
    if isinstance(weight, Refusal):
        return weight
    if len(weight.shape) != 2 or a is None:
        found = list(weight.shape)
        return Refusal(f"weight '{weight.value.name}' of {describe(node)} has shape {found}, expected a matrix")
    trans_a, trans_b = node.attributes.get_int("transA", 0), node.attributes.get_int("transB", 0)
    outputs, inputs = weight.shape if trans_b else weight.shape[::-1]
    x, y = End(a, 0 if trans_a else 1, inputs), End(node.outputs[0], 1, outputs)
    matrix, output_axis = (_rows, 0) if trans_b else (_columns, 1)
    bias = _gemm_bias(node, outputs, known)
    return Layer(node, x, y, weight, matrix, output_axis, bias, gain=_float(node, "alpha"))


def _gemm_bias(node: ir.Node, outputs: int, known: Known) -> Bias | Refusal:
    operand = read_operand(node, 2, "bias C", known)
    if isinstance(operand, Refusal):
        return operand
    if operand is not None and (len(operand.shape) > 2 or operand.shape[-1:] not in ((), (1,), (outputs,))):
        found = list(operand.shape)
        return Refusal(f"bias '{operand.value.name}' of {describe(node)} has shape {found}, expected [{outputs}]")
    beta = _float(node, "beta")
    attributes = (ir.AttrFloat32("beta", 1.0),) if beta != 1.0 else ()
    edits = set_bias(node, 2, *attributes, *_gemm_broadcast(known.opset))
    return Bias(operand, (outputs,), partial(fold_constant, rank=2), edits, factor=beta)


def _float(node: ir.Node, name: str) -> float:
    """A factor of Gemm, as the float32 that the attribute is, whatever a builder of graphs in memory has put there."""
    return float(ir.AttrFloat32(name, node.attributes.get_float(name, 1.0)).as_float())


def _gemm_broadcast(opset: int) -> tuple[ir.Attr, ...]:
    """Below opset 7 a Gemm broadcasts its C only when told to."""
    return (ir.AttrInt64("broadcast", 1),) if opset < 7 else ()


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
    does, that Add takes what a shift of x spills (`unheld_shift`), and y keeps its own shift; else between matrices, W
    on the right, the node becomes a Gemm, whose C takes the shifts of both; else both ends keep theirs.
    """
    weight = _matmul_weight(node, known)
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
    if right and bias_behind(node, known) is not None:
        return layer(None, y_keeps_its_shift=f"{why}: the Add behind it does")
    if right and rank == 2:
        return layer(Bias(None, (outputs,), _along_columns, partial(_bias_of_new_gemm, node, known.opset)))
    return layer(None, x_keeps_its_shift=why, y_keeps_its_shift=why)


def _along_columns(bias: Float64s, affine: Affine) -> Float64s:
    return affine(bias, axis=0)


def _bias_of_new_gemm(node: ir.Node, opset: int, bias: Array, origin: ir.Value) -> tuple[Edit, ...]:
    return (BecomeGemm(node), *set_bias(node, 2, *_gemm_broadcast(opset))(bias, origin))


def _matmul_weight(node: ir.Node, known: Known) -> Operand | QuantisedWeight | Refusal:
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
    if known.opset < _BROADCASTING_ADD or y.is_graph_output() or len(readers) != 1:
        return None
    add = readers[0]
    if not is_standard(add, "Add") or add.graph is not node.graph or len(add.inputs) != 2:
        return None
    constant = known.constant(add.inputs[1] if add.inputs[0] is y else add.inputs[0])
    if (
        constant is None
        or constant.dtype not in FLOAT_DTYPES
        or isinstance(aligned(widen(constant), y, known), Refusal)
    ):
        return None
    return add


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
    assert isinstance(layer.y, End)
    x, y = known.port(layer.x.value, port.axes, node), known.port(layer.y.value, port.axes, node)
    if isinstance(x, Refusal):
        return x
    if isinstance(y, Refusal):
        return y
    if port.value not in (x.value, y.value) or port.reader is not None or x.value is layer.weight.value:
        return Refusal(f"'{port.value.name}' is a constant of {describe(node)}")
    sizes = [[(known.dims(end.value) or ())[axis] for axis in end.axes] for end in (x, y)]
    if sizes[0] != sizes[1]:
        return Refusal(f"{describe(node)} makes sizes {sizes[1]} of {sizes[0]} along axes {port.axes}")
    return (
        Equal(x, y),
        NoShift(x, f"{describe(node)} sums over axis {row_axis} of '{x.value.name}', a shift along others is lost"),
    )


@overflow_is_refused
def unheld_shift(node: ir.Node, gauges: Gauges, known: Known) -> Float64s | None:
    """What the rewritten `node` puts out on top of its output's gauge, a number an entry of the output's last axis.

    A MatMul `y = x W` with a `bias_behind`, under x' = A x + B and y' = C y, gives `x' W' = C y + u`,
    `u = C (W (B / A))`. The Add behind it, `y + k`, has to subtract u, whether or not it is under a gauge itself. None
    where there is nothing to subtract, and for every other node. float64 [N].
    """
    if not is_standard(node, "MatMul"):
        return None
    layer = matmul(node, known)
    if isinstance(layer, Refusal) or layer.bias is not None or layer.x_keeps_its_shift or isinstance(layer.y, Refusal):
        return None
    spill, y = spilt(layer, map_of(layer.x, gauges)), map_of(layer.y, gauges)
    return spill if spill is None or y is None else y.scale * spill


def matmul_rewrite(node: ir.Node, gauges: Gauges, known: Known) -> tuple[Edit, ...] | Refusal:
    """Nothing where the gauges lie along axes that W does not touch, or where there is no W."""
    layer = matmul(node, known)
    return () if isinstance(layer, Refusal) else rewrite(layer, gauges)
