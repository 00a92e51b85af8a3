"""The figures a diagnosis is made of, as NumPy arrays in float64: what layers hold, and what batches showed of them.

Knows no network and no torch; measure.py fills them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np

Array: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]
Flags: TypeAlias = np.ndarray[Any, np.dtype[np.bool_]]


@dataclass(frozen=True, slots=True)
class Statistics:
    """Mean and variance of each channel."""

    mean: Array
    variance: Array


@dataclass(frozen=True, slots=True)
class Seen:
    """What batches showed of one layer's input, layers normalising by the batch.

    values: a channel, in all. sites: how often one pass uses the layer. effective_per_row: how many independent values
    one row of a batch is worth, by the scatter of the batches' means when the network serves, sigma^2 / Var(means) /
    rows. alikeness: how many times the means scatter as those of as many random rows would, Var(means) / (Var(a row's
    mean) / rows): 1 for rows drawn at random, the batch's rows where all of a batch are one and the same. Both are None
    where there are too few batches to tell, alikeness also where what a layer is given has not the batch's rows.
    unpadded: the statistics without padding; None where no mask fits the layer.
    """

    population: Statistics
    values: float
    sites: int
    effective_per_row: float | None
    alikeness: float | None = None
    unpadded: Statistics | None = None


@dataclass(frozen=True)
class LayerFigures:
    """One layer. gamma, beta: None where it has none. count: its num_batches_tracked. clamped: a ReLU and nothing else
    follows. closes_block: its output is added to something. Both are None where nobody could follow the network.
    weight_norm: mean square norm of what makes one channel, in the layer before. seen: None without data, or where no
    batch reached it."""

    name: str
    kind: str
    running: Statistics
    gamma: Array | None
    beta: Array | None
    eps: float
    momentum: float | None
    count: int | None
    clamped: bool | None = None
    closes_block: bool | None = None
    weight_norm: float | None = None
    seen: Seen | None = None

    @cached_property
    def gain(self) -> Array:
        """By which a channel is multiplied when it serves. Not a number where the variance is bad."""
        gamma = np.ones_like(self.running.mean) if self.gamma is None else self.gamma
        with np.errstate(all="ignore"):
            return np.asarray(gamma / np.sqrt(self.running.variance + self.eps))

    @property
    def channels(self) -> int:
        return len(self.running.mean)


@dataclass(frozen=True, slots=True)
class Answers:
    """Of the network, by running statistics against by the batch. gap: root mean square of the difference, over that of
    the answers' own spread. disagreement: share of rows with another largest value, where there are classes.
    accuracy: by running statistics, by the batch, where there are labels."""

    rows: int
    gap: float
    disagreement: float | None = None
    accuracy: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class Examined:
    """All figures of one network. rows: seen in the examination; unseen: why there are none. padded: share of positions
    that a mask leaves out."""

    layers: tuple[LayerFigures, ...]
    rows: int = 0
    batches: int = 0
    answers: Answers | None = None
    padded: float | None = None
    ranks: tuple[dict[str, Statistics], ...] = ()
    unseen: str = "needs data"
