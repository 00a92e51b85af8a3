"""The work of `foldtrain fold`: read, fold, prove, write the file and its reports, or write nothing at all.

Knows the order of the steps. What may be folded is `fold`'s affair, what counts as proof `verify`'s, how files appear
`command_files`'.
"""

from __future__ import annotations

import gc
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from training.command_files import Proof, check_places, proved, read_samples, report_of, write_results, write_to
from training.directories import staging, sync
from training.fold import FoldReport, Profile, fold, read_model, write_model
from training.fold.files import has_external_data
from training.fold.normalise import repaired
from training.samples import cut_rows, make_samples
from training.verify import verify
from training.verify_report import VerifyReport

UNCHANGED = VerifyReport(
    outputs=(), samples=0, outputs_compared=0, oracle="not needed", note="nothing was folded; the file is a copy"
)

_MOST_IN_MEMORY = 256 << 20  # bytes of folded weights during the proof


@dataclass(frozen=True, slots=True)
class FoldedFile:
    """What became of one file. `verify` is None when the proof was skipped."""

    path: Path
    fold: FoldReport
    verify: Proof | None

    def as_dict(self) -> dict[str, Any]:
        """The fold report of architecture.md, contract 4."""
        return report_of(self.fold, self.verify)

    def as_text(self) -> str:
        proof = self.verify.as_text() if self.verify else "not verified: the proof was skipped (--no-verify)"
        return "\n".join([self.fold.as_text(), proof, f"wrote {self.path}"])


def fold_file(
    source: Path,
    target: Path,
    *,
    profile: Profile | str = "ort-cpu",
    widen: bool = False,
    reports: Sequence[Path] = (),
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    samples: Path | None = None,
    verified: bool = True,
) -> FoldedFile:
    """Fold `source` into `target`, which may be the same path. A file in which nothing folds is copied byte by byte,
    unless it has its weights beside it and `target` is in another folder: then they come into one file.

    Args:
        source, target: ONNX files.
        profile: Where the file will run; it may veto a fold that does not pay there.
        widen: Give tensors a channel of ones where that folds what would stay, at any price.
        reports: Where to write the report: as a page where the name ends in .html, otherwise as JSON.
        input_shapes: Full shapes by input name, for inputs with symbolic sizes.
        samples: An .npz with an array for each input, rows along axis 0: real inputs for the proof.
        verified: Without it nothing is proved, and the report says so.

    Raises:
        CannotUseFile: A path or the samples file cannot be used.
        training.fold.FoldError: The model cannot be read, worked on or written.
        training.samples.CannotMakeSamples: Shapes that must be given, or samples that do not fit.
        training.reference.UnsupportedOperator: Something was folded that cannot be proved.
        training.verify.VerificationFailed: The folded graph is not the same function, or less accurate.

    Whatever is raised, `target` and `reports` are as they were.
    """
    check_places((target, *reports), sources=(source,))
    held_out = read_samples(samples) if samples else None
    original = repaired(read_model(source))  # the proof runs it
    folded, report = fold(original, profile=profile, widen=widen)
    proof: Proof | None = None
    with ExitStack() as stack:
        if verified and not report.changed:
            proof = proved(lambda: UNCHANGED)
        elif verified:
            rows = cut_rows(original, held_out, str(samples)) if held_out else None
            if _bytes_in_memory(folded) > _MOST_IN_MEMORY:
                folded = _left_on_disk(folded, stack.enter_context(staging(target.parent)))
                gc.collect()  # the one in memory: a graph is full of cycles, and nothing else would free it in time
            proof = proved(lambda: verify(original, folded, make_samples(original, rows, shapes=input_shapes)))
        result = FoldedFile(target, report, proof)

        def page() -> str:
            from training.fold.page import render_page  # only for who asks for a page

            return render_page(original, folded, result.as_dict())

        data_is_there = not has_external_data(original) or source.resolve().parent == target.resolve().parent
        as_it_was = not report.changed and data_is_there
        write = (lambda path: _copy(source, path)) if as_it_was else write_to(folded)
        write_results(target, write, reports, result.as_dict(), page)
    return result


def _bytes_in_memory(model: ir.Model) -> int:
    """Of the weights that folding made; the others are still where they were read from."""
    values = [value for graph in model.graphs() for value in graph.initializers.values()]
    return sum(value.const_value.nbytes for value in values if isinstance(value.const_value, ir.Tensor))


def _left_on_disk(model: ir.Model, folder: Path) -> ir.Model:
    """The same model, read from a file in `folder`: beside ONNX Runtime's copy there need not be another in memory."""
    write_model(model, folder / "folded.onnx")
    return read_model(folder / "folded.onnx")


def _copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)
    sync(target)
