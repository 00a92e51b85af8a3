"""Data sources by kind. One file a source; each has `load(where, options) -> Dataset`.

    digits, sklearn:digits      handwritten digits that ship inside scikit-learn
    digit-scenes                pictures with several of them, and which class each pixel has
    help-topics                 text of Python's own help
    sklearn:NAME                scikit-learn's tables: breast_cancer, iris, wine
    csv:FILE, parquet:FILE      a table; data.target names the column with the labels
    imagefolder:DIR             one folder of images a class
    masks:DIR                   images, and beside them the classes of their pixels
    text:DIR, text:FILE.jsonl   one folder of .txt files a class; a text and its label a line
    npz:FILE                    arrays x and y
    hfdisk:DIR                  what `datasets` of Hugging Face has saved
    py:MODULE:FACTORY, file:FILE.py:FACTORY     what a user's own code makes

Naming a source costs nothing: its file, and the library the data come from, are imported when it is loaded. Promises of
them all: nothing in data is ever executed (`py:` and `file:` name code, not data); what cannot be learned from is one
line that names it; equal options give equal splits.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

from training.datasets.options import DEFAULT, Options
from training.errors import UserError

if TYPE_CHECKING:
    from training.datasets.dataset import Dataset

SOURCES: Mapping[str, str] = {
    "digits": "training.datasets.digits",
    "digit-scenes": "training.datasets.digit_scenes",
    "help-topics": "training.datasets.help_topics",
    "sklearn": "training.datasets.sklearn_tables",
    "csv": "training.datasets.csv_file",
    "parquet": "training.datasets.parquet_file",
    "imagefolder": "training.datasets.image_folder",
    "masks": "training.datasets.masks",
    "text": "training.datasets.texts",
    "npz": "training.datasets.npz_file",
    "hfdisk": "training.datasets.hf_disk",
    "py": "training.datasets.users_own",
    "file": "training.datasets.users_own",
}
SHIPPED = frozenset({"digits", "digit-scenes", "help-topics"})
"""Complete by their kind alone: there is nothing to say about where they are."""


def load(source: str, options: Options = DEFAULT) -> Dataset:
    """The data behind "KIND:WHERE", split into what is trained on and what is held out. Raises UserError."""
    kind, _, where = source.partition(":")
    if kind not in SOURCES:
        raise UserError(f"data source {source!r}: {kind!r} is not a known kind of source; known are {described()}")
    if bool(where) == (kind in SHIPPED):
        expected = kind if kind in SHIPPED else f"{kind}:WHERE"
        raise UserError(f"data source {source!r}: expected {expected}")
    module = importlib.import_module(SOURCES[kind])
    try:
        dataset: Dataset = module.load(where, options)
    except OSError as error:  # a folder that may not be read, a disk that fails
        raise UserError(f"data source {source!r}: {error}; expected to be able to read all of it") from error
    return dataset


def described() -> str:
    """All kinds, for a line."""
    return ", ".join(kind if kind in SHIPPED else f"{kind}:" for kind in SOURCES)
