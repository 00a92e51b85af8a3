"""From recipe to published version. The file to read first: `build` is the whole path of one model, step by step.

Each step lives in the file of its name. Here is only their order, and what must hold before anything is published.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import nn

from training import datasets, verify
from training.datasets.dataset import Dataset, Examples, InputDescription, Task
from training.errors import UserError
from training.evaluation import logits, tensors
from training.export import export
from training.fold import FoldReport, fold
from training.fold.files import SOURCE_SHA256
from training.freeze import FreezeReport, freeze_statistics
from training.golden import make_golden
from training.health_check import examine_trained, health_of, require_health
from training.prepare import prepare
from training.publish import LABELS_FILE, Draft, check_destination, config_for, publish
from training.recipe import Recipe
from training.recipe_sources import Asked
from training.train import TrainReport, train
from training.verify_report import VerifyReport

OUTPUT = "logits"
VERIFY_ROWS = 60


class ChecksFailed(UserError):
    """The model was built, but is not what its recipe promises. Nothing was published."""


@dataclass(frozen=True, slots=True)
class BuildResult:
    """What was published, where, and the reports of the steps that led there."""

    recipe: Recipe
    path: Path
    train: TrainReport
    freeze: FreezeReport
    fold: FoldReport
    verify: VerifyReport
    batchnorms_left: int

    def as_text(self) -> str:
        """The summary for a terminal."""
        folded = self.fold.summary()
        accuracy = (
            f"{self.freeze.scores.test_accuracy:.2%} of {self.train.n_test} held-out examples "
            f"(training examples: {self.freeze.scores.train_accuracy:.2%}), trained in {self.train.seconds:.1f} s"
        )
        fold_line = (
            f"{folded['found']} BatchNormalization found, {folded['folded']} folded, {self.batchnorms_left} left; "
            f"{folded['nodes_before']} nodes before, {folded['nodes_after']} after"
        )
        lines = (
            f"published {self.path}",
            f"accuracy: {accuracy}",
            f"frozen: {self.freeze.as_text()}",
            f"folded: {fold_line}",
            self.verify.as_text(),
        )
        return "\n".join([*lines, f"serve it: foldserve --model-repository {self.path.parents[1]}"])


def build(
    recipe: Recipe,
    repository: Path,
    *,
    replace: int | None = None,
    announce: Callable[[str], None] = lambda _: None,
    dataset: Dataset | None = None,
) -> BuildResult:
    """Train, export, fold, verify and publish `recipe` as the next version of its name, or in place of `replace`.

    dataset: the recipe's, where it has been read.
    `announce` is told of each step before it begins. Raises UserError or FoldError; nothing is published then.
    """
    check_destination(repository, recipe.name, replace)  # now, not after the training

    announce(f"train    {recipe.name}: {recipe.architecture.title} on {recipe.data.source}, {recipe.epochs} epochs")
    if dataset is None:
        dataset = datasets.load(recipe.data.source, recipe.data.options())
    module, train_report = train(recipe, dataset)

    announce("freeze   BatchNorm's statistics, measured over the training data")
    freeze_report = freeze_statistics(module, recipe, dataset)
    _require_accuracy(recipe, freeze_report, len(dataset.test))

    announce("doctor   what BatchNorm's statistics are worth")
    diagnosis = examine_trained(module, recipe, dataset, steps=train_report.steps)
    if recipe.doctor == "refuse":
        require_health(diagnosis, f"recipe {recipe.name!r}", "; or publish it all the same with --set doctor=report")

    delivered = deliver(
        module,
        recipe,
        dataset,
        repository,
        {
            # Without the time it took: on one machine, one recipe gives the same files, byte for byte.
            "train": {key: value for key, value in train_report.as_dict().items() if key != "seconds"},
            "freeze": freeze_report.as_dict(),
            "doctor": health_of(diagnosis),
        },
        golden=dataset.test.sample(),
        replace=replace,
        announce=announce,
    )
    return BuildResult(
        recipe, delivered.path, train_report, freeze_report, delivered.fold, delivered.verify, delivered.batchnorms_left
    )


@dataclass(frozen=True, slots=True)
class Delivered:
    """What became of a network whose statistics are settled."""

    path: Path
    fold: FoldReport
    verify: VerifyReport
    batchnorms_left: int


def deliver(
    module: nn.Module,
    recipe: Recipe,
    dataset: Dataset,
    repository: Path,
    reports: Mapping[str, Any],
    *,
    golden: Examples,
    replace: int | None = None,
    announce: Callable[[str], None] = lambda _: None,
) -> Delivered:
    """Export, fold, verify against `dataset.test` and publish a network as it is; the second half of every path.

    reports: what the first half has to tell. golden: a few inputs whose answers the service replays; their labels mean
    nothing here. Raises UserError or FoldError; nothing is published then.
    """
    announce("export   torch module to ONNX")
    examples = dataset.test.at(slice(2))
    source = export(_as_served(module, dataset), dict(zip(examples.inputs, tensors(examples), strict=True)), [OUTPUT])
    source_sha256 = _mark_with_hash(source)

    announce("fold     BatchNorm into the weights before it")
    folded, fold_report = fold(source)

    announce("verify   folded against unfolded")
    batchnorms_left = _require_folded(recipe, folded, fold_report)
    verify_report = verify.verify(source, folded, _samples(source, dataset))
    _require_same_answers(module, folded, dataset)

    announce("publish  a new version, whole or not at all")
    draft = Draft(
        config=_describe(folded, recipe, dataset),
        model=folded,
        golden=make_golden(source, folded, golden.inputs),
        reports={
            "source": {"sha256": source_sha256},
            **reports,
            "fold": fold_report.as_dict(),
            "verify": verify_report.as_dict(),
        },
        labels=dataset.classes,
    )
    version = publish(repository, draft, replace=replace)
    return Delivered(version.path, fold_report, verify_report, batchnorms_left)


def build_asked(
    asked: Asked,
    repository: Path,
    *,
    replace: int | None = None,
    announce: Callable[[str], None] = lambda _: None,
) -> BuildResult:
    """The same of what was said; `announce` is also told what was chosen. Raises UserError or FoldError."""
    recipe, dataset = prepare(asked, announce)
    return build(recipe, repository, replace=replace, announce=announce, dataset=dataset)


def _require_accuracy(recipe: Recipe, report: FreezeReport, n_test: int) -> None:
    if report.scores.test_accuracy < recipe.minimum_test_accuracy:
        raise ChecksFailed(
            f"recipe {recipe.name!r} reached {report.scores.test_accuracy:.2%} of {n_test} held-out examples, but asks "
            f"for {recipe.minimum_test_accuracy:.2%}; nothing was published. Train longer, or publish it all the same "
            f"with --set minimum_test_accuracy={math.floor(100 * report.scores.test_accuracy) / 100:g}"
        )


class _ClassesLast(nn.Module):
    """Scores of pixels with the classes along the last axis, which is where labels.txt has its labels."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.network(*inputs)
        return scores.movedim(1, -1)


def _as_served(module: nn.Module, dataset: Dataset) -> nn.Module:
    return module if dataset.task is Task.CLASSIFY else _ClassesLast(module).eval()


def _mark_with_hash(source: ir.Model) -> str:
    """The hash of the unfolded graph, also left where `fold` finds it and writes it into the folded file."""
    source_sha256 = hashlib.sha256(ir.to_proto(source).SerializeToString()).hexdigest()
    source.meta[SOURCE_SHA256] = source_sha256
    return source_sha256


def _require_folded(recipe: Recipe, folded: ir.Model, report: FoldReport) -> int:
    """How many BatchNormalization nodes are left; counted in the graph, whatever the report says."""
    left = sum(node.op_type == "BatchNormalization" for node in folded.graph.all_nodes())
    if left > recipe.batchnorms_left:
        reasons = "; ".join(f"{outcome.name}: {outcome.reason}" for outcome in report.batchnorms if outcome.reason)
        raise ChecksFailed(
            f"{left} BatchNormalization are left in {recipe.name!r}, its recipe allows {recipe.batchnorms_left}; "
            f"nothing was published: {reasons}"
        )
    return left


def _samples(source: ir.Model, dataset: Dataset) -> list[Any]:
    """All held-out inputs, then what real data never show: zeros, hot border pixels, large values, noise."""
    pieces = np.array_split(np.arange(len(dataset.test)), -(-len(dataset.test) // VERIFY_ROWS))
    return list(verify.make_samples(source, [dict(dataset.test.at(piece).inputs) for piece in pieces]))


def _require_same_answers(module: nn.Module, folded: ir.Model, dataset: Dataset) -> None:
    """The folded file in ONNX Runtime must choose torch's class for every held-out input, not just nearly every."""
    expected = logits(module, dataset.test).argmax(dim=1).numpy()
    answered = verify.run(folded, dict(dataset.test.inputs))[OUTPUT].argmax(axis=-1)
    differing = np.argwhere(answered != expected)
    if len(differing):
        first = tuple(differing[0])
        of_pixels = "" if len(first) == 1 else f", pixel {list(map(int, first[1:]))}"
        raise ChecksFailed(
            f"{len(differing)} of {expected.size} held-out inputs get another class than from torch; the first is "
            f"number {first[0]}{of_pixels}: {dataset.classes[answered[first]]!r}, torch says "
            f"{dataset.classes[expected[first]]!r}"
        )


def _describe(folded: ir.Model, recipe: Recipe, dataset: Dataset) -> Any:
    scores = "one score a class" if dataset.task is Task.CLASSIFY else "one score a class for each pixel"
    about: dict[str, dict[str, Any]] = {
        **{one.name: _of_input(one) for one in dataset.inputs},
        OUTPUT: {
            "description": f"{scores}, in the order of labels.txt; the largest wins",
            "labels": LABELS_FILE,
        },
    }
    return config_for(
        folded,
        name=recipe.name,
        description=recipe.description,
        max_batch_size=recipe.max_batch_size,
        about=about,
        notes=dataset.notes,
    )


def _of_input(one: InputDescription) -> dict[str, Any]:
    told: dict[str, Any] = {"description": one.description, "minimum": one.minimum, "maximum": one.maximum}
    return told | ({"categories": one.categories} if one.categories else {})
