"""Conv and ConvTranspose of any rank, as a copy of windows (im2col) times a matrix, in blocks of bounded memory.

https://onnx.ai/onnx/operators/onnx__Conv.html and onnx__ConvTranspose.html.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np

from training.reference.op import Array, Op, OperatorFunction
from training.reference.windows import Windows, padded, resolve, view

BLOCK_BYTES = 64 << 20  # of copied windows; a few times the last-level cache, and never the size of the whole layer


def conv(op: Op, x: Array, w: Array, b: Array | None = None) -> Array:
    """`x` [N, C, D..], `w` [O, C/group, K..], `b` [O] -> [N, O, D'..]."""
    groups = op.get("group", 1)
    if x.shape[1] != w.shape[1] * groups or w.shape[0] % groups:
        raise ValueError(f"input {list(x.shape)} and weight {list(w.shape)} do not fit with group={groups}")
    windows = resolve(op, x.shape[2:], w.shape[2:])
    matrix = w.reshape(groups, w.shape[0] // groups, -1)
    source = padded(x, windows, 0.0)
    y = np.empty((x.shape[0], w.shape[0], *windows.output))
    lines = view(source, windows)  # [N, C, O.., K..]
    for n, rows in itertools.product(range(x.shape[0]), _blocks(windows, x.shape[1])):
        part = lines[n, :, rows]
        y[n, :, rows] = _multiply(matrix, part, groups, len(windows.output))
    return y if b is None else y + _per_channel(b, y.ndim)


def _multiply(matrix: Array, part: Array, groups: int, rank: int) -> Array:
    """`matrix` [g, O/g, C/g * K] times windows [C, O.., K..] -> [O, O..]."""
    channels, output, kernel = part.shape[0], part.shape[1 : 1 + rank], part.shape[1 + rank :]
    grouped = part.reshape(groups, channels // groups, *output, *kernel) if groups > 1 else part[np.newaxis]
    to_front = (0, 1, *range(2 + rank, 2 + 2 * rank), *range(2, 2 + rank))
    columns = grouped.transpose(to_front).reshape(groups, matrix.shape[2], math.prod(output))
    return (matrix @ columns).reshape(-1, *output)


def _blocks(windows: Windows, channels: int) -> list[slice]:
    """Cut the first spatial axis so that one block of copied windows stays below BLOCK_BYTES."""
    row_bytes = 8 * channels * math.prod(windows.kernel) * math.prod(windows.output[1:])
    rows = max(1, BLOCK_BYTES // row_bytes)
    return [slice(start, start + rows) for start in range(0, windows.output[0], rows)]


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
