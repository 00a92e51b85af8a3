"""Runs a model before anybody asks: finds inputs that it accepts, and measures how long batches of them take.

The first run of a shape allocates memory and picks kernels; a caller should not wait for that. Without golden samples
the inputs are made up from the declared shapes, with a guess for each free dimension.
Knows no session: the function that runs the model is passed in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from service.datatypes import DATATYPES
from service.errors import InferenceFailed, RequestMismatch
from service.golden import GoldenSamples, Run
from service.protocol import Array, TensorMetadata

Feed = Callable[[int], dict[str, Array]]
"""Inputs with so many rows; a first dimension that is fixed keeps its own length."""

# Sizes for free dimensions behind the first, tried in this order: 32 survives the five halvings of a usual image
# network, 224 is what many demand without saying so, the small ones are for models that multiply by the size.
_FREE_SIZES = (32, 224, 8, 1)

# In one row of all inputs together; 256 MiB of FP32. A guess must not take the machine's memory.
_MOST_ELEMENTS = 1 << 26


def golden_feed(samples: GoldenSamples, fixed_rows: int | None) -> Feed:
    """Feeds golden samples, repeated as often as needed; `fixed_rows` of them where axis 0 is not for us to choose."""

    def feed(rows: int) -> dict[str, Array]:
        chosen = np.arange(fixed_rows or rows) % samples.rows
        return {name: array[chosen] if array.ndim else array for name, array in samples.inputs.items()}

    return feed


def find_feed(inputs: Sequence[TensorMetadata], run: Run) -> tuple[Feed | None, str]:
    """Made-up inputs that the model accepts with one row, and an empty text; or None, and why there are none."""
    refusal = "one row of it would be too large"
    for size in _FREE_SIZES[:1] if _are_fixed(inputs) else _FREE_SIZES:
        if _elements(inputs, size) > _MOST_ELEMENTS:
            continue
        # Rows that differ can show interference; zeros are the values that the fewest models refuse (think of indices).
        for rows_differ in (True, False):
            feed = _made_up(inputs, size, rows_differ)
            try:
                run(feed(1))
            except (InferenceFailed, RequestMismatch) as error:
                refusal = str(error)
            else:
                return feed, ""
    return None, refusal


def shapes_leave_no_guess(inputs: Sequence[TensorMetadata]) -> bool:
    """Whether inputs were made up from fixed dimensions alone, so that a refusal speaks against the model."""
    return _are_fixed(inputs) and _elements(inputs, 0) <= _MOST_ELEMENTS


def _are_fixed(inputs: Sequence[TensorMetadata]) -> bool:
    return all(-1 not in tensor.shape[1:] for tensor in inputs)


def _elements(inputs: Sequence[TensorMetadata], free_size: int) -> int:
    return sum(math.prod(_shape(tensor, 1, free_size)) for tensor in inputs)


def _made_up(inputs: Sequence[TensorMetadata], free_size: int, rows_differ: bool) -> Feed:
    def feed(rows: int) -> dict[str, Array]:
        random = np.random.default_rng(0)
        return {tensor.name: _values(tensor, _shape(tensor, rows, free_size), rows_differ, random) for tensor in inputs}

    return feed


def _shape(tensor: TensorMetadata, rows: int, free_size: int) -> tuple[int, ...]:
    sizes = (rows, *[free_size] * len(tensor.shape))
    return tuple(size if dim == -1 else dim for dim, size in zip(tensor.shape, sizes, strict=False))


def _values(tensor: TensorMetadata, shape: tuple[int, ...], rows_differ: bool, random: np.random.Generator) -> Array:
    """Floats in [0, 1); whole numbers and booleans are 0 in even rows and 1 in odd ones; BYTES are empty."""
    dtype = DATATYPES[tensor.datatype].dtype
    if tensor.datatype == "BYTES":
        return np.full(shape, b"", dtype=object)
    if not rows_differ or not shape:
        return np.zeros(shape, dtype)
    if dtype.kind == "f":
        return random.random(shape).astype(dtype)
    parity = (np.arange(shape[0]) % 2).reshape(-1, *[1] * (len(shape) - 1))
    return np.broadcast_to(parity, shape).astype(dtype)


# --- how long batches take ------------------------------------------------------------------------------------------

# Readiness must not wait for 64 rows of a large network: doubling stops when the next size, run twice, would not fit.
_MEASURING_S = 1.0
# Nor may the inputs take more memory than a request may (the default of max_body_bytes).
_MOST_BYTES = 64 * 1024 * 1024
# The first run of a shape allocates and does not count; the shortest of the others is what the batch takes when nothing
# disturbs it.
_RUNS_OF_A_SIZE = 4


def measure_curve(run: Run, feed: Feed, max_rows: int, clock: Callable[[], float]) -> dict[int, float]:
    """Rows to seconds for batches of 1, 2, 4, ... rows in this order, `max_rows` included where time allows. At least
    one row.

    All sizes take turns, so that a disturbance meets all of them: what counts is how they compare. Where one row alone
    takes so long that there is no time for a second run, its first one is what is told.
    Raises what `run` raises.
    """
    until_s = clock() + _MEASURING_S
    inputs, first_s = _first_runs(run, feed, max_rows, clock)
    # Making the inputs up may have taken long.
    until_s = max(until_s, clock() + _MEASURING_S / 2)
    measured: dict[int, float] = {}
    for turn in range(_RUNS_OF_A_SIZE - 1):
        # Where time ends within the first turn the largest sizes are left out; behind it none is left with less runs.
        for rows in reversed(inputs) if turn else inputs:
            expected_s = measured.get(rows, first_s[rows])
            if clock() + expected_s > until_s:
                return measured or {1: first_s[1]}
            measured[rows] = min(_timed(run, inputs[rows], clock), measured.get(rows, math.inf))
    return measured


def _first_runs(
    run: Run, feed: Feed, max_rows: int, clock: Callable[[], float]
) -> tuple[dict[int, dict[str, Array]], dict[int, float]]:
    """Inputs and seconds by rows, of as many sizes as there is time to run once more."""
    began = clock()
    inputs: dict[int, dict[str, Array]] = {}
    first_s: dict[int, float] = {}
    for rows in _doubling(max_rows):
        arrays = feed(rows)
        if inputs and sum(array.nbytes for array in arrays.values()) > _MOST_BYTES:
            break
        inputs[rows], first_s[rows] = arrays, _timed(run, arrays, clock)
        # So far, all of these again, and the next size twice.
        if clock() - began + sum(first_s.values()) + 4 * first_s[rows] > _MEASURING_S:
            break
    return inputs, first_s


def _doubling(max_rows: int) -> Iterator[int]:
    rows = 1
    while rows < max_rows:
        yield rows
        rows *= 2
    yield max_rows


def _timed(run: Run, inputs: dict[str, Array], clock: Callable[[], float]) -> float:
    started = clock()
    run(inputs)
    return max(clock() - started, 1e-7)
