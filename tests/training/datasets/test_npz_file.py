"""Arrays in a file: rows, images of bytes or floats; what does not fit is one line, and nothing is unpickled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from training import datasets
from training.datasets import npz_file
from training.datasets.dataset import Columns, Dataset, Pixels
from training.datasets.options import DEFAULT, Options
from training.errors import UserError
from training.fronts import features_of

Y = np.arange(10) % 2
RANDOM = np.random.default_rng(0)
ROWS = RANDOM.normal(size=(10, 3))


def load(folder: Path, options: Options = DEFAULT, **arrays: Any) -> Dataset:
    np.savez(folder / "a.npz", **arrays)
    return datasets.load(f"npz:{folder / 'a.npz'}", options)


def test_rows_are_float32_and_gaps_are_filled_with_the_median_of_the_training_rows(tmp_path: Path) -> None:
    rows = ROWS.copy()
    rows[3, 1] = np.nan
    dataset = load(tmp_path, x=rows, y=Y)

    assert dataset.train.only.dtype == np.float32
    assert (len(dataset.train), len(dataset.test)) == (8, 2)
    assert dataset.front == Columns(tuple(map(float, np.nanmedian(dataset.train.only, axis=0))))
    assert features_of(dataset).shape == (3,)


def test_bytes_are_images_with_channels_last(tmp_path: Path) -> None:
    dataset = load(tmp_path, x=RANDOM.integers(0, 256, (10, 5, 4, 3), dtype=np.uint8), y=Y)
    assert dataset.train.only.dtype == np.uint8
    assert isinstance(dataset.front, Pixels)
    assert np.allclose(dataset.front.mean, dataset.train.only.mean(axis=(0, 1, 2)))
    assert np.allclose(dataset.front.std, dataset.train.only.std(axis=(0, 1, 2)))
    assert features_of(dataset).shape == (3, 5, 4)


def test_floats_are_images_with_channels_first(tmp_path: Path) -> None:
    dataset = load(tmp_path, x=RANDOM.normal(size=(10, 2, 5, 4)), y=Y)
    assert isinstance(dataset.front, Pixels)
    assert np.allclose(dataset.front.mean, dataset.train.only.mean(axis=(0, 2, 3)), atol=1e-6)
    assert features_of(dataset).shape == (2, 5, 4)


@pytest.mark.parametrize(
    ("y", "classes", "expected"),
    [
        (Y + 3, None, ("3", "4")),
        (Y.astype(np.float64), None, ("0", "1")),
        (np.array(["no", "yes"])[Y], None, ("no", "yes")),
        (Y, np.array(["ham", "spam"]), ("ham", "spam")),
    ],
)
def test_labels_are_numbers_with_names_or_names(tmp_path: Path, y: Any, classes: Any, expected: Any) -> None:
    more = {} if classes is None else {"classes": classes}
    dataset = load(tmp_path, x=np.stack([Y, ROWS[:, 0]], axis=1), y=y, **more)
    assert dataset.classes == expected
    assert np.array_equal(dataset.train.labels, dataset.train.only[:, 0])


def test_a_test_of_its_own_is_kept(tmp_path: Path) -> None:
    dataset = load(tmp_path, x=ROWS, y=Y, x_test=ROWS[:3] + 1, y_test=Y[:3])
    assert len(dataset.train) == 10
    assert np.array_equal(dataset.test.only, (ROWS[:3] + 1).astype(np.float32))


def test_the_seed_alone_decides_the_split(tmp_path: Path) -> None:
    first, again, other = (load(tmp_path, Options(split_seed=seed), x=ROWS, y=Y).test.only for seed in (1, 1, 3))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def changed(array: np.ndarray, index: Any, value: float) -> np.ndarray:
    array = array.astype(np.float64)
    array[index] = value
    return array


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no y": ({"x": ROWS}, ": no array 'y', expected x and y (and both of x_test, y_test); has x"),
    "no y_test": ({"x": ROWS, "y": Y, "x_test": ROWS}, ": no array 'y_test', expected x and y"),
    "a NaN label": (
        {"x": ROWS, "y": changed(Y, 6, np.nan)},
        ", row 7: the label is nan, expected the number of a class",
    ),
    "a label between": ({"x": ROWS, "y": changed(Y, 2, 0.5)}, ", row 3: the label is 0.5, expected the number"),
    "a complex label": ({"x": ROWS, "y": Y * 1j}, ": y is complex128 [10], expected numbers of classes"),
    "a class too many": (
        {"x": ROWS, "y": changed(Y, 4, 2), "classes": np.array(["a", "b"])},
        ", row 5: the label is 2, expected 0 to 1, one of 2 classes",
    ),
    "classes that are numbers": (
        {"x": ROWS, "y": Y, "classes": Y},
        ": classes is int64 [10], expected a list of names",
    ),
    "fewer labels": (
        {"x": ROWS, "y": Y[:9]},
        ": x is float64 [10, 3] and y int64 [9], expected as many labels as rows",
    ),
    "labels in columns": (
        {"x": ROWS, "y": Y[:, np.newaxis]},
        ": x is float64 [10, 3] and y int64 [10, 1], expected as",
    ),
    "a single number": ({"x": np.float64(1), "y": Y}, ": x is float64 [] and y int64 [10], expected as many"),
    "no channels": (
        {"x": RANDOM.normal(size=(10, 5, 4)), "y": Y},
        ": x is float64 [10, 5, 4], expected numbers [rows, features], uint8",
    ),
    "words": ({"x": np.array([["a"]] * 10), "y": Y}, ": x is <U1 [10, 1], expected numbers"),
    "no features": ({"x": ROWS[:, :0], "y": Y}, ": x is float64 [10, 0], expected numbers"),
    "infinite": ({"x": changed(ROWS, (8, 1), np.inf), "y": Y}, ", row 9: x holds inf, expected finite float32"),
    "an image with NaN": (
        {"x": changed(np.zeros((10, 1, 2, 2)), (4, 0, 1, 1), np.nan), "y": Y},
        ", row 5: x holds nan, expected finite float32",
    ),
    "an empty column": (
        {"x": changed(ROWS, (slice(None), 1), np.nan), "y": Y},
        ": column 1 of x (counted from 0) holds no number; remove it",
    ),
    "another test": (
        {"x": ROWS, "y": Y, "x_test": ROWS[:, :2], "y_test": Y},
        ": x_test is float64 [10, 2], expected float64 [10, 3] as x has",
    ),
    "one class": ({"x": ROWS, "y": Y * 0}, ": all 10 rows are of class '0', expected at least two classes"),
    "one row": ({"x": ROWS[:1], "y": Y[:1]}, ": 1 row, expected at least two of each class"),
    "no rows": ({"x": ROWS[:0], "y": Y[:0]}, ": no rows, expected at least two of each class"),
    "a single example": ({"x": ROWS, "y": changed(Y, 4, 2)}, ": class '2' has a single example, expected at least two"),
    "a class without examples": (
        {"x": ROWS, "y": Y, "classes": np.array(["a", "b", "c"])},
        ": class 'c' has no example, expected at least two of each",
    ),
    "names and names": (
        {"x": ROWS, "y": np.array(["a", "b"])[Y], "classes": np.array(["a", "b"])},
        ": y is <U1 [10] beside classes, expected numbers of classes; leave one of them out",
    ),
    "a single label": ({"x": ROWS, "y": np.int64(1)}, ": x is float64 [10, 3] and y int64 [], expected as many"),
    "a test of one number": (
        {"x": ROWS, "y": Y, "x_test": np.float64(1), "y_test": np.int64(1)},
        ": x_test is float64 [] and y_test int64 [], expected as many labels as rows",
    ),
    "a test without rows": (
        {"x": ROWS, "y": Y, "x_test": ROWS[:0], "y_test": Y[:0]},
        ": x_test has no rows, expected what is held out",
    ),
    "a test of other labels": (
        {"x": ROWS, "y": Y, "x_test": ROWS, "y_test": np.array(["0", "1"])[Y]},
        ": y_test is <U1 [10], but y int64 [10], expected one kind of labels",
    ),
    "a label beyond all numbers": (
        {"x": ROWS, "y": changed(Y, 3, 1e30)},
        ", row 4: the label is 1e+30, expected the number of a class",
    ),
    "a label beyond int64": (
        {"x": ROWS, "y": np.array([2**64 - 1, *Y[1:]], dtype=np.uint64), "classes": np.array(["a", "b"])},
        ", row 1: the label is 18446744073709551615, expected 0 to 1",
    ),
    "a name for two classes": (
        {"x": ROWS, "y": Y, "classes": np.array(["a", "a"])},
        ": 'a' names two classes, expected a name for each",
    ),
    "an object": (
        {"x": np.array([print] * 10), "y": Y},
        ": unreadable, expected arrays of numbers by np.savez (Object arr",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_is_one_line(tmp_path: Path, case: str) -> None:
    arrays, told = BAD[case]
    with pytest.raises(UserError) as refused:
        load(tmp_path, **arrays)
    assert str(refused.value).removeprefix(f"{tmp_path}/a.npz").startswith(told)
    assert "\n" not in str(refused.value)


def test_what_is_no_npz_file_is_one_line(tmp_path: Path) -> None:
    np.savez(tmp_path / "whole.npz", x=ROWS, y=Y)
    whole = (tmp_path / "whole.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[:-30])
    (tmp_path / "other.npz").write_bytes(b"no archive")
    (tmp_path / "flipped.npz").write_bytes(whole.replace(ROWS.tobytes()[:16], bytes(16)))
    for name in ("cut", "other", "flipped"):
        with pytest.raises(UserError, match=rf"{name}.npz: unreadable, expected arrays of numbers by np.savez \("):
            datasets.load(f"npz:{tmp_path / name}.npz")
    with pytest.raises(UserError, match=r"none.npz: No such file or directory, expected an npz file"):
        datasets.load(f"npz:{tmp_path / 'none.npz'}")


def test_more_than_fits_is_refused_before_it_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(npz_file, "MOST_BYTES", 400)
    with pytest.raises(UserError, match=r"a.npz: unpacks to 5.36e-07 GiB, expected at most 3.7"):
        load(tmp_path, x=ROWS, y=Y)
