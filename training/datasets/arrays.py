"""Arrays, examples and a label for each, to a data source's `Dataset`: of a file, or of a user's own code.

[rows, features]                     a row of numbers; NaN where unknown
uint8 [rows, height, width, 1 or 3]  an image as decoders give it
float [rows, channels, height, width]
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from training.datasets import pictures
from training.datasets.dataset import Columns, Dataset, Examples, Front, InputDescription, Pixels
from training.datasets.options import Options
from training.datasets.splitting import Rows, stratified
from training.errors import UserError

Array = npt.NDArray[np.generic]
_MOST_EXACT = 2.0**53
"""From here on a float no longer tells whole numbers apart."""


def dataset_of(
    thing: str,
    x: Array,
    y: Array,
    options: Options,
    *,
    held_out: tuple[Array, Array] | None = None,
    classes: Sequence[str] | None = None,
) -> Dataset:
    """held_out: x and y of the test, where the split is given. classes: what 0, 1, 2, ... in y stand for; without it
    the numbers in y are the names of the classes. Raises UserError."""
    _check_rows(thing, ("x", x), ("y", y))
    n_test = None
    if held_out is not None:
        n_test = len(_check_rows(thing, ("x_test", held_out[0]), ("y_test", held_out[1])))
        if held_out[0].shape[1:] != x.shape[1:] or held_out[0].dtype != x.dtype:
            raise UserError(
                f"{thing}: x_test is {_shown(held_out[0])}, expected {_shown(x)} as x has, but for the rows; make it so"
            )
        if not n_test:
            raise UserError(f"{thing}: x_test has no rows, expected what is held out; add some, or leave it out")
        if (held_out[1].dtype.kind == "U") != (y.dtype.kind == "U"):
            raise UserError(f"{thing}: y_test is {_shown(held_out[1])}, but y {_shown(y)}, expected one kind of labels")
        x, y = np.concatenate([x, held_out[0]]), np.concatenate([y, held_out[1]])
    names, labels = _numbered(thing, y, classes)
    train, test = stratified(labels, names, options, thing, n_test)
    about, front, values, notes = _described(thing, x, train)
    everything = Examples({about.name: values}, labels)
    return Dataset(
        inputs=(about,),
        front=front,
        classes=names,
        train=everything.at(train),
        test=everything.at(test),
        origin=thing,
        notes=notes,
    )


def _check_rows(thing: str, inputs: tuple[str, Array], labels: tuple[str, Array]) -> Array:
    """The labels, of which there is one a row."""
    (name, x), (of, y) = inputs, labels
    if x.ndim == 0 or y.ndim != 1 or len(x) != len(y):
        raise UserError(
            f"{thing}: {name} is {_shown(x)} and {of} {_shown(y)}, expected as many labels as rows; make them so"
        )
    return y


def _numbered(thing: str, y: Array, classes: Sequence[str] | None) -> tuple[tuple[str, ...], npt.NDArray[np.int64]]:
    if y.dtype.kind == "f":
        with np.errstate(invalid="ignore"):  # of what is infinite
            wrong = np.flatnonzero(~((np.abs(y) < _MOST_EXACT) & (np.mod(y, 1) == 0)))
        if wrong.size:
            raise UserError(
                f"{thing}, row {wrong[0] + 1}: the label is {y[wrong[0]]}, expected the number of a class; correct it, "
                f"or remove the row"
            )
        y = y.astype(np.int64)
    if y.dtype.kind not in "iubU":
        raise UserError(f"{thing}: y is {_shown(y)}, expected numbers of classes, or their names; make it so")
    if classes is None:
        found, labels = np.unique(y, return_inverse=True)
        return tuple(str(name) for name in found.tolist()), labels.astype(np.int64)
    if y.dtype.kind == "U":
        raise UserError(f"{thing}: y is {_shown(y)} beside classes, expected numbers of classes; leave one of them out")
    wrong = np.flatnonzero(np.less(y, 0) | np.greater_equal(y, len(classes)))
    if wrong.size:
        raise UserError(
            f"{thing}, row {wrong[0] + 1}: the label is {y[wrong[0]]}, expected 0 to {len(classes) - 1}, one of "
            f"{len(classes)} classes; correct it, or name them all"
        )
    return tuple(classes), y.astype(np.int64)


def _described(
    thing: str, x: Array, train: Rows
) -> tuple[InputDescription, Front, npt.NDArray[np.float32] | npt.NDArray[np.uint8], tuple[str, ...]]:
    if x.dtype == np.uint8 and x.ndim == 4 and x.shape[3] in (1, 3):
        images = x.astype(np.uint8, copy=False)
        description, notes = pictures.describe(images.shape[1:], None)
        about = InputDescription("image", description, minimum=0, maximum=255)
        return about, pictures.front_of(images[train]), images, notes
    if x.dtype.kind not in "iuf" or x.ndim not in (2, 4) or (x.ndim == 4 and x.dtype.kind != "f") or x[0].size == 0:
        raise UserError(
            f"{thing}: x is {_shown(x)}, expected numbers [rows, features], uint8 [rows, height, width, 1 or 3] or "
            f"float [rows, channels, height, width]; make it one of these"
        )
    with np.errstate(over="ignore"):  # told below
        values = x.astype(np.float32)
    wrong = ~np.isfinite(values) if x.ndim == 4 else np.isinf(values)
    if wrong.any():
        row = int(np.argmax(wrong.reshape(len(x), -1).any(axis=1)))
        bad = values[row][wrong[row]][0]
        raise UserError(f"{thing}, row {row + 1}: x holds {bad}, expected finite float32 numbers; correct or remove it")
    if x.ndim == 4:
        part = values[train].astype(np.float64)
        front = Pixels(tuple(part.mean((0, 2, 3)).tolist()), tuple(one or 1.0 for one in part.std((0, 2, 3)).tolist()))
        return InputDescription("image", "channels first, as trained on, not scaled"), front, values, ()
    about = InputDescription("row", f"{x.shape[1]} numbers, as trained on, not scaled; NaN where unknown")
    return about, Columns(fills=_medians(thing, values[train])), values, ()


def _medians(thing: str, values: npt.NDArray[np.float32]) -> tuple[float, ...]:
    empty = np.flatnonzero(np.isnan(values).all(axis=0))
    if empty.size:
        raise UserError(f"{thing}: column {empty[0]} of x (counted from 0) holds no number; remove it")
    return tuple(map(float, np.nanmedian(values, axis=0)))


def _shown(array: Array) -> str:
    return f"{array.dtype} {list(array.shape)}"
