"""Weights that a model stores as integers: `W = (q - z) * s`, a DequantizeLinear of constants in front of the layer.

    C W = (q' - z) * s'     s' = |C| s, q' = q where C > 0, q' = 2 z - q where C < 0, q' = z where C = 0

for a scale C of the layer's output, if `s` has one entry an output channel, or is one number for all, which becomes
that. The integers stay integers, and as exact as they were. A scale of the input would have to go into each of them:
none. Shifts are the bias's affair, and a bias behind a DequantizeLinear needs no care: whatever it becomes is a float,
and its DequantizeLinear goes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from training.fold.affine import Array, Float64s
from training.fold.edits import Edit, SetAttribute, SetOperand
from training.fold.graph import describe, is_standard, number_readers
from training.fold.known import Known
from training.fold.refusal import Refusal
from training.fold.weights import BFLOAT16, FLOAT_DTYPES, round_once, widen

_MAX_CHAIN = 64
_SCALES_ALONG_AN_AXIS = 13  # the opset from which DequantizeLinear has them; before, one number for all
# The smallest number of a scale's type that has all its digits.
_SMALLEST = {
    np.dtype(np.float16): 2.0**-14,
    BFLOAT16: 2.0**-126,
    np.dtype(np.float32): 2.0**-126,
    np.dtype(np.float64): 2.0**-1022,
}
_MOVES = frozenset({"Identity", "Cast", "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Expand"})


@dataclass(frozen=True, eq=False)
class QuantisedWeight:
    """`value` is the output of `source`, a DequantizeLinear; its scales lie along `axis`, None: one number for all."""

    value: ir.Value
    source: ir.Node
    integers: Array
    zero: Array  # int64, broadcasts against the integers
    scale: Array  # [size along axis], or of one number
    axis: int | None
    opset: int

    @property
    def shape(self) -> tuple[int, ...]:
        return self.integers.shape

    @property
    def dtype(self) -> np.dtype[np.generic]:
        return self.scale.dtype

    def exact(self) -> Float64s:
        """W. The run time rounds each product to the scale's type."""
        steps = self.scale.reshape([-1 if i == self.axis else 1 for i in range(self.integers.ndim)])
        return (self.integers.astype(np.float64) - self.zero) * widen(steps)

    def scaled(self, node: ir.Node, scale: Float64s, axis: int) -> tuple[Edit, ...] | Refusal:
        """W under `scale` along `axis`. Refused: a scale that leaves its type; an integer without negative."""
        sizes = widen(self.scale) * np.where(scale == 0, 1, np.abs(scale))
        stored = round_once(sizes, self.dtype)
        if not np.isfinite(stored).all() or ((np.abs(widen(stored)) < _SMALLEST[self.dtype]) & (sizes != 0)).any():
            return Refusal(
                f"folded scale of {describe(self.source)}, a weight of {describe(node)}, leaves {self.dtype}"
            )
        edits: tuple[Edit, ...] = (SetOperand(self.source, 1, stored, self._operand(1), "scale"),)
        if self.axis is None:
            edits += (*self._spread_zero(len(scale)), SetAttribute(self.source, ir.AttrInt64("axis", axis)))
        if (scale > 0).all():
            return edits
        sign = np.sign(scale).astype(np.int64).reshape([-1 if i == axis else 1 for i in range(self.integers.ndim)])
        moved = self.zero + sign * (self.integers.astype(np.int64) - self.zero)
        if not self._fits(moved):
            return Refusal(
                f"'{self.value.name}', a weight of {describe(node)}, has no negative in {self.integers.dtype}"
            )
        return (*edits, SetOperand(self.source, 0, moved.astype(self.integers.dtype), self._operand(0), "weight"))

    def _spread_zero(self, channels: int) -> tuple[Edit, ...]:
        """A zero point has the shape of the scales."""
        if len(self.source.inputs) < 3 or self.source.inputs[2] is None:
            return ()
        points = np.full(channels, self.zero.reshape(())).astype(self.integers.dtype)
        return (SetOperand(self.source, 2, points, self._operand(2), "zero point"),)

    def has_negative(self) -> bool:
        """Can all integers change their sign? -128 of int8 cannot."""
        return self._fits(2 * self.zero - self.integers.astype(np.int64))

    def keeps_output(self, node: ir.Node, output_axis: int | None) -> str:
        """Why the layer's output cannot be rescaled: (1) one scale an output channel, or (2) one number for all that
        can become that, in opset 13 on, where an axis holds the output channels; (3) no other reader. Else empty."""
        what = f"weight '{self.value.name}' of {describe(node)} is quantised with"
        if self.axis is None:
            if output_axis is None or self.opset < _SCALES_ALONG_AN_AXIS:
                return f"{what} one scale, which cannot become one for each output channel (opset {self.opset})"
        elif output_axis != self.axis or self.scale.shape != (self.integers.shape[self.axis],):
            return (
                f"{what} scales {list(self.scale.shape)} along axis {self.axis}, expected one for each output channel"
            )
        readers = number_readers(self.value)
        if self.value.is_graph_output() or len(readers) != 1:
            return f"quantised weight '{self.value.name}' of {describe(node)} has {len(readers)} readers"
        return ""

    def keeps_input(self, node: ir.Node) -> str:
        return f"weight '{self.value.name}' of {describe(node)} is quantised: its input cannot be rescaled"

    def _fits(self, values: Array) -> bool:
        bits, signed = ir.DataType.from_numpy(self.integers.dtype).bitwidth, self.integers.dtype.name.startswith("int")
        low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
        return bool(((values >= low) & (values <= high)).all())

    def _operand(self, index: int) -> ir.Value:
        value = self.source.inputs[index]
        assert value is not None
        return value


def read_quantised(value: ir.Value, node: ir.Node, known: Known) -> QuantisedWeight | Refusal | None:
    """None where no DequantizeLinear stands in front of the weight. Refused: one that is not in the form above.

    (1) Its operands are constants, its integers integers, its scales one floating vector along `axis`, or one number.
    (2) No blocks. (3) Nothing lies between it and the layer: behind a Transpose its axes are others.
    """
    source = value.producer()
    for _ in range(_MAX_CHAIN):
        if source is None or not is_standard(source) or source.op_type not in _MOVES or source.inputs[0] is None:
            break
        source = source.inputs[0].producer()
    if source is None or not is_standard(source, "DequantizeLinear"):
        return None
    what = f"weight '{value.name}' of {describe(node)}"
    if source.outputs[0] is not value:
        return Refusal(f"{what} is quantised, with other operators between {describe(source)} and itself")
    numbers = [known.constant(operand) for operand in source.inputs]
    integers, scale, zero = (*numbers, None)[:3]
    if integers is None or scale is None or (len(numbers) > 2 and source.inputs[2] is not None and zero is None):
        return Refusal(f"{what} is quantised, and not constant")
    if not _is_integer(integers.dtype) or scale.dtype not in FLOAT_DTYPES or scale.ndim > 1 or integers.ndim == 0:
        return Refusal(f"{what} is quantised as {integers.dtype} with {scale.dtype} scales of rank {scale.ndim}")
    if source.attributes.get_int("block_size", 0) or source.attributes.get_int("output_dtype", 0):
        return Refusal(f"{what} is quantised in blocks, or to another type than its scales'")
    number = source.attributes.get_int("axis", 1)
    axis = None if scale.size == 1 else number + (integers.ndim if number < 0 else 0)
    if axis is not None and not 0 <= axis < integers.ndim:
        return Refusal(f"{what} is quantised along axis {axis} of rank {integers.ndim}")
    points = np.zeros(1, np.int64) if zero is None else zero.astype(np.int64).reshape(-1)
    if len(points) not in (1, scale.size):
        return Refusal(f"{what} is quantised with {scale.size} scales and {len(points)} zero points")
    aligned = points.reshape([-1 if i == axis else 1 for i in range(integers.ndim)])
    return QuantisedWeight(value, source, integers, aligned, scale, axis, known.opset)


def _is_integer(dtype: np.dtype[np.generic]) -> bool:
    return dtype.name.startswith(("int", "uint"))
