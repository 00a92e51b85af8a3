"""Images and masks: the numbers in the masks are the labels, pixel by pixel, and what does not fit is named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from training import datasets
from training.datasets.dataset import Dataset, Task
from training.datasets.options import DEFAULT, Options
from training.errors import UserError


def mask(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 3, (4, 6), dtype=np.uint8)


def save(folder: Path, name: str, values: np.ndarray) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(folder / name)


def folder_of(folder: Path, rows: int = 5) -> Path:
    """Each image shows its own mask, so that one can be told from the other's pixels."""
    for number in range(rows):
        save(folder, f"images/{number}.png", np.repeat(mask(number)[..., np.newaxis] * 20, 3, axis=2))
        save(folder, f"masks/{number}.png", mask(number))
    return folder


def load(folder: Path, options: Options = DEFAULT) -> Dataset:
    return datasets.load(f"masks:{folder}", options)


def test_every_pixel_has_the_class_that_its_mask_says(tmp_path: Path) -> None:
    dataset = load(folder_of(tmp_path))

    assert dataset.task is Task.SEGMENT
    assert dataset.classes == ("0", "1", "2")
    assert (len(dataset.train), len(dataset.test)) == (4, 1)
    for part in (dataset.train, dataset.test):
        assert (part.only.dtype, part.labels.dtype) == (np.uint8, np.int64)
        assert np.array_equal(part.only[..., 0], part.labels * 20)


def test_classes_are_named_by_a_file(tmp_path: Path) -> None:
    (folder_of(tmp_path) / "classes.txt").write_text("sky\nsea\nland\nship\n\n")
    assert load(tmp_path).classes == ("sky", "sea", "land", "ship")


def test_a_palette_image_holds_numbers_not_colours(tmp_path: Path) -> None:
    folder_of(tmp_path)
    plain = load(tmp_path)
    for path in (tmp_path / "masks").iterdir():
        with Image.open(path) as image:
            image.putpalette([200, 0, 0, 0, 200, 0, 0, 0, 200])
            assert image.mode == "P"
            image.save(path)
    assert np.array_equal(load(tmp_path).train.labels, plain.train.labels)


def test_scaling_makes_up_no_classes(tmp_path: Path) -> None:
    folder_of(tmp_path)
    for number in range(5):
        save(tmp_path, f"masks/{number}.png", np.where(mask(number) == 1, 2, 0).astype(np.uint8))
    (tmp_path / "classes.txt").write_text("a\nb\nc\n")
    labels = load(tmp_path, Options(size=(7, 9))).train.labels

    assert labels.shape == (4, 7, 9)
    assert set(np.unique(labels)) == {0, 2}


def test_folders_of_parts_are_the_split(tmp_path: Path) -> None:
    folder_of(tmp_path / "train", rows=3)
    folder_of(tmp_path / "val", rows=2)
    dataset = load(tmp_path)
    assert (len(dataset.train), len(dataset.test)) == (3, 2)
    assert np.array_equal(dataset.test.labels[1], mask(1))


def test_the_seed_alone_decides_the_split(tmp_path: Path) -> None:
    folder_of(tmp_path, rows=12)
    first, again, other = (load(tmp_path, Options(split_seed=seed)).test.only for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def one_class(folder: Path) -> None:
    for number in range(5):
        save(folder, f"masks/{number}.png", np.zeros((4, 6), np.uint8))


def without(name: str) -> Callable[[Path], None]:
    def remove(folder: Path) -> None:
        for path in (folder / name).iterdir():
            path.unlink()
        (folder / name).rmdir()

    return remove


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "no masks": (without("masks"), "masks: not there, expected the folders images and masks beside each other"),
    "no image": (
        lambda folder: save(folder, "masks/x.png", mask(1)),
        "masks/x.png: nothing of this name in images, expected its other half",
    ),
    "no mask": (
        lambda folder: save(folder, "images/x.png", mask(1)),
        "images/x.png: nothing of this name in masks, expected its other half",
    ),
    "two of a name": (
        lambda folder: save(folder, "images/1.bmp", mask(1)),
        "images/1.png: has the name of images/1.bmp, expected one of each",
    ),
    "a mask of another size": (
        lambda folder: save(folder, "masks/2.png", mask(2)[:3]),
        "masks/2.png: 3x6 pixels (height x width), expected 4x6 as in images/2.png",
    ),
    "images of two sizes": (
        lambda folder: [save(folder, f"{kind}/3.png", mask(3)[:3]) for kind in ("images", "masks")],
        "images/3.png: 3x6 pixels, but images/0.png has 4x6 (height x width), expected one size",
    ),
    "a mask in colour": (
        lambda folder: save(folder, "masks/2.png", np.zeros((4, 6, 3), np.uint8)),
        "masks/2.png: has mode RGB, expected numbers of classes: grey, 8 bits, or a palette",
    ),
    "a gap in the numbers": (
        lambda folder: save(folder, "masks/2.png", np.full((4, 6), 255, np.uint8)),
        "masks/2.png: holds the number 255, expected 0 to 3",
    ),
    "fewer names than classes": (
        lambda folder: (folder / "classes.txt").write_text("sky\nsea\n"),
        "masks/0.png: holds the number 2, expected 0 to 1",
    ),
    "a name twice": (
        lambda folder: (folder / "classes.txt").write_text("a\na\nb\n"),
        "classes.txt: 'a' twice, expected at most 256 different names",
    ),
    "names in no UTF-8": (lambda folder: (folder / "classes.txt").write_bytes(b"\xff"), "classes.txt: 'utf-8' codec"),
    "one class only": (one_class, ": all 5 rows are of class '0', expected at least two classes"),
    "an unreadable image": (lambda folder: (folder / "images/3.png").write_text("x"), "images/3.png: unreadable"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_is_one_line_that_names_it(tmp_path: Path, case: str) -> None:
    spoil, told = BAD[case]
    spoil(folder_of(tmp_path))
    with pytest.raises(UserError) as refused:
        load(tmp_path)
    line = str(refused.value).replace(f"{tmp_path}/", "").removeprefix(str(tmp_path))
    assert line.startswith(told)
    assert "\n" not in line


def test_a_folder_without_images_and_one_image_are_refused(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    with pytest.raises(UserError, match="images: empty, expected images"):
        load(tmp_path)
    with pytest.raises(UserError, match="1 row, expected at least two"):
        load(folder_of(tmp_path, rows=1))
