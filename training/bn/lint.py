"""What is wrong with a BatchNorm network by its make alone: checks L1 to L16, H11 and H13. No data, no figures.

Some concern the training and are made only where its facts are told. A check that cannot be made says why. Knows no
statistics' values.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from training.bn.facts import Facts
from training.bn.findings import Finding, NotMade
from training.bn.layers import norm_layers, without_statistics
from training.bn.structure import Structure

KERAS_MOMENTUM = 0.5  # from here on the last batches rule: such numbers are meant as the weight of the old value
MOST_EPS = 0.05  # beside a variance of order 1

Outcome = Finding | NotMade


def lint(model: nn.Module, structure: Structure, facts: Facts | None = None) -> list[Outcome]:
    """All that the network's make tells, check by check."""
    given = _Given(model, structure, facts or Facts())
    return [outcome for check in _CHECKS for outcome in check(given)]


@dataclass(frozen=True, slots=True)
class _Given:
    model: nn.Module
    structure: Structure
    facts: Facts

    @property
    def norms(self) -> list[tuple[str, nn.Module]]:
        """All, with statistics or without, each once."""
        return [(layer.name, layer.module) for layer in norm_layers(self.model)] + without_statistics(self.model)


def _dropout(given: _Given) -> Iterator[Outcome]:
    for dropout, norm in given.structure.dropouts:
        yield Finding(
            "L1", norm, "yellow", f"noise of {dropout} reaches it, and the end only through a BatchNorm",
            "dropout behind the last BatchNorm", "move it there: its noise is in the variance of training and not in "
            "that of serving",
        )  # fmt: skip
    if given.structure.unread:
        yield NotMade("L1", given.structure.unread)


def _decay(given: _Given) -> Iterator[Outcome]:
    """By the type of the module that holds the parameter: names and shapes mislead."""
    if given.facts.groups is None:
        yield NotMade("L2", "needs the optimiser's groups")
        return
    decay = {name: group.weight_decay for group in given.facts.groups for name in group.parameters}
    for name, module in given.norms:
        held = [f"{name}.{own}" if name else own for own, _ in module.named_parameters(recurse=False)]
        if decayed := [parameter for parameter in held if decay.get(parameter, 0.0) > 0]:
            yield Finding(
                "L2", name, "yellow", f"weight decay {decay[decayed[0]]:g} on {' and '.join(decayed)}", "none",
                "a group without decay for the parameters of norm layers",
            )  # fmt: skip


def _momentum(given: _Given) -> Iterator[Outcome]:
    for name, module in given.norms:
        momentum = module.momentum
        if isinstance(momentum, float) and momentum <= 0:
            yield Finding(
                "L4", name, "yellow", f"momentum {momentum:g}", "above 0", "0.1: at 0 the statistics never change"
            )
        elif isinstance(momentum, (int, float)) and momentum >= KERAS_MOMENTUM:
            meant = 1 - momentum
            yield Finding(
                "L4", name, "yellow", f"momentum {momentum:g}", f"below {KERAS_MOMENTUM:g}: the new value's weight",
                f"did you mean {meant:.4g}?" if meant > 0 else "0.1: at 1 the last batch alone counts",
            )  # fmt: skip
    if given.facts.fullgraph is None:
        yield NotMade("L5", "needs to know whether torch.compile runs with fullgraph=True")
    elif given.facts.fullgraph:
        for name, module in given.norms:
            if module.momentum is None:
                yield Finding("L5", name, "yellow", "momentum None", "a number", "0.1: fullgraph=True fails on None")


def _shared(given: _Given) -> Iterator[Outcome]:
    """One module under several names, or run several times a pass: one running average of different inputs."""
    names = defaultdict(list)
    for name, module in given.model.named_modules(remove_duplicate=False):
        names[id(module)].append(name)
    for name, module in given.norms:
        place = given.structure.places.get(name)
        uses, known = place.uses if place else 1, names[id(module)]
        if uses > 1 or len(known) > 1:
            found = f"runs {uses} times a pass" if uses > 1 else f"is also {', '.join(known[1:])}"
            yield Finding(
                "L6", name, "yellow", found, "one place", "a BatchNorm for each place; their inputs differ, and so do "
                "their statistics",
            )  # fmt: skip
    if given.structure.unread:
        yield NotMade("L6", f"names are compared, calls are not: {given.structure.unread}")


def _without_statistics(given: _Given) -> Iterator[Outcome]:
    for name, _ in without_statistics(given.model):
        yield Finding(
            "L7", name, "red", "keeps no running statistics (track_running_stats=False)", "running statistics",
            "switch them on and estimate them: else a row's answer depends on the rows beside it",
        )  # fmt: skip


def _frozen(given: _Given) -> Iterator[Outcome]:
    learns = any(parameter.requires_grad for parameter in given.model.parameters())
    for layer in norm_layers(given.model):
        own = list(layer.module.parameters(recurse=False))
        if layer.module.training and learns and own and not any(parameter.requires_grad for parameter in own):
            yield Finding(
                "H11", layer.name, "yellow", "gamma and beta are frozen, its statistics are not", "both or none",
                "put the layer into eval mode, after each call of train(): requires_grad does not freeze statistics",
            )  # fmt: skip
        if getattr(layer.module, "track_running_stats", True) is False:
            yield Finding(
                "H11", layer.name, "yellow", "track_running_stats was switched off later: it trains by the batch and "
                "serves by statistics that no longer follow", "on, or no buffers at all",
                "switch it on and re-estimate the statistics",
            )  # fmt: skip


def _sync(given: _Given) -> Iterator[Outcome]:
    for name, module in given.norms:
        held = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        if isinstance(module, nn.SyncBatchNorm) and any(tensor.device.type == "cpu" for tensor in held):
            yield Finding(
                "L9", name, "note", "SyncBatchNorm on a CPU", "BatchNorm, where nothing is to be synchronised",
                "convert it back before it serves; torch refuses to train it on a CPU",
            )  # fmt: skip


def _input(given: _Given) -> Iterator[Outcome]:
    advice = {
        "softmax": "what a softmax or sigmoid gives is normalised, and its sum of 1 is lost: move BatchNorm in front",
        "embedding": "a table can hold its own scale, and frequent words rule the statistics: leave BatchNorm out",
        "batchnorm": "two in a row are one: leave the first out",
    }
    for name, place in given.structure.places.items():
        if place.after:
            yield Finding("L10", name, "yellow", f"right behind a {place.after}", "a layer", advice[place.after])
    if given.structure.unread:
        yield NotMade("L10", given.structure.unread)


def _epsilon(given: _Given) -> Iterator[Outcome]:
    for name, module in given.norms:
        eps = float(module.eps)  # type: ignore[arg-type]
        if eps <= 0:
            yield Finding(
                "L11", name, "red", f"epsilon {eps:g}", "above 0",
                "1e-5: torch refuses to train without, and a channel that does not vary divides by 0",
            )  # fmt: skip
        elif eps > MOST_EPS:
            yield Finding("L11", name, "yellow", f"epsilon {eps:g}", f"at most {MOST_EPS:g}", "1e-5 or 1e-3")


def _batches(given: _Given) -> Iterator[Outcome]:
    facts = given.facts
    if facts.rows is None or facts.batch_rows is None or facts.drop_last is None:
        yield NotMade("L12", "needs the rows of the data and of a batch, and whether the last batch is dropped")
    elif facts.batch_rows == 1 or (facts.rows % facts.batch_rows == 1 and not facts.drop_last):
        yield Finding(
            "L12", "", "yellow", f"{facts.rows} rows in batches of {facts.batch_rows} leave a batch of one",
            "two rows at least", "drop_last, or merge the last row into the batch before: one value has no variance",
        )  # fmt: skip
    if facts.accumulation is None:
        yield NotMade("L13", "needs the number of batches in one step")
    elif facts.accumulation > 1:
        size = f"{facts.batch_rows} rows" if facts.batch_rows else "one batch"
        yield Finding(
            "L13", "", "note", f"{facts.accumulation} batches make a step; BatchNorm sees {size} at a time", "1 batch",
            "accumulation makes no larger batch of BatchNorm's; momentum is spent "
            f"{facts.accumulation} times as fast as steps are",
        )  # fmt: skip
    if facts.shuffle is None:
        yield NotMade("L14", "needs to know whether rows are shuffled")
    elif not facts.shuffle:
        yield Finding(
            "L14", "", "yellow", "rows come in the same order each epoch", "another one each epoch",
            "shuffle: batches of one class have statistics of one class",
        )  # fmt: skip


def _bias(given: _Given) -> Iterator[Outcome]:
    fed = {name: place.fed_by for name, place in given.structure.places.items() if place.fed_by}
    for name, feeder in fed.items():
        if isinstance(getattr(given.model.get_submodule(feeder), "bias", None), torch.Tensor):
            yield Finding(
                "H13", name, "note", f"{feeder} has a bias, which this layer subtracts again", "bias=False",
                "drop it: its gradient is exactly 0",
            )  # fmt: skip
    if given.structure.unread:
        yield NotMade("H13", given.structure.unread)


def _mode(given: _Given) -> Iterator[Outcome]:
    """In a network that serves every layer does; in one that trains, a layer in eval mode is frozen on purpose."""
    if given.facts.finished is None and given.model.training:
        yield NotMade("L16", "the network is in training mode, and nobody told whether its training is over")
    if given.model.training and not given.facts.finished:
        return
    for name, module in given.norms:
        if module.training:
            yield Finding(
                "L16", name, "red", "in training mode, in a network that is to serve", "eval mode",
                "model.eval() before it answers: else rows change each other's answers, and the statistics",
            )  # fmt: skip


_CHECKS: Sequence[Callable[[_Given], Iterator[Outcome]]] = (
    _dropout, _decay, _momentum, _shared, _without_statistics, _frozen, _sync, _input, _epsilon, _batches, _bias, _mode,
)  # fmt: skip
