"""One channel more: how operators treat a tensor that carries, behind its own channels, one that holds one number.

A *widened* tensor has channels 0 to C-1 as before and channel C, the *extra* one. What it stands for is

    v[c] = scale[c] * stored[c] + shift[c] * extra / number

so that a shift may be missing from the stored channels and be found again by whoever reads the extra one. Where the
extra channel is *uniform* it holds `number` everywhere; behind a linear operator that sees borders (a Pad with zeros)
it holds what that operator makes of `number`, which is what it makes of a shift.

    f(v)        pointwise, shift 0:  f(number), and f's own constants get one entry more
    a + b       the numbers add up, and so do the shifts
    pool(v)     what treats all channels alike treats a shift as it does the extra channel

Here is the table of what passes a widened tensor on; widen.py knows where the extra channel begins and ends. No graph
is edited, no operator asked twice. What is not in the table is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from training.fold.affine import Array, Float64s
from training.fold.batchnorm import read_batchnorm
from training.fold.broadcasting import aligned
from training.fold.carriers.activations import bounds_of
from training.fold.edits import Edit, SetAttribute, SetOperand
from training.fold.graph import describe, is_standard
from training.fold.known import Known
from training.fold.laws import Equal, NoShift, Positive
from training.fold.linear.convolution import conv
from training.fold.linear.layer import Bias, Operand
from training.fold.operators import RULES
from training.fold.refusal import Refusal
from training.fold.weights import round_once, widen

_CHANNELS = (1,)
_MOST = 64.0  # that an extra channel adds up to: no type rounds it away bit by bit
_BROADCASTING = 7  # the opset from which operands broadcast as NumPy's do


@dataclass(frozen=True, eq=False)
class Held:
    """What a widened tensor stands for (formula in the file's head). None: scale 1, shift 0.

    `lifts`: the maps that scale and shift have taken over. `number` of an extra channel that is not uniform is what it
    was when it was; NaN where nobody can say.
    """

    number: float
    uniform: bool = True
    scale: Float64s | None = None
    shift: Float64s | None = None
    lifts: frozenset[ir.Node] = frozenset()

    @property
    def moved(self) -> bool:
        return self.scale is not None or self.shift is not None


@dataclass(frozen=True, eq=False)
class Passage:
    """A node that reads widened tensors and makes one. `operands`: all of them, in order; a tensor read twice, twice.

    `hold`: what the output stands for. `edits`: the node's constants, one entry longer. Both from what its operands
    stand for.
    """

    node: ir.Node
    operands: tuple[ir.Value, ...]
    hold: Callable[[Sequence[Held]], Held | Refusal]
    edits: Callable[[Sequence[Held]], tuple[Edit, ...]] = lambda _: ()


def passage(node: ir.Node, known: Known) -> Passage | Refusal:
    """How `node` passes a widened tensor on. Refused: what is not in the table, or not under these attributes."""
    read = _PASSAGES.get(node.op_type) if is_standard(node) else None
    if read is None:
        return Refusal(f"{describe(node)} takes no channel more")
    if not node.inputs or node.inputs[0] is None:
        return Refusal(f"{describe(node)} lacks its operand 0")
    return read(node, known)


def with_one_more(array: Array, axis: int, number: float) -> Array:
    """`array` with one slice of `number` behind its last along `axis`; in its own type."""
    shape = [1 if place == axis else size for place, size in enumerate(array.shape)]
    more = round_once(np.full(shape, number, dtype=np.float64), array.dtype)
    return np.concatenate([array, more], axis=axis)


# --- pointwise ---------------------------------------------------------------------------------------------------

_Function = Callable[..., float]


def _pointwise(node: ir.Node, operands: tuple[ir.Value, ...], function: _Function) -> Callable[..., Held | Refusal]:
    """The extra channel becomes `function` of its numbers. (1) Nothing was moved. (2) It is uniform, so that all of it
    is known to be finite: weights of 0 do not silence an infinity."""

    def hold(held: Sequence[Held]) -> Held | Refusal:
        for value, one in zip(operands, held, strict=True):
            if one.moved:
                return Refusal(f"{describe(node)} takes '{value.name}' only as it is")
        if not all(one.uniform for one in held):
            return Refusal(f"{describe(node)} reads an extra channel that is another at the border")
        with np.errstate(all="ignore"):  # judged by its result
            number = float(function(*(one.number for one in held)))
        return Held(number) if math.isfinite(number) else Refusal(f"{describe(node)} makes the extra channel {number}")

    return hold


def _alpha(node: ir.Node, default: float) -> float:
    """As stored: a float32."""
    return float(np.float32(node.attributes.get_float("alpha", default)))


def _sigmoid(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x))


def _softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def _gelu(x: float, node: ir.Node) -> float:
    if node.attributes.get_string("approximate", "none") == "tanh":
        return 0.5 * x * (1.0 + math.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))
    return 0.5 * x * (1.0 + math.erf(x / math.sqrt(2.0)))


_FUNCTIONS: dict[str, Callable[[float, ir.Node], float]] = {
    "Abs": lambda x, _: abs(x),
    "Elu": lambda x, node: x if x > 0 else _alpha(node, 1.0) * math.expm1(x),
    "Erf": lambda x, _: math.erf(x),
    "Gelu": _gelu,
    "HardSwish": lambda x, _: x * min(max(x / 6.0 + 0.5, 0.0), 1.0),
    "LeakyRelu": lambda x, node: x if x > 0 else _alpha(node, 0.01) * x,
    "Mish": lambda x, _: x * math.tanh(_softplus(x)),
    "Neg": lambda x, _: -x,
    "Relu": lambda x, _: max(x, 0.0),
    "Sigmoid": lambda x, _: _sigmoid(x),
    "Softplus": lambda x, _: _softplus(x),
    "Softsign": lambda x, _: x / (1.0 + abs(x)),
    "Tanh": lambda x, _: math.tanh(x),
}


def _function(node: ir.Node, _: Known) -> Passage | Refusal:
    operands = _data(node)
    function = _FUNCTIONS[node.op_type]
    return Passage(node, operands, _pointwise(node, operands, lambda x: function(x, node)))


def _clip(node: ir.Node, known: Known) -> Passage | Refusal:
    bounds = bounds_of(node, known)
    if isinstance(bounds, Refusal):
        return bounds
    lower, upper = float(bounds.lower), float(bounds.upper)
    operands = _data(node)
    return Passage(node, operands, _pointwise(node, operands, lambda x: min(max(x, lower), upper)))


def _data(node: ir.Node) -> tuple[ir.Value, ...]:
    x = node.inputs[0]
    assert x is not None  # `passage` has seen to it
    return (x,)


_ARITHMETIC: dict[str, _Function] = {
    "Add": np.add,
    "Div": np.true_divide,
    "Max": lambda *numbers: np.max(numbers),
    "Min": lambda *numbers: np.min(numbers),
    "Mul": np.multiply,
    "Sub": np.subtract,
    "Sum": lambda *numbers: np.sum(numbers),
}
_NEUTRAL = {"Add": 0.0, "Sub": 0.0, "Mul": 1.0, "Div": 1.0, "PRelu": 1.0}  # Max, Min: the number itself


def _arithmetic(node: ir.Node, known: Known) -> Passage | Refusal:
    """Of widened tensors, or of one and a constant. (1) Opset 7 on. (2) A constant is one of two operands."""
    if known.opset < _BROADCASTING:
        return Refusal(f"{describe(node)} broadcasts by other rules in opset {known.opset}")
    operands = tuple(value for value in node.inputs if value is not None)
    constants = [place for place, value in enumerate(operands) if known.constants.holds(value)]
    if len(operands) != len(node.inputs) or (constants and len(operands) != 2):
        return Refusal(f"{describe(node)} has {len(node.inputs)} operands, constants among them")
    if constants:
        return _with_constant(node, constants[0], _ARITHMETIC[node.op_type], known)
    full = known.dims(node.outputs[0])
    for value in operands:
        dims = known.dims(value)
        if full is None or dims is None or len(dims) != len(full) or dims[1] is None or dims[1] != full[1]:
            return Refusal(f"'{value.name}' does not have all channels of what {describe(node)} makes")
    hold = _sum(node, operands) if node.op_type in _SIGNS else _pointwise(node, operands, _ARITHMETIC[node.op_type])
    return Passage(node, operands, hold)


def _with_constant(node: ir.Node, place: int, function: _Function, known: Known) -> Passage | Refusal:
    """`f(x, k)` or `f(k, x)`: k gets a neutral entry where it has one a channel; else it is one number."""
    constant, x = node.inputs[place], node.inputs[1 - place]
    assert constant is not None and x is not None
    array = known.constant(constant)
    full = None if array is None else aligned(widen(array), x, known)
    if array is None or isinstance(full, Refusal) or full is None or full.ndim < 2:
        return Refusal(f"constant '{constant.name}' of {describe(node)} does not fit '{x.name}' channel by channel")
    operands = (x,)
    ordered: _Function = (lambda a, k: function(a, k)) if place else (lambda a, k: function(k, a))
    if full.shape[1] == 1:
        if full.size != 1:
            return Refusal(f"constant '{constant.name}' of {describe(node)} differs within a channel")
        number = float(full.reshape(()))
        return Passage(node, operands, _pointwise(node, operands, lambda a: ordered(a, number)))

    def neutral(a: float) -> float:
        return _NEUTRAL.get(node.op_type, a)

    def edits(held: Sequence[Held]) -> tuple[Edit, ...]:
        longer = with_one_more(array, 1 - (full.ndim - array.ndim), neutral(held[0].number))
        return (SetOperand(node, place, longer, constant, role="constant"),)

    return Passage(node, operands, _pointwise(node, operands, lambda a: ordered(a, neutral(a))), edits)


def _prelu(node: ir.Node, known: Known) -> Passage | Refusal:
    """Above 0 the slope does not matter; below, a slope a channel is 1 for the extra one."""
    if known.opset < _BROADCASTING or len(node.inputs) != 2 or node.inputs[1] is None:
        return Refusal(f"{describe(node)} broadcasts by other rules in opset {known.opset}, or lacks its slope")
    return _with_constant(node, 1, lambda x, slope: x if x > 0 else slope * x, known)


# --- sums --------------------------------------------------------------------------------------------------------

_SIGNS: dict[str, Callable[[int], float]] = {
    "Add": lambda _: 1.0,
    "Sub": lambda place: -1.0 if place else 1.0,
    "Sum": lambda _: 1.0,
}


def _sum(node: ir.Node, operands: tuple[ir.Value, ...]) -> Callable[..., Held | Refusal]:
    signs = [_SIGNS[node.op_type](place) for place in range(len(operands))]

    def hold(held: Sequence[Held]) -> Held | Refusal:
        for value, one in zip(operands, held, strict=True):
            if one.scale is not None:
                return Refusal(f"{describe(node)} adds '{value.name}' to others of another scale")
        shifts = [sign * one.shift for sign, one in zip(signs, held, strict=True) if one.shift is not None]
        if not all(one.uniform for one in held):
            if shifts:
                return Refusal(f"{describe(node)} adds tensors whose extra channels differ at the border")
            return Held(math.nan, uniform=False)
        number = sum(sign * one.number for sign, one in zip(signs, held, strict=True))
        if abs(number) > _MOST:
            return Refusal(
                f"the extra channel of '{node.outputs[0].name}' comes to {number:g}, expected {_MOST:g} at most"
            )
        lifts = frozenset().union(*(one.lifts for one in held))
        return Held(number, shift=np.sum(shifts, axis=0) if shifts else None, lifts=lifts)

    return hold


# --- operators that treat all channels alike ---------------------------------------------------------------------


_ALIKE = (
    "AveragePool", "Cast", "Dropout", "GlobalAveragePool", "GlobalMaxPool", "GridSample", "Identity", "MaxPool", "Pad",
    "Resize", "Upsample",
)  # fmt: skip


def _alike(node: ir.Node, known: Known) -> Passage | Refusal:
    """What lets a gauge along the channels pass whole: `f(s x + t) = s f(x) + t`, so that f(number) = number.

    (1) The operator's own law says so, and puts no infinities in. (2) None of its operands says how many channels there
    are. Where it lets no shift pass it is linear nevertheless (zeros are padded, or counted): a shift and the extra
    channel come out alike.
    """
    (x,) = operands = _data(node)
    port = known.port(x, _CHANNELS, node)
    laws = port if isinstance(port, Refusal) else RULES[node.op_type](node, port, known)
    if isinstance(laws, Refusal):
        return laws
    links = [law for law in laws if isinstance(law, Equal)]
    rest = [law for law in laws if isinstance(law, NoShift) or (isinstance(law, Positive) and not law.infinite)]
    if len(links) != 1 or len(links) + len(rest) != len(laws) or not _is_whole(links[0]) or _says_sizes(node, known):
        return Refusal(f"{describe(node)} does not treat all channels of '{x.name}' alike")
    linear = not any(isinstance(law, NoShift) for law in rest)
    upright = any(isinstance(law, Positive) for law in rest)

    def hold(held: Sequence[Held]) -> Held | Refusal:
        (one,) = held
        if upright and one.scale is not None and not (one.scale > 0).all():
            return Refusal(f"{describe(node)} needs a positive scale")
        return Held(one.number, one.uniform and linear, one.scale, one.shift, one.lifts)

    return Passage(node, operands, hold)


def _is_whole(law: Equal) -> bool:
    return law.a_index is None and law.b_index is None and law.a.axes == law.b.axes == _CHANNELS


def _says_sizes(node: ir.Node, known: Known) -> bool:
    """Does a Resize list the size of the channels' axis?"""
    if node.op_type != "Resize" or len(node.inputs) < 4 or node.inputs[3] is None:
        return False
    rank = known.shapes.rank(node.outputs[0])
    axes = node.attributes.get_ints("axes", ())
    return rank is None or not axes or 1 in [axis % rank for axis in axes]


# --- operators with weights a channel ----------------------------------------------------------------------------


def _batchnorm(node: ir.Node, known: Known) -> Passage | Refusal:
    """One that stays: the extra channel has statistics as if it were normal already."""
    record = read_batchnorm(node, known.opset, known.constants)
    if isinstance(record, Refusal):
        return record
    operands = _data(node)

    def edits(_: Sequence[Held]) -> tuple[Edit, ...]:
        found = []
        for place, number in ((1, 1.0), (2, 0.0), (3, 0.0), (4, 1.0)):
            value = node.inputs[place]
            array = known.constant(value)
            assert value is not None and array is not None
            found.append(SetOperand(node, place, with_one_more(array, 0, number), value, role="constant"))
        return tuple(found)

    deviation = math.sqrt(1.0 + float(np.float32(node.attributes.get_float("epsilon", 1e-5))))
    return Passage(node, operands, _pointwise(node, operands, lambda x: x / deviation), edits)


def _depthwise(node: ir.Node, known: Known) -> Passage | Refusal:
    """A convolution of each channel by itself: one group more, whose kernel is 0 and whose bias is 1."""
    layer = conv(node, known)
    if isinstance(layer, Refusal):
        return layer
    weight, bias, group = layer.weight, layer.bias, node.attributes.get_int("group", 1)
    if not isinstance(weight, Operand) or not isinstance(bias, Bias):
        return Refusal(f"weight or bias of {describe(node)} is not constant, or stored as integers")
    if weight.shape[0] != group or weight.shape[1] != 1:
        return Refusal(f"{describe(node)} has {group} groups of several channels: none of them is the extra one")
    operands = _data(node)

    def edits(_: Sequence[Held]) -> tuple[Edit, ...]:
        kernels = with_one_more(weight.array, 0, 0.0)
        before = np.zeros(group, weight.dtype) if bias.operand is None else bias.operand.array
        origin = weight.value if bias.operand is None else bias.operand.value
        return (
            SetOperand(node, weight.index, kernels, weight.value, "weight"),
            SetOperand(node, 2, with_one_more(before, 0, 1.0), origin, "bias"),
            SetAttribute(node, ir.AttrInt64("group", group + 1)),
        )

    return Passage(node, operands, _pointwise(node, operands, lambda _: 1.0), edits)


_PASSAGES: dict[str, Callable[[ir.Node, Known], Passage | Refusal]] = {
    **dict.fromkeys(_FUNCTIONS, _function),
    **dict.fromkeys(_ARITHMETIC, _arithmetic),
    **dict.fromkeys(_ALIKE, _alike),
    "BatchNormalization": _batchnorm,
    "Clip": _clip,
    "Conv": _depthwise,
    "PRelu": _prelu,
}
