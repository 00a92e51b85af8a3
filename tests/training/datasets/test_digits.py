"""The digits: real images, a stratified split fixed by its seed, raw pixel values."""

from __future__ import annotations

import numpy as np
import pytest

from training import datasets
from training.datasets import digits
from training.datasets.options import DEFAULT, Options
from training.errors import UserError


def rows_of(images: np.ndarray) -> list[bytes]:
    return [image.tobytes() for image in images]


def test_every_image_is_in_exactly_one_part() -> None:
    dataset = digits.load("", DEFAULT)
    everything = digits.load_digits().images.astype(np.float32)

    assert (len(dataset.train), len(dataset.test)) == (1437, 360)
    assert sorted(rows_of(dataset.train.only) + rows_of(dataset.test.only)) == sorted(rows_of(everything))


def test_inputs_are_the_raw_pixels_a_client_sends() -> None:
    inputs = digits.load("", DEFAULT).test.only

    assert (inputs.dtype, inputs.shape[1:]) == (np.float32, (1, 8, 8))
    assert (inputs.min(), inputs.max()) == (digits.INPUT.minimum, digits.INPUT.maximum) == (0, 16)
    assert np.array_equal(inputs, np.rint(inputs))


def test_every_class_has_the_same_share_in_both_parts() -> None:
    dataset = digits.load("", DEFAULT)
    shares = [np.bincount(part.labels, minlength=10) / len(part) for part in (dataset.train, dataset.test)]

    assert dataset.classes == tuple("0123456789")
    assert np.abs(shares[0] - shares[1]).max() < 1 / len(dataset.test)


def test_the_seed_alone_decides_the_split() -> None:
    first, again, other = (digits.load("", Options(split_seed=seed)).test for seed in (3, 3, 4))

    assert np.array_equal(first.only, again.only)
    assert np.array_equal(first.labels, again.labels)
    assert not np.array_equal(first.only, other.only)


def test_a_fraction_that_leaves_a_class_out_is_refused() -> None:
    with pytest.raises(UserError, match=r"digits: data.test_fraction=0.001 cannot split 1797 rows"):
        digits.load("", Options(test_fraction=0.001))


def test_the_sample_shows_each_class_once_in_order() -> None:
    test = datasets.load("digits").test
    sample = test.sample().only

    found = [int(test.labels[rows_of(test.only).index(row)]) for row in rows_of(sample)]
    assert found == list(range(10))
