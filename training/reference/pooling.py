"""MaxPool, AveragePool, LpPool and the global pools.

https://onnx.ai/onnx/operators/onnx__AveragePool.html and its neighbours.
"""

from __future__ import annotations

import numpy as np

from training.reference.op import Array, Op, OperatorFunction, Result
from training.reference.windows import Windows, padded, resolve, taps, view


def max_pool(op: Op, x: Array) -> Result:
    """Padding is minus infinity: it never wins. Indices are flat into the whole input, as the page demands."""
    windows = resolve(op, x.shape[2:], op.get("kernel_shape"))
    lowest = -np.inf if x.dtype.kind == "f" else np.iinfo(x.dtype).min
    source = padded(x, windows, lowest)
    y = _over_taps(np.maximum, source, windows)
    if not op.asks_for(1):
        return y
    each = view(source, windows)
    flat = np.arange(x.size, dtype=np.int64).reshape(x.shape)
    if op.get("storage_order", 0):  # column major: only the spatial axes swap order
        order = (0, 1, *range(x.ndim - 1, 1, -1))
        flat = flat.reshape(*x.shape[:2], *x.shape[:1:-1]).transpose(order)
    where = view(padded(flat, windows, -1), windows).reshape(*y.shape, -1)
    winner = each.reshape(*y.shape, -1).argmax(axis=-1)
    return y, np.take_along_axis(where, winner[..., np.newaxis], axis=-1)[..., 0]


def average_pool(op: Op, x: Array) -> Array:
    """The divisor counts real pixels; with count_include_pad the pads too, but never what ceil_mode reaches beyond."""
    windows = resolve(op, x.shape[2:], op.get("kernel_shape"))
    source = padded(x, windows, 0.0)
    total = _over_taps(np.add, source, windows)
    counted = np.zeros((1, 1, *source.shape[2:]))
    with_pads = bool(op.get("count_include_pad", 0))
    spans = zip(x.shape[2:], windows.begin, windows.end, strict=True)
    counted[:, :, *(slice(0, b + n + e) if with_pads else slice(b, b + n) for n, b, e in spans)] = 1.0
    total /= _over_taps(np.add, counted, windows)
    return total


def lp_pool(op: Op, x: Array) -> Array:
    """p-th root of the sum of p-th powers of each window; zero padding adds nothing."""
    windows = resolve(op, x.shape[2:], op.get("kernel_shape"))
    p = op.get("p", 2)
    return np.asarray(_over_taps(np.add, padded(np.abs(x) ** p, windows, 0.0), windows) ** (1.0 / p))


def _over_taps(join: np.ufunc, source: Array, windows: Windows) -> Array:
    """Tap by tap, whole shifted planes at a time: NumPy reduces over the small axes of windows one by one."""
    first, *others = taps(windows)
    y: Array = source[:, :, *first].copy()
    for tap in others:
        join(y, source[:, :, *tap], out=y)
    return y


def _spatial(x: Array) -> tuple[int, ...]:
    return tuple(range(2, x.ndim))


def global_lp_pool(op: Op, x: Array) -> Array:
    """p-norm over all spatial axes."""
    p = op.get("p", 2)
    return np.asarray((np.abs(x) ** p).sum(axis=_spatial(x), keepdims=True) ** (1.0 / p))


POOLING: dict[str, OperatorFunction] = {
    "MaxPool": max_pool,
    "AveragePool": average_pool,
    "LpPool": lp_pool,
    "GlobalMaxPool": lambda _, x: x.max(axis=_spatial(x), keepdims=True),
    "GlobalAveragePool": lambda _, x: x.mean(axis=_spatial(x), keepdims=True),
    "GlobalLpPool": global_lp_pool,
}
