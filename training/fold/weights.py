"""The arithmetic of folding: weights under a channelwise scale, and the one rounding at the end.

Pure NumPy: float64 in, float64 out; only `round_once` knows storage types. Knows no graph.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np

from training.fold.affine import Affine, Array, Float64s

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
# What Conv, ConvTranspose, Gemm and MatMul take as weights; other types belong to quantised operators.
FLOAT_DTYPES = frozenset({np.dtype(np.float16), np.dtype(np.float32), np.dtype(np.float64), BFLOAT16})


def widen(values: Array) -> Float64s:
    """Any real array as float64; exact for every type of FLOAT_DTYPES."""
    return np.asarray(values).astype(np.float64)


def fold_constant(constant: Float64s, affine: Affine, rank: int, axis: int = 1) -> Float64s:
    """What a constant that is added to a rank-`rank` tensor becomes when the sum passes `affine` along `axis`.

    NumPy broadcasting, as of opset 7: `constant` aligns with the tensor's last axes. The result has the fewest leading
    axes that hold both it and the channels: for rank 2, [], [N] and [1] give [N]; [1, N] stays; [M, 1] gives [M, N].
    """
    aligned = constant.reshape((1,) * (rank - constant.ndim) + constant.shape)
    folded = affine(aligned, axis)
    return folded.reshape(folded.shape[rank - max(constant.ndim, rank - axis) :])


def round_once(values: Float64s, dtype: np.dtype[np.generic]) -> Array:
    """float64 to `dtype`, to nearest, ties to even, in one rounding. Overflow gives inf, which the caller refuses."""
    with np.errstate(over="ignore"):
        if dtype != BFLOAT16:
            return values.astype(dtype)
        # ml_dtypes casts float64 to bfloat16 by way of float32, which rounds twice. Rounding to *odd* on the way
        # (truncate, and let the last bit remember that something was cut off) makes the second rounding see the truth.
        halfway = values.astype(np.float32)
        bits = halfway.view(np.uint32)
        cut = np.isfinite(values) & (halfway.astype(np.float64) != values)
        overshot = cut & (np.abs(halfway.astype(np.float64)) > np.abs(values))
        odd = np.where(cut, (bits - overshot.astype(np.uint32)) | np.uint32(1), bits).astype(np.uint32)
        return odd.view(np.float32).astype(dtype)
