"""Reductions over whole axes: a gauge along the axes that stay passes, as the reduction's algebra allows.

    mean(s x + t) = s mean(x) + t
    sum(s x + t)  = s sum(x) + n t          n elements a sum
    max(s x + t)  = s max(x) + t            for s > 0, min likewise
    |s x|_p       = s |x|_p                 for s > 0, p of 1 or 2

Here n, and nothing else, asks for sizes along the reduced axes. Also TopK, which picks along one axis, and Mean of
several tensors. Products, squares and logarithms have no such law: ReduceProd, ReduceSumSquare, ReduceLogSum,
ReduceLogSumExp, ArgMax, ArgMin and CumSum are not in the table, so that what they read is stored as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir

from training.fold.carriers.ends import Axes, ends, is_output, same_ends
from training.fold.carriers.junctions import weighted_sum
from training.fold.graph import describe
from training.fold.known import Known, Rule
from training.fold.laws import Equal, Law, NoShift, Port, Positive, Sum, Term
from training.fold.refusal import Refusal

_AXES_AS_OPERAND = 18  # the opset from which `axes` is an operand
_AXES_AS_OPERAND_OF_SUM = 13
_BROADCASTING_MEAN = 8


@dataclass(frozen=True)
class _Reduction:
    """A reduction and its two ends. `axes` of x are reduced; `count`: elements a result, None where it is symbolic."""

    node: ir.Node
    x: Port
    y: Port
    axes: Axes
    count: int | None


def _reduced_axes(node: ir.Node, rank: int, known: Known) -> Axes | Refusal:
    """Which axes go, ascending. None named: all, or none under `noop_with_empty_axes` (where axes are an operand)."""
    since = _AXES_AS_OPERAND_OF_SUM if node.op_type == "ReduceSum" else _AXES_AS_OPERAND
    attribute, operand = node.attributes.get("axes"), node.inputs[1] if len(node.inputs) > 1 else None
    if (operand if known.opset < since else attribute) is not None:
        return Refusal(f"{describe(node)} names its axes in a way that opset {known.opset} does not know")
    named: tuple[int, ...] = () if attribute is None else tuple(attribute.as_ints())
    if operand is not None:
        numbers = known.constant(operand)
        if numbers is None:
            return Refusal(f"the axes '{operand.name}' of {describe(node)} are not constant")
        named = tuple(int(axis) for axis in numbers.reshape(-1))
    if not named:
        noop = known.opset >= since and node.attributes.get_int("noop_with_empty_axes", 0) != 0
        return () if noop else tuple(range(rank))
    axes = tuple(sorted(axis + rank if axis < 0 else axis for axis in named))
    if len(set(axes)) != len(axes) or axes[0] < 0 or axes[-1] >= rank:
        return Refusal(f"{describe(node)} reduces axes {list(named)} of {rank}")
    return axes


def _reduction(node: ir.Node, port: Port, known: Known) -> _Reduction | Refusal:
    """Both ends of a reduction, renumbered where axes vanish (`keepdims=0`).

    Refused: (1) a port other than the data or the result; (2) an unknown rank; (3) axes that are not constant or out
    of range; (4) a gauge along a reduced axis, whose entries would be mixed.
    """
    output = is_output(node, port)
    if isinstance(output, Refusal):
        return output
    x = node.inputs[0]
    dims = None if x is None else known.dims(x)
    if dims is None:
        return Refusal(f"the rank of what {describe(node)} reduces is not known")
    axes = _reduced_axes(node, len(dims), known)
    if isinstance(axes, Refusal):
        return axes
    keeps = node.attributes.get_int("keepdims", 1) != 0
    places = [axis for axis in range(len(dims)) if keeps or axis not in axes]  # of x, for each axis of y
    if output and max(port.axes) >= len(places):
        return Refusal(f"'{port.value.name}' of {describe(node)} has {len(places)} axes, no axis {port.axes}")
    x_axes = tuple(places[axis] for axis in port.axes) if output else port.axes
    if set(x_axes) & set(axes):
        return Refusal(
            f"{describe(node)} reduces axes {list(axes)}, and '{port.value.name}' is stored along {port.axes}"
        )
    pair = ends(node, x_axes, tuple(places.index(axis) for axis in x_axes), known)
    if isinstance(pair, Refusal):
        return pair
    sizes = [dims[axis] for axis in axes]
    count = None if None in sizes else math.prod(size or 0 for size in sizes)
    return _Reduction(node, *pair, axes, count)


def _reducing(laws: Callable[[_Reduction], tuple[Law, ...]]) -> Rule:
    """The rule of a reduction from the laws that hold between its ends."""

    def rule(node: ir.Node, port: Port, known: Known) -> tuple[Law, ...] | Refusal:
        found = _reduction(node, port, known)
        return found if isinstance(found, Refusal) else laws(found)

    return rule


def _mean(r: _Reduction) -> tuple[Law, ...]:
    """Any gauge."""
    return (Equal(r.x, r.y),)


def _sum(r: _Reduction) -> tuple[Law, ...]:
    """Equal scales; the shift as often as there are elements, so none where their number is unknown or zero."""
    if not r.count:
        return Equal(r.x, r.y), NoShift(r.x, f"{describe(r.node)} sums a number of elements that is not known")
    return (Sum(r.y, (Term(r.x, float(r.count)),)),)


def _extreme(r: _Reduction) -> tuple[Law, ...]:
    """Maximum and minimum: positive scales, any shift."""
    return Equal(r.x, r.y), Positive(r.x, f"{describe(r.node)} is an extreme, which a negative scale exchanges")


def _norm(r: _Reduction) -> tuple[Law, ...]:
    """Norms of order 1 and 2: positive scales, no shift."""
    why = f"{describe(r.node)} is a norm"
    return Equal(r.x, r.y), Positive(r.x, why), NoShift(r.x, why)


def top_k(node: ir.Node, port: Port, known: Known) -> tuple[Law, ...] | Refusal:
    """TopK: its values under positive scales and any shift, which keep every order.

    1. Its indices are not read: of elements that rounding makes equal, or a channel that is a constant by now, they
       name others.
    2. The gauge lies along other axes than the one that is picked from (the last, unless `axis` says otherwise).
    """
    pair = same_ends(node, port, known)
    if isinstance(pair, Refusal):
        return pair
    read = next((output for output in node.outputs[1:] if output.uses() or output.is_graph_output()), None)
    if read is not None:
        return Refusal(f"'{read.name}', the indices of {describe(node)}, is read")
    rank = len(known.dims(port.value) or ())
    axis = node.attributes.get_int("axis", -1)
    if axis % max(rank, 1) in port.axes:
        return Refusal(f"{describe(node)} picks along axis {axis}, along which '{port.value.name}' is stored")
    x, y = pair
    return Equal(x, y), Positive(x, f"{describe(node)} goes by order, which a negative scale turns round")


def mean_of_tensors(node: ir.Node, port: Port, known: Known) -> tuple[Law, ...] | Refusal:
    """Mean of n tensors: equal scales; `y' = (x1' + ... + xn') / n` has the mean of their shifts.

    1. The operands broadcast as NumPy's do, opset 8 on; before, their shapes are equal.
    2. Constant ones have a size along the gauge's axes.
    """
    count = len(node.inputs)
    return weighted_sum(node, port, [1 / count] * count, _BROADCASTING_MEAN, known)


RULES: dict[str, Rule] = {
    "Mean": mean_of_tensors,
    "ReduceL1": _reducing(_norm),
    "ReduceL2": _reducing(_norm),
    "ReduceMax": _reducing(_extreme),
    "ReduceMean": _reducing(_mean),
    "ReduceMin": _reducing(_extreme),
    "ReduceSum": _reducing(_sum),
    "TopK": top_k,
}
