"""`csv:FILE`: a table as text with a header; `data.target` names the column with the labels.

UTF-8; the header decides between comma, semicolon and tab. Rows are counted from 1 below the header.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from training.datasets.dataset import Dataset
from training.datasets.options import Options
from training.datasets.table import Cells, dataset_of, numbers_or_words
from training.errors import UserError, check_the_path

_ROWS_AT_ONCE = 20_000  # as columns a table takes less memory than as rows


def load(where: str, options: Options) -> Dataset:
    """Inputs [rows, 1], one a column. Raises UserError."""
    columns: dict[str, Cells] = {
        name: [value.strip() for value in values] if name == options.target else numbers_or_words(values)
        for name, values in _columns(Path(where)).items()
    }
    return dataset_of(where, columns, options)


def _columns(path: Path) -> dict[str, list[str]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            first = file.readline()
            file.seek(0)
            reader = csv.reader(file, delimiter=max(",;\t", key=first.count))
            header = _header(path, next(reader, []))
            columns: list[list[str]] = [[] for _ in header]
            for rows in _in_pieces(path, reader, len(header)):
                for column, values in zip(columns, zip(*rows, strict=True), strict=True):
                    column.extend(values)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}, expected a csv file; {check_the_path(path)}") from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: {_first_odd_byte(path)} is no UTF-8, expected a csv file in UTF-8; save it as such"
        ) from error
    except csv.Error as error:
        raise UserError(f"{path}: {error}, expected a csv file; correct it") from error
    return dict(zip(header, columns, strict=True))


def _first_odd_byte(path: Path) -> str:
    """Lines are counted from 1 at the head of the file: rows are what its reader, who has not come so far, makes."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                return f"byte {error.start} of line {number}"
    return "a piece of it"


def _header(path: Path, cells: list[str]) -> list[str]:
    header = [cell.strip() for cell in cells]
    if not header:
        raise UserError(f"{path}: the first line is empty, expected the names of the columns")
    for number, name in enumerate(header, 1):
        if not name or header.index(name) != number - 1:
            found = "has no name" if not name else f"has the name {name!r} of another one"
            raise UserError(f"{path}: column {number} {found}, expected a name of its own in the first line; rename it")
    return header


def _next(path: Path, reader: Iterator[list[str]], row: int) -> list[str] | None:
    try:
        return next(reader, None)
    except csv.Error as error:
        raise UserError(f"{path}, row {row}: {error}, expected a row of a csv file; correct it") from error


def _in_pieces(path: Path, reader: Iterator[list[str]], width: int) -> Iterator[list[list[str]]]:
    piece: list[list[str]] = []
    number = 0
    while (cells := _next(path, reader, number + 1)) is not None:
        if not cells:  # an empty line
            continue
        number += 1
        if len(cells) != width:
            raise UserError(
                f"{path}, row {number}: {len(cells)} cells, expected {width} as in the first line; correct the row"
            )
        piece.append(cells)
        if len(piece) == _ROWS_AT_ONCE:
            yield piece
            piece = []
    if piece:
        yield piece
