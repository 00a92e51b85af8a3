"""`py:package.module:factory` and `file:path/data.py:factory`: data that a user's own code makes.

A factory takes nothing and returns a `Dataset`, or (x, y): arrays, or what NumPy makes arrays of. See arrays.py for
what x may be.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from training.datasets.arrays import dataset_of
from training.datasets.dataset import Dataset
from training.datasets.options import Options
from training.user_code import SourceRefused, made_by, told_of


def load(where: str, options: Options) -> Dataset:
    """A `Dataset` is taken with the split that it has. Raises UserError."""
    place, _, factory = where.rpartition(":")
    is_file = place.endswith(".py")
    spec = f"{'file' if is_file else 'py'}:{where}"
    if not place or not factory:
        raise SourceRefused(f"{spec}: expected py:package.module:factory or file:path/data.py:factory")
    folders = [Path(place).resolve().parent, Path.cwd()] if is_file else [Path.cwd()]
    made = made_by(spec, place, factory, folders, ready=Dataset)
    if isinstance(made, Dataset):
        return made
    if not isinstance(made, tuple) or len(made) != 2:
        raise SourceRefused(f"{spec}: {factory!r} gave {type(made).__name__}, expected a Dataset or (x, y)")
    with told_of(spec):
        x, y = (np.asarray(one) for one in made)
    return dataset_of(spec, x, y, options)
