"""Joins requests into one batch along axis 0 and splits the result back to the owners.

Pure NumPy: no clock, no queue, no model. Law: split(join(xs), rows of xs) = xs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate

import numpy as np
import numpy.typing as npt

from service.errors import InferenceFailed
from service.protocol import Array


class JoinSpace:
    """Memory that one batch after the other is joined in: fresh memory for each would be paged in for each, which for
    images costs as much as copying them. For one thread, and one batch at a time."""

    def __init__(self) -> None:
        self._bytes: dict[str, npt.NDArray[np.uint8]] = {}

    def concatenate(self, name: str, arrays: Sequence[Array]) -> Array:
        """As np.concatenate along axis 0. What is returned holds until the next call for the same name."""
        size_bytes = sum([array.nbytes for array in arrays])
        # casting="no": a silent promotion would hand the model another datatype than it declared.
        if not _SMALLEST_BYTES <= size_bytes <= _LARGEST_BYTES or arrays[0].dtype == object:
            return np.concatenate(arrays, casting="no")
        space = self._bytes.get(name)
        if space is None or len(space) < size_bytes:
            space = self._bytes[name] = np.empty(size_bytes, np.uint8)
        rows = sum([len(array) for array in arrays])
        joined = np.ndarray((rows, *arrays[0].shape[1:]), arrays[0].dtype, space)
        return np.concatenate(arrays, out=joined, casting="no")


# Below, memory comes from the allocator's own stock. Above, keeping it would cost more than it saves.
_SMALLEST_BYTES = 64 * 1024
_LARGEST_BYTES = 64 * 1024 * 1024


# What a Python bytes object takes beside its text; the array itself holds the pointers.
_OBJECT_BYTES = 33


def size_bytes(arrays: Iterable[Array]) -> int:
    """What `arrays` hold in memory, about."""
    size = 0
    for array in arrays:
        size += array.nbytes
        if array.dtype == object:
            size += sum([len(text) + _OBJECT_BYTES for text in array.flat])
    return size


def join(parts: Sequence[Mapping[str, Array]], space: JoinSpace | None = None) -> dict[str, Array]:
    """One mapping whose tensors hold the rows of all parts, in order. A single part passes through uncopied.

    parts: at least one; all with the same names, and for each name the same dtype and the same shape behind axis 0.
    space: what is returned may lie in it, until the next batch is joined there.
    Raises ValueError or TypeError when they do not agree: the scheduler's group key must have kept them apart.
    """
    first = parts[0]
    if len(parts) == 1:
        return dict(first)
    # Every name of the first in each of them, and no more names than that: the same names.
    if set(map(len, parts)) != {len(first)}:
        raise _different_names(parts)
    try:
        space = space or JoinSpace()
        return {name: space.concatenate(name, [part[name] for part in parts]) for name in first}
    except KeyError as error:
        raise _different_names(parts) from error


def _different_names(parts: Sequence[Mapping[str, Array]]) -> ValueError:
    return ValueError(f"parts of one batch name different tensors: {[sorted(part) for part in parts]}")


def split(outputs: Mapping[str, Array], rows: Sequence[int]) -> list[dict[str, Array]]:
    """For each owner, in order, its rows of every output, as views. `rows[i]` is how many rows owner i contributed.

    Raises InferenceFailed when axis 0 of an output is not the rows of the batch.
    """
    total = sum(rows)
    for name, array in outputs.items():
        if array.ndim == 0 or array.shape[0] != total:
            raise InferenceFailed(
                f"output {name!r} has shape {list(array.shape)} for a batch of {total} rows: its first dimension does "
                f"not count rows, so the model cannot be batched; set max_batch_size to 0 in its configuration"
            )
    if len(rows) == 1:
        return [dict(outputs)]
    parts: list[dict[str, Array]] = [{} for _ in rows]
    for name, array in outputs.items():
        for part, piece in zip(parts, _pieces(array, rows, total), strict=True):
            part[name] = piece
    return parts


def _pieces(array: Array, rows: Sequence[int], total: int) -> Iterable[Array]:
    """Views of `array`, one an owner."""
    if len(rows) == total and 0 not in rows:
        # One row each, the common case: NumPy hands out views of rows faster than we can slice.
        return array[:, np.newaxis]
    ends = accumulate(rows)
    return [array[end - count : end] for count, end in zip(rows, ends, strict=True)]
