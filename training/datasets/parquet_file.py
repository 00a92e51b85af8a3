"""`parquet:FILE`: a table as Arrow's columns; `data.target` names the one with the labels. Needs pyarrow.

Numbers, words and truth values are taken; columns of anything else (times, lists, bytes) are left out with a note.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from training.datasets import table
from training.datasets.dataset import Dataset
from training.datasets.options import Options
from training.datasets.table import Cells
from training.errors import UserError, check_the_path


def load(where: str, options: Options) -> Dataset:
    """Inputs [rows, 1], one a column. Raises UserError."""
    try:
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise UserError(
            f"parquet:{where}: this needs pyarrow, which is not installed: pip install 'foldserve[parquet]'"
        ) from error
    path = Path(where)
    if not path.is_file():
        found = "a folder" if path.is_dir() else "not there"
        raise UserError(f"{where}: {found}, expected a parquet file; {check_the_path(where)}")
    try:
        content = parquet.ParquetFile(path).read()
    except Exception as error:  # a damaged file raises from Arrow, Thrift and the codecs alike
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{where}: unreadable, expected a parquet file ({reason})") from error
    return dataset_of(where, content, options)


def dataset_of(thing: str, content: Any, options: Options, n_test: int | None = None) -> Dataset:
    """Of a pyarrow.Table. n_test: see `stratified`. Raises UserError."""
    double = next((name for name in content.column_names if content.column_names.count(name) > 1), None)
    if double is not None:
        raise UserError(f"{thing}: two columns have the name {double!r}, expected one of each; rename one of them")
    columns: dict[str, Cells] = {}
    notes: Sequence[str] = ()
    for name, column in zip(content.column_names, content.columns, strict=True):
        cells = _cells(column)
        if cells is not None:
            columns[name] = cells
        elif name == options.target:
            raise UserError(
                f"{thing}: column {name!r} is of type {column.type}, expected classes; choose another target"
            )
        else:
            notes = (*notes, f"column {name!r} is left out: it is of type {column.type}")
    return table.dataset_of(thing, columns, options, n_test, notes)


def _cells(column: Any) -> Cells | None:
    arrow = importlib.import_module("pyarrow")
    kind = arrow.types
    if kind.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if kind.is_null(column.type):
        return [""] * len(column)
    if kind.is_integer(column.type) or kind.is_floating(column.type) or kind.is_decimal(column.type):
        values = column.cast(arrow.float64(), safe=False).to_numpy(zero_copy_only=False)  # a null becomes NaN
        return np.array(values, dtype=np.float64)
    if kind.is_string(column.type) or kind.is_large_string(column.type) or kind.is_boolean(column.type):
        return ["" if value is None else str(value).strip() for value in column.to_pylist()]
    return None
