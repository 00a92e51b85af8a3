"""Golden samples: inputs beside a model file, and what the unfolded source model answered to them.

Reads golden.npz (layout: repository.py) and judges whether a run on this very machine reproduces it. Knows no session:
the function that runs the model is passed in, and so is how many rows it takes at once.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np

from service.datatypes import DATATYPES, widened_bf16
from service.errors import InferenceFailed, ModelRejected, RequestMismatch
from service.protocol import Array, TensorMetadata
from service.repository import (
    GOLDEN_FILE,
    GOLDEN_INPUT_PREFIX,
    GOLDEN_OUTPUT_PREFIX,
    GoldenRecord,
    VersionDirectory,
)

Run = Callable[[Mapping[str, Array]], dict[str, Array]]

# Largest difference allowed where no report says it, as a part of the output's own scale (its largest finite
# magnitude, at least 0.01: what is meant to be zero carries the rounding of larger things). Other datatypes must agree
# exactly. These are judgements, not bounds: rounding of a deep network lies far below, a wrong weight far above. A
# report's tolerance, measured at publishing, always goes first.
RELATIVE_TOLERANCE = {"FP16": 1e-2, "FP32": 1e-4, "FP64": 1e-9}
BF16_RELATIVE_TOLERANCE = 8e-2
"""As many of its last places as FP16's. Apart, because NumPy does not know the datatype: here it travels as float32."""
_SMALLEST_SCALE = 0.01

# A report's tolerance may be at most this part of the largest golden answer: beyond it, an output of nothing but zeros
# begins to look right, and the check says nothing. What publishing measures lies near 1e-5 of the scale in FP32 and
# within some percent in FP16, so a larger number is a mistake or a deception.
LARGEST_RELATIVE_TOLERANCE = 0.25


@dataclass(frozen=True, slots=True, eq=False)
class GoldenSamples:
    """inputs, outputs: by tensor name, samples along axis 0. tolerance: by output name, absolute.

    bf16: names of the outputs that are BF16, in `outputs` as the same numbers in float32.
    """

    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]
    tolerance: Mapping[str, float]
    bf16: frozenset[str] = frozenset()

    @property
    def rows(self) -> int:
        """Length of axis 0, 1 when an input has none."""
        return min(len(array) if array.ndim else 1 for array in self.inputs.values())


def bf16_names(tensors: Sequence[TensorMetadata]) -> frozenset[str]:
    return frozenset(tensor.name for tensor in tensors if tensor.datatype == "BF16")


def widening(run: Run, bf16: Collection[str]) -> Run:
    """`run`, but outputs in `bf16` come as the same numbers in float32, so that their differences mean something."""
    if not bf16:
        return run

    def run_widening(inputs: Mapping[str, Array]) -> dict[str, Array]:
        return {name: widened_bf16(array) if name in bf16 else array for name, array in run(inputs).items()}

    return run_widening


def read_golden(
    version: VersionDirectory,
    record: GoldenRecord | None,
    inputs: Sequence[TensorMetadata],
    outputs: Sequence[TensorMetadata],
) -> GoldenSamples | None:
    """The golden samples of a version, None when it has none and no report promises any.

    Raises ModelRejected when the file is missing though promised, damaged, or does not fit the model.
    """
    if version.stands_alone or not version.golden_path.exists():
        if record is not None:
            raise ModelRejected(f"{GOLDEN_FILE} is missing, but report.json promises {record.samples} golden samples")
        return None
    if not version.golden_path.is_file():  # opening a named pipe would wait for a writer, for ever
        raise ModelRejected(f"{GOLDEN_FILE} is not a regular file")
    arrays = _read_arrays(version)
    bf16 = bf16_names(outputs)
    answers = {
        tensor.name: _array(arrays, GOLDEN_OUTPUT_PREFIX, tensor)
        for tensor in outputs
        if GOLDEN_OUTPUT_PREFIX + tensor.name in arrays
    }
    samples = GoldenSamples(
        inputs={tensor.name: _array(arrays, GOLDEN_INPUT_PREFIX, tensor) for tensor in inputs},
        outputs={name: widened_bf16(array) if name in bf16 else array for name, array in answers.items()},
        tolerance=record.tolerance if record else {},
        bf16=bf16,
    )
    known = {GOLDEN_INPUT_PREFIX + name for name in samples.inputs} | {
        GOLDEN_OUTPUT_PREFIX + name for name in samples.outputs
    }
    if strangers := sorted(arrays.keys() - known):
        raise ModelRejected(f"{GOLDEN_FILE}: {strangers[0]!r} is no input or output of the model")
    if not samples.outputs or not samples.inputs or not samples.rows:
        raise ModelRejected(f"{GOLDEN_FILE} holds no samples: it needs every input and at least one output")
    counts = {array.shape[:1] for array in samples.inputs.values()}
    if len(counts) > 1:
        raise ModelRejected(f"{GOLDEN_FILE}: inputs hold different numbers of samples")
    for tensor in inputs:
        if tensor.shape[:1] > (0,) and samples.rows % tensor.shape[0]:
            raise ModelRejected(
                f"{GOLDEN_FILE} holds {samples.rows} samples, but input {tensor.name!r} has shape "
                f"{list(tensor.shape)}: it needs a multiple of {tensor.shape[0]}"
            )
    if record is not None:
        _check_record(record, samples)
    return samples


@dataclass(frozen=True, slots=True)
class GoldenVerdict:
    """How well golden answers were reproduced: by output, the largest difference and what was allowed."""

    samples: int
    difference: Mapping[str, float]
    tolerance: Mapping[str, float]

    def __str__(self) -> str:
        """For the log."""
        return f"{self.samples} samples, largest difference {max(self.difference.values()):.2g}"


def check_golden(samples: GoldenSamples, run: Run, rows_at_once: int) -> GoldenVerdict:
    """Runs the samples, `rows_at_once` at a time.

    Raises ModelRejected, naming output, sample, difference and tolerance, when they are not reproduced.
    """
    run = widening(run, samples.bf16)
    answers = []
    for start in range(0, samples.rows, rows_at_once):
        piece = {name: array[start : start + rows_at_once] if array.ndim else array
                 for name, array in samples.inputs.items()}  # fmt: skip
        try:
            answers.append(run(piece))
        except (InferenceFailed, RequestMismatch) as error:  # both: here, inputs that do not fit are the files' fault
            raise ModelRejected(f"golden check: the model fails on its own golden samples: {error}") from error
    found: dict[str, float] = {}
    allowed: dict[str, float] = {}
    for name, expected in samples.outputs.items():
        actual = _rejoined([answer[name] for answer in answers])
        difference = difference_of(actual, expected)
        tolerance = samples.tolerance.get(name, default_tolerance(expected, is_bf16=name in samples.bf16))
        # Written so that a NaN on either side is a failure.
        if not float(np.max(difference, initial=0.0)) <= tolerance:
            raise ModelRejected(_told(name, actual, expected, difference, tolerance))
        found[name], allowed[name] = float(np.max(difference, initial=0.0)), tolerance
    return GoldenVerdict(samples.rows, found, allowed)


def difference_of(actual: Array, expected: Array) -> Array:
    """Absolute difference of each element, in float64. Equal infinities and NaN in the same place count as equal;
    shapes or datatypes that differ, and BYTES or special values that do not match, count as infinite."""
    if actual.shape != expected.shape or actual.dtype != expected.dtype:
        return np.full(expected.shape or (1,), np.inf)
    if actual.dtype == object:
        return np.where(actual == expected, 0.0, np.inf)
    a, b = actual.astype(np.float64), expected.astype(np.float64)
    with np.errstate(invalid="ignore"):  # inf - inf, which the next line decides
        difference = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, np.abs(a - b))
    return np.where(np.isnan(difference), np.inf, difference)


def default_tolerance(expected: Array, *, is_bf16: bool = False) -> float:
    """The absolute tolerance for an output that no report speaks about. Zero unless it is floating point."""
    if expected.dtype.kind != "f":
        return 0.0
    values = np.abs(expected[np.isfinite(expected)].astype(np.float64))
    return relative_tolerance(expected, is_bf16=is_bf16) * float(np.max(values, initial=_SMALLEST_SCALE))


def relative_tolerance(values: Array, *, is_bf16: bool = False) -> float:
    """Zero unless they are floating point."""
    if is_bf16:
        return BF16_RELATIVE_TOLERANCE
    return next((part for name, part in RELATIVE_TOLERANCE.items() if DATATYPES[name].dtype == values.dtype), 0.0)


def _check_record(record: GoldenRecord, samples: GoldenSamples) -> None:
    """Whether report.json speaks about these samples, and says something. Raises ModelRejected."""
    if record.samples != samples.rows:
        raise ModelRejected(
            f"{GOLDEN_FILE} holds {samples.rows} samples, report.json promises {record.samples} golden samples"
        )
    for name, tolerance in record.tolerance.items():
        if name not in samples.outputs:
            raise ModelRejected(
                f"report.json has a golden tolerance for {name!r}; {GOLDEN_FILE} holds outputs "
                f"{', '.join(sorted(samples.outputs))}"
            )
        expected = samples.outputs[name]
        default = default_tolerance(expected, is_bf16=name in samples.bf16)
        most = max(LARGEST_RELATIVE_TOLERANCE * _largest(expected), default)
        if not 0 <= tolerance <= most:  # written so that NaN fails
            raise ModelRejected(
                f"report.json: golden tolerance of output {name!r} is {tolerance:.3g}, at most {most:.3g} is believed: "
                f"{LARGEST_RELATIVE_TOLERANCE:g} of the largest golden answer, beyond which the check would say nothing"
            )


def _largest(values: Array) -> float:
    """Largest finite magnitude, 0 where there is none (or nothing to measure: BYTES)."""
    if values.dtype == object:
        return 0.0
    return float(np.max(np.abs(values[np.isfinite(values)].astype(np.float64)), initial=0.0))


def _read_arrays(version: VersionDirectory) -> dict[str, Array]:
    try:
        # Opened here, because numpy.load leaves a file open that it opened and then refuses.
        with version.golden_path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ModelRejected(f"{GOLDEN_FILE} is a single array; it must be an archive made by numpy.savez")
            with archive:
                return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, KeyError, MemoryError, NotImplementedError) as error:
        raise ModelRejected(f"{GOLDEN_FILE} cannot be read: {_one_line(error)}") from error
    except (zipfile.BadZipFile, zlib.error) as error:
        raise ModelRejected(f"{GOLDEN_FILE} is damaged: {_one_line(error)}") from error


def _array(arrays: Mapping[str, Array], prefix: str, tensor: TensorMetadata) -> Array:
    key = prefix + tensor.name
    if key not in arrays:
        raise ModelRejected(f"{GOLDEN_FILE} has no {key!r}; it holds {', '.join(sorted(arrays)) or 'nothing'}")
    array = arrays[key]
    if tensor.datatype == "BYTES":
        array = _bytes_array(array)
    dtype = DATATYPES[tensor.datatype].dtype
    if array.dtype != dtype:
        raise ModelRejected(f"{GOLDEN_FILE}: {key!r} has dtype {array.dtype}, the model's {tensor.datatype} is {dtype}")
    # Axis 0 counts samples and may be longer than one request's.
    inner = zip(array.shape[1:], tensor.shape[1:], strict=False)
    if array.ndim != len(tensor.shape) or any(have != want for have, want in inner if want != -1):
        raise ModelRejected(
            f"{GOLDEN_FILE}: {key!r} has shape {list(array.shape)}, which does not fit the model's {list(tensor.shape)}"
        )
    return array


def _bytes_array(array: Array) -> Array:
    """Strings cannot be stored as objects without pickle; they come as NumPy's fixed-width text or bytes."""
    if array.dtype.kind not in "SU":
        return array
    encoded = np.char.encode(cast("np.typing.NDArray[np.str_]", array), "utf-8") if array.dtype.kind == "U" else array
    return encoded.astype(object)


def _rejoined(pieces: Sequence[Array]) -> Array:
    return pieces[0] if len(pieces) == 1 or not pieces[0].ndim else np.concatenate(pieces)


def _told(name: str, actual: Array, expected: Array, difference: Array, tolerance: float) -> str:
    if actual.shape != expected.shape or actual.dtype != expected.dtype:
        return (
            f"golden check: output {name!r} is {actual.dtype}{list(actual.shape)}, "
            f"the golden answer is {expected.dtype}{list(expected.shape)}"
        )
    place = np.unravel_index(int(np.argmax(difference)), difference.shape)
    sample = int(place[0]) if place else 0
    return (
        f"golden check: output {name!r} differs from the golden answer by {float(np.max(difference)):.3g} at sample "
        f"{sample}, allowed is {tolerance:.3g}; the file, or this machine, does not compute what was published"
    )


def _one_line(error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return (text.strip().splitlines() or [type(error).__name__])[0]
