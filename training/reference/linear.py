"""Gemm, MatMul, Einsum and the normalisations, BatchNormalization above all.

https://onnx.ai/onnx/operators/onnx__BatchNormalization.html (versions 1, 6, 7, 9, 14, 15), onnx__Gemm.html.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from training.reference.op import Array, Op, OperatorFunction, Result

_EPSILON = float(np.float32(1e-5))  # the default, which like any attribute is a float32


def gemm(op: Op, a: Array, b: Array, c: Array | None = None) -> Array:
    """`alpha * A' B' + beta * C`; C broadcasts to the product's shape (before opset 7 only with `broadcast`)."""
    if a.ndim != 2 or b.ndim != 2:
        raise ValueError(f"Gemm takes matrices, got {list(a.shape)} and {list(b.shape)}")
    left = a.T if op.get("transA", 0) else a
    right = b.T if op.get("transB", 0) else b
    y: Array = op.get("alpha", 1.0) * (left @ right)
    if c is None:
        return y
    if np.broadcast_shapes(y.shape, c.shape) != y.shape:
        raise ValueError(f"C {list(c.shape)} does not broadcast to the product's {list(y.shape)}")
    return np.asarray(y + op.get("beta", 1.0) * c)


def batch_normalization(op: Op, x: Array, scale: Array, b: Array, mean: Array, var: Array) -> Result:
    """`(x - mean) / sqrt(var + epsilon) * scale + b` along axis 1, with given or with the batch's own statistics.

    Statistics of the batch are population statistics. `momentum` is the share of the *old* running value (the
    complement of torch's). Outputs: Y, running mean, running var and, before opset 14, saved mean and saved var.
    """
    epsilon = op.get("epsilon", _EPSILON)
    # spatial=0 (up to opset 8): one statistic per position, so that only the batch axis is reduced.
    spatial = bool(op.get("spatial", 1))
    axes = tuple(axis for axis in range(x.ndim) if axis == 0 or (spatial and axis > 1))
    shape = (1, -1, *(1,) * (x.ndim - 2)) if spatial else (1, *x.shape[1:])
    scale, b, mean, var = (parameter.reshape(shape) for parameter in (scale, b, mean, var))
    if not is_training(op):
        y = x - mean
        y *= scale / np.sqrt(var + epsilon)
        y += b
        return y
    own_mean, own_var = x.mean(axis=axes, keepdims=True), x.var(axis=axes, keepdims=True)
    y = (x - own_mean) / np.sqrt(own_var + epsilon) * scale + b
    momentum = op.get("momentum", 0.9)
    running = [momentum * old + (1 - momentum) * new for old, new in ((mean, own_mean), (var, own_var))]
    statistics = [value.squeeze(axes) for value in (*running, own_mean, own_var)]
    return y, *statistics[: len(op.outputs) - 1]


def is_training(op: Op) -> bool:
    """Does this BatchNormalization use the batch's own statistics?

    opset 14 on: `training_mode`, default 0. Versions 7 and 9: "output case 1", more than Y is asked for. Versions 1
    and 6: `is_test`, whose default 0 means training.
    """
    if op.opset >= 14:
        return bool(op.get("training_mode", 0))
    if op.opset >= 7:
        return any(op.outputs[1:])
    return not op.get("is_test", 0)


def instance_normalization(op: Op, x: Array, scale: Array, b: Array) -> Array:
    """Each sample and channel by its own mean and population variance."""
    shape = (1, -1, *(1,) * (x.ndim - 2))
    y = _standardised(x, tuple(range(2, x.ndim)), op.get("epsilon", _EPSILON))
    return y * scale.reshape(shape) + b.reshape(shape)


def group_normalization(op: Op, x: Array, scale: Array, b: Array) -> Array:
    """Groups of channels; scale and bias are per group in opset 18 and per channel from 21."""
    groups = op.get("num_groups")
    y = _standardised(x.reshape(x.shape[0], groups, -1), (2,), op.get("epsilon", _EPSILON)).reshape(x.shape)
    per_channel = [p if p.size == x.shape[1] else np.repeat(p, x.shape[1] // groups) for p in (scale, b)]
    shape = (1, -1, *(1,) * (x.ndim - 2))
    return y * per_channel[0].reshape(shape) + per_channel[1].reshape(shape)


def layer_normalization(op: Op, x: Array, scale: Array, b: Array | None = None) -> Result:
    """Over `axis` and all axes after it; optional outputs are the mean and the inverse standard deviation."""
    axes = tuple(range(op.get("axis", -1) % x.ndim, x.ndim))
    mean = x.mean(axis=axes, keepdims=True)
    inverse = 1.0 / np.sqrt(x.var(axis=axes, keepdims=True) + op.get("epsilon", _EPSILON))
    y = (x - mean) * inverse * scale
    return (y if b is None else y + b), mean, inverse


def _standardised(x: Array, axes: tuple[int, ...], epsilon: float) -> Array:
    mean = x.mean(axis=axes, keepdims=True)
    return np.asarray((x - mean) / np.sqrt(x.var(axis=axes, keepdims=True) + epsilon))


def mean_variance_normalization(op: Op, x: Array) -> Array:
    """`(x - mean) / (deviation + 1e-9)`: the epsilon is added to the deviation, not to the variance (function body)."""
    axes = tuple(op.get("axes", (0, 2, 3)))
    deviation = np.sqrt(x.var(axis=axes, keepdims=True))
    return np.asarray((x - x.mean(axis=axes, keepdims=True)) / (deviation + float(np.float32(1e-9))))


def matmul(_: Op, a: Array, b: Array) -> Array:
    """NumPy's; with one matrix on the right, as one product, which NumPy makes of every plane by itself."""
    if a.ndim > 2 and b.ndim == 2:
        a, leading = a.reshape(-1, a.shape[-1]), a.shape[:-1]
        return np.asarray(np.matmul(a, b)).reshape(*leading, b.shape[1])
    return np.asarray(np.matmul(a, b))


def _gemm_by_rows(op: Op, _a: Array, _b: Array, c: Array | None = None) -> bool:
    return not op.get("transA", 0) and (c is None or c.ndim < 2 or len(c) == 1)


ROW_BY_ROW: dict[str, Callable[..., bool]] = {
    "Gemm": _gemm_by_rows,
    "MatMul": lambda _, _a, b: b.ndim == 2,
}
"""Is each row of the answer (axis 0) a function of that row of the first operand alone? Asked about op and operands."""

LINEAR: dict[str, OperatorFunction] = {
    "Gemm": gemm,
    "MatMul": matmul,
    "Einsum": lambda op, *xs: np.einsum(op.get("equation").replace(" ", ""), *xs, optimize=True),
    "BatchNormalization": batch_normalization,
    "MeanVarianceNormalization": mean_variance_normalization,
    "InstanceNormalization": instance_normalization,
    "GroupNormalization": group_normalization,
    "LayerNormalization": layer_normalization,
}
