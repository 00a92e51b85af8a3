"""Conv and ConvTranspose of any rank, as products of matrices: windows are copied (im2col) in blocks of bounded memory.

Two kinds of Conv need no copy: kernels of one tap, and depthwise ones, where a copy would cost more than the products.

https://onnx.ai/onnx/operators/onnx__Conv.html and onnx__ConvTranspose.html.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from training.reference.op import Array, Op, OperatorFunction
from training.reference.windows import Windows, padded, resolve, taps

BLOCK_BYTES = 8 << 20  # of copied windows: what a processor's cache holds, and never the size of the whole layer
SLAB_BYTES = 1 << 18  # of channels that a depthwise Conv takes at a time: what the cache next to a core holds


def conv(op: Op, x: Array, w: Array, b: Array | None = None) -> Array:
    """`x` [N, C, D..], `w` [O, C/group, K..], `b` [O] -> [N, O, D'..]."""
    groups = op.get("group", 1)
    if x.shape[1] != w.shape[1] * groups or w.shape[0] % groups:
        raise ValueError(f"input {list(x.shape)} and weight {list(w.shape)} do not fit with group={groups}")
    windows = resolve(op, x.shape[2:], w.shape[2:])
    source = padded(x, windows, 0.0)
    if math.prod(windows.kernel) == 1:
        y = _pointwise(source, w, groups, windows)
    elif w.shape[1] == 1:
        y = _depthwise(source, w, windows)
    else:
        y = _by_blocks(source, w, groups, windows)
    if b is not None:
        y += _per_channel(b, y.ndim)
    return y


def _pointwise(source: Array, w: Array, groups: int, windows: Windows) -> Array:
    """A kernel of one tap is a product with what the strides leave of the input."""
    (tap,) = taps(windows)
    columns = source[:, :, *tap].reshape(source.shape[0], groups, w.shape[1], -1)
    y = w.reshape(groups, -1, w.shape[1]) @ columns
    return np.ascontiguousarray(y).reshape(source.shape[0], w.shape[0], *windows.output)


def _depthwise(source: Array, w: Array, windows: Windows) -> Array:
    """One channel a group: the sum over the taps of the shifted input times one number a channel."""
    n, groups = source.shape[:2]
    y = np.zeros((n, groups, w.shape[0] // groups, *windows.output))
    weights = w.reshape(groups, w.shape[0] // groups, -1, *(1,) * len(windows.output))
    together = max(1, SLAB_BYTES // (8 * math.prod(y.shape[2:])))
    for image, result in zip(source[:, :, np.newaxis], y, strict=True):
        for start in range(0, groups, together):
            some = slice(start, start + together)
            product = np.empty(result[some].shape)
            for number, tap in enumerate(taps(windows)):
                np.multiply(weights[some, :, number], image[some, :, *tap], out=product)
                result[some] += product
    return y.reshape(n, w.shape[0], *windows.output)


def _by_blocks(source: Array, w: Array, groups: int, windows: Windows) -> Array:
    """Bands of output rows: `w` as [g, O/g, C/g * K] times the windows as [g, C/g * K, positions]."""
    matrix = w.reshape(groups, w.shape[0] // groups, -1)
    y = np.empty((source.shape[0], w.shape[0], *windows.output))
    rest = windows.output[1:]
    rows = _rows_a_block(windows, source.shape[1])
    buffer = np.empty(source.shape[1] * math.prod(windows.kernel) * min(rows, windows.output[0]) * math.prod(rest))
    for image, result in zip(source, y, strict=True):
        for start in range(0, windows.output[0], rows):
            stop = min(start + rows, windows.output[0])
            size = source.shape[1] * math.prod(windows.kernel) * (stop - start) * math.prod(rest)
            columns = buffer[:size].reshape(source.shape[1], -1, stop - start, *rest)
            for number, (band, *tap) in enumerate(taps(windows)):
                columns[:, number] = image[:, band, *tap][:, start:stop]
            product = matrix @ columns.reshape(groups, matrix.shape[2], -1)
            result[:, start:stop] = product.reshape(-1, stop - start, *rest)
    return y


def _rows_a_block(windows: Windows, channels: int) -> int:
    """How many rows of the first spatial axis keep one block of copied windows below BLOCK_BYTES; at least one."""
    row_bytes = 8 * channels * math.prod(windows.kernel) * math.prod(windows.output[1:])
    return max(1, BLOCK_BYTES // max(row_bytes, 1))


def conv_transpose(op: Op, x: Array, w: Array, b: Array | None = None) -> Array:
    """`x` [N, C, D..], `w` [C, O/group, K..], `b` [O] -> [N, O, D'..].

    Every input pixel stamps the kernel, scaled, at `stride * position`; pads crop the result, and positions that no
    stamp reaches (output_padding, a larger output_shape) hold the bias alone.
    """
    groups, rank = op.get("group", 1), w.ndim - 2
    if x.shape[1] != w.shape[0] or x.shape[1] % groups:
        raise ValueError(f"input {list(x.shape)} and weight {list(w.shape)} do not fit with group={groups}")
    strides = tuple(op.get("strides", (1,) * rank))
    dilations = tuple(op.get("dilations", (1,) * rank))
    full = tuple(
        (n - 1) * s + (k - 1) * d + 1 for n, s, k, d in zip(x.shape[2:], strides, w.shape[2:], dilations, strict=True)
    )
    begin, output = _transposed_frame(op, x.shape[2:], full, strides)
    matrix = w.reshape(groups, x.shape[1] // groups, -1).transpose(0, 2, 1)  # [g, O/g * K, C/g]
    stamps = matrix @ x.reshape(x.shape[0], groups, x.shape[1] // groups, -1)
    stamps = stamps.reshape(x.shape[0], groups * w.shape[1], *w.shape[2:], *x.shape[2:])
    canvas = np.zeros((x.shape[0], groups * w.shape[1], *full))
    for tap in np.ndindex(*w.shape[2:]):
        where = tuple(
            slice(t * d, t * d + (n - 1) * s + 1, s)
            for t, d, n, s in zip(tap, dilations, x.shape[2:], strides, strict=True)
        )
        canvas[:, :, *where] += stamps[:, :, *tap]
    y = _frame(canvas, begin, output)
    return y if b is None else y + _per_channel(b, y.ndim)


def _transposed_frame(
    op: Op, spatial: Sequence[int], full: Sequence[int], strides: Sequence[int]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Where the output begins inside the full canvas, and its size (formulas of the operator's page)."""
    rank = len(spatial)
    extra = tuple(op.get("output_padding", (0,) * rank))
    mode = op.get("auto_pad", "NOTSET")
    wanted = op.get("output_shape")
    if wanted is None and mode in ("SAME_UPPER", "SAME_LOWER"):
        wanted = [n * s for n, s in zip(spatial, strides, strict=True)]
    if wanted is None:
        pads = tuple(op.get("pads", (0,) * (2 * rank))) if mode != "VALID" else (0,) * (2 * rank)
        output = tuple(f + e - a - z for f, e, a, z in zip(full, extra, pads[:rank], pads[rank:], strict=True))
        return pads[:rank], output
    wanted = tuple(wanted)[-rank:]  # opset 1 allowed the batch and channel axes in output_shape
    total = [f + e - o for f, e, o in zip(full, extra, wanted, strict=True)]
    # The page splits an odd total towards the end for SAME_UPPER and towards the beginning otherwise. A negative total
    # (output larger than the canvas) appears in no example of the page: unsure; this is the formula to the letter.
    begin = tuple(t // 2 if mode == "SAME_UPPER" else t - t // 2 for t in total)
    return begin, wanted


def _frame(canvas: Array, begin: Sequence[int], output: Sequence[int]) -> Array:
    """`canvas[begin : begin + output]` on every spatial axis, with zeros where that lies outside."""
    y = np.zeros((*canvas.shape[:2], *output))
    source, target = [], []
    for start, size, have in zip(begin, output, canvas.shape[2:], strict=True):
        low, high = max(start, 0), min(start + size, have)
        source.append(slice(low, max(high, low)))
        target.append(slice(low - start, max(high, low) - start))
    y[:, :, *target] = canvas[:, :, *source]
    return y


def _per_channel(b: Array, ndim: int) -> Array:
    return b.reshape(1, -1, *(1,) * (ndim - 2))


CONVOLUTION: dict[str, OperatorFunction] = {"Conv": conv, "ConvTranspose": conv_transpose}
