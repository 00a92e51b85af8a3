"""The folding engine: ONNX graph to ONNX graph, BatchNormalization into the weights around it. No torch.

    fold -> normalise -> branches (parallel ones merge)
         -> driver: reach (operators: what may be stored how?) -> problem -> solve (scales, shifts) -> edits -> report

Every operator speaks for itself, in laws (laws.py; tables in operators.py); the solver knows none of them. Refusing is
always safe: what cannot be folded exactly stays, with a reason that names what stands in the way.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from training.fold.driver import fold_in_place
from training.fold.errors import FoldError, ModelFileError
from training.fold.files import SOURCE_SHA256, copy_model, read_model, write_model
from training.fold.normalise import normalise
from training.fold.profiles import Profile
from training.fold.report import BatchNormOutcome, FoldReport, Verdict

__all__ = [
    "BatchNormOutcome",
    "FoldError",
    "FoldReport",
    "ModelFileError",
    "Profile",
    "Verdict",
    "fold",
    "read_model",
    "write_model",
]

_BETWEEN_COLLECTIONS = (50_000, 50, 50)  # allocations, and collections of the generation before


def fold(
    model: ir.Model | onnx.ModelProto | str | Path, profile: Profile | str = Profile.ORT_CPU, widen: bool = False
) -> tuple[ir.Model, FoldReport]:
    """Fold every BatchNormalization that the graph around it can hold exactly, where that pays under `profile`.

    `model`: a model, of onnx-ir or of onnx, never mutated, or the path of a file. Returns a folded copy and what became
    of each BatchNormalization; inputs, outputs, their names, types and shapes stay. Weights are computed in float64 and
    rounded once to their own type. A model in which nothing folds comes back as an unmarked copy; folding twice changes
    nothing more. `widen`: tensors inside the graph also get one more channel, of ones, where that takes out what no
    weight can hold otherwise, at any price (widen.py).

    Raises ModelFileError for a file that cannot be read, FoldError for a model that cannot be worked on, TypeError for
    what is neither, ValueError for a profile that does not exist.
    """
    profile = Profile(profile)
    with np.errstate(all="ignore"), _rare_collection():  # what overflows on the way is judged by its result
        source = _loaded(model)
        folded = normalise(copy_model(source))
        report = fold_in_place(folded, profile, widen)
        if report.changed:
            folded.metadata_props.update(report.metadata(source.meta.get(SOURCE_SHA256)))
            return folded, report
        nodes, size = report.nodes_before, report.constant_bytes_before  # whatever was tidied up on the way
        return copy_model(source), replace(report, nodes_after=nodes, constant_bytes_after=size)


def _loaded(model: ir.Model | onnx.ModelProto | str | Path) -> ir.Model:
    if isinstance(model, ir.Model):
        return model
    if isinstance(model, onnx.ModelProto):
        try:
            return ir.from_proto(model)
        except Exception as problem:  # the library's own, of several kinds; a file is looked at more closely
            raise FoldError(f"the model cannot be read: {problem}; write it to a file to learn more") from problem
    if isinstance(model, str | Path):
        return read_model(model)
    raise TypeError(
        f"expected an onnx_ir.Model, an onnx.ModelProto or the path of a file, found {type(model).__name__}"
    )


@contextmanager
def _rare_collection() -> Iterator[None]:
    """A graph is many small objects that live: looking through them for garbage takes a fifth of the time at CPython's
    default of every 700 allocations."""
    thresholds = gc.get_threshold()
    if thresholds[0]:  # 0: switched off
        gc.set_threshold(*map(max, thresholds, _BETWEEN_COLLECTIONS))
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
