"""A table by columns to inputs of a network: every column is one input by its name, as it stands in the table.

Numbers are float32 and may be missing (NaN): the median of the training rows stands for them, inside the graph. Words
are int64 numbers of categories: those of the training rows in order, then one for any other and for none. Columns that
say nothing are left out, each with a note. Knows no file format.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from training.datasets.dataset import Columns, Dataset, Examples, InputDescription
from training.datasets.options import Options
from training.datasets.splitting import Rows, in_order, numbered, stratified
from training.errors import UserError

Cells: TypeAlias = npt.NDArray[np.float64] | Sequence[str]
"""A column: numbers, NaN where one is missing, or words, empty where one is missing."""

MISSING = frozenset({"", "na", "n/a", "nan", "null", "none", "?"})
"""What stands for no number among numbers, in any case."""
OTHER = "(any other, or none)"
TAKEN = frozenset({"logits"})
"""Names of what networks answer."""
_NO_NAME = re.compile(r"[^\w.\-]+")


def dataset_of(
    thing: str,
    columns: Mapping[str, Cells],
    options: Options,
    n_test: int | None = None,
    notes: Sequence[str] = (),
) -> Dataset:
    """`columns` are of one length; `options.target` names the one with the labels. n_test: see `stratified`; notes: of
    whoever read the table. Raises UserError."""
    target = _target(thing, columns, options)
    words = _labels(thing, target, columns[target])
    classes, labels = numbered(words)
    if len(classes) > 2 and 2 * len(classes) > len(words):
        raise UserError(
            f"{thing}: column {target!r} holds {len(classes)} different values in {len(words)} rows, expected classes "
            f"that repeat; choose another data.target, or sort its values into a few classes"
        )
    train, test = stratified(labels, classes, options, thing, n_test)
    notes = list(notes)
    numeric: dict[str, npt.NDArray[np.float32]] = {}
    categories: dict[str, Sequence[str]] = {}
    for name, cells in columns.items():
        if name == target:
            continue
        if reason := _says_nothing(cells, train):
            notes.append(f"column {name!r} is left out: {reason}")
        elif isinstance(cells, np.ndarray):
            numeric[name] = _finite(thing, name, cells)
        else:
            categories[name] = cells
    if not numeric and not categories:
        raise UserError(
            f"{thing}: nothing to learn from beside {target!r}: {'; '.join(notes) or 'there is no other column'}; add "
            f"a column of measurements or categories (for text: text:FILE.jsonl)"
        )
    return _assembled(thing, numeric, categories, classes, labels, (train, test), tuple(notes))


def numbers_or_words(values: Sequence[str]) -> Cells:
    """Numbers, where all that is not missing is one."""
    with contextlib.suppress(ValueError):
        return np.array(values, dtype=np.float64)
    distinct = set(values)
    other = {value for value in distinct if not _is_number(value)}
    if len(other) == len(distinct) or any(value.strip().casefold() not in MISSING for value in other):
        return [value.strip() for value in values]
    return np.array(["nan" if value in other else value for value in values], dtype=np.float64)


def _is_number(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return True


# --- labels -------------------------------------------------------------------------------------------------------


def _target(thing: str, columns: Mapping[str, Cells], options: Options) -> str:
    if options.target in columns:
        return str(options.target)
    found = "data.target does not say" if options.target is None else f"there is no column {options.target!r}"
    raise UserError(f"{thing}: {found}, expected the column with the labels; columns are {', '.join(columns)}")


def _labels(thing: str, target: str, cells: Cells) -> Sequence[str]:
    if isinstance(cells, np.ndarray):
        wrong = np.flatnonzero(~np.isfinite(cells))
        if not wrong.size:
            return [str(int(value)) if value.is_integer() else str(value) for value in cells.tolist()]
        row, found = int(wrong[0]), "is missing" if np.isnan(cells[wrong[0]]) else "is infinite"
    else:
        wrong_words = {word for word in set(cells) if word.casefold() in MISSING}
        if not wrong_words:
            return cells
        row = next(row for row, word in enumerate(cells) if word in wrong_words)
        found = f"is {cells[row]!r}" if cells[row] else "is missing"
    raise UserError(
        f"{thing}, row {row + 1}: column {target!r} {found}, expected a class; fill it in, or remove the row"
    )


# --- columns ------------------------------------------------------------------------------------------------------


def _says_nothing(cells: Cells, train: Rows) -> str:
    """Why nothing can be learned from a column that generalises, or "". Judged by the training rows, but for ids."""
    if isinstance(cells, np.ndarray):
        present = cells[train][~np.isnan(cells[train])]
        if not present.size or (present == present[0]).all():
            return "it holds one value" if present.size else "it is empty"
        if _counts_up(cells):
            return "it numbers the rows"
        return ""
    distinct = {cells[row] for row in train} - {""}
    if len(distinct) < 2:
        return "it holds one value" if distinct else "it is empty"
    if 2 * len(distinct) > len(train):
        return "nearly every row has a word of its own, as in an id, a name or a text"
    return ""


def _counts_up(cells: npt.NDArray[np.float64]) -> bool:
    """Each whole number from the least to the greatest, once?"""
    low, high = np.min(cells), np.max(cells)  # NaN, if there is one
    return bool(high - low == len(cells) - 1 and np.array_equal(np.sort(cells), np.arange(len(cells)) + low))


def _finite(thing: str, name: str, cells: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    with np.errstate(over="ignore"):  # told below
        values = cells.astype(np.float32)
    wrong = np.flatnonzero(np.isinf(values))
    if wrong.size:
        raise UserError(
            f"{thing}, row {wrong[0] + 1}: column {name!r} holds {cells[wrong[0]]:g}, expected a number that float32 "
            f"has; correct it, or leave it empty"
        )
    return values


def _assembled(
    thing: str,
    numeric: Mapping[str, npt.NDArray[np.float32]],
    categories: Mapping[str, Sequence[str]],
    classes: tuple[str, ...],
    labels: npt.NDArray[np.int64],
    rows: tuple[Rows, Rows],
    notes: tuple[str, ...],
) -> Dataset:
    train, test = rows
    names = _tensor_names(thing, [*numeric, *categories])
    inputs: dict[str, npt.NDArray[Any]] = {names[name]: values[:, np.newaxis] for name, values in numeric.items()}
    about = [InputDescription(names[name], f"column {name!r}, a number; NaN where unknown") for name in numeric]
    for name, words in categories.items():
        known = in_order({words[row] for row in train} - {""})
        inputs[names[name]] = _category_numbers(words, known)
        about.append(
            InputDescription(
                names[name],
                f"column {name!r}, as the number of a category",
                minimum=0,
                maximum=len(known),
                categories=(*known, OTHER),
            )
        )
    if categories:
        notes += (
            "words are sent as their numbers, counted from 0 in the order of `categories`; the last is any other",
            _worked_request(inputs, names, categories, int(train[0])),
        )
    everything = Examples(inputs, labels)
    return Dataset(
        inputs=tuple(about),
        front=Columns(
            fills=tuple(float(np.nanmedian(values[train])) for values in numeric.values()),
            categories=tuple(len(one.categories) for one in about[len(numeric) :]),
        ),
        classes=classes,
        train=everything.at(train),
        test=everything.at(test),
        origin=thing,
        notes=notes,
    )


def _worked_request(
    inputs: Mapping[str, npt.NDArray[Any]],
    names: Mapping[str, str],
    categories: Mapping[str, Sequence[str]],
    row: int,
) -> str:
    """A row's words, and how the row is sent; a gap, which JSON cannot say, as a 0."""
    words = ", ".join(f"{name!r} is {cells[row]!r}" for name, cells in categories.items())
    tensors = []
    for name in names.values():
        value = inputs[name][row, 0]
        datatype = "INT64" if value.dtype.kind == "i" else "FP32"
        number = np.nan_to_num(value).item()
        tensors.append({"name": name, "datatype": datatype, "shape": [1, 1], "data": [number]})
    return f"a worked request: where {words}, send {json.dumps({'inputs': tensors})}"


def _category_numbers(words: Sequence[str], known: Sequence[str]) -> npt.NDArray[np.int64]:
    index = {word: number for number, word in enumerate(known)}
    other = len(known)
    return np.fromiter((index.get(word, other) for word in words), np.int64, len(words))[:, np.newaxis]


def _tensor_names(thing: str, columns: Sequence[str]) -> dict[str, str]:
    """What the inputs are called: the columns' own names, where these have only letters, digits, `_`, `.` and `-`."""
    names: dict[str, str] = {}
    for column in columns:
        name = _NO_NAME.sub("_", column).strip("_")
        double = next((other for other, taken in names.items() if taken == name), None)
        if not name or name in TAKEN or double is not None:
            reason = "no letter" if not name else f"the name of {'an output' if double is None else repr(double)}"
            raise UserError(f"{thing}: column {column!r} cannot name an input: it has {reason}; rename it")
        names[column] = name
    return names
