"""Does a row's answer depend on what it is batched with? Asked at load, told in the metadata, and avoidable.

Kernels differ by batch size (a matrix times a vector is not the matrix product of one row), and rounding with them: the
same row may be answered with other last bits when it runs among others. Here a row is answered alone, and again in
batches of 2, 4, 8, ... at the front, in the middle and at the end. The largest difference is what the metadata tells;
the sizes at which all these answers have the same bits are those that `exact` batching keeps to, by padding.

This is a probe of a few rows of one shape. That another row, or another position, behaves alike follows from how
kernels are built, and is not proved. Knows no session: the function that runs the model is passed in.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from service.errors import InferenceFailed, RequestMismatch
from service.golden import Run, difference_of
from service.protocol import Array, BatchInvariance

# Readiness must not wait for the larger sizes of a large network; what was not probed is not claimed.
_PROBING_S = 0.75


def probe_invariance(
    known: Mapping[str, Array], run: Run, sizes: Sequence[int], clock: Callable[[], float]
) -> BatchInvariance:
    """Runs a row of `known` at every size of `sizes` (ascending, the first is 1) and several positions of it.

    known: inputs with rows along axis 0 that the model accepts; its other rows are the company. Sizes that the model
    refuses, and those for which time has run out, are not among `probed_rows`.
    """
    began = clock()
    answers: dict[int, list[Mapping[str, Array]]] = {}
    for size in sizes:
        if answers and clock() - began > _PROBING_S:
            break
        try:
            answers[size] = [_answer_at(known, run, size, position) for position in _positions(size)]
        except (InferenceFailed, RequestMismatch):
            break
    everyone = [answer for of_size in answers.values() for answer in of_size]
    return BatchInvariance(
        largest_difference=_largest_difference(everyone),
        probed_rows=tuple(answers),
        identical_rows=_largest_class(answers),
    )


def _positions(size: int) -> list[int]:
    return sorted({0, size // 2, size - 1})


def _answer_at(known: Mapping[str, Array], run: Run, size: int, position: int) -> Mapping[str, Array]:
    """What row 0 of `known` is answered at `position` among `size` rows, the others in turn around it."""
    count = min(len(array) for array in known.values())
    order = [(index % (count - 1)) + 1 if count > 1 else 0 for index in range(size)]
    order[position] = 0
    outputs = run({name: array[order] for name, array in known.items()})
    return {name: array[position : position + 1] for name, array in outputs.items()}


def _largest_difference(answers: Sequence[Mapping[str, Array]]) -> float:
    """Against the first answer, the row alone. Finite, because JSON has no infinity."""
    if not answers:
        return 0.0
    alone = answers[0]
    largest = max(
        (
            float(np.max(difference_of(answer[name], array), initial=0.0))
            for answer in answers[1:]
            for name, array in alone.items()
        ),
        default=0.0,
    )
    return min(largest, sys.float_info.max)


def _largest_class(answers: Mapping[int, Sequence[Mapping[str, Array]]]) -> tuple[int, ...]:
    """Sizes whose answers all have the same bits, and the same as each other's; the most rows win between equals."""
    classes: dict[bytes, list[int]] = {}
    for size, of_size in answers.items():
        bits = {_bits(answer) for answer in of_size}
        if len(bits) == 1:
            classes.setdefault(bits.pop(), []).append(size)
    best: list[int] = max(classes.values(), key=lambda sizes: (len(sizes), sizes[-1]), default=[])
    return tuple(best)


def _bits(answer: Mapping[str, Array]) -> bytes:
    return b"".join(
        repr(array.tolist()).encode() if array.dtype == object else np.ascontiguousarray(array).tobytes()
        for _, array in sorted(answer.items())
    )


def padded_rows(rows: int, sizes: Sequence[int]) -> int:
    """The smallest of `sizes` (ascending) that holds `rows` rows; `rows` itself when none does."""
    return next((size for size in sizes if size >= rows), rows)


def pad(inputs: Mapping[str, Array], rows: int) -> dict[str, Array]:
    """`inputs` with their last row repeated until there are `rows`."""
    return {
        name: array if len(array) == rows else np.concatenate([array, np.repeat(array[-1:], rows - len(array), axis=0)])
        for name, array in inputs.items()
    }
