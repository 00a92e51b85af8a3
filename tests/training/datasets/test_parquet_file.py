"""A table as Arrow's columns. What the table becomes is told in test_csv_file.py; here, what its cells become."""

from __future__ import annotations

import datetime as dt
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from training import datasets
from training.datasets.dataset import Columns, Dataset
from training.datasets.options import Options
from training.errors import UserError

KIND = ["a", "b"] * 10
NUMBERS = [None, 7, *[number * number % 11 for number in range(18)]]


def load(folder: Path, target: str = "kind", **columns: Any) -> Dataset:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(arrow.table(columns), folder / "t.parquet")
    return datasets.load(f"parquet:{folder / 't.parquet'}", Options(target=target))


def test_without_pyarrow_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(
        UserError, match=r"parquet:t.parquet: this needs pyarrow, .* pip install 'foldserve\[parquet\]'"
    ):
        datasets.load("parquet:t.parquet", Options(target="kind"))


def test_numbers_have_gaps_and_words_and_truth_values_are_categories(tmp_path: Path) -> None:
    dataset = load(
        tmp_path,
        number=NUMBERS,
        wet=[row % 3 == 0 for row in range(20)],
        colour=[*(["red", "blue", None, "red"] * 5)],
        kind=KIND,
    )
    assert {name: values.dtype for name, values in dataset.train.inputs.items()} == {
        "number": np.float32,
        "wet": np.int64,
        "colour": np.int64,
    }
    assert isinstance(dataset.front, Columns)
    assert dataset.front.fills == (float(np.nanmedian(dataset.train.inputs["number"])),)
    assert [one.categories[:-1] for one in dataset.inputs[1:]] == [("False", "True"), ("blue", "red")]
    assert (dataset.train.inputs["colour"] == 2).sum() + (dataset.test.inputs["colour"] == 2).sum() == 5


@pytest.mark.parametrize("kind", [[0, 1] * 10, [0.0, 1.0] * 10])
def test_labels_may_be_numbers(tmp_path: Path, kind: list[float]) -> None:
    assert load(tmp_path, number=NUMBERS, kind=kind).classes == ("0", "1")


def test_a_dictionary_is_its_words(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    dataset = load(tmp_path, number=NUMBERS, kind=arrow.array(KIND).dictionary_encode())
    assert dataset.classes == ("a", "b")


def test_columns_of_other_types_are_left_out_with_a_note(tmp_path: Path) -> None:
    days = [dt.date(2020, 1, 1 + row) for row in range(20)]
    dataset = load(tmp_path, number=NUMBERS, day=days, nothing=[None] * 20, kind=KIND)
    assert dataset.notes == (
        "column 'day' is left out: it is of type date32[day]",
        "column 'nothing' is left out: it is empty",
    )


@pytest.mark.parametrize(
    ("columns", "target", "told"),
    [
        (
            {"number": NUMBERS, "kind": KIND},
            "sort",
            ": there is no column 'sort', expected the column with the labels; c",
        ),
        ({"number": NUMBERS, "kind": [None, *KIND[1:]]}, "kind", ", row 1: column 'kind' is missing, expected a class"),
        (
            {"number": NUMBERS, "kind": [0.0, float("nan")] * 10},
            "kind",
            ", row 2: column 'kind' is missing, expected a class",
        ),
        ({"number": NUMBERS, "kind": [[1]] * 20}, "kind", ": column 'kind' is of type list<"),
        ({"number": [float("inf"), *NUMBERS[1:]], "kind": KIND}, "kind", ", row 1: column 'number' holds inf"),
    ],
)
def test_a_bad_table_is_one_line(tmp_path: Path, columns: Any, target: str, told: str) -> None:
    with pytest.raises(UserError) as refused:
        load(tmp_path, target, **columns)
    assert str(refused.value).removeprefix(f"{tmp_path}/t.parquet").startswith(told)
    assert "\n" not in str(refused.value)


def test_what_is_no_parquet_file_is_one_line(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    (tmp_path / "text").write_text("a,b\n1,2\n")
    for name, told in {"none": "not there", "": "a folder", "text": "unreadable"}.items():
        with pytest.raises(UserError, match=rf"{name}: {told}, expected a parquet file"):
            datasets.load(f"parquet:{tmp_path / name}", Options(target="kind"))


def test_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(arrow.table([NUMBERS, NUMBERS, KIND], names=["x", "x", "kind"]), tmp_path / "t.parquet")
    with pytest.raises(UserError, match="two columns have the name 'x', expected one of each"):
        datasets.load(f"parquet:{tmp_path / 't.parquet'}", Options(target="kind"))
