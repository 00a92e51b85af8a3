"""What all linear operators have in common: one formula for their weights, one for what they add.

A layer computes `y = gain * W x + b`; stored are `x' = A x + B` and `y' = C y + D`, one pair of numbers a channel:

    W' = C W / A        b' = C (b - gain W (B / A)) + D

The files next to this one say, operator by operator, where W, b and the channels are and when the formulas hold. Here
is the arithmetic: float64, in place on one copy of each tensor, rounded once; what does not change is not written.
Knows no operator.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from training.fold.affine import Affine, Array, Float64s
from training.fold.edits import Edit, SetAttribute, SetOperand
from training.fold.graph import describe
from training.fold.known import Known
from training.fold.laws import Free, Gauge, Gauges, Law, NoScale, NoShift, Port, Positive
from training.fold.linear.quantised import QuantisedWeight, read_quantised
from training.fold.refusal import Refusal
from training.fold.weights import FLOAT_DTYPES, round_once

# Overflow is judged by its result (see _stored) and not announced by NumPy on the way.
overflow_is_refused = np.errstate(over="ignore", invalid="ignore", divide="ignore")


@dataclass(frozen=True, eq=False)
class Operand:
    """A constant operand: its place, its value in the graph, its numbers as the graph has them and unrounded."""

    index: int
    value: ir.Value
    array: Array
    exact: Callable[[], Float64s]  # a copy, row-major

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    @property
    def dtype(self) -> np.dtype[np.generic]:
        return self.array.dtype


@dataclass(frozen=True, eq=False)
class End:
    """One side of a layer: the tensor, the axes that W acts on, and W's size along each, in the order W has them."""

    value: ir.Value
    axes: tuple[int, ...]
    sizes: tuple[int, ...]

    @property
    def channels(self) -> int:
        return prod(self.sizes)

    @property
    def place(self) -> str:
        """For messages."""
        return f"axis {self.axes[0] if len(self.axes) == 1 else self.axes}"

    def spread(self, gauge: Gauge) -> Gauge:
        """A gauge along some of the axes, or all, as one number a channel, in W's order."""
        if gauge.axes == self.axes:
            return gauge
        along = [axis for axis in self.axes if axis in gauge.axes]
        order = [gauge.axes.index(axis) for axis in along]
        shape = [size if axis in along else 1 for axis, size in zip(self.axes, self.sizes, strict=True)]

        def spread(part: Float64s) -> Float64s:
            entries = part.reshape(gauge.sizes).transpose(order).reshape(shape)
            return np.broadcast_to(entries, self.sizes).reshape(-1)

        value = None if gauge.value is None else spread(gauge.value)
        return Gauge(self.axes, self.sizes, spread(gauge.scale), spread(gauge.shift), value)

    def against(self, numbers: Float64s, rank: int) -> Float64s:
        """One number a channel, shaped to broadcast against the tensor, which has `rank` axes."""
        shape = [1] * rank
        for axis, size in zip(self.axes, self.sizes, strict=True):
            shape[axis] = size
        ascending = numbers.reshape(self.sizes).transpose(np.argsort(self.axes))
        return ascending.reshape(shape[min(self.axes, default=rank) :])


@dataclass(frozen=True, eq=False)
class Bias:
    """Where a layer keeps b. `shape` is that of the operand, of a new one where there is none."""

    operand: Operand | None
    shape: tuple[int, ...]
    fold: Callable[[Float64s, Affine], Float64s]  # (b, map along the output channels) -> b'
    edits: Callable[[Array, ir.Value], tuple[Edit, ...]]  # (b', the constant it was made from) -> edits
    factor: float = 1.0  # b is `factor` times the operand

    def numbers(self) -> Float64s:
        return np.zeros(self.shape) if self.operand is None else self.operand.exact() * self.factor


@dataclass(frozen=True, eq=False)
class Layer:
    """One linear operator. `matrix` sees a row-major W as [group, outputs/group, inputs/group, taps], without a copy
    where it can; the channels of the ends are those of one group behind those of another.

    The axis of W that holds the output channels one by one is `output_axis`; None where no axis does. `seen`: by which
    taps an output position sees x, each by others whose sum is the same; None: each by all.
    """

    node: ir.Node
    x: End
    y: End | Refusal
    weight: Operand | QuantisedWeight
    matrix: Callable[[Float64s], Float64s]
    output_axis: int | None
    bias: Bias | Refusal | None  # None: no place for one; Refusal: there is one, and it is not constant
    x_keeps_its_shift: str = ""  # why x cannot be stored with a shift; empty where it can
    x_keeps_its_scale: str = ""
    y_keeps_its_shift: str = ""
    gain: float = 1.0
    seen: NDArray[np.bool_] | None = None  # [taps]

    def end_of(self, value: ir.Value) -> tuple[End | Refusal, str]:
        """The end that `value` could be, and why it keeps its shift. A bias that cannot follow holds both ends."""
        stuck = self.bias if isinstance(self.bias, Refusal) else None
        if value in self.node.outputs:
            return stuck or self.y, self.y_keeps_its_shift
        return self.x, self.x_keeps_its_shift if stuck is None else stuck.reason

    def keeps_scale(self, value: ir.Value) -> str:
        """Why the weights cannot follow a scale of this end; empty where they can."""
        at_output = value in self.node.outputs
        if isinstance(self.weight, Operand):
            return "" if at_output else self.x_keeps_its_scale
        return (
            self.weight.keeps_output(self.node, self.output_axis) if at_output else self.weight.keeps_input(self.node)
        )

    def numbers(self) -> Float64s:
        """W as `matrix` sees it. A copy, or a view of one."""
        return self.matrix(self.weight.exact())


def laws(layer: Layer, port: Port, known: Known) -> tuple[Law, ...] | Refusal:
    """Free at both ends, independent of each other; without a shift, or a scale, where the layer says so.

    (1) The port lies along axes that W acts on, some or all, with as many channels. (2) The tensor has no other role
    here.
    """
    end, why = layer.end_of(port.value)
    if isinstance(end, Refusal):
        return end
    if end.value is not port.value or port.reader is not None:
        return Refusal(f"'{port.value.name}' is a constant of {describe(layer.node)}, or no data it reads")
    if list(layer.node.inputs).count(port.value) > 1:
        return Refusal(f"{describe(layer.node)} reads '{port.value.name}' twice")
    if not set(port.axes) <= set(end.axes):
        return acts_elsewhere(layer, end, port)
    dims = known.dims(port.value)
    for axis, size in zip(end.axes, end.sizes, strict=True):
        if axis in port.axes and (dims is None or dims[axis] != size):
            found = "an unknown number of" if dims is None else dims[axis]
            return Refusal(f"{describe(layer.node)} has {size} channels, '{port.value.name}' {found}")
    stiff = layer.keeps_scale(port.value)
    if stiff:
        return Refusal(stiff) if why else (NoScale(port, stiff),)
    quiet = isinstance(layer.bias, Bias) and layer.bias.operand is None
    law = NoShift(port, why) if why else Free(port, quiet)
    if isinstance(layer.weight, Operand) or layer.weight.has_negative():
        return (law,)
    negative = f"an integer of weight '{layer.weight.value.name}' of {describe(layer.node)} has no negative"
    return (law, Positive(port, negative))


def acts_elsewhere(layer: Layer, end: End, port: Port) -> Refusal:
    return Refusal(
        f"'{port.value.name}' is stored along axis {port.axes}, "
        f"weight '{layer.weight.value.name}' of {describe(layer.node)} acts on {end.place}"
    )


@overflow_is_refused
def rewrite(layer: Layer, gauges: Gauges) -> tuple[Edit, ...] | Refusal:
    """The layer's constants under the gauges of its two ends. A bias that is absent stays so where b' would be 0."""
    x, y = map_of(layer.x, gauges), map_of(layer.y, gauges)
    for value, gauge in ((layer.x.value, x), (layer.node.outputs[0], y)):
        breach = _breach(layer, value, gauge)
        if breach is not None:
            return breach
    weight = _weight_edits(layer, x, y)
    if isinstance(weight, Refusal):
        return weight
    bias = _bias_edits(layer, x, y)
    return bias if isinstance(bias, Refusal) else weight + bias


def _breach(layer: Layer, value: ir.Value, gauge: Gauge | None) -> Refusal | None:
    """A gauge that `laws` does not allow: a fault of whoever solved them, and no fold."""
    (end, why), stiff = layer.end_of(value), layer.keeps_scale(value)
    if isinstance(end, Refusal):
        return end if _moves(gauge) or _scales(gauge) else None
    if stiff and _scales(gauge):
        return Refusal(stiff)
    return Refusal(f"'{value.name}' has a shift: {why}") if why and _moves(gauge) else None


def map_of(end: End | Refusal, gauges: Gauges) -> Gauge | None:
    """The gauge of a layer's end, one number a channel, if it is one along axes that W acts on."""
    gauge = None if isinstance(end, Refusal) else gauges.of(end.value)
    if gauge is None or isinstance(end, Refusal) or not set(gauge.axes) <= set(end.axes):
        return None
    return end.spread(gauge)


def spilt(layer: Layer, x: Gauge | None) -> Float64s | None:
    """`gain W (B / A)`: what an input stored with a shift adds to the output, a number a channel; None for nothing."""
    if x is None or not _moves(x):
        return None
    matrix = layer.numbers()
    groups, _, inputs, taps = matrix.shape
    seen = True if layer.seen is None else layer.seen
    summed = matrix[..., 0] if taps == 1 and seen is True else matrix.sum(axis=3, where=seen)
    added: Float64s = summed @ x.offset.reshape(groups, inputs, 1)
    return layer.gain * added.reshape(-1)


def _moves(gauge: Gauge | None) -> bool:
    return gauge is not None and bool(gauge.shift.any() or (gauge.value is not None and gauge.value.any()))


def _scales(gauge: Gauge | None) -> bool:
    return gauge is not None and bool((gauge.scale != 1).any())


def _weight_edits(layer: Layer, x: Gauge | None, y: Gauge | None) -> tuple[Edit, ...] | Refusal:
    """`W' = C W / A`."""
    weight, node = layer.weight, layer.node
    if not (_scales(x) or _scales(y)):
        return ()
    if isinstance(weight, QuantisedWeight):
        assert y is not None and layer.output_axis is not None, "a scale that `laws` does not allow"
        return weight.scaled(node, y.scale, layer.output_axis)
    numbers = weight.exact()
    matrix = layer.matrix(numbers)
    groups, outputs, inputs, _ = matrix.shape
    if y is not None:
        matrix *= y.scale.reshape(groups, outputs, 1, 1)
    if x is not None:
        matrix /= x.scale.reshape(groups, 1, inputs, 1)
    if not np.may_share_memory(matrix, numbers):  # back to where they came from
        places = layer.matrix(np.arange(numbers.size, dtype=np.float64).reshape(numbers.shape)).astype(np.int64)
        numbers.reshape(-1)[places] = matrix
    array = stored(numbers, weight.dtype, f"folded weight of {describe(node)}")
    return array if isinstance(array, Refusal) else (SetOperand(node, weight.index, array, weight.value, "weight"),)


def _bias_edits(layer: Layer, x: Gauge | None, y: Gauge | None) -> tuple[Edit, ...] | Refusal:
    """`b' = C (b - gain W (B / A)) + D`."""
    bias, lost = layer.bias, spilt(layer, x)
    if not isinstance(bias, Bias) or (lost is None and not _scales(y) and not _moves(y)):
        return ()
    channels = len(y.scale if y is not None else lost if lost is not None else ())
    zero = np.zeros(channels)
    scale, shift = (np.ones(channels), zero) if y is None else (y.scale, y.shift)
    numbers = bias.fold(bias.numbers(), Affine(scale, zero if lost is None else lost, shift))
    if bias.operand is None and not numbers.any():
        return ()
    dtype = layer.weight.dtype if bias.operand is None else bias.operand.dtype
    array = stored(numbers, dtype, f"folded bias of {describe(layer.node)}")
    origin = layer.weight.value if bias.operand is None else bias.operand.value
    return array if isinstance(array, Refusal) else bias.edits(array, origin)


def stored(numbers: Float64s, dtype: np.dtype[np.generic], what: str) -> Array | Refusal:
    """Rounded once to its storage type. Refused: a number that is not finite there."""
    array = round_once(numbers, dtype)
    return array if np.isfinite(array).all() else Refusal(f"{what} is not finite in {dtype}")


def read_weight(node: ir.Node, index: int, known: Known) -> Operand | QuantisedWeight | Refusal:
    """The weight of `node`, with DequantizeLinear in front of it or without. Refused: not constant, or not floating."""
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None:
        return Refusal(f"{describe(node)} lacks its operand {index}")
    quantised = read_quantised(value, node, known)
    if quantised is not None:
        return quantised
    operand = read_operand(node, index, "weight", known)
    assert operand is not None
    if isinstance(operand, Operand) and operand.dtype not in FLOAT_DTYPES:
        return Refusal(f"weight '{value.name}' of {describe(node)} is {operand.dtype}, expected a float type")
    return operand


def read_operand(node: ir.Node, index: int, role: str, known: Known) -> Operand | Refusal | None:
    """None where the operand is absent, be it by length or by an empty name."""
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None:
        return None
    array = known.constants.of(value)
    if isinstance(array, Refusal):
        return Refusal(f"{role} '{value.name}' of {describe(node)} is not constant: {array.reason}")

    def exact() -> Float64s:
        numbers = known.constants.exact(value)
        assert not isinstance(numbers, Refusal)
        return np.ascontiguousarray(numbers).reshape(numbers.shape)

    return Operand(index, value, array, exact)


def set_bias(node: ir.Node, index: int, *attributes: ir.Attr) -> Callable[[Array, ir.Value], tuple[Edit, ...]]:
    """The edits that put b' at its place, and set `attributes`."""

    def edits(bias: Array, origin: ir.Value) -> tuple[Edit, ...]:
        return (SetOperand(node, index, bias, origin, "bias"), *(SetAttribute(node, a) for a in attributes))

    return edits
