"""Which examples are held out, and whether the labels can be learned from at all. Knows labels, not what they label.

`thing` is what errors begin with: the file or folder that the labels come from.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from sklearn.model_selection import train_test_split

from training.datasets.options import Options
from training.errors import UserError

Rows: TypeAlias = npt.NDArray[np.int64]


def numbered(words: Sequence[str]) -> tuple[tuple[str, ...], npt.NDArray[np.int64]]:
    """The classes, numbers in their order and words in that of the alphabet, and for each row which of them it is."""
    classes = tuple(in_order(set(words)))
    index = {word: number for number, word in enumerate(classes)}
    return classes, np.fromiter((index[word] for word in words), np.int64, len(words))


def in_order(words: set[str]) -> list[str]:
    """2 before 10, but "a10" before "a2"."""
    if all(word.isascii() and word.isdigit() for word in words):
        return sorted(words, key=lambda word: (int(word), word))
    return sorted(words)


def stratified(
    labels: npt.NDArray[np.int64], classes: Sequence[str], options: Options, thing: str, n_test: int | None = None
) -> tuple[Rows, Rows]:
    """Which rows are trained on and which are held out, every class with the same share in both. n_test: the data come
    split, and these many rows at the end are the test. Raises UserError."""
    unnamed = next((name for name in classes if name.splitlines() != [name] or not name.strip()), None)
    if unnamed is not None:  # labels.txt has a line for each
        raise UserError(f"{thing}: {unnamed!r} names a class, expected one line of text; rename it")
    if len(set(classes)) < len(classes):
        twice = next(name for number, name in enumerate(classes) if name in classes[:number])
        raise UserError(f"{thing}: {twice!r} names two classes, expected a name for each; rename one")
    if n_test is not None:
        return _as_given(labels, classes, thing, n_test)
    require_classes(labels, classes, thing)
    counts = np.bincount(labels, minlength=len(classes))
    rarest = int(counts.argmin())
    if counts[rarest] < 2:
        found = "a single" if counts[rarest] else "no"
        raise UserError(
            f"{thing}: class {classes[rarest]!r} has {found} example, expected at least two of each, one to learn "
            f"from and one to hold out; add examples of it, or leave it out"
        )
    held_out = math.ceil(options.test_fraction * len(labels))  # as scikit-learn rounds
    if min(held_out, len(labels) - held_out) < len(classes):
        raise UserError(
            f"{thing}: data.test_fraction={options.test_fraction} cannot split {len(labels)} rows: {held_out} would be "
            f"held out, and both parts need one of each of {len(classes)} classes; choose another fraction"
        )
    train, test = train_test_split(
        np.arange(len(labels)), test_size=options.test_fraction, random_state=options.split_seed, stratify=labels
    )
    return train, test


def shuffled(rows: int, options: Options, thing: str, n_test: int | None = None) -> tuple[Rows, Rows]:
    """The same for rows that have no single class. Raises UserError."""
    if rows < 2:
        raise UserError(f"{thing}: {_rows(rows)}, expected at least two; add examples")
    if n_test is not None:
        return np.arange(rows - n_test), np.arange(rows - n_test, rows)
    held_out = math.ceil(options.test_fraction * rows)
    if held_out >= rows:
        raise UserError(
            f"{thing}: data.test_fraction={options.test_fraction} leaves none of {rows} rows to learn from; choose a "
            f"smaller one"
        )
    order = np.random.default_rng(options.split_seed).permutation(rows)
    return order[held_out:], order[:held_out]


def require_classes(labels: npt.NDArray[np.int64], classes: Sequence[str], thing: str) -> None:
    """At least two rows, and not all of one class. labels: whatever their shape. Raises UserError."""
    if len(labels) < 2:
        raise UserError(f"{thing}: {_rows(len(labels))}, expected at least two of each class; add examples")
    first = int(labels.flat[0])
    if (labels == first).all():
        raise UserError(
            f"{thing}: all {len(labels)} rows are of class {classes[first]!r}, expected at least two classes; add "
            f"examples of another"
        )


def _as_given(labels: npt.NDArray[np.int64], classes: Sequence[str], thing: str, n_test: int) -> tuple[Rows, Rows]:
    n_train = len(labels) - n_test
    require_classes(labels[:n_train], classes, f"{thing}, training part")
    unknown = np.setdiff1d(labels[n_train:], labels[:n_train])
    if unknown.size:
        raise UserError(
            f"{thing}: class {classes[unknown[0]]!r} is held out but never trained on, expected it in both parts; add "
            f"training examples of it, or leave it out"
        )
    return np.arange(n_train), np.arange(n_train, len(labels))


def _rows(count: int) -> str:
    return {0: "no rows", 1: "1 row"}.get(count, f"{count} rows")
