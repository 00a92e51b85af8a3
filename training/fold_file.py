"""The work of `foldtrain fold`: read, fold, prove, write the file and its report, or write nothing at all.

Knows files and the order of the steps. What may be folded is `fold`'s affair, what counts as proof `verify`'s.
"""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from training.directories import move, staging, sync
from training.errors import UserError
from training.fold import FoldReport, fold, read_model, write_model
from training.reference.op import Array
from training.samples import cut_rows, make_samples
from training.verify import verify
from training.verify_report import VerifyReport

UNCHANGED = VerifyReport(
    outputs=(), samples=0, outputs_compared=0, oracle="not needed", note="nothing was folded; the file is a copy"
)


class CannotFoldFile(UserError):
    """A path or a samples file that cannot be used; the line begins with the path or the option."""


@dataclass(frozen=True, slots=True)
class FoldedFile:
    """What became of one file. `as_dict` is the fold report of architecture.md, contract 4."""

    path: Path
    fold: FoldReport
    verify: VerifyReport

    def as_dict(self) -> dict[str, Any]:
        return {**self.fold.as_dict(), "verify": self.verify.as_dict()}

    def as_text(self) -> str:
        return "\n".join([self.fold.as_text(), self.verify.as_text(), f"wrote {self.path}"])


def fold_file(
    source: Path,
    target: Path,
    *,
    report: Path | None = None,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    samples: Path | None = None,
) -> FoldedFile:
    """Fold `source` into `target`, which may be the same path. A file in which nothing folds is copied byte by byte.

    Args:
        source, target: ONNX files.
        report: Where to write the report as JSON.
        input_shapes: Full shapes by input name, for inputs with symbolic sizes.
        samples: An .npz with an array for each input, rows along axis 0: real inputs for the proof.

    Raises:
        CannotFoldFile: A path or the samples file cannot be used.
        training.fold.FoldError: The model cannot be read, worked on or written.
        training.samples.CannotMakeSamples: Shapes that must be given, or samples that do not fit.
        training.reference.UnsupportedOperator: Something was folded that cannot be proved.
        training.verify.VerificationFailed: The folded graph is not the same function, or less accurate.

    Whatever is raised, `target` and `report` are as they were.
    """
    _check_paths(source, target, report)
    original = read_model(source)
    folded, fold_report = fold(original)
    result = FoldedFile(target, fold_report, _proved(original, folded, fold_report, input_shapes, samples))
    _write(source, original, folded, result, report)
    return result


def parse_input_shape(text: str) -> tuple[str, tuple[int, ...]]:
    """`NAME=1,3,224,224` as (name, shape). Raises CannotFoldFile. A name may hold "=" itself; the last one counts."""
    name, found, sizes = text.rpartition("=")
    parts = [part.strip() for part in sizes.split(",")] if sizes.strip() else []
    if not found or not name or not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
        raise CannotFoldFile(f"--input-shape {text!r}: expected NAME=SIZES, as in x=1,3,224,224")
    return name, tuple(int(part) for part in parts)


def read_samples(path: Path) -> dict[str, Array]:
    """The arrays of an .npz, by name. Pickled objects are refused. Raises CannotFoldFile."""
    try:
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if isinstance(archive, np.ndarray):
                raise CannotFoldFile(f"{path}: is a single array, expected an .npz with one array for each input")
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        # Not NumPy's words for content it does not know: they recommend allow_pickle=True, which runs what a file says.
        cause = getattr(error, "strerror", None) or "it is no .npz archive of plain arrays, as numpy.savez writes it"
        raise CannotFoldFile(f"{path}: cannot be read as samples: {cause}") from error


def _check_paths(source: Path, target: Path, report: Path | None) -> None:
    """Before any work: nobody should wait for a proof to learn that a folder is missing."""
    for path in (target, report) if report else (target,):
        if path.is_dir():
            raise CannotFoldFile(f"{path}: is a folder, expected the name of a file")
        if not path.parent.is_dir():
            raise CannotFoldFile(f"{path}: cannot be written: the folder {path.parent} does not exist")
    if report is not None and report.resolve() in (target.resolve(), source.resolve()):
        raise CannotFoldFile(f"{report}: is the model's own path; give the report another one")


def _proved(
    original: ir.Model,
    folded: ir.Model,
    report: FoldReport,
    input_shapes: Mapping[str, Sequence[int]] | None,
    samples: Path | None,
) -> VerifyReport:
    if not report.changed:
        return UNCHANGED
    held_out = cut_rows(original, read_samples(samples)) if samples else None
    return verify(original, folded, make_samples(original, held_out, shapes=input_shapes))


def _write(source: Path, original: ir.Model, folded: ir.Model, result: FoldedFile, report: Path | None) -> None:
    """Both files are complete beside their places before the first one moves there."""
    try:
        with ExitStack() as stack:
            model_file = stack.enter_context(staging(result.path.parent)) / result.path.name
            if result.fold.changed or _has_external_data(original):
                write_model(folded, model_file)
            else:
                shutil.copyfile(source, model_file)
                sync(model_file)
            if report is not None:
                report_file = stack.enter_context(staging(report.parent)) / report.name
                report_file.write_text(json.dumps(result.as_dict(), indent=2, allow_nan=False) + "\n", encoding="utf-8")
                sync(report_file)
            move(model_file, result.path)
            if report is not None:
                move(report_file, report)
    except OSError as error:
        raise CannotFoldFile(f"{result.path}: cannot be written: {error.strerror or error}") from error


def _has_external_data(model: ir.Model) -> bool:
    """Weights beside the file would be lost in a copy of it elsewhere."""
    return any(
        isinstance(value.const_value, ir.ExternalTensor)
        for graph in model.graphs()
        for value in graph.initializers.values()
    )
