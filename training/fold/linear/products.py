"""MatMul and Einsum with one constant operand, on either side: products that sum over some of their axes.

Axes are named by labels, as an equation of Einsum names them; MatMul is the equation `..mk, ..kn -> ..mn`. An axis of
the weight is, by where its label stands besides:

    in x and in y    one matrix an entry: a scale at either end goes into the weight
    in x alone       summed over: the weight divides by x's scale
    in y alone       made: the weight takes y's scale
    nowhere else     summed over by itself

Along the labels of the weight it is a layer as any other (layer.py), with groups where there are many matrices. Along
all others x and y share their scale, and a shift of x, summed over the weights, is no longer one number an entry.
A product holds no bias, so that a shift needs a place: the Add of a constant behind it, or, between matrices, the Gemm
that a MatMul becomes. Products of two computed tensors are carriers/gates.py's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import prod

import numpy as np
import onnx_ir as ir

from training.fold.affine import Affine, Array, Float64s
from training.fold.broadcasting import aligned, outgrows
from training.fold.carriers.gates import dynamic_einsum, dynamic_matmul
from training.fold.edits import BecomeGemm, Edit
from training.fold.graph import describe, is_standard, number_readers
from training.fold.known import Known
from training.fold.laws import Equal, Gauges, Index, Law, NoShift, Port
from training.fold.linear.layer import (
    Bias,
    End,
    Layer,
    Operand,
    acts_elsewhere,
    laws,
    map_of,
    overflow_is_refused,
    read_operand,
    rewrite,
    set_bias,
    spilt,
)
from training.fold.linear.matrices import BROADCASTING, bias_shape, gemm_broadcast, only_weight
from training.fold.linear.quantised import QuantisedWeight
from training.fold.refusal import Refusal
from training.fold.shapes import Dims
from training.fold.weights import FLOAT_DTYPES, widen

_DYNAMIC = {"Einsum": dynamic_einsum, "MatMul": dynamic_matmul}

Labels = Sequence[str]


@dataclass(frozen=True, eq=False)
class Equation:
    """The labels of each axis of x, of the weight, of the result; none stands twice in one of them."""

    x: Labels
    w: Labels
    y: Labels


@dataclass(frozen=True, eq=False)
class Product:
    """A layer, and what its axes are."""

    layer: Layer
    labels: Equation


def product(node: ir.Node, known: Known) -> Product | Refusal:
    """MatMul or Einsum with one constant operand W, as a layer along W's axes.

    (1) Exactly one of two operands is constant and floating, and its axes can be told: `_matmul_labels`,
    `_einsum_labels`. (2) Axes of x that are summed over by themselves have known sizes. (3) Shifts: where one Add of a
    constant reads y, and nobody else does, that Add takes what a shift of x spills (`unheld_shift`), unless its
    constant would outgrow its limit, and y keeps its own shift; else a MatMul between matrices becomes a Gemm, whose C
    takes the shifts of both; else both ends keep theirs.
    """
    if len(node.inputs) != 2:
        return Refusal(f"{describe(node)} has {len(node.inputs)} operands, expected one that is constant and one not")
    weight = only_weight(node, known)
    if isinstance(weight, Refusal):
        return weight
    x = node.inputs[int(weight.value is node.inputs[0])]
    assert x is not None
    labels = (_matmul_labels if node.op_type == "MatMul" else _einsum_labels)(node, x, weight, known)
    if isinstance(labels, Refusal):
        return labels
    layer = _layer(node, x, weight, labels, known)
    return layer if isinstance(layer, Refusal) else Product(_with_place_for_shifts(layer, known), labels)


def _matmul_labels(node: ir.Node, x: ir.Value, weight: Operand | QuantisedWeight, known: Known) -> Equation | Refusal:
    """W is [.., K, N] on the right or [.., M, K] on the left.

    (1) The rank of x is known, and at least W's and 2. (2) Along every axis before the last two, W or x has size 1, or
    x is known to have W's.
    """
    dims, shape, right = known.dims(x), weight.shape, weight.value is node.inputs[1]
    rank = None if dims is None else len(dims)
    if dims is None or rank is None or rank < 2:
        found = "not known" if rank is None else rank
        return Refusal(f"{describe(node)}: the rank of '{x.name}' is {found}, so the axis of its weight is not proved")
    if not 2 <= len(shape) <= rank:
        return Refusal(f"weight '{weight.value.name}' of {describe(node)} has shape {list(shape)}, expected a matrix")
    batch = [f"batch {axis}" for axis in range(rank - 2)]
    x_batch, w_batch = list(batch), batch[rank - len(shape) :]
    for axis, size in enumerate(shape[:-2]):
        place = axis + rank - len(shape)
        if size == 1:
            w_batch[axis] = f"one {place} of w"
        elif dims[place] == 1:
            x_batch[place] = f"one {place} of x"
        elif dims[place] != size:
            return _unproved(node, x, dims, weight)
    (x_ends, w_ends), y = (("mk", "kn") if right else ("kn", "mk")), [*batch, *"mn"]
    return Equation([*x_batch, *x_ends], [*w_batch, *w_ends], y)


def _einsum_labels(node: ir.Node, x: ir.Value, weight: Operand | QuantisedWeight, known: Known) -> Equation | Refusal:
    """(1) The equation has no ellipsis, no label twice in a term, and one label an axis; the result may be left out.
    (2) An axis of x with a label of W has W's size."""
    equation = node.attributes.get_string("equation", "").replace(" ", "")
    left, arrow, result = equation.partition("->")
    terms = left.split(",")
    if not arrow:  # the labels that stand once, in alphabetical order
        result = "".join(sorted(label for label in left if label != "," and left.count(label) == 1))
    if "." in equation or len(terms) != 2 or any(len(set(term)) != len(term) for term in (*terms, result)):
        return Refusal(f"the equation {equation!r} of {describe(node)} has an ellipsis, or a label twice in a term")
    if not arrow and result.lower() != result and result.upper() != result:
        return Refusal(f"the equation {equation!r} of {describe(node)} leaves the order of its result open")
    mine, its = terms if weight.value is node.inputs[1] else terms[::-1]
    dims = known.dims(x)
    if dims is None or len(dims) != len(mine) or len(weight.shape) != len(its) or not set(result) <= set(mine + its):
        found = None if dims is None else list(dims)
        return Refusal(f"the equation {equation!r} of {describe(node)} is not proved to fit '{x.name}' {found}")
    sizes = dict(zip(its, weight.shape, strict=True))
    if any(dim != sizes.get(label, dim) for label, dim in zip(mine, dims, strict=True)):
        return _unproved(node, x, dims, weight)
    return Equation(mine, its, result)


def _unproved(node: ir.Node, x: ir.Value, dims: Dims, weight: Operand | QuantisedWeight) -> Refusal:
    return Refusal(
        f"'{x.name}' {list(dims)} of {describe(node)} is not proved to have the sizes of weight "
        f"'{weight.value.name}' {list(weight.shape)}"
    )


def _layer(
    node: ir.Node, x: ir.Value, weight: Operand | QuantisedWeight, labels: Equation, known: Known
) -> Layer | Refusal:
    """Without a place for shifts."""
    kinds: list[list[int]] = [[], [], [], []]  # axes of W: in both, in y alone, in x alone, in neither
    for axis, label in enumerate(labels.w):
        kinds[2 * (label not in labels.y) + (label not in labels.x)].append(axis)
    both, made, summed, _ = kinds
    dims, alone = known.dims(x) or (), set(labels.x) - {*labels.w, *labels.y}
    lengths = [dim for label, dim in zip(labels.x, dims, strict=True) if label in alone]
    if None in lengths:
        return Refusal(f"{describe(node)} sums over an axis of '{x.name}' {list(dims)} whose size is not known")

    def end(value: ir.Value, own: Labels, axes: list[int]) -> End:
        places = tuple(list(own).index(labels.w[axis]) for axis in axes)
        return End(value, places, tuple(weight.shape[axis] for axis in axes))

    ends = end(x, labels.x, both + summed), end(node.outputs[0], labels.y, both + made)
    shape = [prod(weight.shape[axis] for axis in axes) for axes in kinds]
    matrix = partial(_matrix, order=[axis for axes in kinds for axis in axes], shape=shape)
    output_axis = (both + made)[0] if len(both + made) == 1 else None
    return Layer(node, *ends, weight, matrix, output_axis, None, gain=float(prod(size or 0 for size in lengths)))


def _matrix(weight: Float64s, order: list[int], shape: list[int]) -> Float64s:
    return weight.transpose(order).reshape(shape)


def _with_place_for_shifts(layer: Layer, known: Known) -> Layer:
    node, end = layer.node, layer.y
    assert isinstance(end, End)
    why = f"{describe(node)} holds no bias"
    add = bias_behind(node, known)
    if add is not None:
        constant = _constant_of(add, end.value, known)
        assert constant is not None
        grows = f"the constant {list(constant.shape)} of {describe(add)} would have to grow by {end.channels} channels"
        grows = grows if outgrows(constant.shape, dict(zip(end.axes, end.sizes, strict=True))) else ""
        return replace(layer, x_keeps_its_shift=grows, y_keeps_its_shift=f"{why}: the Add behind it does")
    right = layer.weight.value is node.inputs[1]
    if node.op_type == "MatMul" and known.shapes.rank(end.value) == 2 and (right or known.opset >= BROADCASTING):
        edits = partial(_bias_of_new_gemm, node, known.opset)
        return replace(layer, bias=Bias(None, bias_shape(end.channels, end.axes[0]), _along_first, edits))
    return replace(layer, x_keeps_its_shift=why, y_keeps_its_shift=why)


def _along_first(bias: Float64s, affine: Affine) -> Float64s:
    return affine(bias, axis=0)


def _bias_of_new_gemm(node: ir.Node, opset: int, bias: Array, origin: ir.Value) -> tuple[Edit, ...]:
    return (BecomeGemm(node), *set_bias(node, 2, *gemm_broadcast(opset))(bias, origin))


def bias_behind(node: ir.Node, known: Known) -> ir.Node | None:
    """The Add that is the bias of a product: whose other operand is a constant, and which alone reads the product.

    Below opset 7 the constant may not grow: none. Its rewrite has to follow the product's (see `unheld_shift`).
    """
    y = node.outputs[0]
    readers = number_readers(y)
    if known.opset < BROADCASTING or y.is_graph_output() or len(readers) != 1:
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


def product_laws(node: ir.Node, port: Port, known: Known) -> tuple[Law, ...] | Refusal:
    """The layer's laws along W's axes, one shared scale along the others; without W, those of computed tensors."""
    found = product(node, known)
    if isinstance(found, Refusal):
        computed = all(isinstance(read_operand(node, index, "operand", known), Refusal) for index in (0, 1))
        return _DYNAMIC[node.op_type](node, port, known) if computed or len(node.inputs) != 2 else found
    if port.value not in (found.layer.x.value, node.outputs[0]) or max(port.axes) >= len(_own(found, port)):
        return Refusal(f"'{port.value.name}' is no data that {describe(node)} reads along {port.axes}")
    mine = [_own(found, port)[axis] for axis in port.axes]
    if set(mine) <= set(found.labels.w):
        return laws(found.layer, port, known)
    if not set(mine) <= {*found.labels.x} & {*found.labels.y}:
        layer = found.layer
        end = layer.x if port.value is layer.x.value else layer.y
        assert isinstance(end, End)
        return acts_elsewhere(layer, end, port)
    return _carried(found, mine, known)


def _own(found: Product, port: Port) -> Labels:
    return found.labels.x if port.value is found.layer.x.value else found.labels.y


def _carried(found: Product, along: Labels, known: Known) -> tuple[Law, ...] | Refusal:
    """`W (A x) = A (W x)` along labels of both x and y, at least one of which W does not have. (1) x is read once."""
    layer, labels = found.layer, found.labels
    node = layer.node
    if list(node.inputs).count(layer.x.value) > 1:
        return Refusal(f"{describe(node)} reads '{layer.x.value.name}' twice")
    orders = [[label for label in own if label in along] for own in (labels.x, labels.y)]
    x, y = (
        known.port(value, tuple(list(own).index(label) for label in order), node)
        for value, own, order in zip((layer.x.value, node.outputs[0]), (labels.x, labels.y), orders, strict=True)
    )
    if isinstance(x, Refusal):
        return x
    if isinstance(y, Refusal):
        return y
    sizes = [
        dict(zip(order, [(known.dims(port.value) or ())[axis] for axis in port.axes], strict=True))
        for order, port in zip(orders, (x, y), strict=True)
    ]
    if sizes[0] != sizes[1]:
        return Refusal(f"{describe(node)} makes sizes {sizes[1]} of {sizes[0]} along axis {x.axes} of '{x.value.name}'")
    why = f"{describe(node)} sums over other axes of '{x.value.name}': a shift along {x.axes} is lost"
    return Equal(x, y, _entries(orders, sizes[0])), NoShift(x, why)


def _entries(orders: list[list[str]], sizes: dict[str, int | None]) -> Index | None:
    """Which entry of x each entry of y is; None where their order is the same."""
    of_x, of_y = orders
    if of_x == of_y:
        return None
    shape = [sizes[label] or 0 for label in of_x]
    return np.arange(prod(shape)).reshape(shape).transpose([of_x.index(label) for label in of_y]).reshape(-1)


@overflow_is_refused
def unheld_shift(node: ir.Node, gauges: Gauges, known: Known) -> Float64s | None:
    """What the rewritten `node` puts out on top of its output's gauge, a number a channel that W makes.

    A product `y = x W` with a `bias_behind`, under x' = A x + B and y' = C y, gives `x' W' = C y + u`,
    `u = C (W (B / A))`. The Add behind it, `y + k`, has to subtract u, whether or not it is under a gauge itself. None
    where there is nothing to subtract, and for every other node. float64, with the fewest axes that broadcast against
    y: [N] of columns, [M, 1] of rows.
    """
    if not is_standard(node) or node.op_type not in _DYNAMIC:
        return None
    found = product(node, known)
    if isinstance(found, Refusal):
        return None
    layer, end = found.layer, found.layer.y
    if layer.bias is not None or layer.x_keeps_its_shift or isinstance(end, Refusal):
        return None
    spill, y = spilt(layer, map_of(layer.x, gauges)), map_of(end, gauges)
    if spill is None:
        return None
    return end.against(spill if y is None else y.scale * spill, len(found.labels.y))


def product_rewrite(node: ir.Node, gauges: Gauges, known: Known) -> tuple[Edit, ...] | Refusal:
    """Nothing where the gauges lie along axes that W does not have, or where there is no W."""
    found = product(node, known)
    return () if isinstance(found, Refusal) else rewrite(found.layer, gauges)
