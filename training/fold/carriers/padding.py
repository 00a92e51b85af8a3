"""Pad: all elements keep their gauge, and the margins have to fit in.

Margins of real elements (reflect, edge, wrap) have a gauge already. A number that fills them must be one that the gauge
leaves as it is:

    0 = A 0 + B     for B = 0            inf = A inf + B     for A > 0            v = A v + B    not claimed

Along an axis with margins nothing is claimed.
"""

from __future__ import annotations

import math

import onnx_ir as ir

from training.fold.carriers.routes import Link, Move, move_of, moves, operand
from training.fold.graph import describe
from training.fold.known import Known
from training.fold.laws import Law, NoShift, Port, Positive
from training.fold.refusal import Refusal


def pad(node: ir.Node, port: Port, known: Known) -> tuple[Law, ...] | Refusal:
    """(1) No margin along the port's own axes. (2) The number that a margin is filled with stays what it is."""
    m = move_of(node, known)
    if isinstance(m, Refusal):
        return m
    margins = _margins(m)
    if isinstance(margins, Refusal):
        return margins
    padded = {axis for axis, margin in enumerate(margins) if margin != (0, 0)}
    if padded & set(port.axes):
        return m.refuse(f"is padded along axis {port.axes}, on which '{port.value.name}' is stored")
    links = tuple(Link((axis,), (axis,), proved=axis not in padded) for axis in range(len(margins)))
    laws = moves(lambda _: links)(node, port, known)
    mode = node.attributes.get_string("mode", "constant")
    if isinstance(laws, Refusal) or mode in ("reflect", "edge", "wrap"):
        return laws
    if mode != "constant":
        return m.refuse(f"is padded in mode '{mode}'")
    grows = any(amount > 0 for margin in margins for amount in margin)
    asks = _kept_number(m, port) if grows else ()
    return asks if isinstance(asks, Refusal) else (*laws, *asks)


def _kept_number(m: Move, port: Port) -> tuple[Law, ...] | Refusal:
    """What the number of a constant margin asks of a gauge: an attribute before opset 11, 0 where it is absent."""
    value = operand(m.node, 2)
    number = m.known.constant(value)
    if value is not None and (number is None or number.size != 1):
        return m.refuse(f"is padded with '{value.name}', expected one constant number")
    fill = m.node.attributes.get_float("value", 0.0) if number is None else float(number.reshape(()))
    if fill == 0:
        return (NoShift(port, f"{describe(m.node)} pads with zeros"),)
    if math.isinf(fill):
        return (Positive(port, f"{describe(m.node)} pads with {fill}", infinite=True),)
    return m.refuse(f"is padded with {fill:g}, expected 0 or an infinity")


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
