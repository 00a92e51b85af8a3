"""`npz:FILE`: arrays `x` and `y` as `np.savez` writes them; `x_test` and `y_test` where the split is given; `classes`,
their names, where `y` has numbers. Nothing in the file is unpickled.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from training.datasets.arrays import Array, dataset_of
from training.datasets.dataset import MOST_BYTES, Dataset
from training.datasets.options import Options
from training.errors import UserError, check_the_path

_KNOWN = ("x", "y", "x_test", "y_test", "classes")


def load(where: str, options: Options) -> Dataset:
    """See arrays.py for what x may be. Raises UserError."""
    arrays = _read(Path(where))
    missing = [name for name in ("x", "y") if name not in arrays]
    missing += [name for name in ("x_test", "y_test") if name not in arrays and ({"x_test", "y_test"} & set(arrays))]
    if missing:
        there = ", ".join(arrays) or "none of these"
        raise UserError(f"{where}: no array {missing[0]!r}, expected x and y (and both of x_test, y_test); has {there}")
    classes = arrays.get("classes")
    if classes is not None and (classes.ndim != 1 or classes.dtype.kind != "U"):
        raise UserError(f"{where}: classes is {classes.dtype} {list(classes.shape)}, expected a list of names")
    return dataset_of(
        where,
        arrays["x"],
        arrays["y"],
        options,
        held_out=(arrays["x_test"], arrays["y_test"]) if "x_test" in arrays else None,
        classes=None if classes is None else [str(name) for name in classes],
    )


def _read(path: Path) -> dict[str, Array]:
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
        if size > MOST_BYTES:
            raise UserError(
                f"{path}: unpacks to {size / 2**30:.3g} GiB, expected at most {MOST_BYTES / 2**30:.3g}; take "
                f"a part of it"
            )
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in _KNOWN if name in file.files}
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"{path}: {error.strerror}, expected an npz file; {check_the_path(path)}") from error
    except Exception as error:  # a damaged archive raises from zipfile, zlib, struct and NumPy alike
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: unreadable, expected arrays of numbers by np.savez ({reason})") from error
