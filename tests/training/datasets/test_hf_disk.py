"""What Hugging Face's `datasets` has saved: images, texts and tables become what the other sources make of them."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from training import datasets
from training.datasets.dataset import Columns, Dataset, Pixels, Tokens
from training.datasets.options import DEFAULT, Options
from training.errors import UserError

LABELS = [row % 2 for row in range(10)]


def png(row: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((4, 5, 3), row, np.uint8)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def library() -> Any:
    return pytest.importorskip("datasets")


def load(saved: Any, folder: Path, options: Options = DEFAULT) -> Dataset:
    saved.save_to_disk(str(folder / "saved"))
    return datasets.load(f"hfdisk:{folder / 'saved'}", options)


def test_without_the_library_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"hfdisk:saved: this needs datasets, .* pip install 'foldserve\[hfdisk\]'"):
        datasets.load("hfdisk:saved")


def test_images_are_decoded_from_their_bytes_and_labels_have_their_names(library: Any, tmp_path: Path) -> None:
    cells = {"image": [{"bytes": png(row), "path": None} for row in range(10)], "label": LABELS}
    names = library.Features({"image": library.Image(), "label": library.ClassLabel(names=["odd", "even"])})
    dataset = load(library.Dataset.from_dict(cells, features=names), tmp_path)

    assert isinstance(dataset.front, Pixels)
    assert dataset.classes == ("even", "odd")
    assert dataset.train.only.shape == (8, 4, 5, 3)
    assert np.array_equal(dataset.train.only[:, 0, 0, 0] % 2, 1 - dataset.train.labels)


def test_texts_are_bytes_and_parts_are_the_split(library: Any, tmp_path: Path) -> None:
    part = library.Dataset.from_dict({"text": [f"row {row}" for row in range(10)], "label": LABELS})
    dataset = load(library.DatasetDict({"train": part, "validation": part.select(range(2))}), tmp_path)

    assert dataset.front == Tokens(256)
    assert (len(dataset.train), len(dataset.test)) == (10, 2)
    assert dataset.test.only[1].tobytes().rstrip(b"\0") == b"row 1"


def test_a_table_is_one_input_a_column(library: Any, tmp_path: Path) -> None:
    columns = {"width": [row * row % 7 for row in range(10)], "colour": ["red", "blue"] * 5, "sort": LABELS}
    dataset = load(library.Dataset.from_dict(columns), tmp_path, Options(target="sort"))

    assert isinstance(dataset.front, Columns)
    assert list(dataset.train.inputs) == ["width", "colour"]
    assert dataset.classes == ("0", "1")


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        ({"text": ["a"] * 4, "sort": [0, 1, 0, 1]}, ": there is no column 'label', expected the one with the labels"),
        ({"text": ["a"] * 4, "label": [0, None, 0, 1]}, ", row 2: column 'label' holds None, expected a class"),
        ({"text": ["a"] * 4, "label": [0, 1, 0, 0.5]}, ", row 4: column 'label' holds 0.5, expected a class"),
        ({"text": ["a", "b", None, "c"], "label": [0, 1, 0, 1]}, ", row 3: the text is None, expected a text"),
        ({"text": ["a"] * 4, "label": [1] * 4}, ": all 4 rows are of class '1', expected at least two classes"),
    ],
)
def test_bad_data_are_one_line(library: Any, tmp_path: Path, columns: Any, told: str) -> None:
    with pytest.raises(UserError) as refused:
        load(library.Dataset.from_dict(columns), tmp_path)
    assert str(refused.value).removeprefix(f"{tmp_path}/saved").startswith(told)
    assert "\n" not in str(refused.value)


def test_an_unreadable_image_is_told_by_its_row(library: Any, tmp_path: Path) -> None:
    cells = {"image": [{"bytes": b"no" if row == 6 else png(row), "path": None} for row in range(10)], "label": LABELS}
    features = library.Features({"image": library.Image(), "label": library.Value("int64")})
    with pytest.raises(UserError, match="saved, row 7: unreadable, expected an image"):
        load(library.Dataset.from_dict(cells, features=features), tmp_path)


def test_other_folders_and_parts_are_one_line(library: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="none: not there, expected a folder that save_to_disk has written"):
        datasets.load(f"hfdisk:{tmp_path / 'none'}")
    with pytest.raises(UserError, match="unreadable, expected a folder that save_to_disk has written"):
        datasets.load(f"hfdisk:{tmp_path}")
    part = library.Dataset.from_dict({"text": ["a"] * 4, "label": [0, 1, 0, 1]})
    with pytest.raises(UserError, match="has the parts test, expected one named train"):
        load(library.DatasetDict({"test": part}), tmp_path)
