"""Numbers to small integers and back. Every version: onnx.reference has no DequantizeLinear of opsets 10 to 18.

Defaults and rules come from each operator's page, https://onnx.ai/onnx/operators/. All is divided and scaled in float64
here; ONNX Runtime divides in the scale's own type, so that a number beside a rounding step may fall to its other side.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from training.reference.op import Array, Op, OperatorFunction, widen


def _fitted(op: Op, parameter: Array, x: Array) -> Array:
    """A scale or zero point as x needs it: for all of it, for each slice along `axis`, or for each block there."""
    if parameter.size == 1 and parameter.ndim <= 1:
        return parameter.reshape(())
    axis = op.get("axis", 1) % x.ndim
    if block := op.get("block_size", 0):
        return np.take(np.repeat(parameter, block, axis=axis), np.arange(x.shape[axis]), axis=axis)
    return parameter.reshape(tuple(-1 if other == axis else 1 for other in range(x.ndim)))


def dequantize_linear(op: Op, x: Array, scale: Array, zero_point: Array | None = None) -> Array:
    """`(x - zero_point) * scale`, for integers of any width and for 8-bit floats, which arrive widened."""
    wide = x.astype(np.float64)
    if zero_point is not None:
        wide = wide - _fitted(op, zero_point.astype(np.float64), x)
    return wide * _fitted(op, scale, x)


def quantize_linear(op: Op, x: Array, scale: Array, zero_point: Array | None = None) -> Array:
    """`saturate(round(x / scale) + zero_point)`; halves go to even. The type is the zero point's, else uint8.

    A 4-bit zero point arrives as an 8-bit one, so that only `output_dtype` can tell: without it such a node saturates
    too late, which the comparison with ONNX Runtime's run of the original shows.
    """
    if target := op.get("output_dtype", 0):
        kind = ir.DataType(target).numpy()
        bits = ir.DataType(target).bitwidth
    else:
        kind = np.dtype(np.uint8) if zero_point is None else zero_point.dtype
        bits = 8 * kind.itemsize
    stored = widen(np.empty(0, dtype=kind)).dtype
    if stored.kind not in "iu":
        raise NotImplementedError("8-bit floats")
    steps = np.rint(x / _fitted(op, scale, x))
    if zero_point is not None:
        steps = steps + _fitted(op, zero_point.astype(np.float64), x)
    low, high = (0, 2**bits - 1) if stored.kind == "u" else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    return np.asarray(np.clip(np.nan_to_num(steps, nan=0.0), low, high), dtype=stored)


QUANTIZATION: dict[str, OperatorFunction] = {
    "DequantizeLinear": dequantize_linear,
    "QuantizeLinear": quantize_linear,
}
