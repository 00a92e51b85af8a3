"""A table as text: each column is an input by its name, and what is wrong with a table is one line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from training import datasets
from training.datasets.dataset import Columns, Dataset
from training.datasets.options import Options
from training.datasets.table import OTHER, numbers_or_words
from training.errors import UserError
from training.fronts import build_front

ROWS = 40


def flowers(rows: int = ROWS) -> str:
    """A table with all kinds of columns: `petal width` has gaps, and the word `rare` is in one row alone."""
    lines = ["id,petal width,colour,garden,name,kind"]
    for row in range(rows):
        width = "" if row % 10 == 3 else f"{row % 7 + 0.5}"
        colour = "rare" if row == 5 else ("red", "blue")[row % 2]
        lines.append(f"{row + 100},{width},{colour},south,flower {row},{'ab'[row % 2]}")
    return "\n".join(lines) + "\n"


def load(folder: Path, text: str, target: str | None = "kind", seed: int = 0) -> Dataset:
    (folder / "t.csv").write_text(text)
    return datasets.load(f"csv:{folder / 't.csv'}", Options(target=target, split_seed=seed))


def test_numbers_are_float32_columns_and_words_are_numbers_of_categories(tmp_path: Path) -> None:
    dataset = load(tmp_path, flowers())

    assert dataset.classes == ("a", "b")
    assert {name: (values.dtype, values.shape) for name, values in dataset.train.inputs.items()} == {
        "petal_width": (np.float32, (32, 1)),
        "colour": (np.int64, (32, 1)),
    }
    assert (len(dataset.train), len(dataset.test)) == (32, 8)
    assert dataset.inputs[0].description == "column 'petal width', a number; NaN where unknown"


def test_a_gap_stays_a_gap_and_the_graph_fills_it_with_the_median_of_the_training_rows(tmp_path: Path) -> None:
    dataset = load(tmp_path, flowers())
    widths = dataset.train.inputs["petal_width"][:, 0]
    assert np.isnan(widths).any()
    assert isinstance(dataset.front, Columns)
    assert dataset.front.fills == (float(np.nanmedian(widths)),)

    row = build_front(dataset.front)(*(torch.from_numpy(values) for values in dataset.train.inputs.values()))
    assert torch.equal(row[:, 0], torch.from_numpy(np.where(np.isnan(widths), dataset.front.fills[0], widths)))


@pytest.mark.parametrize("seed", range(6))
def test_categories_are_those_of_the_training_rows_and_the_last_is_any_other(tmp_path: Path, seed: int) -> None:
    dataset = load(tmp_path, flowers(), seed=seed)
    numbers = {
        part: values.inputs["colour"][:, 0] for part, values in (("train", dataset.train), ("test", dataset.test))
    }
    categories = dataset.inputs[1].categories

    seen = categories[:-1]
    assert categories[-1] == OTHER
    assert dataset.front.categories == (len(categories),)
    assert sorted({seen[number] for number in numbers["train"]}) == sorted(seen)
    if "rare" not in seen:
        assert (numbers["test"] == len(seen)).sum() == 1
    assert any("words are sent as their numbers" in note for note in dataset.notes)
    words, _, request = dataset.notes[-1].removeprefix("a worked request: where 'colour' is ").partition(", send ")
    sent = {one["name"]: one["data"][0] for one in json.loads(request)["inputs"]}
    assert sent.keys() == dataset.train.inputs.keys()
    told = next(one.categories for one in dataset.inputs if one.name == "colour")
    assert words == repr(told[sent["colour"]]) or told[sent["colour"]] == OTHER


def test_a_category_that_only_the_test_rows_hold_is_unknown(tmp_path: Path) -> None:
    held_out = [seed for seed in range(6) if "rare" not in load(tmp_path, flowers(), seed=seed).inputs[1].categories]
    assert 0 < len(held_out) < 6


def test_columns_that_say_nothing_are_left_out_with_a_note(tmp_path: Path) -> None:
    notes = load(tmp_path, flowers()).notes

    assert notes[0] == "column 'id' is left out: it numbers the rows"
    assert notes[1] == "column 'garden' is left out: it holds one value"
    assert notes[2].startswith("column 'name' is left out: nearly every row has a word of its own")


def test_equal_seeds_give_equal_parts(tmp_path: Path) -> None:
    first, again, other = (load(tmp_path, flowers(), seed=seed).test.inputs["petal_width"] for seed in (3, 3, 4))
    assert np.array_equal(first, again, equal_nan=True)
    assert not np.array_equal(first, other, equal_nan=True)


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_the_header_decides_what_parts_cells_and_a_byte_order_mark_is_no_name(tmp_path: Path, delimiter: str) -> None:
    plain, other = load(tmp_path, flowers()), load(tmp_path, "\ufeff" + flowers().replace(",", delimiter))
    assert plain.inputs == other.inputs


def test_a_column_is_numeric_when_all_that_is_not_missing_is_a_number() -> None:
    assert np.array_equal(numbers_or_words(["1", " 2.5", "NA", "?", ""]), [1, 2.5, *[np.nan] * 3], equal_nan=True)
    assert numbers_or_words(["1", "NA", "none of these "]) == ["1", "NA", "none of these"]
    assert numbers_or_words(["none", "NA"]) == ["none", "NA"]


LABELS = "a,a,b,b,b,a,b,a,a,b"


def table(**columns: str) -> str:
    cells = {name: text.split(",") for name, text in columns.items()}
    return "\n".join([",".join(cells), *(",".join(row) for row in zip(*cells.values(), strict=True))])


BAD = {
    "an empty file": ("", "t.csv: the first line is empty, expected the names of the columns"),
    "no rows": ("x,kind\n", "t.csv: no rows, expected at least two of each class"),
    "one row": ("x,kind\n1,a\n", "t.csv: 1 row, expected at least two of each class"),
    "a column without a name": ("x,,kind\n", "t.csv: column 2 has no name"),
    "two columns of one name": ("x,x,kind\n", "t.csv: column 2 has the name 'x' of another one"),
    "a row with a cell too few": ("x,kind\n1,a\n\n2\n", "t.csv, row 2: 1 cells, expected 2 as in the first line"),
    "no such target": (
        "x,y\n1,a\n",
        "t.csv: there is no column 'kind', expected the column with the labels; columns are x, y",
    ),
    "a label that is missing": ("x,kind\n1,a\n2,\n", "t.csv, row 2: column 'kind' is missing, expected a class"),
    "a label that is NaN": ("x,kind\n1,a\n2,NaN\n", "t.csv, row 2: column 'kind' is 'NaN', expected a class"),
    "one class only": ("x,kind\n1,a\n2,a\n", "t.csv: all 2 rows are of class 'a', expected at least two classes"),
    "a class with one example": ("x,kind\n1,a\n2,a\n2,b\n", "t.csv: class 'b' has a single example"),
    "labels that are measurements": (
        "x,kind\n1,1.5\n2,2.5\n2,3.5\n",
        "t.csv: column 'kind' holds 3 different values in 3 rows, expected classes that repeat",
    ),
    "an infinite number": (
        table(x="1,2,5,9,inf,3,3,1,1,1", kind=LABELS),
        "t.csv, row 5: column 'x' holds inf, expected a number that float32 has",
    ),
    "a number too large": (table(x="1,2,5,9,7,3,3,1,1e60,1", kind=LABELS), "t.csv, row 9: column 'x' holds 1e+60"),
    "nothing to learn from": (
        table(x=",".join("1" * 10), kind=LABELS),
        "t.csv: nothing to learn from beside 'kind': column 'x' is left out: it holds one value",
    ),
    "only labels": (
        "kind\n" + LABELS.replace(",", "\n"),
        "t.csv: nothing to learn from beside 'kind': there is no other column",
    ),
    "names that become one": (
        "a b,a:b,kind\n" + "\n".join(f"{row * row},{row % 7},{'ab'[row % 2]}" for row in range(10)),
        "t.csv: column 'a:b' cannot name an input: it has the name of 'a b'",
    ),
    "a name that is none": (
        "(),kind\n" + "\n".join(f"{row * row},{'ab'[row % 2]}" for row in range(10)),
        "t.csv: column '()' cannot name an input: it has no letter",
    ),
    "the name of the answer": (
        "logits,kind\n" + "\n".join(f"{row * row},{'ab'[row % 2]}" for row in range(10)),
        "t.csv: column 'logits' cannot name an input: it has the name of an output",
    ),
    "a cell without end": ("x,kind\n" + "1" * 200_000, "t.csv, row 1: field larger than field limit"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_table_is_one_line(tmp_path: Path, case: str) -> None:
    text, told = BAD[case]
    with pytest.raises(UserError) as refused:
        load(tmp_path, text)
    line = str(refused.value).replace(f"{tmp_path}/", "")
    assert line.startswith(told)
    assert "\n" not in line


def test_without_a_target_the_columns_are_told(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"data.target does not say, expected the column .* columns are id, petal width"
    ):
        load(tmp_path, flowers(), target=None)


def test_what_is_no_csv_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "latin.csv").write_bytes("größe,kind\n1,a\n".encode("latin-1"))
    for name, told in {"none.csv": "No such file", "": "Is a directory", "latin.csv": "byte 2 .* is no UTF-8"}.items():
        with pytest.raises(UserError, match=rf"{name}: {told}.*, expected a csv file"):
            datasets.load(f"csv:{tmp_path / name}", Options(target="kind"))


def test_where_a_file_stops_being_csv_or_utf_8_is_told(tmp_path: Path) -> None:
    good = flowers().encode()
    (tmp_path / "t.csv").write_bytes(good + "1,2,größe,,,a\n".encode("latin-1"))
    with pytest.raises(UserError, match=rf"t.csv: byte 6 of line {ROWS + 2} is no UTF-8, expected a csv file in UTF-8"):
        datasets.load(f"csv:{tmp_path}/t.csv", Options(target="kind"))

    (tmp_path / "t.csv").write_bytes(good + b"1,2," + b"x" * 200_000 + b",,,a\n")
    with pytest.raises(UserError, match=rf"t.csv, row {ROWS + 1}: field larger than field limit"):
        datasets.load(f"csv:{tmp_path}/t.csv", Options(target="kind"))
