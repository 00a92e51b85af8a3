"""Pad: all elements keep their gauge, and the margins have to fit in.

Margins of real elements (reflect, edge, wrap) have a gauge already: along a port's own axes they are an index map, as
crops are. A number that fills them has to be one that the gauge leaves as it is:

    0 = A 0 + B     for B = 0            inf = A inf + B     for A > 0            v = A v + B     for A = 1, B = 0

This is asked of the entries that have margins in them: of all where an axis is padded along which the port does not
lie, else of those alone that were added and are nothing but margin, as the channels that a shortcut puts behind its
own. That an entry of real elements, with another number v between them, keeps any gauge but the identity is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir

from training.fold.carriers.routes import Link, Move, coordinates, move_of, moves, operand, shown
from training.fold.graph import describe
from training.fold.known import Known
from training.fold.laws import Equal, Index, Law, NoShift, Pinned, Port, Positive
from training.fold.refusal import Refusal

_Margin = tuple[int, int]
_FILL = -1  # the place of a number that is no element's

# Places from before the first of n elements to behind the last, and whose element is there.
_MODES: Mapping[str, Callable[[Index, int], Index]] = {
    "constant": lambda place, n: np.where((place >= 0) & (place < n), place, _FILL),
    "edge": lambda place, n: np.clip(place, 0, n - 1),
    "reflect": lambda place, n: n - 1 - np.abs(n - 1 - np.abs(place)),
    "wrap": lambda place, n: place % n,
}


def pad(node: ir.Node, port: Port, known: Known) -> tuple[Law, ...] | Refusal:
    """(1) Elements keep their gauge, wherever they come to lie. (2) A number that fills a margin stays what it is."""
    m = move_of(node, known)
    if isinstance(m, Refusal):
        return m
    margins, mode = _margins(m), node.attributes.get_string("mode", "constant")
    if isinstance(margins, Refusal):
        return margins
    if mode not in _MODES:
        return m.refuse(f"is padded in mode '{mode}'")
    links = tuple(_link(m, axis, margin, mode) for axis, margin in enumerate(margins))
    unproved = [axis for axis in port.axes if axis < len(links) and not links[axis].proved]
    if unproved:
        return m.refuse(f"is padded along axis {unproved[0]} by {margins[unproved[0]]} into {shown(m.theirs)}")
    laws = moves(lambda _: links)(node, port, known)
    grown = {axis: margin for axis, margin in enumerate(margins) if max(margin) > 0}
    if isinstance(laws, Refusal) or mode != "constant" or not grown:
        return laws
    (tie,) = laws
    assert isinstance(tie, Equal)
    asked = _kept_number(m, tie.a if tie.a.value is m.target else tie.b, grown)
    return asked if isinstance(asked, Refusal) else (tie, asked)


def _link(m: Move, axis: int, margin: _Margin, mode: str) -> Link:
    """Not proved where the size is unknown, and where it is not agreed upon what happens: margins that mirror or repeat
    more than there is, copies next to a crop, crops of more than there is."""
    size = m.mine[axis]
    if margin == (0, 0):
        return Link((axis,), (axis,))
    cropped, widest = sum(max(-amount, 0) for amount in margin), max(margin)
    if size is None or cropped > size or (cropped and widest > 0 and mode != "constant"):
        return Link((axis,), (axis,), proved=False)
    if widest > {"reflect": size - 1, "wrap": size}.get(mode, widest):
        return Link((axis,), (axis,), proved=False)
    source = _MODES[mode](np.arange(-margin[0], size + margin[1]), size)
    if m.theirs[axis] not in (None, len(source)):
        return Link((axis,), (axis,), proved=False)
    target = np.flatnonzero(source != _FILL)
    return Link((axis,), (axis,), lambda: source[target], lambda: target)


def _kept_number(m: Move, port: Port, grown: Mapping[int, _Margin]) -> Law | Refusal:
    """What the number of a constant margin asks of the output: an attribute before opset 11, 0 where it is absent."""
    value = operand(m.node, 2)
    number = m.known.constant(value)
    if value is not None and (number is None or number.size != 1):
        return m.refuse(f"is padded with '{value.name}', expected one constant number")
    fill = m.node.attributes.get_float("value", 0.0) if number is None else float(number.reshape(()))
    index = _added(m, port, grown)
    if fill == 0:
        return NoShift(port, f"{describe(m.node)} pads with zeros", index)
    if math.isinf(fill):
        return Positive(port, f"{describe(m.node)} pads with {fill}", infinite=True, index=index)
    if index is not None:
        return Pinned(port, f"{describe(m.node)} pads with {fill:g}", index)
    return m.refuse(f"is padded with {fill:g}, expected 0 or an infinity")


def _added(m: Move, port: Port, grown: Mapping[int, _Margin]) -> Index | None:
    """The entries of the output that are nothing but margin; None where others have margins in them too."""
    if not set(port.axes).issuperset(grown):
        return None
    at = coordinates(port, m.theirs)
    ends = {axis: (m.theirs[axis] or 0) - after for axis, (_, after) in grown.items()}
    outside = [(at[axis] < before) | (at[axis] >= ends[axis]) for axis, (before, _) in grown.items()]
    return np.flatnonzero(np.any(outside, axis=0))


def _margins(m: Move) -> list[tuple[int, int]] | Refusal:
    """Before and after each axis. Opset 1 says `paddings`, 2 `pads`, 11 on has an operand, 18 on names the axes."""
    rank = len(m.mine)
    amounts = m.integers(1, "pads" if m.known.opset >= 2 else "paddings")
    axes = m.integers(3) if m.says(3) else list(range(rank))
    if amounts is None or axes is None or len(amounts) != 2 * len(axes) or len(m.theirs) != rank:
        return m.refuse("is padded by amounts, or along axes, that are not constant or not two an axis")
    if not all(-rank <= axis < rank for axis in axes):
        return m.refuse(f"is padded along axes {axes}")
    margins = [(0, 0)] * rank
    for axis, before, after in zip(axes, amounts, amounts[len(axes) :], strict=False):
        margins[axis] = (before, after)
    return margins
