"""What every data source hands over: examples as a client of the served model sends them, and their description.

Raw values only: what turns them into what a network computes with is described here too (`Front`), and becomes the
first part of the network (fronts.py), so that preprocessing is defined once. NumPy only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

MOST_BYTES = 8 << 30
"""Of one array in memory: a source that would need more says so."""


class Task(StrEnum):
    """What is learned. classify: one class a row. segment: one class a pixel of each row."""

    CLASSIFY = "classify"
    SEGMENT = "segment"


@dataclass(frozen=True, slots=True)
class InputDescription:
    """One input as the model's clients see it. `minimum` and `maximum` bound the raw values, where there are bounds.

    categories: of an input that holds numbers of categories, what each number stands for: no graph can hold the words.
    """

    name: str
    description: str
    minimum: float | None = None
    maximum: float | None = None
    categories: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Pixels:
    """One input of images, float32 or uint8, -> "image": float32 [rows, channels, height, width],
    (value - mean) / std for each channel. channels_last: as they come, [rows, height, width, channels]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    channels_last: bool = False


@dataclass(frozen=True, slots=True)
class Columns:
    """Inputs [rows, width] -> "row": float32 [rows, features].

    First the numeric ones, as they are: `fills` has what stands for a NaN of each of their columns. Then those that
    hold numbers of categories, int64 [rows, 1], each as a learned vector: `categories` has how many there are of each.
    """

    fills: tuple[float, ...]
    categories: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Tokens:
    """One input, uint8 or int64 [rows, length], -> "tokens": int64 [rows, length] below `vocabulary`; 0 is padding."""

    vocabulary: int


Front: TypeAlias = Pixels | Columns | Tokens


@dataclass(frozen=True, slots=True, eq=False)
class Examples:
    """inputs: by name, in the order in which the network takes them, rows along axis 0. labels: int64 [rows], or
    [rows, height, width], an index into `Dataset.classes`."""

    inputs: Mapping[str, npt.NDArray[Any]]
    labels: npt.NDArray[np.int64]

    def __post_init__(self) -> None:
        for name, values in self.inputs.items():
            if len(values) != len(self.labels):
                raise ValueError(f"{len(values)} rows of {name!r} but {len(self.labels)} labels")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def only(self) -> npt.NDArray[Any]:
        """The input, where there is just one. Raises ValueError."""
        (values,) = self.inputs.values()
        return values

    def at(self, rows: Any) -> Examples:
        """Some of them; rows: whatever NumPy takes for an index."""
        return Examples({name: values[rows] for name, values in self.inputs.items()}, self.labels[rows])

    def sample(self, rows: int = 4) -> Examples:
        """A few that show every answer: the first of each class, or the first `rows` where a row has many classes."""
        if self.labels.ndim > 1:
            return self.at(slice(rows))
        return self.at(np.unique(self.labels, return_index=True)[1])


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """`test` is never trained on and never decides a setting. `origin`: what the data are and where they come from, for
    people. `notes`: what a client has to do that no graph can, for config.json."""

    inputs: tuple[InputDescription, ...]
    front: Front
    classes: tuple[str, ...]
    train: Examples
    test: Examples
    task: Task = Task.CLASSIFY
    origin: str = ""
    notes: tuple[str, ...] = field(default=())
