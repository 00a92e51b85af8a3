"""How frameworks keep BatchNorm's running statistics, in one table, and what one's figures are in another's words.

    PyTorch     r = (1 - m) r + m b       of the unbiased variance; normalises by the biased one
    Keras 3     r = m r + (1 - m) b       of the biased variance
    ...         see CONVENTIONS

Three things differ: which side the number called momentum weighs, whether a variance or a standard deviation is
averaged, and by what the sum of squares is divided. Moving weights between frameworks without knowing is an error of
n / (n - 1) in the variance at batch size n, and a momentum of 0.9 that forgets too fast. NumPy only, no framework.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from training.errors import UserError

Array = np.ndarray[Any, np.dtype[np.float64]]
Side = Literal["old", "new"]
Spread = Literal["biased variance", "unbiased variance", "biased standard deviation"]


@dataclass(frozen=True, slots=True)
class Convention:
    """momentum: the default, None where there is none; `weighs` is what it weighs. eps: the default, 0 for none."""

    name: str
    weighs: Side
    averages: Spread
    momentum: float | None
    eps: float


@dataclass(frozen=True, slots=True)
class RunningStatistics:
    """Of one layer, in one convention's words: mean and spread [channels], momentum and eps as its constructor takes
    them."""

    mean: Array
    spread: Array
    momentum: float
    eps: float


# fmt: off
CONVENTIONS = {convention.name: convention for convention in (
    Convention("pytorch",      "new", "unbiased variance",         0.1,  1e-5),
    Convention("keras",        "old", "biased variance",           0.99, 1e-3),
    # The fused kernel of tf.keras applied n / (n - 1); the other one did not.
    Convention("keras-fused",  "old", "unbiased variance",         0.99, 1e-3),
    Convention("flax",         "old", "biased variance",           0.99, 1e-5),
    Convention("paddle",       "old", "biased variance",           0.9,  1e-5),
    # operator BatchNormalization with training_mode=1
    Convention("onnx",         "old", "biased variance",           0.9,  1e-5),
    # NaiveSyncBatchNorm, which takes the place of a layer of PyTorch's and keeps another variance
    Convention("detectron2",   "new", "biased variance",           0.1,  1e-5),
    Convention("sb3-contrib",  "new", "unbiased variance",         0.01, 1e-3),
    Convention("crossq",       "old", "biased variance",           0.99, 1e-3),
    # S. Ioffe and C. Szegedy as it is often told: an average of standard deviations, alpha on the old one, no epsilon
    Convention("textbook-std", "old", "biased standard deviation", None, 0.0),
)}
# fmt: on


def convention_of(name: str) -> Convention:
    """Raises UserError with the names that there are."""
    try:
        return CONVENTIONS[name]
    except KeyError:
        raise UserError(f"there is no convention {name!r}; expected one of {', '.join(CONVENTIONS)}") from None


def keep_share(convention: Convention, momentum: float) -> float:
    """The share of the old average that one step keeps, 0 to 1."""
    return momentum if convention.weighs == "old" else 1.0 - momentum


def share_of_start(convention: Convention, momentum: float, steps: int) -> float:
    """What is left after `steps` of the values that the layer was born with: at PyTorch's 0.1, 1 % after 44 steps."""
    return keep_share(convention, momentum) ** steps


def step(convention: Convention, running: RunningStatistics, batch: Array) -> RunningStatistics:
    """`running` after one batch [rows, channels] in training. Raises UserError for a single row, which has no variance.

    There PyTorch refuses as well; others divide by zero, or keep a variance of 0.
    """
    rows = len(batch)
    if rows < 2:
        raise UserError(f"a batch of {rows} row has no variance; expected at least 2")
    keep = keep_share(convention, running.momentum)
    spread = _MEASURES[convention.averages](batch)
    return replace(
        running,
        mean=keep * running.mean + (1.0 - keep) * batch.mean(axis=0),
        spread=keep * running.spread + (1.0 - keep) * spread,
    )


def convert(running: RunningStatistics, source: Convention, target: Convention, batch_rows: int) -> RunningStatistics:
    """The same layer in another convention's words; it normalises the same, up to what its averages did not record.

    batch_rows: values a channel in each training batch (rows, times positions for images). Exact between variances when
    all batches were of that size. From a standard deviation it is exact on average for normal values only: the average
    of deviations does not determine the average of variances.
    Raises UserError for batches of fewer than 2.
    """
    if batch_rows < 2:
        raise UserError(f"batches of {batch_rows} value have no variance; expected at least 2")
    biased = _TO_BIASED[source.averages](running.spread, batch_rows)
    momentum = running.momentum if source.weighs == target.weighs else 1.0 - running.momentum
    return replace(running, spread=_FROM_BIASED[target.averages](biased, batch_rows), momentum=momentum)


def deviation_share(rows: int) -> float:
    """Expected biased standard deviation of `rows` normal samples over the true one: 0.56 for 2, 0.95 for 16.

    sqrt(2 / n) * Gamma(n / 2) / Gamma((n - 1) / 2), as in W. A. Holtzman, "The Unbiased Estimate of the Population
    Variance and Standard Deviation" (1950), by logarithms, since Gamma overflows from 172 on.
    """
    return math.sqrt(2.0 / rows) * math.exp(math.lgamma(rows / 2.0) - math.lgamma((rows - 1) / 2.0))


_MEASURES: dict[Spread, Callable[[Array], Array]] = {
    "biased variance": lambda batch: batch.var(axis=0),
    "unbiased variance": lambda batch: batch.var(axis=0, ddof=1),
    "biased standard deviation": lambda batch: batch.std(axis=0),
}
# What batches of n values of a population measure on average, to and from the biased variance.
_TO_BIASED: dict[Spread, Callable[[Array, int], Array]] = {
    "biased variance": lambda spread, _: spread,
    "unbiased variance": lambda spread, rows: spread * (rows - 1) / rows,
    "biased standard deviation": lambda spread, rows: (spread / deviation_share(rows)) ** 2 * (rows - 1) / rows,
}
_FROM_BIASED: dict[Spread, Callable[[Array, int], Array]] = {
    "biased variance": lambda biased, _: biased,
    "unbiased variance": lambda biased, rows: biased * rows / (rows - 1),
    "biased standard deviation": lambda biased, rows: np.sqrt(biased * rows / (rows - 1)) * deviation_share(rows),
}
