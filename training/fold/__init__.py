"""The folding engine: ONNX graph to ONNX graph, BatchNormalization into the weights before it. NumPy and onnx-ir only.

    fold --> driver --> batchnorm (what map is it?) --> sinks (who can hold it?) --> edits (carry it out) --> report
                         graph, constants, shapes: questions            affine, weights: arithmetic

Refusing is always safe: what cannot be folded exactly stays, with a reason that names what stands in the way.
"""

from pathlib import Path

import onnx_ir as ir

from training.fold.driver import fold_in_place
from training.fold.errors import FoldError, ModelFileError
from training.fold.files import SOURCE_SHA256, copy_model, read_model, write_model
from training.fold.report import BatchNormOutcome, FoldReport, Verdict

__all__ = [
    "BatchNormOutcome",
    "FoldError",
    "FoldReport",
    "ModelFileError",
    "Verdict",
    "fold",
    "read_model",
    "write_model",
]


def fold(model: ir.Model | str | Path) -> tuple[ir.Model, FoldReport]:
    """Fold every BatchNormalization that the node before it can hold exactly.

    `model`: a model, never mutated, or the path of a file. Returns a folded copy and what became of each
    BatchNormalization; inputs, outputs, their names, types and shapes stay. Weights are computed in float64 and rounded
    once to their own type. A model in which nothing folds comes back as an unmarked copy; folding twice changes
    nothing more.

    Raises ModelFileError for a file that cannot be read, FoldError for a model that cannot be worked on.
    """
    source = model if isinstance(model, ir.Model) else read_model(model)
    folded = copy_model(source)
    report = fold_in_place(folded)
    if report.changed:
        folded.metadata_props.update(report.metadata(source.meta.get(SOURCE_SHA256)))
    return folded, report
