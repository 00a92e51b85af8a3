"""The work of `foldtrain publish`: anyone's ONNX file into the model repository, with golden samples beside it.

Promises: what is published is what was given, byte for byte of its weights, and runs in ONNX Runtime. The golden
answers are the float64 evaluator's, as for the models that we build; where it does not know an operator, they are ONNX
Runtime's own, which still tells a damaged file or another machine. Knows no layout: that is `publish`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from training import reference
from training import verify as proof
from training.command_files import CannotUseFile, read_samples
from training.fold import read_model
from training.fold.files import SOURCE_SHA256
from training.golden import Golden, make_golden
from training.publish import LABELS_FILE, Draft, PublishRefused, check_destination, config_for, publish
from training.reference import UnsupportedOperator
from training.reference.op import Array
from training.samples import CannotMakeSamples, Sample, check_answers, cut_rows, make_samples

ROWS = 16
"""Real samples to keep, at most: enough to tell a swapped file, few enough to replay at each start."""

LARGEST_TOLERANCE = 0.25  # of the largest answer: beyond it the service does not believe a golden check


@dataclass(frozen=True, slots=True)
class PublishedFile:
    """Where the version is, and what its golden samples are, in words."""

    path: Path
    golden: str

    def as_text(self) -> str:
        return "\n".join(
            [
                f"published {self.path}",
                f"golden samples: {self.golden}",
                f"serve it: foldserve --model-repository {self.path.parents[1]}",
            ]
        )


def publish_file(
    source: Path,
    *,
    name: str,
    repository: Path,
    labels: Path | None = None,
    samples: Path | None = None,
    replace: int | None = None,
    max_batch_size: int | None = None,
) -> PublishedFile:
    """Publish `source` as the next version of `name`, or in place of version `replace`.

    Args:
        labels: One label a line, for the output whose last axis has as many values.
        samples: An .npz with an array for each input, rows along axis 0; without it, inputs are made up.
        max_batch_size: In rows; None leaves it to the service, which probes whether rows are independent.

    Raises, with the repository as it was: PublishRefused, directories.Busy, CannotUseFile, CannotMakeSamples,
    training.fold.FoldError, or UserError where ONNX Runtime cannot run the model.
    """
    check_destination(repository, name, replace)
    given = read_samples(samples) if samples else None
    words = _read_labels(labels) if labels else ()
    model = read_model(source)
    labelled = _labelled_output(model, words) if words else None
    about = {labelled: {"labels": LABELS_FILE}} if labelled else {}
    config = config_for(model, name=name, description="", max_batch_size=max_batch_size, about=about)
    golden, told = _golden(model, given, str(samples or ""))
    draft = Draft(
        config=config,
        model=model,
        golden=golden,
        reports={"source": {"sha256": model.meta.get(SOURCE_SHA256)}},
        labels=words,
    )
    return PublishedFile(publish(repository, draft, replace=replace).path, told)


# --- labels -------------------------------------------------------------------------------------------------------


def _read_labels(path: Path) -> tuple[str, ...]:
    try:
        words = tuple(path.read_text(encoding="utf-8").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        cause = getattr(error, "strerror", None) or "it is no UTF-8 text"
        raise CannotUseFile(f"{path}: cannot be read as labels: {cause}") from error
    if not words:
        raise CannotUseFile(f"{path}: holds no labels; expected one a line")
    return words


def _labelled_output(model: ir.Model, words: Sequence[str]) -> str:
    """The one output whose last axis has as many values as there are labels. Raises PublishRefused."""
    last = {str(v.name): v.shape[-1] for v in model.graph.outputs if v.shape is not None and len(v.shape)}
    fits = [name for name, size in last.items() if size == len(words)]
    if len(last) == 1 and not isinstance(next(iter(last.values())), int):
        fits = list(last)  # its size is free
    if len(fits) != 1:
        sizes = ", ".join(f"{name!r} has {size}" for name, size in last.items())
        raise PublishRefused(f"{len(words)} labels fit {len(fits)} outputs, expected one: along the last axis {sizes}")
    return fits[0]


# --- golden samples -----------------------------------------------------------------------------------------------


def _golden(model: ir.Model, given: Mapping[str, Array] | None, source: str) -> tuple[Golden | None, str]:
    """The samples, and what they are in words; None with the reason where the layout of golden.npz cannot hold any."""
    if obstacle := _obstacle(model):
        return None, f"none, because {obstacle}"
    pieces, told = (_cut(model, given, source), "real inputs") if given else ([_made_up(model)], "made-up inputs")
    try:
        cut = [make_golden(model, model, piece) for piece in pieces]
        told += ", answers computed in float64"
    except UnsupportedOperator as error:
        answers = [proof.run(model, piece) for piece in pieces]
        cut = [Golden(piece, answer, {}) for piece, answer in zip(pieces, answers, strict=True)]
        told += f", answers of ONNX Runtime's own ({error})"
    for piece, one in zip(pieces, cut, strict=True):
        check_answers(one.outputs, piece)
    golden = _joined(cut)
    _require_telling(golden, f"{source}: " if given else "")
    return golden, f"{golden.samples} rows of {told}"


def _inputs(model: ir.Model) -> list[ir.Value]:
    return [value for value in model.graph.inputs if value.const_value is None]


def _obstacle(model: ir.Model) -> str:
    """Why there is no axis along which samples could lie, or no value that could be made up; else empty."""
    inputs = _inputs(model)
    if not inputs:
        return "the model has no inputs"
    for value in inputs:
        if value.dtype is ir.DataType.STRING:
            return f"input {value.name!r} holds strings"
        if value.shape is not None and len(value.shape) == 0:
            return f"input {value.name!r} has no rows"
    rows = {value.shape[0] for value in inputs if value.shape is not None and isinstance(value.shape[0], int)}
    return f"inputs have different numbers of rows: {sorted(rows)}" if len(rows) > 1 else ""


def _cut(model: ir.Model, given: Mapping[str, Array], source: str) -> list[Sample]:
    """The first rows, in as many pieces as a fixed batch makes of them, in the graph's own types."""
    first = {name: array[:ROWS] if np.ndim(array) else array for name, array in given.items()}
    fixed = max((v.shape[0] for v in _inputs(model) if v.shape is not None and isinstance(v.shape[0], int)), default=1)
    return cut_rows(model, first if fixed <= ROWS else given, source)[: max(ROWS // fixed, 1)]


def _made_up(model: ir.Model) -> Sample:
    """Noise of ordinary size: what a damaged file or another machine gets wrong shows in it, and rows differ.

    As the service replays them: where the batch is free, all rows are answered together.
    """
    try:
        made = make_samples(model)
    except UnsupportedOperator:  # it could not try out free sizes; that of a batch needs no trying
        made = make_samples(model, shapes=_two_rows(model))
    except CannotMakeSamples as error:
        raise PublishRefused(f"no inputs can be made up ({error}); give real ones: --samples FILE.npz") from error
    return next(sample for sample in made if sample.label == "noise 1")


def _two_rows(model: ir.Model) -> dict[str, tuple[int, ...]]:
    shapes = {}
    for value in _inputs(model):
        declared = list(value.shape or ())
        sizes = [2 if axis == 0 and not isinstance(size, int) else size for axis, size in enumerate(declared)]
        if not sizes or not all(isinstance(size, int) for size in sizes):
            raise PublishRefused(
                f"input {value.name!r} has free sizes, and no input can be made up for it; give real ones: --samples "
                f"FILE.npz"
            )
        shapes[str(value.name)] = tuple(int(str(size)) for size in sizes)
    return shapes


def _joined(pieces: Sequence[Golden]) -> Golden:
    """Pieces one behind the other. An output without rows is as the first piece gives it, as in the service."""

    def rows(sides: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        return {n: np.concatenate([s[n] for s in sides]) if a.ndim else a for n, a in sides[0].items()}

    return Golden(
        rows([piece.inputs for piece in pieces]),
        rows([piece.outputs for piece in pieces]),
        {name: max(piece.tolerance[name] for piece in pieces) for name in pieces[0].tolerance},
    )


def _require_telling(golden: Golden, source: str) -> None:
    """A check against NaN, or one that allows anything, would say nothing, and the service would not believe it.

    One number that is not finite is enough, unlike in a proof: the service compares all of them. `source` begins the
    line.
    """
    for name, answers in golden.outputs.items():
        if not reference.is_float(answers.dtype):
            continue
        if not np.isfinite(answers.astype(np.float64)).all():
            raise PublishRefused(
                f"{source}output {name!r} is not finite for these inputs, so that nothing can be compared with it; "
                f"give inputs for which it is: --samples FILE.npz"
            )
        most = LARGEST_TOLERANCE * float(np.abs(answers.astype(np.float64)).max(initial=0.0))
        if golden.tolerance.get(name, 0.0) > most:
            raise PublishRefused(
                f"{source}output {name!r}: for these inputs ONNX Runtime is too far from the float64 answer to check "
                f"anything against it (tolerance {golden.tolerance[name]:.3g}, at most {most:.3g}); give others with "
                f"--samples"
            )
