"""Is axis 0 of a model really rows that do not see each other? Asked by running it, before requests share a batch.

A model that mixes rows (a mean over the batch, one quantisation scale for all of it, statistics of the batch) gives
wrong answers in silence once strangers' rows stand beside each other. So a few rows are answered alone and again side
by side: two ordinary rows that differ, one a thousand times as large and one a thousand times as small, in both orders.
This is evidence and no proof: interference that needs other values than these to show is not seen.
Knows no session: the function that runs the model is passed in.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np

from service.errors import InferenceFailed, RequestMismatch
from service.golden import Run, difference_of, relative_tolerance, widening
from service.protocol import Array

# Two kernels may be chosen for two batch sizes, so a row alone and the same row among others need not agree bit for
# bit. Allowed is this multiple of the golden tolerance, 1e-3 for FP32, as a part of the row's own largest answer: one
# common scale would hide a small row's damage behind its large neighbour. Rounding stays far below, interference far
# above, because a neighbour is a thousand times as large.
_ROUNDING_SLACK = 10
_MOST_ROUNDING = 0.25
"""However coarse the datatype; beyond it a row that has vanished beside its neighbour might pass."""
# A row's answer counts as no smaller than this part of the ordinary rows' answers: what a tiny row leaves after
# cancellation is rounding of the larger numbers on the way.
_SMALLEST_PART = 0.01
# Should rows disagree all the same, the row is asked again with its inputs moved by a few units in the last place. If
# that alone moves its answer by a tenth of the disagreement, the row stands on an edge (a tie of two classes, a
# logarithm near 0) and shows nothing about its neighbours.
_NUDGE_ULP = 4
_NUDGE_FACTOR = 10

_LARGE, _MODERATE, _SMALL = 1e3, 30.0, 1e-3
# For whole numbers, whose zero is the small value. Refused as an index by many a model, which then keeps its own.
_LARGE_INTEGER = 1000

Change = Callable[[Array], Array]
Inputs = Mapping[str, Array]


class Rows(Enum):
    """What running the model tells about its rows."""

    INDEPENDENT = "rows are independent, as far as probes show"
    INTERFERE = "rows are not independent"
    UNKNOWN = "no probe can tell"


@dataclass(frozen=True, slots=True)
class Verdict:
    """`reason` says what was seen; empty when INDEPENDENT."""

    rows: Rows
    reason: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class _Probe:
    """One row, and what the model answers to it alone."""

    inputs: Inputs
    answer: Mapping[str, Array]


def probe_rows(known: Inputs, run: Run, most_rows: int = 3, *, bf16: Collection[str] = ()) -> Verdict:
    """Runs single rows, then batches of at most `most_rows` (at least 2) of them, and compares.

    `known`: inputs with rows along axis 0, at least one, of a kind that the model accepts; they need not differ.
    `bf16`: names of the outputs that are bit patterns of BF16.
    Costs some four runs of one row (a few more when the model refuses values), one of two and two of three.
    """
    run = widening(run, bf16)
    try:
        first = _row(known, 0)
        one = _Probe(first, run(first))
    except (InferenceFailed, RequestMismatch) as error:
        return Verdict(Rows.UNKNOWN, f"one row alone fails: {error}")
    other = _accepted(_others(known, one.inputs), one, run)
    if other is None:
        return Verdict(Rows.UNKNOWN, "no two rows that differ were found that the model accepts")
    # Not made from zeros where the other row has more to offer.
    base = {name: other.inputs[name] if _has_numbers(other.inputs[name]) else array for name, array in first.items()}
    large = _accepted(_changed(base, _TO_LARGE), one, run, finite=True) or other
    small = _accepted(_changed(base, _TO_SMALL), one, run, finite=True) or one
    batches = [(one, other), (small, one, large), (large, other, small)]
    for batch in batches:
        if reason := _interference(batch[:most_rows], (one, other), run, bf16):
            return Verdict(Rows.INTERFERE, reason)
    # Text that no vocabulary knows, say: the inputs differ, but nothing behind the first node does.
    if all(_same(one.answer, probe.answer) for probe in (other, small, large)):
        return Verdict(Rows.UNKNOWN, "rows that differ are all answered alike, so interference would not show")
    return Verdict(Rows.INDEPENDENT)


# --- comparing ----------------------------------------------------------------------------------------------------


def _interference(batch: Sequence[_Probe], ordinary: Sequence[_Probe], run: Run, bf16: Collection[str]) -> str:
    """What differs between the rows of `batch` together and each alone; empty when nothing does."""
    count = {2: "two", 3: "three"}[len(batch)]
    try:
        together = run({name: np.concatenate([row.inputs[name] for row in batch]) for name in batch[0].inputs})
    except (InferenceFailed, RequestMismatch) as error:
        return f"{count} rows together fail, though each alone does not: {error}"
    for name, answers in together.items():
        alone = [row.answer[name] for row in batch]
        if any(piece.shape != (1, *answers.shape[1:]) for piece in alone) or answers.shape[:1] != (len(batch),):
            shapes = " and ".join(str(list(shape)) for shape in dict.fromkeys(piece.shape for piece in alone))
            return f"output {name!r} has shape {list(answers.shape)} for {count} rows, {shapes} for one"
        allowed_part = min(_ROUNDING_SLACK * relative_tolerance(answers, is_bf16=name in bf16), _MOST_ROUNDING)
        floor = _SMALLEST_PART * min(_scale(row.answer[name]) for row in ordinary)
        for position, row in enumerate(batch):
            difference = _largest_difference(answers[position : position + 1], alone[position])
            allowed = allowed_part * max(_scale(alone[position]), floor)
            if not difference <= allowed and not _stands_on_an_edge(row, name, difference, run):
                return (
                    f"output {name!r} of {count} rows together differs from one by one by {difference:.3g} "
                    f"(rounding explains {allowed:.2g})"
                )
    return ""


def _largest_difference(actual: Array, expected: Array) -> float:
    return float(np.max(difference_of(actual, expected), initial=0.0))


def _same(one: Mapping[str, Array], other: Mapping[str, Array]) -> bool:
    return all(_largest_difference(other[name], array) == 0 for name, array in one.items())


def _scale(answer: Array) -> float:
    """Largest finite magnitude; 0 for what is not floating point, where nothing is rounded."""
    if answer.dtype.kind != "f":
        return 0.0
    return float(np.max(np.abs(answer[np.isfinite(answer)].astype(np.float64)), initial=0.0))


def _stands_on_an_edge(row: _Probe, output: str, difference: float, run: Run) -> bool:
    moved = 0.0
    for direction in (1, -1):
        nudged = {name: _nudged(array, direction) for name, array in row.inputs.items()}
        if _equal(nudged, row.inputs):
            return False
        try:
            moved = max(moved, _largest_difference(run(nudged)[output], row.answer[output]))
        except (InferenceFailed, RequestMismatch):
            continue
    return difference <= _NUDGE_FACTOR * moved


# --- rows to compare ----------------------------------------------------------------------------------------------


def _row(known: Inputs, index: int) -> dict[str, Array]:
    return {name: array[index : index + 1] for name, array in known.items()}


def _others(known: Inputs, one: Inputs) -> Iterator[Inputs]:
    """Rows that may differ from `one`: first the known row that differs in most inputs, the rest of it changed."""
    number_of_rows = min(len(array) for array in known.values())
    differing = [sum(not _equal_arrays(array[i : i + 1], one[name]) for name, array in known.items())
                 for i in range(number_of_rows)]  # fmt: skip
    best = _row(known, int(np.argmax(differing)))
    for changed in _changed(one, _TO_OTHER):
        yield {name: changed[name] if _equal_arrays(array, one[name]) else array for name, array in best.items()}
    yield best
    yield from _changed(one, _TO_OTHER)


def _accepted(candidates: Iterable[Inputs], one: _Probe, run: Run, *, finite: bool = False) -> _Probe | None:
    """The first candidate that differs from `one` and that the model answers; when `finite`, with no more NaN and
    infinities than it has in `one`: their neighbourhood is where rounding alone may decide."""
    tried: list[Inputs] = [one.inputs]
    for inputs in candidates:
        if any(_equal(inputs, before) for before in tried):
            continue
        tried.append(inputs)
        try:
            answer = run(inputs)
        except (InferenceFailed, RequestMismatch):
            continue
        if not finite or _not_finite(answer) <= _not_finite(one.answer):
            return _Probe(inputs, answer)
    return None


def _not_finite(answer: Mapping[str, Array]) -> int:
    return sum(int(np.sum(~np.isfinite(array))) for array in answer.values() if array.dtype.kind == "f")


def _equal(a: Inputs, b: Inputs) -> bool:
    return all(_equal_arrays(array, b[name]) for name, array in a.items())


def _equal_arrays(a: Array, b: Array) -> bool:
    return np.array_equal(a, b, equal_nan=a.dtype.kind == "f")


def _has_numbers(array: Array) -> bool:
    return array.dtype.kind == "O" or bool(np.any(array))


def _changed(inputs: Inputs, ways: Sequence[Mapping[str, Change]]) -> Iterator[Inputs]:
    """`inputs` changed in each of the `ways`; a kind of datatype that a way does not name stays as it is."""
    for way in ways:
        yield {name: way.get(array.dtype.kind, _kept)(array) for name, array in inputs.items()}


def _kept(array: Array) -> Array:
    return array


def _moved(array: Array) -> Array:
    """Other values of about the same size and range: moved on by one place, scaled, and a little added to each."""
    values = np.nan_to_num(array.astype(np.float64), posinf=0.0, neginf=0.0)
    size = float(np.max(np.abs(values), initial=0.0)) or 1.0
    added = np.random.default_rng(0).random(values.shape) * size / 8
    return (np.roll(values, 1) * 0.75 + added).astype(array.dtype)


def _moved_integers(array: Array) -> Array:
    """Moved on by one place; where that changes nothing, one less, so that an index stays one (0 becomes 1)."""
    moved = np.roll(array, 1)
    return moved if not np.array_equal(moved, array) else np.where(array > 0, array - 1, 1).astype(array.dtype)


def _scaled(factor: float, *, alternating: bool = False) -> Change:
    """Alternating: every second sign turned, so that a mean, a largest and a smallest value all change."""

    def change(array: Array) -> Array:
        values = np.nan_to_num(array.astype(np.float64), posinf=0.0, neginf=0.0)
        if not values.any():
            values = np.ones_like(values)
        if alternating:
            values = values * (1 - 2 * (np.arange(values.size) % 2)).reshape(values.shape)
        most = float(np.finfo(array.dtype).max)
        return np.clip(values * factor, -most, most).astype(array.dtype)

    return change


def _nudged(array: Array, direction: int) -> Array:
    """Neighbouring elements moved apart by a few units in the last place; only floating point has such."""
    if array.dtype.kind != "f":
        return array
    signs = direction * (1 - 2 * (np.arange(array.size) % 2)).reshape(array.shape)
    return (array + signs * _NUDGE_ULP * np.spacing(np.abs(array))).astype(array.dtype)


def _large_integers(array: Array) -> Array:
    return np.full_like(array, min(_LARGE_INTEGER, np.iinfo(array.dtype).max))


def _texts(write: Callable[[bytes], bytes]) -> Change:
    def change(array: Array) -> Array:
        written = np.empty(array.size, dtype=object)
        written[:] = [write(element) for element in array.ravel()]
        return written.reshape(array.shape)

    return change


_more_words = _texts(lambda text: text + b" and " + text)
_a_digit_more = _texts(lambda text: b"1" + text)
_many_words = _texts(lambda text: b" ".join([text, *[b"word"] * 100]))
_no_text = _texts(lambda text: text[:0])

# Ways to change each kind of datatype (NumPy's letters: f, i, u, b, and O for BYTES), tried in this order until the
# model accepts one. Not every model takes any text, index or sign; the last ways touch floating point alone.
_TO_OTHER: tuple[Mapping[str, Change], ...] = (
    {"f": _moved, "i": _moved_integers, "u": _moved_integers, "b": np.logical_not, "O": _more_words},
    {"f": _moved, "i": _moved_integers, "u": _moved_integers, "b": np.logical_not, "O": _a_digit_more},
    {"f": _moved},
)
_signed = _scaled(_LARGE, alternating=True)
_TO_LARGE: tuple[Mapping[str, Change], ...] = (
    {"f": _signed, "i": _large_integers, "u": _large_integers, "b": np.ones_like, "O": _many_words},
    {"f": _signed},
    {"f": _scaled(_LARGE)},
    {"f": _scaled(_MODERATE)},
)
_TO_SMALL: tuple[Mapping[str, Change], ...] = (
    {"f": _scaled(_SMALL), "i": np.zeros_like, "u": np.zeros_like, "b": np.zeros_like, "O": _no_text},
    {"f": _scaled(_SMALL)},
)
