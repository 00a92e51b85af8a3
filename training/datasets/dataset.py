"""What every data source hands over: examples as a client of the served model sends them, and their description.

Raw values only: normalisation belongs to the network, so that preprocessing is defined once. NumPy only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class InputDescription:
    """One input as the model's clients see it; `minimum` and `maximum` bound the raw values."""

    name: str
    description: str
    minimum: float
    maximum: float


@dataclass(frozen=True, slots=True, eq=False)
class Examples:
    """inputs: float32, rows along axis 0. labels: int64 [rows], an index into `Dataset.classes`."""

    inputs: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]

    def __post_init__(self) -> None:
        if len(self.inputs) != len(self.labels):
            raise ValueError(f"{len(self.inputs)} inputs but {len(self.labels)} labels")

    def __len__(self) -> int:
        return len(self.labels)

    def first_of_each_class(self) -> npt.NDArray[np.float32]:
        """One input a class, in the order of the classes: a small sample that shows every answer."""
        return self.inputs[np.unique(self.labels, return_index=True)[1]]


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """A classification task. `test` is never trained on and never decides a setting."""

    input: InputDescription
    classes: tuple[str, ...]
    train: Examples
    test: Examples
