"""Data sources by kind. One file a source; each has `load(where, options) -> Dataset`.

    sklearn:NAME    data that ship inside scikit-learn

Naming a source costs nothing: its file, and the library the data come from, are imported when it is loaded.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

from training.datasets.options import DEFAULT, Options

if TYPE_CHECKING:
    from training.datasets.dataset import Dataset

SOURCES: Mapping[str, str] = {
    "digits": "training.datasets.digits",
}


def load(source: str, options: Options = DEFAULT) -> Dataset:
    """The data behind a name in `SOURCES`, split into what is trained on and what is held out. Raises UserError."""
    kind, _, where = source.partition(":")
    module = importlib.import_module(SOURCES[kind])
    dataset: Dataset = module.load(where, options)
    return dataset
