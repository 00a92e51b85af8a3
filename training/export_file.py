"""The work of `foldtrain export`: a torch network to a folded, verified ONNX file, or nothing at all.

    SPEC -> module (+ weights, + normalisation) -> export -> fold -> verify -> half -> torch's own answer -> write

Knows the order of the steps and what the user may choose; each step is the file of its name.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import nn

from training import reference
from training import verify as proof
from training.command_files import (
    CannotUseFile,
    Proof,
    check_places,
    proved,
    read_samples,
    report_of,
    write_results,
    write_to,
)
from training.errors import UserError
from training.export import (
    ExportRefused,
    answer,
    at_least_two_rows,
    export,
    name_inputs,
    name_outputs,
    refuse_unless_frozen,
)
from training.fold import FoldReport, Profile, fold
from training.half_precision import ERROR_UNITS, TYPES, HalfReport, judge, to_half
from training.model_source import Normalisation, Source, opened
from training.reference.op import Array
from training.samples import cut_rows
from training.weights_file import load_weights

INPUT_TYPES: Mapping[str, torch.dtype] = {
    "float32": torch.float32,
    "float64": torch.float64,
    "int64": torch.int64,
    "int32": torch.int32,
    "uint8": torch.uint8,
    "bool": torch.bool,
}

AGREEMENT = 1e-4
"""Of the output's scale: how far two float32 runtimes may differ before a third opinion, in float64, is asked for."""

_HALF_SAMPLES = ("held-out 0", "zeros", "noise 0")  # of ordinary size; large ones overflow by themselves
_OWN_ERRORS = 16.0  # times what torch's own float32 answer is away from its float64 answer
_BFLOAT16_OPSET = 22  # the first in which ONNX knows Conv, pools and activations in bfloat16


class AnswersDiffer(UserError):
    """The finished file does not answer as the module does."""


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the user may choose. `input_shapes`: by input name, "" for the only one. `mean`, `std`: instead of the
    model's own. `dtype`: "fp32", "fp16" or "bf16". `samples`: real inputs, an .npz with rows along axis 0."""

    weights: Path | None = None
    input_shapes: Mapping[str, Sequence[int]] = field(default_factory=dict)
    input_dtypes: Mapping[str, str] = field(default_factory=dict)
    samples: Path | None = None
    dynamic_batch: bool = True
    opset: int | None = None
    dtype: str = "fp32"
    normalize: bool = False
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    fold: bool = True
    profile: Profile | str = "ort-cpu"
    widen: bool = False
    verify: bool = True
    torchvision_shim: bool = False


@dataclass(frozen=True, slots=True)
class Agreement:
    """torch against the finished file, over all outputs. `runtime` says who ran the file."""

    runtime: str
    rows: tuple[int, ...]
    max_abs_error: float
    max_rel_error: float

    def as_dict(self) -> dict[str, Any]:
        return {
            "runtime": self.runtime,
            "rows": list(self.rows),
            "max_abs_error": self.max_abs_error,
            "max_rel_error": self.max_rel_error,
        }

    def as_text(self) -> str:
        rows = " and ".join(map(str, self.rows))
        return (
            f"torch's own answer against {self.runtime}'s, {rows} rows: at most {self.max_abs_error:.2g} apart, "
            f"{self.max_rel_error:.2g} of the output's scale"
        )


@dataclass(frozen=True, slots=True)
class ExportedFile:
    """What was written, and what is known of it. `fold` is None with --no-fold, `verify` also with --no-verify."""

    path: Path
    spec: str
    fold: FoldReport | None
    verify: Proof | None
    half: HalfReport | None
    torch: Agreement | None
    batchnorms: int
    untrained: bool

    def as_dict(self) -> dict[str, Any]:
        """The fold report of architecture.md, contract 4, with `source`, `torch` and `half` beside it."""
        folded = report_of(self.fold, self.verify) if self.fold else {}
        return folded | {
            "source": self.spec,
            "torch": self.torch.as_dict() if self.torch else "skipped",
            "half": self.half.as_dict() if self.half else None,
        }

    def as_text(self) -> str:
        lines = [self.fold.as_text() if self.fold else f"not folded: {self.batchnorms} BatchNormalization kept"]
        if self.fold and not self.verify and self.torch:
            lines.append("nothing was folded, so that nothing is to be proved of it")
        lines += [part.as_text() for part in (self.verify, self.half, self.torch) if part]
        if not self.torch:
            lines.append("not verified: the proof was skipped (--no-verify)")
        if self.untrained:
            lines.append("the weights are untrained: give some with --weights")
        return "\n".join([*lines, f"wrote {self.path}"])


def export_file(spec: str, target: Path, wishes: Wishes, *, reports: Sequence[Path] = ()) -> ExportedFile:
    """Export the network of `spec` (see model_source) to `target`.

    Raises, with `target` and `reports` as they were: model_source.SourceRefused, weights_file.WeightsRefused,
    ExportRefused, CannotUseFile, training.fold.FoldError, VerificationFailed, HalfRefused, HalfDiffers, AnswersDiffer.
    """
    check_places((target, *reports))
    pages = [report for report in reports if report.suffix.lower() == ".html"]
    if pages and not wishes.fold:
        raise CannotUseFile(f"{pages[0]}: the page shows what folding did; with --no-fold, ask for a .json")
    samples = read_samples(wishes.samples) if wishes.samples else None
    with opened(spec, torchvision_shim=wishes.torchvision_shim) as source:
        if wishes.weights:
            load_weights(source.module, wishes.weights)
        return _export_opened(spec, source, target, wishes, samples, reports)


def _export_opened(
    spec: str,
    source: Source,
    target: Path,
    wishes: Wishes,
    samples: Mapping[str, Array] | None,
    reports: Sequence[Path],
) -> ExportedFile:
    refuse_unless_frozen(source.module)  # before the names get longer
    examples = _examples(source, wishes, samples)
    module = _normalised(source, examples, wishes)
    with _told_of(wishes):
        answered = answer(module, examples)
    outputs = list(name_outputs(answered, taken=examples))
    opset = wishes.opset or (_BFLOAT16_OPSET if wishes.dtype == "bf16" else None)
    unfolded = export(module, examples, outputs, dynamic_batch=wishes.dynamic_batch, opset=opset)

    folded, report = fold(unfolded, profile=wishes.profile, widen=wishes.widen) if wishes.fold else (unfolded, None)
    held_out: Sequence[Mapping[str, Array]] = (
        cut_rows(unfolded, samples, str(wishes.samples)) if samples else [_arrays(examples)]
    )
    verified = None
    if report and report.changed and wishes.verify:
        verified = proved(lambda: proof.verify(unfolded, folded, proof.make_samples(unfolded, held_out)))

    final, half = folded, None
    if wishes.dtype in TYPES:
        final = to_half(folded, TYPES[wishes.dtype])
        if wishes.verify:
            made = [s for s in proof.make_samples(folded, held_out[:1]) if s.label in _HALF_SAMPLES]
            half = judge(folded, final, made, TYPES[wishes.dtype])
    agreement = None
    if wishes.verify:
        agreement = agree(module, final, examples, outputs, wishes.dynamic_batch, TYPES.get(wishes.dtype))

    zoo = spec.partition(":")[0] in ("timm", "torchvision")
    left = sum(node.op_type == "BatchNormalization" for node in unfolded.graph.all_nodes())
    untrained = zoo and wishes.weights is None
    result = ExportedFile(target, spec, report, verified, half, agreement, left, untrained)

    def page() -> str:
        from training.fold.page import render_page  # only for who asks for a page

        return render_page(unfolded, folded, result.as_dict())

    write_results(target, write_to(final), reports, result.as_dict(), page)
    return result


# --- example inputs -----------------------------------------------------------------------------------------------


def _examples(source: Source, wishes: Wishes, samples: Mapping[str, Array] | None) -> dict[str, torch.Tensor]:
    """From --input-shape, else from --samples, the factory, or what the model says of itself. Raises ExportRefused."""
    given: Any
    if wishes.input_dtypes and not wishes.input_shapes and source.row is None:
        raise ExportRefused(
            f"--input-dtype {next(iter(wishes.input_dtypes))}: goes with an --input-shape of that input"
        )
    if wishes.input_shapes:
        given = _drawn(wishes.input_shapes, wishes.input_dtypes)
    elif samples:
        with _told_of(wishes):
            given = _first_rows(source.module, samples)
    elif source.examples is not None:
        given = source.examples
    elif source.row is not None:
        given = _drawn({"": (1, *source.row)}, wishes.input_dtypes)
    else:
        raise ExportRefused(
            "nothing says what the network takes: give --input-shape 1,3,224,224 (or NAME=..., once for each input), "
            "or let the factory return (module, example_inputs)"
        )
    if isinstance(given, Mapping) and len(given) == 1 and not next(iter(given)):
        given = next(iter(given.values()))
    with _told_of(wishes):
        examples = name_inputs(source.module, given)
    if wishes.dynamic_batch:
        examples = {name: at_least_two_rows(example) for name, example in examples.items()}
    return {name: example.detach().cpu() for name, example in examples.items()}


@contextmanager
def _told_of(wishes: Wishes) -> Iterator[None]:
    """Where the examples come from --samples, a line about them begins with its path."""
    try:
        yield
    except ExportRefused as error:
        if wishes.samples and not wishes.input_shapes:
            raise ExportRefused(f"{wishes.samples}: {error}") from error
        raise


def _first_rows(module: nn.Module, samples: Mapping[str, Array]) -> Any:
    """Two rows of real inputs, by the rule of `cut_rows`: the name of a single array does not matter, and arrays that
    are no input's are left out; float64, as NumPy makes it, becomes what the network computes in. Raises ExportRefused.
    """
    parameters = inspect.signature(module.forward).parameters.values()
    names = {parameter.name for parameter in parameters}
    known = {name: array for name, array in samples.items() if name in names}
    arrays = samples if any(p.kind is p.VAR_POSITIONAL for p in parameters) else known or samples
    if rows := [len(array) for array in arrays.values() if array.ndim]:
        arrays = {name: array[: min(*rows, 2)] if array.ndim else array for name, array in arrays.items()}
    if 0 in rows:
        raise ExportRefused("holds no rows along axis 0, expected at least 1")
    own = next((tensor.dtype for tensor in module.state_dict().values() if tensor.is_floating_point()), torch.float64)
    given = {}
    for name, array in arrays.items():
        try:
            tensor = torch.from_numpy(array)
        except TypeError:
            raise ExportRefused(f"array {name!r} holds {array.dtype}, expected numbers") from None
        given[name] = tensor.to(own) if tensor.dtype is torch.float64 else tensor
    return given if len(samples) > 1 else next(iter(given.values()), {})


def _drawn(shapes: Mapping[str, Sequence[int]], dtypes: Mapping[str, str]) -> dict[str, torch.Tensor]:
    """Normal noise; of integers, zeros and ones, which are nearly always valid indices."""
    if unknown := sorted(set(dtypes) - set(shapes)):
        raise ExportRefused(
            f"--input-dtype {unknown[0]}: no such input is given a shape; these are: {', '.join(shapes)}"
        )
    if "" in shapes and len(shapes) > 1:
        raise ExportRefused(
            "--input-shape: without a name it is for a network with one input; give NAME=SIZES for each"
        )
    generator = torch.Generator().manual_seed(0)
    drawn = {}
    for name, shape in shapes.items():
        dtype = INPUT_TYPES[dtypes.get(name, "float32")]
        if dtype.is_floating_point:
            drawn[name] = torch.randn(tuple(shape), generator=generator, dtype=dtype)
        else:
            high = 256 if dtype is torch.uint8 else 2
            drawn[name] = torch.randint(0, high, tuple(shape), generator=generator).to(dtype)
    return drawn


class _Normalised(nn.Module):
    """(x - mean) / std along axis 1 of the first input, then the network."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, network: nn.Module, normalisation: Normalisation, rank: int) -> None:
        super().__init__()
        self.network = network
        for name, values in (("mean", normalisation.mean), ("std", normalisation.std)):
            self.register_buffer(name, torch.tensor(values).reshape(1, -1, *[1] * (rank - 2)))

    def forward(self, x: torch.Tensor, *rest: torch.Tensor) -> Any:
        return self.network((x - self.mean) / self.std, *rest)


def _normalised(source: Source, examples: Mapping[str, torch.Tensor], wishes: Wishes) -> nn.Module:
    """With the normalisation in front, if it is wished for. Raises ExportRefused."""
    if not (wishes.normalize or wishes.mean or wishes.std):
        return source.module
    own = source.normalisation
    mean, std = wishes.mean or (own.mean if own else None), wishes.std or (own.std if own else None)
    if mean is None or std is None:
        raise ExportRefused("--normalize: the model does not say what its weights expect; give --mean and --std")
    name, first = next(iter(examples.items()))
    channels = first.shape[1] if first.ndim > 1 else 0
    if not first.is_floating_point() or len(mean) != len(std) or len(mean) not in (1, channels):
        raise ExportRefused(
            f"--normalize: {len(mean)} means and {len(std)} standard deviations do not fit input {name!r} of type "
            f"{str(first.dtype).removeprefix('torch.')} with {channels} channels along axis 1"
        )
    if not all(value > 0 for value in std):
        raise ExportRefused(f"--std {','.join(map(str, std))}: expected positive numbers")
    return _Normalised(source.module, Normalisation(tuple(mean), tuple(std)), first.ndim).eval()


# --- the last word: torch itself ----------------------------------------------------------------------------------


def agree(
    module: nn.Module,
    model: ir.Model,
    examples: Mapping[str, torch.Tensor],
    outputs: Sequence[str],
    dynamic_batch: bool,
    half: ir.DataType | None,
) -> Agreement:
    """The module's own answers against the file's, for the examples and, with a free batch, for one row of them.

    Where ONNX Runtime has no kernels for half precision, the float64 oracle answers. Raises AnswersDiffer; UserError
    where the file does not run at all.
    """
    sizes = [examples] if not dynamic_batch else [examples, {name: example[:1] for name, example in examples.items()}]
    worst_abs = worst_rel = 0.0
    runtime = "ONNX Runtime"
    for inputs in sizes:
        if half is not None:
            inputs = {name: _as_half(tensor, half) for name, tensor in inputs.items()}
        own = {name: t.detach().cpu().numpy() for name, t in name_outputs(answer(module, inputs), taken=inputs).items()}
        try:
            answered = proof.run(model, _arrays(inputs))
        except UserError:
            if half is None:
                raise
            runtime = "the float64 evaluator"
            answered = reference.evaluate(model, _arrays(inputs))
        for name in outputs:
            apart, scale = _apart(name, own[name], answered[name])
            bound = ERROR_UNITS * reference.float_format(half.numpy()).eps if half else AGREEMENT
            if apart > bound * scale and not _explained(module, inputs, name, own[name], apart):
                raise AnswersDiffer(
                    f"output {name!r}: torch's own answer and {runtime}'s are {apart:.3g} apart, more than "
                    f"{bound:.2g} of the output's scale {scale:.3g}; nothing was written"
                )
            worst_abs, worst_rel = max(worst_abs, apart), max(worst_rel, apart / scale if scale else 0.0)
    rows = tuple(len(next(iter(inputs.values()))) if next(iter(inputs.values())).ndim else 1 for inputs in sizes)
    return Agreement(runtime, rows, worst_abs, worst_rel)


def _apart(name: str, own: Array, answered: Array) -> tuple[float, float]:
    """The largest distance, infinite where only one is finite, and the scale of `own`. Raises AnswersDiffer."""
    if own.shape != answered.shape:
        raise AnswersDiffer(
            f"output {name!r}: torch answers with shape {list(own.shape)}, the file with {list(answered.shape)}"
        )
    first, second = own.astype(np.float64), answered.astype(np.float64)
    with np.errstate(invalid="ignore"):
        distance = np.where((first == second) | (np.isnan(first) & np.isnan(second)), 0.0, np.abs(first - second))
    distance = np.where(np.isnan(distance), np.inf, distance)
    finite = np.abs(first[np.isfinite(first)])
    return float(distance.max(initial=0.0)), float(finite.max(initial=0.0))


def _explained(module: nn.Module, inputs: Mapping[str, torch.Tensor], name: str, own: Array, apart: float) -> bool:
    """Is torch's own rounding, seen from float64, of that size? Then the network is sensitive, not the file wrong."""
    try:
        wide = copy.deepcopy(module).double()
        widened = {n: t.double() if t.is_floating_point() else t for n, t in inputs.items()}
        exact = name_outputs(answer(wide, widened), taken=inputs)[name].detach().cpu().numpy()
    except UserError:  # a network that insists on float32
        return False
    return apart <= _OWN_ERRORS * _apart(name, exact, own)[0]


def _as_half(tensor: torch.Tensor, half: ir.DataType) -> torch.Tensor:
    dtype = torch.float16 if half is ir.DataType.FLOAT16 else torch.bfloat16
    return tensor.to(dtype).to(tensor.dtype) if tensor.dtype == torch.float32 else tensor


def _arrays(tensors: Mapping[str, torch.Tensor]) -> dict[str, Array]:
    return {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}
