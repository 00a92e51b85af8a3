"""Resize and Upsample as one interpolation matrix per axis, and GridSample; https://onnx.ai/onnx/operators/onnx__Resize.html.

Interpolation is separable, so each axis is a `[out, in]` matrix and the whole a few matrix products (onnx.reference
visits each pixel in Python). `antialias`, `tf_crop_and_resize` and the `keep_aspect_ratio_policy` other than "stretch"
are left to onnx.reference.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from training.reference.elementwise import f32
from training.reference.op import Array, Op, OperatorFunction


def resize(op: Op, x: Array, *optional: Array | None) -> Array:
    """Inputs: (X, scales) in version 10, (X, roi, scales, sizes) from 11; empty means absent."""
    stretch = op.get("keep_aspect_ratio_policy", "stretch") == "stretch"
    # Version 10 had no such attribute, and one coordinate mapping only.
    mapping = op.get("coordinate_transformation_mode", "asymmetric" if op.opset < 11 else "half_pixel")
    if op.get("antialias", 0) or mapping == "tf_crop_and_resize" or not stretch:
        raise NotImplementedError("antialias, tf_crop_and_resize or an aspect ratio policy")
    _roi, scales, sizes = (None, *optional, None, None)[:3] if op.opset < 11 else (*optional, None, None, None)[:3]
    axes = [axis % x.ndim for axis in op.get("axes", range(x.ndim))]
    if sizes is not None and sizes.size:
        output = [int(size) for size in sizes]
        factors = [size / x.shape[axis] for size, axis in zip(output, axes, strict=True)]
    elif scales is not None and scales.size:
        factors = [float(scale) for scale in scales]
        output = [math.floor(x.shape[axis] * factor) for factor, axis in zip(factors, axes, strict=True)]
    else:
        raise ValueError("neither scales nor sizes are given")
    y = x
    for axis, factor, size in zip(axes, factors, output, strict=True):
        if factor != 1.0 or size != x.shape[axis]:
            y = np.moveaxis(np.tensordot(_matrix(op, mapping, x.shape[axis], size, factor), y, (1, axis)), 0, axis)
    return y


def upsample(op: Op, x: Array, scales: Array | None = None) -> Array:
    """As Resize with asymmetric coordinates; nearest rounds down. Version 1 has two scales, 9 has them as an input."""
    factors = op.get("scales") if scales is None else scales
    if factors is None:
        factors = [1.0, 1.0, op.get("height_scale"), op.get("width_scale")]
    mode = {"bilinear": "linear"}.get(op.get("mode", "nearest"), op.get("mode", "nearest"))  # version 1's word
    old = Op("Resize", 10, {"mode": mode, "nearest_mode": "floor"})
    return resize(old, x, np.asarray(factors, dtype=np.float64))


def _matrix(op: Op, mapping: str, size: int, wanted: int, factor: float) -> Array:
    """`[wanted, size]`: row i holds the weights with which the input makes output position i."""
    position = _source_positions(mapping, size, wanted, factor)
    matrix = np.zeros((wanted, size))
    if op.get("mode", "nearest") == "nearest":
        default = "floor" if op.opset < 11 else "round_prefer_floor"
        index = _NEAREST[op.get("nearest_mode", default)](position)
        matrix[np.arange(wanted), np.clip(index, 0, size - 1).astype(int)] = 1.0
        return matrix
    base = np.floor(position)
    offsets, weights = (_linear if op.get("mode") == "linear" else _cubic)(op, position - base)
    taps = base[:, np.newaxis] + offsets
    if op.get("exclude_outside", 0):
        weights = np.where((taps < 0) | (taps >= size), 0.0, weights)
        weights = weights / weights.sum(axis=1, keepdims=True)
    rows = np.broadcast_to(np.arange(wanted)[:, np.newaxis], taps.shape)
    np.add.at(matrix, (rows, np.clip(taps, 0, size - 1).astype(int)), weights)
    return matrix


def _source_positions(mapping: str, size: int, wanted: int, factor: float) -> Array:
    """The page's table of `coordinate_transformation_mode`."""
    i = np.arange(wanted, dtype=np.float64)
    if mapping == "asymmetric":
        return i / factor
    if mapping == "align_corners":
        return i * (size - 1) / (wanted - 1) if wanted > 1 else np.zeros(1)
    if mapping == "pytorch_half_pixel" and wanted == 1:
        return np.zeros(1)
    if mapping == "tf_half_pixel_for_nn":
        return (i + 0.5) / factor
    if mapping == "half_pixel_symmetric":
        adjustment = wanted / (factor * size)
        return size / 2 * (1 - adjustment) + (i + 0.5) / factor - 0.5
    if mapping in ("half_pixel", "pytorch_half_pixel"):
        return (i + 0.5) / factor - 0.5
    raise NotImplementedError(f"coordinate_transformation_mode {mapping}")


_NEAREST: dict[str, Callable[[Array], Array]] = {
    "round_prefer_floor": lambda p: np.ceil(p - 0.5),
    "round_prefer_ceil": lambda p: np.floor(p + 0.5),
    "floor": np.floor,
    "ceil": np.ceil,
}


def _linear(_: Op, t: Array) -> tuple[Array, Array]:
    return np.array([0.0, 1.0]), np.stack([1.0 - t, t], axis=1)


def _cubic(op: Op, t: Array) -> tuple[Array, Array]:
    """Keys' kernel with parameter `cubic_coeff_a`, default -0.75."""
    a = op.get("cubic_coeff_a", f32(-0.75))

    def near(d: Array) -> Array:  # |d| <= 1
        return np.asarray(((a + 2) * d - (a + 3)) * d * d + 1)

    def far(d: Array) -> Array:  # 1 < |d| < 2
        return np.asarray(((a * d - 5 * a) * d + 8 * a) * d - 4 * a)

    return np.array([-1.0, 0.0, 1.0, 2.0]), np.stack([far(1 + t), near(t), near(1 - t), far(2 - t)], axis=1)


def grid_sample(op: Op, x: Array, grid: Array) -> Array:
    """`x` [N, C, D1..] read at `grid` [N, O1.., n], whose last axis has the coordinates from -1 to 1, last axis first.

    A position is a product of taps, one list of them an axis. Taps outside are zero, or the border's, or reflected.
    """
    n, spatial = x.shape[0], x.shape[2:]
    mode = op.get("mode", "linear" if op.opset >= 20 else "bilinear").removeprefix("bi")
    padding, corners = op.get("padding_mode", "zeros"), bool(op.get("align_corners", 0))
    y: Array = np.zeros((n, x.shape[1], *grid.shape[1:-1]))
    axes = [_grid_taps(mode, grid[..., -1 - axis], size, corners) for axis, size in enumerate(spatial)]
    batch = np.arange(n).reshape(n, *(1,) * len(spatial))
    for taps in itertools.product(*axes):
        weight = np.ones(grid.shape[:-1])
        index: list[Any] = []
        for (position, share), size in zip(taps, spatial, strict=True):
            inside = (position >= 0) & (position < size)
            weight = weight * (np.where(inside, share, 0.0) if padding == "zeros" else share)
            index.append(_brought_inside(position, size, padding, corners))
        y += weight[:, np.newaxis] * np.moveaxis(x[(batch, slice(None), *index)], -1, 1)
    return y


def _grid_taps(mode: str, coordinate: Array, size: int, corners: bool) -> list[tuple[Array, Array]]:
    """Whole positions around each coordinate, and their weights."""
    position = (coordinate + 1) / 2 * (size - 1) if corners else ((coordinate + 1) * size - 1) / 2
    if mode == "nearest":
        return [(np.rint(position), np.ones(position.shape))]
    base = np.floor(position)
    kernel = _linear if mode == "linear" else _cubic
    offsets, weights = kernel(Op("GridSample", 0, {}), (position - base).ravel())
    return [(base + offset, weights[:, i].reshape(base.shape)) for i, offset in enumerate(offsets)]


def _brought_inside(position: Array, size: int, padding: str, corners: bool) -> Array:
    if padding == "reflection" and size > 1:
        # About the first and last pixel's centre with align_corners, else about their outer edges.
        period = 2 * (size - 1) if corners else 2 * size
        folded = np.mod(position, period)
        position = np.where(folded < size, folded, (period if corners else period - 1) - folded)
    return np.clip(position, 0, size - 1).astype(np.int64)


RESIZING: dict[str, OperatorFunction] = {"Resize": resize, "Upsample": upsample, "GridSample": grid_sample}
