"""`imagefolder:DIR`: one folder of images a class; `train/` and `test/` (or `val/`) are the split where they are there.

Clients send what a decoder gives: uint8 [rows, height, width, channels].
"""

from __future__ import annotations

from training.datasets.class_folders import find
from training.datasets.dataset import Dataset
from training.datasets.options import Options
from training.datasets.pictures import SUFFIXES, Picture
from training.datasets.pictures_by_class import dataset_of


def load(where: str, options: Options) -> Dataset:
    """Raises UserError."""
    found = find(where, SUFFIXES, "images")
    return dataset_of(
        where, [Picture.at(path) for path in found.files], found.labels, options, found.n_test, found.notes
    )
