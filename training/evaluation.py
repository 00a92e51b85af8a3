"""How good a network is on examples: in eval mode, in pieces of bounded size, on the device where the network is."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from training.datasets.dataset import Examples

EVALUATION_ROWS = 256


@dataclass(frozen=True, slots=True)
class Measured:
    """loss: mean cross-entropy. accuracy: share of examples, or of pixels where each has a label. mean_iou: of those,
    intersection over union, averaged over the classes that occur in labels or answers; else None."""

    loss: float
    accuracy: float
    mean_iou: float | None = None


def tensors(examples: Examples) -> list[torch.Tensor]:
    """The inputs, in the order in which a network takes them."""
    return [torch.from_numpy(values) for values in examples.inputs.values()]


def logits(module: nn.Module, examples: Examples) -> torch.Tensor:
    """The module's answers for all rows, on the CPU."""
    with torch.inference_mode():
        return torch.cat([answer.cpu() for answer in _answers(module, examples)])


def accuracy(module: nn.Module, examples: Examples) -> float:
    """Share of `examples` (of their pixels, where each has a label) whose highest logit is the label's, from 0 to 1."""
    return measure(module, examples).accuracy


def measure(module: nn.Module, examples: Examples) -> Measured:
    """Over all rows, without holding all answers."""
    labels = torch.from_numpy(examples.labels)
    loss, pairs = 0.0, torch.zeros(0)
    with torch.inference_mode():
        for answer, truth in zip(_answers(module, examples), labels.split(EVALUATION_ROWS), strict=True):
            scores = answer.cpu().float()
            loss += functional.cross_entropy(scores, truth, reduction="sum").item()
            found = _pairs(truth, scores.argmax(dim=1), scores.shape[1])
            pairs = pairs + found if len(pairs) else found
    hits, total = pairs.diagonal().sum().item(), pairs.sum().item()
    return Measured(loss / labels.numel(), hits / total, _mean_iou(pairs) if labels.dim() > 1 else None)


def _answers(module: nn.Module, examples: Examples) -> Iterator[torch.Tensor]:
    first = next(itertools.chain(module.parameters(), module.buffers()), None)
    device = first.device if first is not None else torch.device("cpu")
    for piece in zip(*(values.split(EVALUATION_ROWS) for values in tensors(examples)), strict=True):
        yield module(*(values.to(device) for values in piece))


def _pairs(truth: torch.Tensor, answers: torch.Tensor, classes: int) -> torch.Tensor:
    """[class that it is, class that was answered] -> how many."""
    return torch.bincount((truth * classes + answers).flatten(), minlength=classes**2).reshape(classes, classes)


def _mean_iou(pairs: torch.Tensor) -> float:
    both = pairs.diagonal()
    either = pairs.sum(dim=0) + pairs.sum(dim=1) - both
    return (both[either > 0] / either[either > 0]).double().mean().item()
