"""What a node does to one tensor, if it is linear: a channelwise map, or a window operator. One table for each.

Two layouts, and a region is read in one of them: channels on axis 1 (convolutions) or on the last axis (Linear layers).
Knows attributes and operands in every opset; knows no sums and no neighbours, edits nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

import numpy as np
import onnx_ir as ir

from training.fold.affine import Affine, Array, Float64s
from training.fold.batchnorm import read_batchnorm
from training.fold.branches.window import Axis, Frame, Window, mean
from training.fold.constants import Constants
from training.fold.graph import is_standard
from training.fold.refusal import Refusal
from training.fold.shapes import Shapes
from training.fold.weights import FLOAT_DTYPES, widen


class Layout(Enum):
    """Where the channels are."""

    CONVOLUTION = "axis 1"
    LINEAR = "the last axis"


class Facts(Protocol):
    """What is known of the model: `known.Known` is one."""

    @property
    def shapes(self) -> Shapes: ...
    @property
    def constants(self) -> Constants: ...
    @property
    def opset(self) -> int: ...


@dataclass(frozen=True, eq=False)
class Map:
    """`affine(x)`, channel by channel; vectors of length 1 are the same for all channels.

    `stretches`: for all that is known x may have one channel, of which the map makes as many as its vectors have.
    """

    node: ir.Node
    x: ir.Value
    affine: Affine
    stretches: bool = False

    @property
    def has_shift(self) -> bool:
        return bool(np.any(self.affine.shift))

    @property
    def width(self) -> int:
        return max(len(part) for part in (self.affine.scale, self.affine.center, self.affine.offset))

    @property
    def counts(self) -> bool:
        """Does it multiply or add at all?"""
        return self.node.op_type not in ("Identity", "Dropout")


@dataclass(frozen=True, eq=False)
class Operator:
    """A window operator on x; its numbers are made when asked for."""

    node: ir.Node
    x: ir.Value
    frame: Frame
    has_bias: bool
    window: Callable[[], Window]
    weight: ir.Value | None  # None: none of its own

    @property
    def is_pool(self) -> bool:
        return self.weight is None


Link = Map | Operator


@dataclass(frozen=True, eq=False)
class Made:
    """The numbers of a node that was made here, unrounded; its constant operands are written later."""

    layout: Layout
    numbers: Window | Affine


@dataclass(frozen=True, eq=False)
class Reader:
    """Reads nodes in one layout; those made here by their record in `exact`."""

    facts: Facts
    layout: Layout
    exact: dict[ir.Node, Made]

    def link(self, node: ir.Node) -> Link | None:
        """What `node` does, or None where it is not linear or not understood."""
        if not is_standard(node) or not node.inputs or node.inputs[0] is None:
            return None
        made = self.exact.get(node)
        if made is not None:
            return self._made(node, made)
        tables = (_MAPS, _OPERATORS[self.layout])
        read = next((table[node.op_type] for table in tables if node.op_type in table), None)
        try:
            return None if read is None else read(self, node)
        except (ValueError, TypeError):  # attributes or operands that do not fit together: not ours to judge
            return None

    def constant(self, node: ir.Node, index: int) -> Array | None:
        """The numbers of a constant operand, of floating type; not what was quantised, and is better left so."""
        value = node.inputs[index] if index < len(node.inputs) else None
        array = None if value is None else self.facts.constants.of(value)
        if value is None or array is None or isinstance(array, Refusal):
            return None
        return array if array.dtype in FLOAT_DTYPES and array.size and not _is_quantised(value) else None

    def channels(self, value: ir.Value) -> int | None:
        dims = self.facts.shapes.dims(value)
        if not dims:
            return None
        return dims[1 if self.layout is Layout.CONVOLUTION else -1] if len(dims) > 1 else None

    def sizes(self, value: ir.Value, count: int) -> tuple[int | None, ...]:
        """Of the spatial axes."""
        dims = self.facts.shapes.dims(value)
        return dims[2:] if dims is not None and len(dims) == count + 2 else (None,) * count

    def vector(self, node: ir.Node, index: int, x: ir.Value) -> Float64s | None:
        """A constant operand that is one number a channel of `x`, or one for all; it adds no axes."""
        array = self.constant(node, index)
        rank = self.facts.shapes.rank(x)
        if array is None:
            return None
        if rank is None:
            return widen(array).reshape(-1) if array.ndim < 2 and self._fits_any_rank(array) else None
        shape = array.shape
        if self.facts.opset < 7 and shape:
            if index == 0 or not node.attributes.get_int("broadcast", 0):
                return None
            axis = node.attributes.get_int("axis", rank - len(shape))
            shape += (1,) * (rank - axis - len(shape))
        if len(shape) > rank:
            return None
        shape = (1,) * (rank - len(shape)) + shape
        at = 1 if self.layout is Layout.CONVOLUTION else rank - 1
        if any(size != 1 for axis, size in enumerate(shape) if axis != at):
            return None
        return widen(array).reshape(-1)

    def _fits_any_rank(self, array: Array) -> bool:
        known_to_align = array.size == 1 or self.layout is Layout.LINEAR
        return array.ndim == 0 or (known_to_align and self.facts.opset >= 7)

    def _made(self, node: ir.Node, made: Made) -> Link | None:
        x, numbers = node.inputs[0], made.numbers
        if made.layout is not self.layout or x is None:
            return None
        if isinstance(numbers, Affine):
            return Map(node, x, numbers)
        return Operator(node, x, numbers.frame, bool(np.any(numbers.bias)), lambda: numbers, node.inputs[1])


def _is_quantised(value: ir.Value) -> bool:
    """Does a DequantizeLinear stand on the way to these numbers?"""
    producer = value.producer()
    while producer is not None and producer.op_type != "Shape":
        if producer.op_type == "DequantizeLinear":
            return True
        before = producer.inputs[0] if producer.inputs else None
        producer = None if before is None else before.producer()
    return False


# --- maps --------------------------------------------------------------------------------------------------------


def _affine(scale: Float64s, offset: Float64s) -> Affine:
    scale, offset = np.broadcast_arrays(scale, offset)
    return Affine(scale, np.zeros_like(scale), offset)


_ZERO, _ONE = np.zeros(1), np.ones(1)


def _identity(r: Reader, node: ir.Node) -> Map | None:
    """Identity; Dropout, unless it drops."""
    x = node.inputs[0]
    assert x is not None
    if node.op_type == "Dropout":
        if any(mask.uses() or mask.is_graph_output() for mask in node.outputs[1:]):
            return None
        if r.facts.opset < 7 and node.attributes.get_int("is_test", 0) == 0:
            return None
        if len(node.inputs) > 2 and node.inputs[2] is not None:
            training = r.facts.constants.of(node.inputs[2])
            if isinstance(training, Refusal) or training.any():
                return None
    return Map(node, x, _affine(_ONE, _ZERO))


def _negation(_: Reader, node: ir.Node) -> Map | None:
    x = node.inputs[0]
    return None if x is None else Map(node, x, _affine(-_ONE, _ZERO))


def _batchnorm(r: Reader, node: ir.Node) -> Map | None:
    record = read_batchnorm(node, r.facts.opset, r.facts.constants)
    if isinstance(record, Refusal):
        return None
    if r.layout is Layout.LINEAR and r.facts.shapes.rank(record.x) != 2:
        return None  # it maps axis 1
    return Map(node, record.x, record.affine)


def _with_constant(r: Reader, node: ir.Node) -> Map | None:
    """Mul, Div, Add, Sub of a tensor and a constant vector; not a constant divided by a tensor."""
    if len(node.inputs) != 2 or None in node.inputs:
        return None
    constants = [r.constant(node, index) is not None for index in (0, 1)]
    index = 0 if constants[0] else 1
    x = node.inputs[1 - index]
    if constants[0] == constants[1] or x is None or (node.op_type == "Div" and index == 0):
        return None
    c = r.vector(node, index, x)
    if c is None or not np.isfinite(c).all() or (node.op_type == "Div" and not c.all()):
        return None
    return Map(node, x, _FORMULAS[node.op_type](c, index), stretches=c.size not in (1, r.channels(x)))


_FORMULAS: dict[str, Callable[[Float64s, int], Affine]] = {
    "Mul": lambda c, _: _affine(c, _ZERO),
    "Div": lambda c, _: _affine(1 / c, _ZERO),
    "Add": lambda c, _: _affine(_ONE, c),
    "Sub": lambda c, index: _affine(_ONE, -c) if index == 1 else _affine(-_ONE, c),
}
_MAPS: dict[str, Callable[[Reader, ir.Node], Link | None]] = {
    "BatchNormalization": _batchnorm,
    "Dropout": _identity,
    "Identity": _identity,
    "Neg": _negation,
    **dict.fromkeys(_FORMULAS, _with_constant),
}

# --- window operators --------------------------------------------------------------------------------------------


def _axes(r: Reader, node: ir.Node, x: ir.Value, kernel: tuple[int, ...]) -> tuple[Axis, ...] | None:
    """auto_pad SAME: as many pads as make the output ceil(n / stride), which has to be known.

    None too where the window is known to be larger than the padded image: no pixel, or one by how the size is rounded.
    """
    count, attributes = len(kernel), node.attributes
    strides = attributes.get_ints("strides", (1,) * count)
    dilations = attributes.get_ints("dilations", (1,) * count)
    pads = tuple(attributes.get_ints("pads", (0,) * (2 * count)))
    auto = attributes.get_string("auto_pad", "NOTSET")
    if tuple(attributes.get_ints("kernel_shape", kernel)) != kernel or count == 0:
        return None
    if auto == "VALID":
        pads = (0,) * (2 * count)
    elif auto in ("SAME_UPPER", "SAME_LOWER"):
        both = []
        for n, k, s, d in zip(r.sizes(x, count), kernel, strides, dilations, strict=True):
            if n is None:
                return None
            padding = max((-(-n // s) - 1) * s + d * (k - 1) + 1 - n, 0)
            both.append(
                (padding // 2, padding - padding // 2)
                if auto == "SAME_UPPER"
                else (padding - padding // 2, padding // 2)
            )
        pads = (*(begin for begin, _ in both), *(end for _, end in both))
    elif auto != "NOTSET":
        return None
    if (len(strides), len(dilations), len(pads)) != (count, count, 2 * count) or min(*pads, 0) < 0:
        return None
    if min(*kernel, *strides, *dilations) < 1:
        return None
    axes = tuple(Axis.of(kernel[i], strides[i], dilations[i], (pads[i], pads[count + i])) for i in range(count))
    fits = all(n is None or n + axis.slack >= 0 for n, axis in zip(r.sizes(x, count), axes, strict=True))
    return axes if fits else None


def _conv(r: Reader, node: ir.Node) -> Operator | None:
    x, weight = node.inputs[0], r.constant(node, 1)
    if x is None or weight is None or weight.ndim < 3:
        return None
    has_bias = len(node.inputs) > 2 and node.inputs[2] is not None
    bias = r.constant(node, 2) if has_bias else np.zeros(weight.shape[0])
    group = node.attributes.get_int("group", 1)
    axes = _axes(r, node, x, weight.shape[2:])
    if bias is None or axes is None or bias.shape != weight.shape[:1] or group < 1 or weight.shape[0] % group:
        return None
    frame = Frame(weight.shape[1] * group, weight.shape[0], group, axes)
    return Operator(node, x, frame, bool(bias.any()), lambda: Window(frame, widen(weight), widen(bias)), node.inputs[1])


def _average(r: Reader, node: ir.Node) -> Operator | None:
    """A convolution only if every window divides by its full size: no pads, or pads that count."""
    x = node.inputs[0]
    assert x is not None
    axes = _axes(r, node, x, tuple(node.attributes.get_ints("kernel_shape", ())))
    channels = r.channels(x)
    if axes is None or channels is None:
        return None
    if any(axis.pads != (0, 0) for axis in axes) and not node.attributes.get_int("count_include_pad", 0):
        return None
    if node.attributes.get_int("ceil_mode", 0) and any(axis.stride != 1 for axis in axes):
        return None
    window = mean(channels, axes)
    return Operator(node, x, window.frame, False, lambda: window, None)


def _matmul(r: Reader, node: ir.Node) -> Operator | None:
    """`x W`, x of any rank."""
    x, weight = node.inputs[0], r.constant(node, 1)
    if x is None or weight is None or weight.ndim != 2 or r.facts.opset < 7:
        return None
    frame = Frame(weight.shape[0], weight.shape[1], 1, ())
    return Operator(
        node, x, frame, False, lambda: Window(frame, widen(weight).T, np.zeros(frame.outputs)), node.inputs[1]
    )


def _gemm(r: Reader, node: ir.Node) -> Operator | None:
    """`alpha x op(W) + beta c`, c one number an output or one for all."""
    x, weight, attributes = node.inputs[0], r.constant(node, 1), node.attributes
    x_transposed, w_transposed = (attributes.get_int(name, 0) != 0 for name in ("transA", "transB"))
    if x is None or weight is None or weight.ndim != 2 or r.facts.opset < 7 or x_transposed:
        return None
    outputs, inputs = weight.shape if w_transposed else weight.shape[::-1]
    has_bias = len(node.inputs) > 2 and node.inputs[2] is not None
    bias = r.constant(node, 2) if has_bias else np.zeros(outputs)
    if bias is None or bias.size not in (1, outputs) or bias.shape not in ((), bias.shape[-1:], (1, *bias.shape[-1:])):
        return None
    frame = Frame(inputs, outputs, 1, ())
    alpha, beta = attributes.get_float("alpha", 1.0), attributes.get_float("beta", 1.0)

    def window() -> Window:
        kernel = widen(weight) if w_transposed else widen(weight).T
        return Window(frame, alpha * kernel, np.broadcast_to(beta * widen(bias).reshape(-1), outputs))

    return Operator(node, x, frame, bool(bias.any()), window, node.inputs[1])


_OPERATORS: dict[Layout, dict[str, Callable[[Reader, ir.Node], Link | None]]] = {
    Layout.CONVOLUTION: {"AveragePool": _average, "Conv": _conv},
    Layout.LINEAR: {"Gemm": _gemm, "MatMul": _matmul},
}
