"""Images with a label each to a data source's `Dataset`, wherever they come from."""

from __future__ import annotations

from collections.abc import Sequence

from training.datasets.dataset import Dataset, Examples, InputDescription
from training.datasets.options import Options
from training.datasets.pictures import Picture, colour_images, common_size, describe, front_of
from training.datasets.splitting import numbered, stratified


def dataset_of(
    thing: str,
    pictures: Sequence[Picture],
    labels: Sequence[str],
    options: Options,
    n_test: int | None = None,
    notes: tuple[str, ...] = (),
) -> Dataset:
    """n_test: see `stratified`. Raises UserError."""
    classes, numbers = numbered(labels)
    train, test = stratified(numbers, classes, options, thing, n_test)  # before the pixels, which take their time
    images = colour_images(pictures, common_size(pictures, options.size))
    description, for_clients = describe(images.shape[1:], options.size)
    everything = Examples({"image": images}, numbers)
    training = everything.at(train)
    return Dataset(
        inputs=(InputDescription("image", description, minimum=0, maximum=255),),
        front=front_of(training.only),
        classes=classes,
        train=training,
        test=everything.at(test),
        origin=thing,
        notes=(*notes, *for_clients),
    )
