"""What a rule may ask about the model it works on. Knows no operator."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from math import prod
from typing import Any

import onnx_ir as ir

from training.fold.affine import Array
from training.fold.constants import Constants
from training.fold.graph import describe
from training.fold.laws import Law, Port
from training.fold.refusal import Refusal
from training.fold.shapes import Dims, Shapes

_MOST_ENTRIES = 1 << 17  # of a port: the widest flattened layers have 25,088, images on all axes have millions


@dataclass(frozen=True)
class Known:
    """Shapes, constants, the opset, and along which axes each tensor's gauge lies so far."""

    shapes: Shapes
    constants: Constants
    opset: int  # of ONNX's own domain
    axes_of: Callable[[ir.Value], tuple[int, ...] | None]  # None: not decided yet
    native_axes: Callable[[ir.Value], tuple[int, ...] | None]  # where the operators next to it could hold a gauge
    notes: dict[Hashable, Any] = field(default_factory=dict)  # what a rule found out about a node, for the next time

    def dims(self, value: ir.Value) -> Dims | None:
        return self.shapes.dims(value)

    def constant(self, value: ir.Value | None) -> Array | None:
        """The numbers of a tensor that always holds the same, else None."""
        array = None if value is None else self.constants.of(value)
        return None if array is None or isinstance(array, Refusal) else array

    def port(self, value: ir.Value | None, axes: tuple[int, ...], node: ir.Node) -> Port | Refusal:
        """The port of an operand or output of `node` along exactly `axes`.

        Refused: an absent operand; an unknown or symbolic size along `axes`; a gauge that lies along other axes.
        """
        if value is None:
            return Refusal(f"{describe(node)} lacks an operand")
        decided = self.axes_of(value)
        if decided is not None and decided == axes:  # all that follows was asked then
            return Port(value, axes)
        dims = self.dims(value)
        if dims is None or any(axis >= len(dims) or dims[axis] is None for axis in axes):
            return Refusal(f"the size of '{value.name}' of {describe(node)} along axis {axes} is not known")
        if any(dims[axis] == 0 for axis in axes):
            return Refusal(f"'{value.name}' of {describe(node)} is empty")
        if prod(dims[axis] or 1 for axis in axes) > _MOST_ENTRIES:
            return Refusal(f"'{value.name}' of {describe(node)} has more than {_MOST_ENTRIES} entries along {axes}")
        if self.constants.holds(value):
            return Port(value, axes, node)
        if decided is not None:
            return Refusal(f"'{value.name}' of {describe(node)} is stored along axis {decided}, not {axes}")
        return Port(value, axes)

    def place(self, value: ir.Value | None, axes: tuple[int, ...], node: ir.Node) -> Port | Refusal:
        """A port along at most `axes`, for regrouping operators: those decided, else native ones, else `axes`."""
        if value is None:
            return Refusal(f"{describe(node)} lacks an operand")
        native = self.native_axes(value)
        wish = native if native is not None and set(native) <= set(axes) else axes
        return self.port(value, self.axes_of(value) or wish, node)


Rule = Callable[[ir.Node, Port, Known], tuple[Law, ...] | Refusal]
"""What a node says of a port on one of its tensors. Refusal: the port is pinned, for that reason."""
