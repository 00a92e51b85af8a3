"""The largest elements of an output as text: Triton's classification extension (extension_classification).

Each element is "value:index", with ":label" behind it where the model has one. Unlike Triton's, values carry all their
digits (the shortest text that reads back as the same number), elements that are equal keep their order, NaN comes last,
and FP16 works. Knows no request, no model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain

import numpy as np

from service.datatypes import DATATYPES, Datatype, widened_bf16
from service.errors import RequestMismatch
from service.json_tensors import numbers_to_text
from service.protocol import Array

_MOST_STRINGS = 100_000
"""Of one output: each costs about a microsecond of the time of everybody else."""

_WORTH_PARTING = 8
"""From so many elements for each class on, sorting all of them is the slower way."""

_WORDS = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}


def can_be_ranked(datatype: str) -> bool:
    """Whether there is a largest element: not among strings and truths."""
    return datatype not in ("BYTES", "BOOL")


def classify(array: Array, datatype: str, classes: int, labels: Sequence[str], where: str, *, has_rows: bool) -> Array:
    """The `classes` largest elements of each row, largest first, as BYTES of shape [rows, classes]; of all elements and
    shape [classes] when axis 0 is not rows. Fewer when there are fewer elements.

    Raises RequestMismatch, beginning with `where`, when that makes too many strings.
    """
    rows = array.shape[0] if has_rows else 1
    elements = math.prod(array.shape[1:] if has_rows else array.shape)
    count = min(classes, elements)
    if rows * count > _MOST_STRINGS:
        raise RequestMismatch(
            f"{where}: classification of {count} elements in each of {rows} rows makes {rows * count} strings, at most "
            f"{_MOST_STRINGS} are written; ask for fewer"
        )
    numbers = _numbers(array, DATATYPES[datatype]).reshape(rows, elements)
    indices = _smallest(_descending(numbers), count)
    values = _texts(np.take_along_axis(numbers, indices, axis=1).reshape(-1))
    texts = np.empty(rows * count, dtype=object)
    texts[:] = [
        f"{value}:{index}{_label(labels, index)}".encode()
        for value, index in zip(values, chain.from_iterable(indices.tolist()), strict=True)
    ]
    return texts.reshape((rows, count) if has_rows else (count,))


def _numbers(array: Array, datatype: Datatype) -> Array:
    if datatype.name == "BF16":
        return widened_bf16(array)
    return np.ascontiguousarray(array)


def _descending(numbers: Array) -> Array:
    """What sorts in the opposite order: NaN stays last, as NumPy sorts it, and no integer overflows."""
    return -numbers if numbers.dtype.kind == "f" else ~numbers


def _smallest(keys: Array, count: int) -> Array:
    """Each row's positions of its `count` smallest keys: smallest first, equals in order, NaN last."""
    if count and keys.shape[1] >= _WORTH_PARTING * count:
        # Of many keys only those that can be among the few are sorted: a fifth of the time, for 5 of 1000.
        last = np.partition(keys, count - 1, axis=1)[:, count - 1 : count]
        if last.dtype.kind != "f" or not np.isnan(last).any():
            candidates = [np.flatnonzero(row) for row in keys <= last]
            order = [np.argsort(row[at], kind="stable")[:count] for row, at in zip(keys, candidates, strict=True)]
            picked = [at[first] for at, first in zip(candidates, order, strict=True)]
            return np.array(picked, dtype=np.intp).reshape(len(keys), count)
    return np.argsort(keys, axis=1, kind="stable")[:, :count]


def _texts(numbers: Array) -> list[str]:
    """Each number as JSON writes it."""
    if not numbers.size:
        return []
    if numbers.dtype == np.float16:
        # Its own shortest form; that of the same number as a float32 has more digits.
        return [_WORDS.get(text, text) for text in map(str, numbers)]
    return numbers_to_text(numbers).decode("ascii")[1:-1].split(",")


def _label(labels: Sequence[str], index: int) -> str:
    return f":{labels[index]}" if index < len(labels) and labels[index] else ""
