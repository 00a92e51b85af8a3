"""Geometry that Conv, ConvTranspose and the pools share: how windows of a kernel lie on an input, and in which order.

Pure NumPy over `[N, C, D1, .., Dn]`; n is 1, 2, 3 or more. It knows neither weights nor what is computed on a window.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from training.reference.op import Array, Op


@dataclass(frozen=True, slots=True)
class Windows:
    """Resolved hyper-parameters, one number per spatial axis. `output` counts windows."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    begin: tuple[int, ...]
    end: tuple[int, ...]
    output: tuple[int, ...]

    @property
    def reach(self) -> tuple[int, ...]:
        """Input positions from the first to the last tap of a window, both included."""
        return tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True))


def resolve(op: Op, spatial: Sequence[int], kernel: Sequence[int]) -> Windows:
    """Defaults, `auto_pad` and `ceil_mode` of the Conv and pool pages, applied to an input of these spatial sizes."""
    rank = len(kernel)
    if len(spatial) != rank:
        raise ValueError(f"the input has {len(spatial)} spatial axes, the kernel {list(kernel)} has {rank}")
    strides = tuple(op.get("strides", (1,) * rank))
    dilations = tuple(op.get("dilations", (1,) * rank))
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    begin, end = _pads(op, spatial, strides, reach)
    output = tuple(
        _count(*axis, ceil=bool(op.get("ceil_mode", 0)))
        for axis in zip(spatial, reach, strides, begin, end, strict=True)
    )
    if min(output) < 1:
        raise ValueError(f"kernel {list(kernel)} is larger than the padded input {list(spatial)}")
    return Windows(tuple(kernel), strides, dilations, begin, end, output)


def _pads(
    op: Op, spatial: Sequence[int], strides: Sequence[int], reach: Sequence[int]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    rank = len(spatial)
    mode = op.get("auto_pad", "NOTSET")
    if mode in ("NOTSET", ""):
        pads = tuple(op.get("pads", (0,) * (2 * rank)))
        return pads[:rank], pads[rank:]
    if mode == "VALID":
        return (0,) * rank, (0,) * rank
    # SAME_*: output = ceil(input / stride); an odd pad goes to the end (UPPER) or to the beginning (LOWER).
    # The pages do not say whether dilation counts: here it does; ONNX Runtime 1.31 refuses the combination.
    total = [max((-(-n // s) - 1) * s + r - n, 0) for n, s, r in zip(spatial, strides, reach, strict=True)]
    small, large = tuple(t // 2 for t in total), tuple(t - t // 2 for t in total)
    return (small, large) if mode == "SAME_UPPER" else (large, small)


def _count(size: int, reach: int, stride: int, begin: int, end: int, *, ceil: bool) -> int:
    free = size + begin + end - reach
    if not ceil:
        return free // stride + 1
    count = -(-free // stride) + 1
    # MaxPool page: "sliding windows that would start in the right padded region are ignored".
    return count - 1 if (count - 1) * stride >= size + begin else count


def padded(x: Array, windows: Windows, value: float) -> Array:
    """`x` with its pads (a negative pad crops), and as far beyond the end as a `ceil_mode` window reaches."""
    spatial = x.shape[2:]
    needed = [(o - 1) * s + r for o, s, r in zip(windows.output, windows.strides, windows.reach, strict=True)]
    end = [max(e, n - b - size) for e, n, b, size in zip(windows.end, needed, windows.begin, spatial, strict=True)]
    widths = [(0, 0), (0, 0), *zip(windows.begin, end, strict=True)]
    crop = tuple(slice(max(-low, 0), size - max(-high, 0)) for (low, high), size in zip(widths, x.shape, strict=True))
    grow = [(max(low, 0), max(high, 0)) for low, high in widths]
    return np.pad(x[crop], grow, constant_values=value) if any(map(any, grow)) else x[crop]


def view(x: Array, windows: Windows) -> Array:
    """Read-only view `[N, C, O1, .., On, K1, .., Kn]` of an input that has its pads already."""
    axes = tuple(range(2, x.ndim))
    every = sliding_window_view(x, windows.reach, axis=axes)
    starts = tuple(slice(0, (o - 1) * s + 1, s) for o, s in zip(windows.output, windows.strides, strict=True))
    taps = tuple(slice(None, None, d) for d in windows.dilations)
    return every[(slice(None), slice(None), *starts, *taps)]


def taps(windows: Windows) -> Iterator[tuple[slice, ...]]:
    """For each tap of the kernel, in row-major order, where in the padded input the windows have it."""
    for tap in np.ndindex(*windows.kernel):
        axes = zip(tap, windows.dilations, windows.output, windows.strides, strict=True)
        yield tuple(slice(t * d, t * d + (o - 1) * s + 1, s) for t, d, o, s in axes)
