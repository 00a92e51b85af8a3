"""Inputs that bring mistakes of a fold to light: real ones, zeros, ones, one-hot borders, large values, noise.

Knows a graph's inputs (names, types, shapes); evaluates it only to find out whether guessed sizes fit.
Zeros and ones show a wrong shift; a single hot pixel at the border shows a shift that was carried through zero padding;
large values show a wrong scale against the clamp of an activation.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from training.errors import UserError
from training.reference import EvaluationFailed, UnsupportedOperator, evaluate, float_format, is_float
from training.reference.op import Array

ROWS = 2  # for a symbolic batch axis: enough that rows differ; the proof's time is proportional to it
HELD_OUT_ROWS = 64  # of real data in one run when the batch axis is symbolic
# Tried in this order for other symbolic sizes: cheap first, then the customary sizes of images.
SIZES = (32, 64, 16, 224, 8, 28, 96, 128, 112, 160, 192, 256, 299, 4, 2, 1)
_LARGEST_ELEMENT = 16  # bytes

Dims = tuple[int | str | None, ...]
Fill = Callable[[str], Array]
"""From an input's name to one array for it."""


class CannotMakeSamples(UserError):
    """The graph says too little about its inputs. The text names the input, what was tried, and the option to use."""


class Sample(dict[str, Array]):
    """One set of inputs by name, with a label that says what it is (shown when a comparison fails).

    `spare`: the others show most of what it shows; it may be left out where an evaluation takes very long.
    `origin`: the file that somebody gave it in, and the rows there; empty for one that was made.
    """

    def __init__(self, arrays: Mapping[str, Array], label: str, *, spare: bool = False, origin: str = "") -> None:
        super().__init__(arrays)
        self.label = label
        self.spare = spare
        self.origin = origin

    def with_arrays(self, more: Mapping[str, Array]) -> Sample:
        """The same sample, of these arrays too."""
        return Sample({**self, **more}, self.label, spare=self.spare, origin=self.origin)


def make_samples(
    model: ir.Model,
    held_out: Sequence[Mapping[str, Array]] | None = None,
    seed: int = 0,
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> list[Sample]:
    """Held-out inputs first, then zeros, ones, hot border pixels, large values, normal noise and, where sizes are free,
    noise of another size.

    Args:
        model: Inputs that have an initializer are left to it.
        held_out: Real inputs, each a full set by name; cast to the graph's input types.
        seed: Of the noise.
        shapes: Full shapes for inputs whose own have symbolic sizes. Without it a symbolic first axis gets `ROWS` rows
            and other symbolic sizes are guessed and tried.

    Raises:
        CannotMakeSamples: A shape or a type that leaves no sensible guess, or held-out arrays that do not fit.
    """
    inputs = _free_inputs(model)
    samples = [check_sample(model, arrays, f"held-out {i}") for i, arrays in enumerate(held_out or ())]
    if samples and not shapes:  # real inputs know the sizes better than any guess
        resolved = {name: samples[0][name].shape for name in inputs}
    else:
        resolved = _resolve_shapes(model, inputs, shapes or {})
    generator = np.random.default_rng(seed)
    dtypes = {name: _dtype(name, value) for name, value in inputs.items()}
    for label, fill, spare in _fills(resolved, dtypes, generator):
        samples.append(Sample({name: fill(name) for name in inputs}, label, spare=spare))
    if other := _other_sizes(model, inputs, resolved):
        made = {name: noise(other[name], dtypes[name], generator) for name in inputs}
        samples.append(Sample(made, "noise of other sizes"))
    return samples


def more_like(samples: Sequence[Mapping[str, Array]], seed: int) -> Iterator[Sample]:
    """An endless supply: noise with each input's own mean and spread; integers and bools drawn from what was seen."""
    generator = np.random.default_rng((seed, 1))
    for number in itertools.count():
        yield Sample(
            {name: _resembling([s[name] for s in samples], generator) for name in samples[0]}, f"more {number}"
        )


def cut_rows(model: ir.Model, arrays: Mapping[str, Array], source: str = "samples") -> list[Sample]:
    """Arrays with any number of rows, as an .npz holds them, cut into sets that the graph's batch axis accepts.

    A static batch of b takes b rows at a time (a remainder is left out); a symbolic one up to `HELD_OUT_ROWS`.
    `source`: the file's path, with which the text of CannotMakeSamples begins. Arrays that are no input's are left out.
    """
    inputs = _free_inputs(model)
    if len(inputs) == 1 and len(arrays) == 1 and set(arrays) != set(inputs):
        arrays = dict(zip(inputs, arrays.values(), strict=True))  # one input, one array: its name does not matter
    if missing := sorted(set(inputs) - set(arrays)):
        raise CannotMakeSamples(f"{source}: no array for input {missing[0]!r}; found {sorted(arrays)}")
    static = {s[0] for value in inputs.values() if (s := _dims(value)) and isinstance(s[0], int)}
    if len(static) > 1 or any(np.ndim(arrays[name]) == 0 for name in inputs):
        whole = {name: np.asarray(arrays[name]) for name in inputs}  # no common row axis: one set as it is
        return [check_sample(model, Sample(whole, source, origin=source), source)]
    rows = min(len(arrays[name]) for name in inputs)
    step = static.pop() if static else min(rows, HELD_OUT_ROWS)
    if rows < (least := max(step, 1)):
        raise CannotMakeSamples(
            f"{source}: holds {rows or 'no'} row{'s' * (rows != 1)} along axis 0, expected at least {least}"
            + (", which the graph takes at a time" if least > 1 else "")
        )
    pieces = []
    for at in range(0, rows - step + 1, step):
        origin = source if step == rows else f"{source}, rows {at + 1} to {at + step}"
        piece = Sample({name: np.asarray(arrays[name])[at : at + step] for name in inputs}, source, origin=origin)
        pieces.append(check_sample(model, piece, source))
    return pieces


def check_sample(model: ir.Model, arrays: Mapping[str, Array], label: str) -> Sample:
    """The same arrays in the graph's own types. Raises CannotMakeSamples when names or shapes do not fit."""
    inputs = _free_inputs(model)
    every = {value.name or "": value for value in model.graph.inputs}
    if missing := sorted(set(inputs) - set(arrays)):
        raise CannotMakeSamples(f"{label}: no array for input {missing[0]!r}; found {sorted(arrays)}")
    if unknown := sorted(set(arrays) - set(every)):
        raise CannotMakeSamples(f"{label}: the graph has no input {unknown[0]!r}; it has {sorted(every)}")
    checked = {}
    for name, array in arrays.items():
        _check_shape(f"{label}: input {name!r}", every[name], np.shape(array))
        checked[name] = _cast(f"{label}: input {name!r}", np.asarray(array), _dtype(name, every[name]))
    return Sample(checked, label, spare=getattr(arrays, "spare", False), origin=getattr(arrays, "origin", ""))


def _cast(what: str, array: Array, dtype: np.dtype) -> Array:
    try:
        if array.dtype.kind != "c" or dtype.kind == "c":
            with np.errstate(over="ignore", invalid="ignore"):  # NaN among indices, say: the graph is what judges them
                return array.astype(dtype, copy=False)
    except (TypeError, ValueError):  # words
        pass
    raise CannotMakeSamples(f"{what}: holds {array.dtype}, which does not become the graph's {dtype}")


def check_answers(answers: Mapping[str, Array], sample: Mapping[str, Array]) -> None:
    """Answers to real inputs must show something: NaN is like any other NaN, whatever became of the graph.

    Raises CannotMakeSamples where there are floating-point answers to a sample of somebody's, but no finite number.
    """
    floats = {name: array for name, array in answers.items() if is_float(array.dtype) and array.size}
    origin = getattr(sample, "origin", "")
    if origin and floats and not any(np.isfinite(array.astype(np.float64)).any() for array in floats.values()):
        raise CannotMakeSamples(
            f"{origin}: no finite number in output {' or '.join(map(repr, floats))} for these inputs, so that nothing "
            f"can be compared; give inputs for which there is one"
        )


def _free_inputs(model: ir.Model) -> dict[str, ir.Value]:
    return {value.name or "": value for value in model.graph.inputs if value.const_value is None}


def _dims(value: ir.Value) -> Dims | None:
    """Sizes as the file gives them: a number, a symbol's name, or None for an unnamed unknown."""
    if value.shape is None:
        return None
    return tuple(size if isinstance(size, int) else size.value for size in value.shape)


def _dtype(name: str, value: ir.Value) -> np.dtype:
    if not isinstance(value.type, ir.TensorType) or value.dtype in (None, ir.DataType.STRING, ir.DataType.UNDEFINED):
        raise CannotMakeSamples(f"input {name!r} is {value.type}; samples can be made for number and bool tensors only")
    assert value.dtype is not None
    return value.dtype.numpy()


def _check_shape(what: str, value: ir.Value, given: Sequence[int]) -> None:
    dims = _dims(value)
    if dims is None:
        return
    fits = len(dims) == len(given) and all(not isinstance(d, int) or d == g for d, g in zip(dims, given, strict=True))
    if not fits:
        raise CannotMakeSamples(f"{what}: shape {list(given)} does not fit {_spelled(dims)}")


def _spelled(dims: Iterable[int | str | None]) -> str:
    return "[" + ", ".join("?" if d is None else str(d) for d in dims) + "]"


def _resolve_shapes(
    model: ir.Model, inputs: Mapping[str, ir.Value], given: Mapping[str, Sequence[int]]
) -> dict[str, tuple[int, ...]]:
    """Static shapes as they are, given ones checked, the rest guessed and tried by evaluating zeros."""
    for name, shape in given.items():
        if name not in inputs:
            raise CannotMakeSamples(f"--input-shape: the graph has no input {name!r}; it has {sorted(inputs)}")
        if not all(isinstance(size, int) and size > 0 for size in shape):
            raise CannotMakeSamples(f"--input-shape {name}: {list(shape)} is not a list of positive sizes")
        _check_shape(f"--input-shape {name}", inputs[name], shape)
    dims: dict[str, Dims] = {}
    for name, value in inputs.items():
        known = tuple(given[name]) if name in given else _dims(value)
        if known is None:
            raise CannotMakeSamples(
                f"input {name!r} has no shape in the file; give one: --input-shape {name}=1,3,224,224"
            )
        if math.prod(size or 1 for size in known if isinstance(size, int)) > sys.maxsize // _LARGEST_ELEMENT:
            raise CannotMakeSamples(f"input {name!r}: no machine holds an array of shape {_spelled(known)}")
        dims[name] = known
    if all(isinstance(size, int) for known in dims.values() for size in known):
        return dims  # type: ignore[return-value]  # no symbol is among them
    return _guess(model, inputs, dims)


def _guess(model: ir.Model, inputs: Mapping[str, ir.Value], dims: Mapping[str, Dims]) -> dict[str, tuple[int, ...]]:
    batch_only = all(isinstance(size, int) for known in dims.values() for size in known[1:])
    reason = ""
    for rows, size in itertools.product((ROWS, 1), (1,) if batch_only else SIZES):
        symbols: dict[str | int | None, int] = {
            known[0]: rows for known in dims.values() if known and isinstance(known[0], str)
        }
        shapes = {name: _substituted(known, symbols, rows, size) for name, known in dims.items()}
        zeros = {name: np.zeros(shapes[name], dtype=_dtype(name, value)) for name, value in inputs.items()}
        try:
            evaluate(model, zeros)
        except EvaluationFailed as error:
            reason = reason or str(error)
            continue
        except UnsupportedOperator:  # they fit as far as can be seen
            return shapes
        return shapes
    name, known = next((n, k) for n, k in dims.items() if not all(isinstance(size, int) for size in k))
    tried = (
        f"batches of {ROWS} and 1" if batch_only else f"batches of {ROWS} and 1 with sizes {', '.join(map(str, SIZES))}"
    )
    raise CannotMakeSamples(
        f"input {name!r}: shape {_spelled(known)} has symbolic sizes, and none of those tried fits ({tried}; first: "
        f"{reason}); give the shape: --input-shape {name}=1,3,224,224"
    )


def _other_sizes(
    model: ir.Model, inputs: Mapping[str, ir.Value], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, tuple[int, ...]] | None:
    """Each free size but the batch larger by one: what holds for an even size may not for an odd one, where a stride
    leaves more or less of the border. None where nothing is free, or the graph does not take such sizes."""
    other = {}
    for name, shape in shapes.items():
        axes = enumerate(zip(shape, _dims(inputs[name]) or shape, strict=True))
        other[name] = tuple(size + (axis > 0 and not isinstance(dim, int)) for axis, (size, dim) in axes)
    if other == dict(shapes):
        return None
    try:
        evaluate(model, {name: np.zeros(shape, dtype=_dtype(name, inputs[name])) for name, shape in other.items()})
    except (EvaluationFailed, UnsupportedOperator):
        return None
    return other


def _substituted(known: Dims, symbols: Mapping[str | int | None, int], rows: int, size: int) -> tuple[int, ...]:
    return tuple(
        d
        if isinstance(d, int)
        else symbols.get(d, rows if axis == 0 else size)
        if d is not None
        else (rows, size)[axis > 0]
        for axis, d in enumerate(known)
    )


def _fills(
    shapes: Mapping[str, tuple[int, ...]],
    dtypes: Mapping[str, np.dtype],
    generator: np.random.Generator,
) -> Iterator[tuple[str, Fill, bool]]:
    """Label and rule of each made sample, in order; and whether it is to spare."""
    yield "zeros", lambda name: np.zeros(shapes[name], dtype=dtypes[name]), False
    yield "ones", lambda name: np.ones(shapes[name], dtype=dtypes[name]), True
    hot = {name: list(_one_hot(shape, dtypes[name])) for name, shape in shapes.items()}
    for i in range(max((len(arrays) for arrays in hot.values()), default=0)):
        yield f"one-hot borders {i}", lambda name, i=i: hot[name][i % len(hot[name])], i > 0  # type: ignore[misc]
    for label, factor in (("noise times 1000", 1e3), ("noise times 10000", 1e4), ("noise 0", 1.0), ("noise 1", 1.0)):
        spare = label in ("noise times 10000", "noise 1")
        yield label, lambda name, f=factor: noise(shapes[name], dtypes[name], generator, f), spare  # type: ignore[misc]


def _one_hot(shape: tuple[int, ...], dtype: np.dtype) -> Iterator[Array]:
    """One pixel at the first or last index of each spatial axis (and of all), packed into the rows there are."""
    if 0 in shape:
        yield np.zeros(shape, dtype=dtype)
        return
    if len(shape) < 2:
        for end in (0, -1):
            x = np.zeros(shape, dtype=dtype)
            x[end if shape else ()] = 1
            yield x
        return
    channels, spatial = (shape[1], shape[2:]) if len(shape) > 2 else (1, shape[1:])
    middle = [size // 2 for size in spatial]
    pixels = [[*middle[:a], e, *middle[a + 1 :]] for a in range(len(spatial)) for e in (0, spatial[a] - 1)]
    pixels += [[0] * len(spatial), [size - 1 for size in spatial]]
    value = 255 if dtype == np.uint8 else 1
    for start in range(0, len(pixels), max(shape[0], 1)):
        x = np.zeros(shape, dtype=dtype)
        for row, pixel in enumerate(pixels[start : start + shape[0]]):
            channel = ((start + row) % channels,) if len(shape) > 2 else ()
            x[(row, *channel, *pixel)] = value
        yield x


def noise(
    shape: tuple[int, ...],
    dtype: np.dtype,
    generator: np.random.Generator,
    factor: float = 1.0,
) -> Array:
    """Normal noise times `factor`; of integers and bools, values that are nearly always valid."""
    if is_float(dtype):
        # Up to the square root of the type's range, so that a product of two does not overflow: 256 in float16.
        limit = float_format(dtype).max ** 0.5
        return np.asarray(generator.standard_normal(shape) * min(factor, limit)).astype(dtype)
    if dtype.kind == "c":
        return (generator.standard_normal(shape) * factor).astype(dtype)
    # An unsigned byte is an image; any other integer may be an index, of which 0 and 1 are nearly always valid.
    high = 256 if dtype == np.uint8 else 2
    return generator.integers(0, high, shape).astype(dtype)


def _resembling(seen: Sequence[Array], generator: np.random.Generator) -> Array:
    like = seen[0]
    if not is_float(like.dtype):
        pool = np.concatenate([array.ravel() for array in seen])
        return generator.choice(pool, like.shape) if pool.size else like
    # The median sample's spread: neither the zeros nor the large values rule.
    wide = [array.astype(np.float64) for array in seen]
    finite = [values for array in wide if (values := array[np.isfinite(array)]).size]
    with np.errstate(over="ignore", invalid="ignore"):  # the square of 1e300; what overflows compares nothing
        spread = float(np.median([values.std() for values in finite] or [1.0])) or 1.0
        centre = float(np.median([values.mean() for values in finite] or [0.0]))
        return (centre + spread * generator.standard_normal(like.shape)).astype(like.dtype)
