"""One network of the zoo, exported, folded under `generic`, and compared: what became of its BatchNorms.

The comparison is with torch in float64: the folded graph, in ONNX Runtime without its optimisations, may be no further
from it than the original is, but for a factor. Runs in a process of its own, because weights of gigabytes stay in one.
"""

from __future__ import annotations

import re
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
import torch
from torch import nn

from tests.training.fold.architectures.preparing import BatchNorm, export_default, export_raw, settle
from training.fold import FoldReport, Verdict, fold
from training.model_source import opened
from training.verify import run

FORMS = {"raw": export_raw, "default": export_default}
SIDES = (64, 128, 224, 256)  # of images, smallest that the network takes
SMALL_PIXELS = 128 * 128
ROWS = 4  # fewer make the statistics of a vector's BatchNorm a matter of luck
WORSE = 3.0  # times the original's own error, at most
FLOOR = 3e-7  # of the output's scale: an original closer than that was lucky


@dataclass(frozen=True)
class Trial:
    """One line of the table. `failure`: what kept it from being one, else empty; `ours`: it is not the export's."""

    spec: str
    form: str
    summary: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    error_ratio: float = 0.0
    reasons: tuple[tuple[str, int], ...] = ()
    failure: str = ""
    ours: bool = False

    @property
    def left(self) -> int:
        return self.summary["reduced"] + self.summary["kept"] if self.summary else 0


def attempt(spec: str, forms: Sequence[str] = tuple(FORMS)) -> list[Trial]:
    """One Trial for each form of export; a network without BatchNorm is tried in the first form only."""
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    try:
        module, shape = settled(spec)
    except Exception as error:
        return [Trial(spec, "raw", failure=f"not built: {one_line(error)}")]
    if not any(isinstance(part, BatchNorm) for part in module.modules()):
        forms = forms[:1]
    rows = 16 if np.prod(shape[1:]) <= SMALL_PIXELS else 2  # rounding differs from row to row tenfold where it grows
    x = np.random.default_rng(1).normal(size=(rows, *shape)).astype(np.float32)
    exports: dict[str, ir.Model | Trial] = {}
    for form in forms:
        try:
            exports[form] = FORMS[form](module, shape)
        except Exception as error:
            exports[form] = Trial(spec, form, failure=f"not exported: {one_line(error)}")
    with torch.no_grad():
        wanted = module.double()(torch.from_numpy(x).double()).numpy()
    del module
    return [
        found if isinstance(found, Trial) else try_fold(spec, form, found, x, wanted) for form, found in exports.items()
    ]


def settled(spec: str, small: bool = True) -> tuple[nn.Module, tuple[int, ...]]:
    """The network with statistics as `settle` makes them, and its input's shape: the smallest images it takes, or those
    that it says itself."""
    return prepared(spec, lambda module, shape: settle(module, shape, np.random.default_rng(0), ROWS), small)


def prepared(
    spec: str, prepare: Callable[[nn.Module, tuple[int, ...]], nn.Module], small: bool = True
) -> tuple[nn.Module, tuple[int, ...]]:
    """The network as `prepare` leaves it, and the first input's shape with which it works."""
    with opened(spec, torchvision_shim=True) as source:
        module, row = source.module, source.row
    for parameter in module.parameters():
        if parameter.ndim > 1 and not parameter.any():  # heads that begin at zero answer zero, whatever came before
            nn.init.normal_(parameter, std=0.02)
    own = [row] if row else []
    shapes = [(3, side, side) for side in SIDES] + own if small else own or [(3, 224, 224)]
    for shape in shapes:
        try:
            with torch.no_grad():
                module.eval()(torch.zeros(2, *shape))
            return prepare(module, shape), shape
        except Exception as error:
            refused = error
    raise refused


def try_fold(spec: str, form: str, model: ir.Model, x: np.ndarray, wanted: np.ndarray) -> Trial:
    """wanted: what torch answers to `x` in float64."""
    try:
        begin = time.perf_counter()
        folded, report = fold(model, profile="generic")
        seconds = time.perf_counter() - begin
        before, after = (_error(run(graph, {"x": x})["y"], wanted) for graph in (model, folded))
    except Exception as error:
        return Trial(spec, form, failure=one_line(error), ours=True)
    ratio = after / max(before, FLOOR)
    failure = f"error {after:.2g}, original's {before:.2g}" if not ratio <= WORSE else ""
    return Trial(spec, form, report.summary(), seconds, ratio, reasons_left(report), failure, bool(failure))


def reasons_left(report: FoldReport) -> tuple[tuple[str, int], ...]:
    """Why BatchNorms are left, names of nodes and tensors taken out, the most frequent first."""
    left = (outcome.reason for outcome in report.batchnorms if outcome.verdict is not Verdict.FOLDED)
    return tuple(Counter(re.sub(r"'[^']*'", "'...'", reason) for reason in left).most_common(3))


def _error(found: np.ndarray, wanted: np.ndarray) -> float:
    """Root mean square, of the output's scale: a maximum is mostly luck."""
    return float(np.sqrt(np.mean((found - wanted) ** 2)) / np.abs(wanted).max())


def one_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:160] if text else ''}"
