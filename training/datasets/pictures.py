"""Images as files or bytes to one array: uint8 [rows, height, width, channels]. The one file that knows Pillow.

Of its formats only those that are pixels and nothing else: PostScript would start a program. A picture that unpacks
into absurdly many pixels is refused by its header.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from training.datasets.dataset import MOST_BYTES, Pixels
from training.errors import UserError

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
_GREY = frozenset({"1", "L", "LA"})
_DEEP = frozenset({"I", "F", "I;16", "I;16B", "I;16L"})


@dataclass(frozen=True, slots=True)
class Picture:
    """name: for people. content: the file, or its bytes."""

    name: str
    content: Path | bytes

    @staticmethod
    def at(path: Path) -> Picture:
        return Picture(str(path), path)


def size_of(picture: Picture) -> tuple[int, int]:
    """(height, width). Raises UserError."""
    with _opened(picture) as image:
        return image.height, image.width


def common_size(pictures: Sequence[Picture], asked: tuple[int, int] | None) -> tuple[int, int]:
    """(height, width): `asked`, or that which all of them have. Raises UserError."""
    if asked is not None:
        return asked
    first = size_of(pictures[0])
    for picture in pictures[1:]:
        if (size := size_of(picture)) != first:
            raise UserError(
                f"{picture.name}: {size[0]}x{size[1]} pixels, but {pictures[0].name} has {first[0]}x{first[1]} (height "
                f"x width), expected one size; choose one to scale all to, with data.size"
            )
    return first


def colour_images(pictures: Sequence[Picture], size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """One channel when all of them are grey, else red, green and blue; scaled to `size`. Raises UserError."""
    grey = {_is_grey(picture) for picture in pictures} == {True}

    def converted(image: Image.Image) -> Image.Image:
        return _scaled(image.convert("L" if grey else "RGB"), size, Image.Resampling.BILINEAR)

    return _stacked(pictures, (*size, 1 if grey else 3), converted)


def number_images(pictures: Sequence[Picture], size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """uint8 [rows, height, width]: the numbers in grey images, or those that stand for the colours of a palette; no
    number is made up when they are scaled. Raises UserError."""

    def converted(image: Image.Image) -> Image.Image:
        if image.mode not in ("1", "L", "P"):
            raise UserError(f"has mode {image.mode}, expected numbers of classes: grey, 8 bits, or a palette")
        return _scaled(image, size, Image.Resampling.NEAREST)

    return _stacked(pictures, size, converted)


def front_of(images: npt.NDArray[np.uint8]) -> Pixels:
    """Each channel's mean and standard deviation over `images`, exactly, from how often each value occurs."""
    counts = [np.bincount(images[..., channel].ravel(), minlength=256) for channel in range(images.shape[-1])]
    values = np.arange(256)
    means = [float(np.average(values, weights=count)) for count in counts]
    variances = [
        float(np.average((values - mean) ** 2, weights=count)) for mean, count in zip(means, counts, strict=True)
    ]
    return Pixels(tuple(means), tuple(variance**0.5 or 1.0 for variance in variances), channels_last=True)


def describe(shape: tuple[int, ...], asked: tuple[int, int] | None) -> tuple[str, tuple[str, ...]]:
    """Of one image, for clients: what it is, and what they have to do themselves."""
    height, width, channels = shape
    kind = "grey" if channels == 1 else "red, green, blue"
    scaling = "" if asked is None else f"scale an image to {height}x{width} (height x width; here: Pillow, bilinear); "
    resized = "" if asked is None else f".resize(({width}, {height}), Image.Resampling.BILINEAR)"
    made = f'numpy.asarray(Image.open(path).convert("{"L" if channels == 1 else "RGB"}"){resized})'
    tensor = f'"name": "image", "datatype": "UINT8", "shape": [1, {height}, {width}, {channels}]'
    return (
        f"pixels from the top left, {kind}, 0 to 255",
        (
            f"{scaling}decode a file to its {kind} bytes as it is stored; the network's first part normalises",
            f'a worked request, in Python, with Pillow: {{"inputs": [{{{tensor}, "data": {made}.ravel().tolist()}}]}}',
        ),
    )


def _is_grey(picture: Picture) -> bool:
    with _opened(picture) as image:
        if image.mode in _DEEP:
            raise UserError(f"has mode {image.mode}, expected 8 bits a channel; convert it")
        return image.mode in _GREY


def _scaled(image: Image.Image, size: tuple[int, int], how: Image.Resampling) -> Image.Image:
    height, width = size
    return image if (image.height, image.width) == size else image.resize((width, height), how)


def _stacked(
    pictures: Sequence[Picture], shape: tuple[int, ...], converted: Callable[[Image.Image], Image.Image]
) -> npt.NDArray[np.uint8]:
    needed = len(pictures) * int(np.prod(shape))
    if needed > MOST_BYTES:
        raise UserError(
            f"{pictures[0].name} and {len(pictures) - 1} more: {needed / 2**30:.3g} GiB as pixels, expected "
            f"at most {MOST_BYTES / 2**30:.3g}; choose a smaller data.size"
        )
    stack = np.empty((len(pictures), *shape), dtype=np.uint8)
    for row, picture in enumerate(pictures):
        with _opened(picture) as image:
            stack[row] = np.asarray(converted(image), dtype=np.uint8).reshape(shape)
    return stack


@contextmanager
def _opened(picture: Picture) -> Iterator[Image.Image]:
    """Header only, until pixels are asked for. Whatever is wrong, now or then, is one line with the picture's name."""
    content = picture.content
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            warnings.filterwarnings("ignore", category=UserWarning)  # of odd metadata; the pixels are there or not
            with Image.open(io.BytesIO(content) if isinstance(content, bytes) else content, formats=FORMATS) as image:
                yield image
    except UserError as error:
        raise UserError(f"{picture.name}: {error}") from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        limit = Image.MAX_IMAGE_PIXELS
        raise UserError(f"{picture.name}: expected at most {limit} pixels; scale it down ({error})") from error
    except Exception as error:  # decoders raise what they like, from struct.error to SyntaxError
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{picture.name}: unreadable, expected an image; replace or remove it ({reason})") from error
