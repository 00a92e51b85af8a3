"""Scenes of digits: labels say where the ink of which digit is, and no digit is both learned from and tested on."""

from __future__ import annotations

import numpy as np
import pytest

from training import datasets
from training.datasets import digit_scenes
from training.datasets.dataset import Dataset, Task
from training.datasets.options import Options
from training.errors import UserError


@pytest.fixture(scope="module")
def scenes() -> Dataset:
    return datasets.load("digit-scenes")


def test_inputs_are_images_as_decoders_give_them_with_a_class_for_each_pixel(scenes: Dataset) -> None:
    assert scenes.task is Task.SEGMENT
    assert scenes.classes == ("background", *"0123456789")
    assert (len(scenes.train), len(scenes.test)) == (1200, 300)
    assert (scenes.train.only.dtype, scenes.train.only.shape[1:]) == (np.uint8, (48, 48, 1))
    assert (scenes.train.labels.dtype, scenes.train.labels.shape[1:]) == (np.int64, (48, 48))
    assert set(np.unique(scenes.test.labels)) == set(range(11))


def test_ink_is_bright_and_background_is_dark(scenes: Dataset) -> None:
    ink = scenes.test.labels > 0
    assert 0.05 < ink.mean() < 0.3
    for image, mask in zip(scenes.test.only[..., 0], ink, strict=True):
        assert image[mask].mean() > image[~mask].mean() + 20


def cropped(mask: np.ndarray) -> bytes:
    rows, columns = np.nonzero(mask)
    return mask[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1].tobytes()


def test_scenes_show_the_digits_of_their_own_part(scenes: Dataset) -> None:
    """Judged by scenes of a single digit: the outline of its ink is that of an image of the part."""
    digits = datasets.load("digits")
    for shown, source in ((scenes.train, digits.train), (scenes.test, digits.test)):
        twice = np.kron(source.only[:, 0] >= 4, np.ones((1, 2, 2), dtype=np.int64))
        outlines = {cropped(ink * (label + 1)) for ink, label in zip(twice, source.labels, strict=True)}
        alone = [cropped(mask) for mask in shown.labels if len(np.unique(mask)) == 2]
        single = [outline for outline in alone if len(outline) <= 16 * 16 * 8]
        assert len(single) > 30
        assert set(single) <= outlines


def test_digits_do_not_touch_each_other() -> None:
    random = np.random.default_rng(0)
    counts = []
    for _ in range(50):
        taken = np.zeros((48, 48), dtype=int)
        places = digit_scenes._places(16, random)
        for top, left in places:
            taken[top : top + 16, left : left + 16] += 1
        assert taken.max() == 1
        assert taken.sum() == 256 * len(places)
        counts.append(len(places))
    assert set(counts) == {1, 2, 3, 4, 5}


def test_equal_seeds_give_equal_scenes(scenes: Dataset) -> None:
    again, other = (datasets.load("digit-scenes", Options(split_seed=seed)) for seed in (0, 1))
    assert np.array_equal(scenes.train.only, again.train.only)
    assert np.array_equal(scenes.test.labels, again.test.labels)
    assert not np.array_equal(scenes.test.only, other.test.only)


def test_a_fraction_that_leaves_nothing_is_refused() -> None:
    with pytest.raises(UserError, match=r"data.test_fraction=0.9999 "):
        datasets.load("digit-scenes", Options(test_fraction=0.9999))
