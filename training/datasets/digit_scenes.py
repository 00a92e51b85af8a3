"""Semi-synthetic scenes of real handwritten digits: which class has each pixel?

Made from the digits of scikit-learn (see digits.py), twice their size, one to five of them on a dark canvas of 48x48
pixels without touching, with brightness, ink and noise drawn at random. Labels follow from how scenes are made: the
digit where there is ink, else background. Scenes to learn from show training digits alone, those held out only others.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from training.datasets import digits
from training.datasets.dataset import Dataset, Examples, InputDescription, Task
from training.datasets.options import Options
from training.datasets.pictures import front_of
from training.errors import UserError

SCENES = 1500
SIDE = 48
SCALE = 2
MOST_DIGITS = 5
INK = 4
"""Of 16: a pixel with less counts as background."""
NOISE = 8.0
TRIES = 20

INPUT = InputDescription(
    name="image",
    description=f"grey image, {SIDE}x{SIDE} pixels from the top left, bright handwritten digits on a dark ground",
    minimum=0,
    maximum=255,
)


def load(where: str, options: Options) -> Dataset:  # noqa: ARG001 - there is one set of scenes
    """Inputs uint8 [rows, 48, 48, 1]; equal options give equal scenes. Raises UserError."""
    source = digits.load("", options)
    n_test = max(1, round(options.test_fraction * SCENES))
    if n_test >= SCENES:
        raise UserError(
            f"digit-scenes: data.test_fraction={options.test_fraction} leaves none of {SCENES} scenes to learn from; "
            f"choose a smaller one"
        )
    random = np.random.default_rng(options.split_seed)
    train = _scenes(source.train, SCENES - n_test, random)
    return Dataset(
        inputs=(INPUT,),
        front=front_of(train.only),
        classes=("background", *source.classes),
        train=train,
        test=_scenes(source.test, n_test, random),
        task=Task.SEGMENT,
        origin=(__doc__ or "").partition("\n\n")[2].strip(),
    )


def _scenes(source: Examples, count: int, random: np.random.Generator) -> Examples:
    images = np.empty((count, SIDE, SIDE, 1), dtype=np.uint8)
    labels = np.zeros((count, SIDE, SIDE), dtype=np.int64)
    stamps = np.kron(source.only[:, 0], np.ones((1, SCALE, SCALE), np.float32))
    for row in range(count):
        ink = np.zeros((SIDE, SIDE), dtype=np.float32)
        for top, left in _places(stamps.shape[1], random):
            digit = random.integers(len(stamps))
            box = np.s_[top : top + stamps.shape[1], left : left + stamps.shape[2]]
            ink[box] = stamps[digit]
            labels[row][box] = np.where(stamps[digit] >= INK, source.labels[digit] + 1, 0)
        images[row, ..., 0] = _shaded(ink / 16, random)
    return Examples({INPUT.name: images}, labels)


def _places(side: int, random: np.random.Generator) -> list[tuple[int, int]]:
    """Upper left corners of squares that share no pixel; where no place is found in time, fewer of them."""
    wanted = random.integers(1, MOST_DIGITS + 1)
    places: list[tuple[int, int]] = []
    for top, left in random.integers(0, SIDE - side + 1, (TRIES, 2)).tolist():
        if len(places) < wanted and all(max(abs(top - y), abs(left - x)) >= side for y, x in places):
            places.append((top, left))
    return places


def _shaded(ink: npt.NDArray[np.floating[Any]], random: np.random.Generator) -> npt.NDArray[np.uint8]:
    dark, bright = random.uniform(0, 60), random.uniform(120, 255)
    values = dark + (bright - dark) * ink + random.normal(0, NOISE, ink.shape)
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)
