"""Real handwritten digits: the 1,797 images that ship inside scikit-learn (no download).

Source: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI repository (1998): 32x32 bitmaps
whose 4x4 blocks were counted, hence 8x8 pixels from 0 (no ink) to 16.
"""

from __future__ import annotations

import numpy as np
from sklearn.datasets import load_digits

from training.datasets.dataset import Dataset, Examples, InputDescription, Pixels
from training.datasets.options import Options
from training.datasets.splitting import stratified

INPUT = InputDescription(
    name="image",
    description="grey image of one handwritten digit, rows from the top, raw pixel values: 0 is paper, 16 is ink",
    minimum=0.0,
    maximum=16.0,
)


def load(where: str, options: Options) -> Dataset:  # noqa: ARG001 - there is one set of digits
    """Inputs float32 [rows, 1, 8, 8]; every class has the same share in both parts, and the seed decides who is where.

    Raises UserError when the fraction leaves a part with fewer images than there are classes.
    """
    bunch = load_digits()
    images = bunch.images.astype(np.float32)[:, np.newaxis]
    labels = bunch.target.astype(np.int64)
    classes = tuple(str(name) for name in bunch.target_names)
    train, test = stratified(labels, classes, options, "digits")
    everything = Examples({INPUT.name: images}, labels)
    return Dataset(
        inputs=(INPUT,),
        front=Pixels(mean=(0.0,), std=(16.0,)),
        classes=classes,
        train=everything.at(train),
        test=everything.at(test),
        origin=(__doc__ or "").partition("\n\n")[2].strip(),
    )
