"""Golden samples: a few real inputs and what the *unfolded* model answers to them, computed in float64.

The service replays them on its own machine before a version is READY, so the tolerance must forgive another processor's
order of summation, and nothing else. Knows neither files nor data sets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from training import reference, verify

ERROR_FACTOR = 16.0
SCALE_FACTOR_EPS = 64.0


@dataclass(frozen=True, slots=True, eq=False)
class Golden:
    """inputs, outputs: by tensor name, samples along axis 0. tolerance: by output name, largest difference allowed."""

    inputs: Mapping[str, npt.NDArray[Any]]
    outputs: Mapping[str, npt.NDArray[Any]]
    tolerance: Mapping[str, float]

    @property
    def samples(self) -> int:
        return len(next(iter(self.inputs.values())))


def make_golden(source: ir.Model, folded: ir.Model, inputs: Mapping[str, npt.NDArray[Any]]) -> Golden:
    """Golden samples for `folded`, from the float64 answers of `source` to `inputs`, rounded to the outputs' dtypes."""
    exact = reference.evaluate(source, inputs)
    measured = verify.run(folded, inputs)
    return Golden(
        inputs=dict(inputs),
        outputs={name: exact[name].astype(values.dtype) for name, values in measured.items()},
        tolerance={name: tolerance(exact[name], values) for name, values in measured.items()},
    )


def tolerance(exact: npt.NDArray[Any], measured: npt.NDArray[Any]) -> float:
    """max(16 e, 64 eps s), with e = max|measured - exact|, s = max|exact|, eps = the spacing at 1 of measured's dtype.

    e is what this machine's order of summation and kernels cost: one draw. Another processor (other vector width, other
    blocking, fused multiply-add or not) is another draw of the same size, and 16 leaves room for the largest of many.
    Where e happens to be nearly zero (a linear model, small integers), 64 eps of the scale takes over: the rounding of
    a sum of a few thousand products in any order. Both are near 1e-5 of the scale in float32; a lost bias, a swapped
    channel or a flipped high bit of a weight moves an output by a hundred times as much. Integer outputs are exact: 0.
    Unsure: TensorFloat-32 on a GPU rounds products to 2^-11 and does not fit; there the service must switch it off.
    """
    if not np.issubdtype(measured.dtype, np.floating):
        return 0.0
    error = float(np.max(np.abs(measured.astype(np.float64) - exact), initial=0.0))
    scale = float(np.max(np.abs(exact), initial=0.0))
    return max(ERROR_FACTOR * error, SCALE_FACTOR_EPS * float(np.finfo(measured.dtype).eps) * scale)
