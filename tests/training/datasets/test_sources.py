"""The table of sources and what is common to them: names, splits, and labels that cannot be learned from."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from training import datasets
from training.datasets.options import DEFAULT, Options
from training.datasets.splitting import numbered, shuffled, stratified
from training.errors import UserError


@pytest.mark.parametrize("kind", datasets.SOURCES)
def test_every_source_in_the_table_can_be_loaded_from(kind: str) -> None:
    assert callable(importlib.import_module(datasets.SOURCES[kind]).load)


@pytest.mark.parametrize("kind", sorted(datasets.SHIPPED))
def test_every_shipped_source_loads_by_its_kind_alone_and_describes_itself(kind: str) -> None:
    dataset = datasets.load(kind)

    assert [one.name for one in dataset.inputs] == list(dataset.train.inputs)
    assert all(one.description for one in dataset.inputs)
    assert len(dataset.train) > len(dataset.test) > 0
    assert dataset.train.labels.max() < len(dataset.classes)
    assert dataset.origin


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("digit", "data source 'digit': 'digit' is not a known kind of source; known are digits"),
        ("digits:here", "data source 'digits:here': expected digits"),
        ("sklearn", "data source 'sklearn': expected sklearn:WHERE"),
        ("sklearn:mnist", "sklearn:mnist: there is no 'mnist' here; there are digits, breast_cancer, iris, wine"),
    ],
)
def test_a_source_that_is_not_there_is_told_what_is(source: str, told: str) -> None:
    with pytest.raises(UserError) as refused:
        datasets.load(source)
    assert str(refused.value).startswith(told)


def test_naming_the_sources_imports_none_of_them() -> None:
    program = (
        "import sys, training.datasets; print(*[name for name in ('sklearn', 'PIL', 'numpy') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout.strip() == b""


def test_classes_that_are_numbers_are_in_the_order_of_numbers() -> None:
    assert numbered(["10", "2", "10"])[0] == ("2", "10")
    assert numbered(["b", "10", "a"])[0] == ("10", "a", "b")
    assert numbered(["b", "a", "b"])[1].tolist() == [1, 0, 1]


def test_equal_seeds_give_equal_splits_and_both_parts_hold_every_row_once() -> None:
    labels = np.arange(100) % 3
    first, again, other = (stratified(labels, "abc", Options(split_seed=seed), "x") for seed in (1, 1, 2))
    assert np.array_equal(first[1], again[1])
    assert not np.array_equal(first[1], other[1])
    assert sorted(np.concatenate(first).tolist()) == list(range(100))

    first, again, other = (shuffled(100, Options(split_seed=seed), "x") for seed in (1, 1, 2))
    assert np.array_equal(first[1], again[1])
    assert not np.array_equal(first[1], other[1])
    assert sorted(np.concatenate(first).tolist()) == list(range(100))


def test_what_cannot_be_read_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(folder: Path) -> Iterator[Path]:
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(Path, "iterdir", refused)
    with pytest.raises(UserError, match=r"data source 'imagefolder:.*Permission denied.*; expected to be able to read"):
        datasets.load(f"imagefolder:{tmp_path}")


def test_a_class_is_named_by_one_line() -> None:
    for name in ("a\nb", "", " "):
        with pytest.raises(UserError, match=r"x: '.*' names a class, expected one line of text"):
            stratified(np.arange(10) % 2, ["a", name], DEFAULT, "x")


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        ([], "x: no rows, expected at least two of each class"),
        ([0], "x: 1 row, expected at least two of each class"),
        ([1, 1, 1], "x: all 3 rows are of class 'b', expected at least two classes"),
        ([0, 0, 0, 1], "x: class 'b' has a single example, expected at least two of each"),
        ([0, 0, 1, 1], "x: data.test_fraction=0.2 cannot split 4 rows: 1 would be held out"),
    ],
)
def test_labels_that_cannot_be_learned_from_are_refused(labels: list[int], told: str) -> None:
    with pytest.raises(UserError) as refused:
        stratified(np.array(labels, dtype=np.int64), "ab", DEFAULT, "x")
    assert str(refused.value).startswith(told)


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        ([0, 0, 1], "x, training part: all 2 rows are of class 'a'"),
        ([0, 1, 2], "x: class 'c' is held out but never trained on"),
    ],
)
def test_a_split_that_comes_with_the_data_is_kept_or_refused(labels: list[int], told: str) -> None:
    train, test = stratified(np.array([0, 1, 0]), "ab", DEFAULT, "x", n_test=1)
    assert (train.tolist(), test.tolist()) == ([0, 1], [2])

    with pytest.raises(UserError) as refused:
        stratified(np.array(labels), "abc", DEFAULT, "x", n_test=1)
    assert str(refused.value).startswith(told)


def test_rows_without_a_class_of_their_own_are_split_or_refused() -> None:
    assert [part.tolist() for part in shuffled(3, DEFAULT, "x", n_test=1)] == [[0, 1], [2]]
    with pytest.raises(UserError, match="x: 1 row, expected at least two"):
        shuffled(1, DEFAULT, "x")
    with pytest.raises(UserError, match=r"x: data.test_fraction=0.9 leaves none of 3 rows"):
        shuffled(3, Options(test_fraction=0.9), "x")


@pytest.mark.parametrize(
    ("name", "rows", "features"), [("breast_cancer", 569, 30), ("iris", 150, 4), ("wine", 178, 13)]
)
def test_a_table_of_scikit_learn_is_one_input_as_it_was_measured(name: str, rows: int, features: int) -> None:
    dataset = datasets.load(f"sklearn:{name}")

    assert dataset.train.only.shape == (len(dataset.train), features)
    assert dataset.train.only.dtype == np.float32
    assert len(dataset.train) + len(dataset.test) == rows
    assert np.allclose(dataset.front.fills, np.median(dataset.train.only, axis=0))
    assert dataset.inputs[0].description.count(",") >= features - 1


def test_digits_are_among_them() -> None:
    assert np.array_equal(datasets.load("sklearn:digits").test.only, datasets.load("digits").test.only)
