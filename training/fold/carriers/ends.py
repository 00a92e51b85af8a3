"""The two ends of an operator with one data operand, as a rule the first, and its first output, under one gauge.

Knows places of operands and sizes, no operator's meaning.
"""

from __future__ import annotations

import onnx_ir as ir

from training.fold.graph import describe
from training.fold.known import Known
from training.fold.laws import Port
from training.fold.refusal import Refusal

Axes = tuple[int, ...]


def is_output(node: ir.Node, port: Port, place: int = 0) -> bool | Refusal:
    """Is `port` on the first output (True) or on operand `place` (False)? Refused: anything else, or both roles."""
    if port.value is node.outputs[0]:
        return True
    places = [index for index, value in enumerate(node.inputs) if value is port.value]
    if places != [place]:
        return Refusal(f"'{port.value.name}' is no data that {describe(node)} hands on, or not only (operand {places})")
    return False


def same_ends(node: ir.Node, port: Port, known: Known, place: int = 0) -> tuple[Port, Port] | Refusal:
    """Both ends along the axes of `port`, which is one of them."""
    output = is_output(node, port, place)
    return output if isinstance(output, Refusal) else ends(node, port.axes, port.axes, known, place)


def ends(node: ir.Node, x_axes: Axes, y_axes: Axes, known: Known, place: int = 0) -> tuple[Port, Port] | Refusal:
    """The ports of operand `place` along `x_axes` and of the first output along `y_axes`.

    Refused: what `Known.port` refuses; sizes that differ; an operand that the node also reads in another role.
    """
    x, y = known.port(node.inputs[place], x_axes, node), known.port(node.outputs[0], y_axes, node)
    if isinstance(x, Refusal):
        return x
    if isinstance(y, Refusal):
        return y
    if list(node.inputs).count(x.value) > 1:
        return Refusal(f"{describe(node)} reads '{x.value.name}' twice")
    sizes = [[(known.dims(port.value) or ())[axis] for axis in port.axes] for port in (x, y)]
    if sizes[0] != sizes[1]:
        return Refusal(f"{describe(node)} makes size {sizes[1]} of {sizes[0]} along axis {x_axes} of '{x.value.name}'")
    return x, y
