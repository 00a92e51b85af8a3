"""Data sources by name. One file a source; each has `load(test_fraction, split_seed) -> Dataset`.

Naming a source costs nothing: its file, and the library the data come from, are imported when it is loaded.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from training.datasets.dataset import Dataset

SOURCES: Mapping[str, str] = {
    "digits": "training.datasets.digits",
}


def load(source: str, test_fraction: float, split_seed: int) -> Dataset:
    """The data behind a name in `SOURCES`, split into what is trained on and what is held out."""
    module = importlib.import_module(SOURCES[source])
    dataset: Dataset = module.load(test_fraction, split_seed)
    return dataset
