"""`masks:DIR`: `images/`, and in `masks/` for each of them a grey or palette image of the same name whose numbers are
the classes of its pixels; `classes.txt` names them, a line each. `train/` and `test/` (or `val/`) with these two
folders are the split where they are there.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from training.datasets.class_folders import split_folders
from training.datasets.dataset import Dataset, Examples, InputDescription, Task
from training.datasets.options import Options
from training.datasets.pictures import (
    SUFFIXES,
    Picture,
    colour_images,
    common_size,
    describe,
    front_of,
    number_images,
    size_of,
)
from training.datasets.splitting import require_classes, shuffled
from training.errors import UserError, check_the_path


def load(where: str, options: Options) -> Dataset:
    """Inputs uint8 [rows, height, width, channels], labels [rows, height, width]. Raises UserError."""
    parts, notes = split_folders(where)
    pairs = [_pairs(part) for part in parts]
    images, masks = (list(one) for one in zip(*(pair for part in pairs for pair in part), strict=True))
    train, test = shuffled(len(images), options, where, len(pairs[1]) if len(pairs) == 2 else None)
    for image, mask in zip(images, masks, strict=True):
        _require_equal_sizes(image, mask)
    size = common_size(images, options.size)
    inputs, numbers = colour_images(images, size), number_images(masks, size)
    classes = _classes(Path(where), numbers, masks)
    labels = numbers.astype(np.int64)
    require_classes(labels, classes, where)
    description, for_clients = describe(inputs.shape[1:], options.size)
    everything = Examples({"image": inputs}, labels)
    training = everything.at(train)
    return Dataset(
        inputs=(InputDescription("image", description, minimum=0, maximum=255),),
        front=front_of(training.only),
        classes=classes,
        train=training,
        test=everything.at(test),
        task=Task.SEGMENT,
        origin=where,
        notes=(*notes, *for_clients),
    )


def _pairs(part: Path) -> list[tuple[Picture, Picture]]:
    """Image and mask by their common name; their suffixes may differ, as photographs and numbers do."""
    images, masks = (_by_name(part / name) for name in ("images", "masks"))
    alone = sorted(set(images) ^ set(masks))
    if alone:
        path, missing = (images[alone[0]], "masks") if alone[0] in images else (masks[alone[0]], "images")
        raise UserError(
            f"{path}: nothing of this name in {part / missing}, expected its other half; add it, or remove this one"
        )
    return [(Picture.at(images[name]), Picture.at(masks[name])) for name in images]


def _by_name(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise UserError(
            f"{folder}: not there, expected the folders images and masks beside each other; {check_the_path(folder)}"
        )
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in SUFFIXES and not path.name.startswith("."):
            if path.stem in found:
                raise UserError(f"{path}: has the name of {found[path.stem]}, expected one of each; remove one of them")
            found[path.stem] = path
    if not found:
        raise UserError(f"{folder}: empty, expected images; add some")
    return found


def _require_equal_sizes(image: Picture, mask: Picture) -> None:
    of_image, of_mask = size_of(image), size_of(mask)
    if of_image != of_mask:
        raise UserError(
            f"{mask.name}: {of_mask[0]}x{of_mask[1]} pixels (height x width), expected {of_image[0]}x{of_image[1]} as "
            f"in {image.name}; make the mask anew"
        )


def _classes(folder: Path, numbers: npt.NDArray[np.uint8], masks: Sequence[Picture]) -> tuple[str, ...]:
    """Of `classes.txt`; without it the numbers themselves, which then have to be without gaps: a mask of 0 and 255 is
    no mask of 256 classes."""
    used = np.flatnonzero(np.bincount(numbers.ravel(), minlength=256))
    names = _named(folder / "classes.txt") or tuple(map(str, range(len(used))))
    if used[-1] >= len(names):
        first = int(np.argmax((numbers == used[-1]).any(axis=(1, 2))))
        raise UserError(
            f"{masks[first].name}: holds the number {used[-1]}, expected 0 to {len(names) - 1}: {len(names)} classes "
            f"are named or used; number the classes from 0 without gaps, or name them in {folder / 'classes.txt'}"
        )
    return names


def _named(path: Path) -> tuple[str, ...]:
    if not path.exists():
        return ()
    try:
        names = tuple(line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: {error}, expected a name of a class a line, in UTF-8; correct it") from error
    double = next((name for name in names if names.count(name) > 1), None)
    if double is not None or len(names) > 256:
        found = f"{len(names)} names" if double is None else f"{double!r} twice"
        raise UserError(f"{path}: {found}, expected at most 256 different names; correct it")
    return names
