"""The work of `foldtrain recalibrate`: a run's statistics measured again on data of a new domain, as the next version.

    RUN, NEW -> examine -> re-estimate -> examine -> export -> fold -> verify -> publish

Another camera or another sensor often changes little but means and variances, and those need no labels (Y. Li, N. Wang,
J. Shi, J. Liu and X. Hou, arXiv 1603.04779; Y. Wu and J. Johnson, arXiv 2105.07576, section 5). Promises: the run's
folder is only read; nothing is published when a finding is red afterwards or a check fails. Statistics do not mend
images that are turned, and only labels could tell: where NEW has some, accuracies are reported.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from training import datasets
from training.bn.diagnosis import Diagnosis, examine
from training.bn.findings import SEVERITIES
from training.bn.population import Estimate, estimate
from training.command_files import CannotUseFile, read_samples
from training.datasets import SOURCES
from training.datasets.dataset import Columns, Dataset, Examples
from training.errors import UserError
from training.evaluation import EVALUATION_ROWS, accuracy
from training.health_check import BATCH_ROWS, batches_of, health_of, require_health, run_on
from training.pipeline import Delivered, deliver
from training.publish import check_destination
from training.reference.op import Array
from training.train import torch_set_up_for
from training.trained_run import TrainedRun, open_run

Mode = Literal["sequential", "minibatch"]

GOLDEN_ROWS = 4
FEWEST_ROWS = 32
"""Below, a mean is 0.18 standard deviations off by chance alone: more than what would be called drift."""

_SEED = 0


class CannotRecalibrate(UserError):
    """The run has not ended, or the data are not what its network takes. Nothing was published."""


@dataclass(frozen=True, slots=True)
class Accuracies:
    """Shares of 1, before and after. domain: of the new data; None where they have no labels. own: of the rows that the
    run held out."""

    own: tuple[float, float]
    domain: tuple[float, float] | None


@dataclass(frozen=True, slots=True, eq=False)
class Recalibration:
    """What changed, and what was published."""

    data: str
    rows: int
    estimate: Estimate
    before: Diagnosis
    after: Diagnosis
    accuracies: Accuracies
    delivered: Delivered

    def as_text(self) -> str:
        shifts = [layer.mean_shift for layer in self.estimate.layers if layer.mean_shift is not None]
        ratios = [layer.log_variance_ratio for layer in self.estimate.layers if layer.log_variance_ratio is not None]
        own, domain = self.accuracies.own, self.accuracies.domain
        moved = (
            f"means moved by up to {max(shifts, default=0.0):.2g} standard deviations, variances by a factor of up to "
            f"{_factor(max(ratios, default=0.0))}"
        )
        lines = [
            f"published {self.delivered.path}",
            f"measured: {len(shifts)} BatchNorm layers over {self.rows} rows of {self.data}; {moved}",
            f"health on these rows: {_counts(self.before)} before; {_counts(self.after)} now",
            f"accuracy of the rows that the run held out: {own[0]:.2%} before, {own[1]:.2%} now",
            f"accuracy of the new rows: {domain[0]:.2%} before, {domain[1]:.2%} now"
            if domain
            else "accuracy of the new rows: not known, they have no labels",
            self.delivered.verify.as_text(),
            f"serve it: foldserve --model-repository {self.delivered.path.parents[1]}",
        ]
        return "\n".join(lines)


def recalibrate(
    folder: Path,
    data: str,
    repository: Path,
    *,
    mode: Mode = "sequential",
    replace: int | None = None,
    announce: Callable[[str], None] = lambda _: None,
) -> Recalibration:
    """data: the name of a data source, or of an .npz. `announce` is told of each step before it begins.

    Raises UserError or FoldError; nothing is published then."""
    run = open_run(folder)
    if run.report is None:
        raise CannotRecalibrate(
            f"{folder}: the run has not ended, it is at step {run.steps} of {run.total_steps}; go on with it first: "
            f"foldtrain resume {folder}"
        )
    check_destination(repository, run.recipe.name, replace)
    new, has_labels = _read(data, run)

    announce(f"examine  {folder} on {len(new)} rows of {data}")
    with torch_set_up_for(run.recipe):
        before, scores_before = _examined(run, new), _accuracies(run, new, has_labels=has_labels)

        announce(f"measure  BatchNorm's statistics over these rows, {mode}")
        found = estimate(run.module, batches_of(new, _rows_of(mode)), mode=mode, forward=run_on)
        after, scores_after = _examined(run, new), _accuracies(run, new, has_labels=has_labels)
    require_health(after, f"with statistics of {data}")

    accuracies = Accuracies(
        (scores_before[0], scores_after[0]), (scores_before[1], scores_after[1]) if has_labels else None
    )
    reports = {
        "train": run.report["train"],
        "freeze": run.report["freeze"],
        "recalibrate": _report(data, len(new), found, before, after, accuracies),
    }
    served = dataclasses.replace(run.dataset, test=new)  # the proof is led on what will be sent
    delivered = deliver(
        run.module,
        run.recipe,
        served,
        repository,
        reports,
        golden=new.at(slice(GOLDEN_ROWS)),
        replace=replace,
        announce=announce,
    )
    return Recalibration(data, len(new), found, before, after, accuracies, delivered)


# --- the data of the new domain -----------------------------------------------------------------------------------


def _read(data: str, run: TrainedRun) -> tuple[Examples, bool]:
    """The rows in a random order, and whether their labels are labels."""
    kind = data.partition(":")[0]
    if kind in SOURCES:
        found = datasets.load(data, run.recipe.data.options())
        arrays: Mapping[str, Array] = _joined(found)
        labels = np.concatenate([found.train.labels, found.test.labels])
        has_labels = found.classes == run.dataset.classes and found.task == run.dataset.task
    elif data.lower().endswith(".npz"):
        arrays, labels, has_labels = read_samples(Path(data)), np.zeros(0, np.int64), False
    else:
        raise CannotRecalibrate(
            f"--data {data}: is neither an .npz nor a data source; sources are {', '.join(SOURCES)}"
        )
    inputs = {name: _fitting(data, name, arrays, run) for name in run.dataset.train.inputs}
    rows = min(map(len, inputs.values()))
    if odd := next((name for name, values in inputs.items() if len(values) != rows), None):
        raise CannotUseFile(f"{data}: {odd} has {len(inputs[odd])} rows along axis 0, another input has {rows}")
    if rows < FEWEST_ROWS:
        raise CannotRecalibrate(f"{data}: {rows} rows are too few to measure statistics with; expected {FEWEST_ROWS}")
    order = np.random.default_rng(_SEED).permutation(rows)
    if not has_labels:
        labels = np.zeros((rows, *run.dataset.train.labels.shape[1:]), np.int64)
    return Examples(inputs, labels).at(order), has_labels


def _joined(dataset: Dataset) -> dict[str, Array]:
    return {name: np.concatenate([values, dataset.test.inputs[name]]) for name, values in dataset.train.inputs.items()}


def _fitting(data: str, name: str, arrays: Mapping[str, Array], run: TrainedRun) -> Array:
    """As the network takes it. Raises CannotUseFile."""
    expected = run.dataset.train.inputs[name]
    if name not in arrays:
        raise CannotUseFile(f"{data}: holds no input {name!r}; it holds {', '.join(arrays) or 'nothing'}")
    values = arrays[name]
    if values.shape[1:] != expected.shape[1:] or not values.ndim:
        found, wanted = (["rows", *shape[1:]] for shape in (values.shape, expected.shape))
        raise CannotUseFile(f"{data}: {name} is {_spelled(found)}, the run's network takes {_spelled(wanted)}")
    if values.dtype.kind not in "fiub" or (values.dtype.kind == "f" and expected.dtype.kind != "f"):
        raise CannotUseFile(f"{data}: {name} holds {values.dtype}, the run's network takes {expected.dtype}")
    fitting = values.astype(expected.dtype)
    if expected.dtype.kind != "f":
        if not np.array_equal(fitting, values):
            raise CannotUseFile(f"{data}: {name} holds numbers that are no {expected.dtype}")
        return fitting
    # A table's front has values of its own for what is missing.
    bad = np.isinf(fitting) if isinstance(run.dataset.front, Columns) else ~np.isfinite(fitting)
    if bad.any():
        row = int(np.argwhere(bad)[0, 0])
        raise CannotUseFile(f"{data}: {name} holds no finite number in row {row}; leave such rows out")
    return fitting


def _spelled(shape: Sequence[object]) -> str:
    return f"[{', '.join(map(str, shape))}]"


# --- what is measured ---------------------------------------------------------------------------------------------


def _examined(run: TrainedRun, new: Examples) -> Diagnosis:
    return examine(
        run.module, batches_of(new, BATCH_ROWS), facts=run.facts(), forward=run_on, inputs=len(run.dataset.inputs)
    )


def _accuracies(run: TrainedRun, new: Examples, *, has_labels: bool) -> tuple[float, float]:
    """Of the run's own held-out rows, and of the new ones."""
    return accuracy(run.module, run.dataset.test), accuracy(run.module, new) if has_labels else math.nan


def _rows_of(mode: Mode) -> int:
    """Of a batch. In sequential mode it decides nothing."""
    return EVALUATION_ROWS if mode == "sequential" else BATCH_ROWS


# --- what is told -------------------------------------------------------------------------------------------------


def _report(
    data: str, rows: int, found: Estimate, before: Diagnosis, after: Diagnosis, accuracies: Accuracies
) -> dict[str, Any]:
    """For report.json. Of paths, the file's name: where somebody keeps data is nobody's affair."""
    own, domain = accuracies.own, accuracies.domain
    return {
        "data": Path(data).name if data.lower().endswith(".npz") else data,
        "rows": rows,
        "estimate": found.as_dict(),
        "health": {"before": health_of(before), "after": health_of(after)},
        "accuracy": {
            "held_out": {"before": own[0], "after": own[1]},
            "new": {"before": domain[0], "after": domain[1]} if domain else None,
        },
    }


def _counts(diagnosis: Diagnosis) -> str:
    return ", ".join(f"{len(diagnosis.of(severity))} {severity}" for severity in SEVERITIES)


def _factor(log_ratio: float) -> str:
    return f"{math.exp(log_ratio):.3g}" if log_ratio < 700 else "more than any number"  # beyond, exp overflows
