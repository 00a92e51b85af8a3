"""Activations that a gauge can pass: clamps under any gauge, at a price, and positively homogeneous functions.

    f(s x + t) = s clamp(x) + t         f = clip(., a, b): bounds (a - t)/s and (b - t)/s, swapped where s < 0
    f(s x)     = s f(x)  for s > 0      f = ReLU, LeakyReLU, PReLU, Abs

All others (Sigmoid, GELU, Softmax, ...) have no rule, so that what touches them is stored as it is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from training.fold.affine import Float64s
from training.fold.broadcasting import aligned, along, outgrows
from training.fold.carriers.ends import same_ends
from training.fold.edits import Become, Edit
from training.fold.graph import describe
from training.fold.known import Known, Rule
from training.fold.laws import Clamp, Equal, Gauge, Gauges, Law, NoShift, Port, Positive, Stays
from training.fold.refusal import Refusal
from training.fold.weights import round_once, widen

_BROADCASTING_MAX = 8  # the opset from which Max and Min broadcast their operands


@dataclass(frozen=True, eq=False)
class Bounds:
    """What a clamp holds its input between: scalars, or arrays that broadcast against the input. float64."""

    lower: Float64s
    upper: Float64s


def bounds_of(node: ir.Node, known: Known) -> Bounds | Refusal:
    """The bounds of a Relu, Clip, or a Max or Min of one tensor and one constant."""
    free = np.float64(np.inf)
    if node.op_type == "Relu":
        return Bounds(np.asarray(0.0), np.asarray(free))
    if node.op_type == "Clip":
        return _clip_bounds(node, known)
    constants = [known.constant(value) for value in node.inputs]
    numbers = [array for array in constants if array is not None]
    if len(node.inputs) != 2 or len(numbers) != 1:
        return Refusal(f"{describe(node)} has {len(numbers)} constants among {len(node.inputs)} operands")
    limit = widen(numbers[0])
    return Bounds(limit, np.asarray(free)) if node.op_type == "Max" else Bounds(np.asarray(-free), limit)


def _clip_bounds(node: ir.Node, known: Known) -> Bounds | Refusal:
    """Opsets 1 and 6 have attributes, 11 on optional operands."""
    found = []
    for index, (name, default) in enumerate((("min", -np.inf), ("max", np.inf)), start=1):
        value = node.inputs[index] if index < len(node.inputs) else None
        number = known.constant(value)
        if value is not None and (number is None or number.size != 1):
            return Refusal(f"'{value.name}', a bound of {describe(node)}, is not one constant number")
        limit = node.attributes.get_float(name, default) if number is None else float(number.reshape(()))
        found.append(np.asarray(limit, dtype=np.float64))
    lower, upper = found
    return Bounds(lower, upper) if lower <= upper else Refusal(f"{describe(node)} has bounds {lower} > {upper}")


_STAYS = {"Relu": Stays.UNSHIFTED, "Clip": Stays.UNMOVED, "Max": Stays.UPRIGHT, "Min": Stays.UPRIGHT}


def clamp(node: ir.Node, port: Port, known: Known) -> tuple[Law, ...] | Refusal:
    """Relu, Clip, Max or Min with a constant: x and y under one gauge. (1) The constant does not enlarge x."""
    if node.op_type in ("Max", "Min") and all(known.constant(value) is None for value in node.inputs):
        return extremum(node, port, known)
    bounds = bounds_of(node, known)
    if isinstance(bounds, Refusal):
        return bounds
    dynamic = _computed_operand(node, known)
    if dynamic is None:
        return Refusal(f"{describe(node)} has only constant operands")
    limits = []
    for limit in (bounds.lower, bounds.upper):
        fits = aligned(limit, dynamic, known)
        if isinstance(fits, Refusal):
            return fits
        limits.append(fits)
    pair = same_ends(node, port, known, list(node.inputs).index(dynamic))
    if isinstance(pair, Refusal):
        return pair
    x, y = pair
    if known.opset < _BROADCASTING_MAX and node.op_type != "Relu":
        return Refusal(f"{describe(node)}: Max and Min do not broadcast in opset {known.opset}")
    if known.opset < _BROADCASTING_MAX:
        return (Equal(x, y), *_homogeneous(x, node))
    dims = known.dims(dynamic) or ()
    if any(outgrows(limit.shape, {axis: dims[axis] or 1 for axis in port.axes}) for limit in limits):
        return Refusal(f"the bounds of {describe(node)}, which differ along other axes than {port.axes}, would grow")
    lower, upper = (along(limit, x, known) for limit in limits)
    told = None if lower is None or upper is None else (lower, upper)
    return (Clamp(x, y, node, _STAYS[node.op_type], told),)


def extremum(node: ir.Node, port: Port, known: Known) -> tuple[Law, ...] | Refusal:
    """Max or Min of tensors: `max(s a + t, s b + t) = s max(a, b) + t` for s > 0. (1) All have the output's shape."""
    laws: list[Law] = []
    out = known.port(node.outputs[0], port.axes, node)
    if isinstance(out, Refusal):
        return out
    for value in node.inputs:
        if value is None or known.dims(value) != known.dims(node.outputs[0]):
            return Refusal(f"the operands of {describe(node)} differ in shape")
        operand = known.port(value, port.axes, node)
        if isinstance(operand, Refusal):
            return operand
        laws.append(Equal(operand, out))
    return (*laws, Positive(out, f"{describe(node)} needs a positive scale"))


def homogeneous(node: ir.Node, port: Port, known: Known) -> tuple[Law, ...] | Refusal:
    """LeakyRelu, PRelu, Abs: `f(s x) = s f(x)` for s > 0; a slope may be anything that is not asked about."""
    pair = same_ends(node, port, known)
    return pair if isinstance(pair, Refusal) else (Equal(*pair), *_homogeneous(pair[0], node))


def _homogeneous(x: Port, node: ir.Node) -> tuple[Law, ...]:
    why = f"{describe(node)} lets no shift and no negative scale pass"
    return (NoShift(x, why), Positive(x, why))


def _computed_operand(node: ir.Node, known: Known) -> ir.Value | None:
    """What a clamp bounds; None where it bounds a constant."""
    return next((value for value in node.inputs if value is not None and known.constant(value) is None), None)


def clamp_edits(node: ir.Node, gauges: Gauges, known: Known) -> tuple[Edit, ...] | Refusal:
    """The clamp under its gauge: bounds `s * bound + t`, swapped where s < 0; one Max, one Min, or both."""
    bounds = bounds_of(node, known)
    if isinstance(bounds, Refusal):
        return ()  # a Max or Min of tensors: its law needs no edit
    x = _computed_operand(node, known)
    gauge = gauges.of(x)
    if x is None or gauge is None or _stays(node, gauge):
        return ()
    rank = len(known.dims(x) or ())
    lower, upper = moved_bounds(bounds, gauge, rank)
    dtype = known.shapes.dtype(x)
    if dtype is None:
        return Refusal(f"the element type of '{x.name}' is not known")
    steps: list[Edit] = []
    for op_type, limit in (("Max", lower), ("Min", upper)):
        if np.isfinite(limit).any():
            steps.append(Become(node, op_type, list(node.inputs).index(x), round_once(limit, dtype.numpy())))
    return tuple(steps)


def moved_bounds(bounds: Bounds, gauge: Gauge, rank: int) -> tuple[Float64s, Float64s]:
    """Where `y' = s y + t` lies when y lies within `bounds`; an infinite bound stays infinite, and so does that of what
    nobody reads."""
    scale, shift = gauge.spread(gauge.scale, rank), gauge.spread(gauge.shift, rank)
    unread = np.isinf(scale)
    with np.errstate(invalid="ignore"):  # 0 * inf: a channel that holds one number, its shift; inf * 0: one unread
        ends = [np.where(scale == 0, shift, scale * end + shift) for end in (bounds.lower, bounds.upper)]
    lower, upper = np.where(scale < 0, ends[1], ends[0]), np.where(scale < 0, ends[0], ends[1])
    return np.where(unread, -np.inf, lower), np.where(unread, np.inf, upper)


def _stays(node: ir.Node, gauge: Gauge) -> bool:
    return node.op_type == "Relu" and bool((gauge.scale >= 0).all()) and not gauge.shift.any()


RULES: dict[str, Rule] = {
    "Abs": homogeneous,
    "Clip": clamp,
    "LeakyRelu": homogeneous,
    "Max": clamp,
    "Min": clamp,
    "PRelu": homogeneous,
    "Relu": clamp,
}

REWRITES = {"Clip": clamp_edits, "Max": clamp_edits, "Min": clamp_edits, "Relu": clamp_edits}
