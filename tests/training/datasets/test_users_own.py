"""Data by a user's own code: a whole Dataset, or arrays; what goes wrong in it is one line with its place."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from training import datasets
from training.datasets.dataset import Columns
from training.datasets.options import Options
from training.user_code import SourceRefused

CODE = """
import numpy as np
from training.datasets.dataset import Columns, Dataset, Examples, InputDescription

def arrays():
    y = np.arange(20) % 2
    return np.stack([y, y * 2.0], axis=1), y

def lists():
    x, y = arrays()
    return x.tolist(), ["ab"[label] for label in y]

def whole():
    part = Examples({"row": np.zeros((2, 1), np.float32)}, np.array([0, 1]))
    return Dataset((InputDescription("row", "zeros"),), Columns((0.0,)), ("a", "b"), part, part)

ready = whole()

def single():
    return np.zeros(3)

def ragged():
    return [[1], [1, 2]], [0, 1]

def torn():
    return Examples({"row": np.zeros((2, 1))}, np.zeros(3))
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder with the code in it; what is imported from it is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "h12").mkdir()
    for name in ("h12/__init__.py", "h12/data.py", "h12_data.py"):
        (tmp_path / name).write_text(CODE)
    yield tmp_path
    for name in [
        name for name in sys.modules if name.startswith(("h12", "_foldtrain_user_h12", "_foldtrain_user_data"))
    ]:
        del sys.modules[name]


@pytest.mark.parametrize("place", ["py:h12_data", "py:h12.data", "file:h12_data.py", "file:h12/data.py"])
def test_arrays_are_split_as_those_of_a_file(place: str) -> None:
    dataset = datasets.load(f"{place}:arrays", Options(test_fraction=0.5))
    assert (len(dataset.train), len(dataset.test)) == (10, 10)
    assert np.array_equal(dataset.test.only[:, 0], dataset.test.labels)
    assert isinstance(dataset.front, Columns)
    assert dataset.origin == f"{place}:arrays"


def test_what_numpy_makes_arrays_of_will_do() -> None:
    dataset = datasets.load("file:h12_data.py:lists")
    assert dataset.classes == ("a", "b")
    assert np.array_equal(dataset.train.only[:, 0], dataset.train.labels)


@pytest.mark.parametrize("factory", ["whole", "ready"])
def test_a_dataset_is_taken_as_it_is(factory: str) -> None:
    dataset = datasets.load(f"file:h12_data.py:{factory}")
    assert dataset.inputs[0].description == "zeros"
    assert len(dataset.train) == 2


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("py:arrays", "py:arrays: expected py:package.module:factory or file:path/data.py:factory"),
        ("py:h12_none:make", "py:h12_none:make: there is no module 'h12_none' here or among what is installed"),
        ("file:h12_none.py:make", "file:h12_none.py:make: there is no file h12_none.py"),
        ("py:h12_data:make", "py:h12_data:make: h12_data has no 'make'; it has Columns, Dataset, Examples, "),
        ("py:h12_data:single", "py:h12_data:single: 'single' gave ndarray, expected a Dataset or (x, y)"),
        ("py:h12_data:ragged", "py:h12_data:ragged: ValueError: setting an array element with a sequence"),
        ("py:h12_data:torn", "py:h12_data:torn: ValueError: 2 rows of 'row' but 3 labels (h12_data.py, line 26)"),
    ],
)
def test_what_goes_wrong_is_one_line(spec: str, told: str) -> None:
    with pytest.raises(SourceRefused) as refused:
        datasets.load(spec)
    assert str(refused.value).startswith(told)
    assert "\n" not in str(refused.value)
