"""A channelwise affine map in float64: what a BatchNormalization is, once its statistics are frozen.

Pure NumPy. Knows channels, not tensors' layouts, graphs or files.

The map is kept centred, `y = scale * (x - center) + offset`, and not as `scale * x + shift`: a folded bias is
`scale * (bias - center) + offset`, and with a bias near the mean the expanded form cancels (in float32 it was seen to
lose a factor of 370 at p99). Composition keeps the inner map's center, so the form survives a chain.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.fold.refusal import Refusal

Array = NDArray[Any]
Float64s = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Affine:
    """`y = scale * (x - center) + offset`, one value a channel: three float64 arrays of shape [C]."""

    scale: Float64s
    center: Float64s
    offset: Float64s

    @classmethod
    def scaling(cls, scale: Float64s) -> Affine:
        """The map `y = scale * x`."""
        zero = np.zeros_like(scale)
        return cls(scale, zero, zero)

    @classmethod
    def identity(cls, channels: int) -> Affine:
        return cls.scaling(np.ones(channels))

    @property
    def channels(self) -> int:
        return len(self.scale)

    @property
    def shift(self) -> Float64s:
        """What the map adds: its value at 0. For questions; arithmetic uses `__call__`, which does not cancel."""
        return self.offset - self.scale * self.center

    def __call__(self, x: Float64s, axis: int) -> Float64s:
        """Apply to `x`, whose axis `axis` has size C or 1; the result broadcasts it to C."""
        shape = [1] * x.ndim
        shape[axis] = self.channels
        scale, center, offset = (part.reshape(shape) for part in (self.scale, self.center, self.offset))
        return scale * (x - center) + offset

    def after(self, inner: Affine) -> Affine:
        """The map `x -> self(inner(x))`."""
        return Affine(self.scale * inner.scale, inner.center, self(inner.offset, axis=0))


def from_batchnorm(gamma: Array, beta: Array, mean: Array, variance: Array, epsilon: float) -> Affine | Refusal:
    """BatchNormalization at inference, `gamma / sqrt(variance + epsilon) * (x - mean) + beta`, per channel.

    All of shape [C], any real dtype; computed in float64. `epsilon` is taken as the float32 that the attribute stores
    (1e-5 is 9.99999974e-06) and widened. Refused where a channel's `variance + epsilon` is not positive and finite, or
    where the map itself is not finite.
    """
    scale, offset, center, spread = (np.asarray(v, dtype=np.float64) for v in (gamma, beta, mean, variance))
    spread = spread + np.float64(np.float32(epsilon))
    bad = np.flatnonzero(~(np.isfinite(spread) & (spread > 0)))
    if bad.size:
        channel = bad[0]
        return Refusal(
            f"variance + epsilon is {spread[channel]:.6g} in channel {channel}, expected positive and finite"
        )
    with np.errstate(over="ignore", invalid="ignore"):  # judged by its result, in the next line
        affine = Affine(scale / np.sqrt(spread), center, offset)
    bad = np.flatnonzero(~(np.isfinite(affine.scale) & np.isfinite(center) & np.isfinite(offset)))
    if bad.size:
        return Refusal(f"scale, mean or bias of channel {bad[0]} is not finite")
    return affine
