"""What becomes of a preset on its way to the server, in seconds: tiny, one step, measured, exported, folded, proved.

`TINY` has options that make each preset small without taking any of its parts away, and what it is given.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from tests.training.fold.architectures.preparing import BatchNorm, batchnorms
from training import architectures, verify
from training.architectures.norms import DEFAULT, Norms
from training.bn.population import Estimate, estimate
from training.export import export
from training.features import Features
from training.fold import FoldReport, fold
from training.presets import PRESETS

ROWS = 8
OUTPUTS = 3
BATCHES = 3

USUAL: Mapping[str, Features] = {
    "image": Features("image", (3, 32, 32)),
    "clip": Features("clip", (3, 8, 32, 32)),
    "row": Features("row", (30,)),
    "tokens": Features("tokens", (64,), 257),
}
IMAGE = Features("image", (2, 8, 8))
TINY: Mapping[str, tuple[Features, Mapping[str, Any]]] = {
    "mlp": (Features("row", (5,)), {"widths": (8, 6)}),
    "mlp-in": (Features("row", (5,)), {"widths": (8, 6)}),
    "tabresnet": (Features("row", (5,)), {"width": 8, "depth": 2}),
    "cnn6": (IMAGE, {"widths": (4, 4, 6, 6, 8, 8)}),
    "resnet8": (IMAGE, {"widths": (4, 6), "depths": (1, 1)}),
    "resnet20": (IMAGE, {"widths": (4, 6), "depths": (1, 2)}),
    "resnet18": (IMAGE, {"widths": (4, 6), "depths": (2, 1)}),
    "preact-mini": (IMAGE, {"widths": (4, 6), "depths": (1, 1)}),
    "mobilenet-mini": (
        IMAGE,
        {"stem": 4, "blocks": ((2, 4, 1, False, False), (2, 6, 2, True, True)), "last": 8},
    ),
    "repvgg-mini": (IMAGE, {"widths": (4, 6), "depths": (1, 2)}),
    "densenet-mini": (IMAGE, {"growth": 4, "depths": (2, 1), "bottleneck": 2}),
    "shufflenet-mini": (IMAGE, {"stem": 4, "widths": (8,), "depths": (2,), "last": 8}),
    "inception-mini": (IMAGE, {"stem": 4, "widths": (8,)}),
    "unet": (IMAGE, {"widths": (4, 6)}),
    "centernet-mini": (IMAGE, {"widths": (4, 6, 8), "pyramid": 4}),
    "textcnn": (Features("tokens", (10,), 7), {"width": 4, "channels": 6}),
    "vdcnn9": (Features("tokens", (10,), 7), {"width": 4, "widths": (4, 6)}),
    "tcn-lm": (Features("tokens", (10,), 7), {"width": 6, "depth": 2}),
    "video3d-mini": (Features("clip", (2, 4, 8, 8)), {"widths": (4, 6, 6)}),
}

NORMS: Mapping[str, Norms] = {
    "bn": Norms(),
    "ghost:4": Norms(norm="ghost:4"),
    "renorm": Norms(norm="renorm"),
    "sync": Norms(norm="sync"),
    "frozen": Norms(norm="frozen"),
    "gn:2": Norms(norm="gn:2"),
    "ln": Norms(norm="ln"),
    "none": Norms(norm="none"),
    "eps=0.01": Norms(eps=0.01),
    "momentum=None": Norms(momentum=None),
    "affine=False": Norms(affine=False),
    "bn_bias=False": Norms(bn_bias=False),
    "conv_bias=True": Norms(conv_bias=True),
    "bn_order=pre": Norms(bn_order="pre"),
}
"""Every flag, by what it says; all else is as a preset has it."""


@dataclass(frozen=True)
class Served:
    """`found`: BatchNorm modules; `exported`, `left`: BatchNormalization in the graph as exported, and folded.
    `estimated`: None where there is no population to speak of. `difference`: the folded graph's answers from torch's in
    eval mode, of their scale."""

    found: int
    exported: int
    left: int
    estimated: Estimate | None
    report: FoldReport
    difference: float


def tiny(preset: str, norms: Norms = DEFAULT) -> tuple[nn.Module, Features]:
    """The preset's network, a few channels wide."""
    features, options = TINY[preset]
    torch.manual_seed(0)
    network = architectures.build(
        PRESETS[preset].family, features, OUTPUTS, norms=norms, **{**PRESETS[preset].options, **options}
    )
    return network, features


def full(preset: str) -> tuple[nn.Module, Features]:
    """The preset's network as users get it, for inputs of a usual size."""
    features = USUAL[PRESETS[preset].takes]
    torch.manual_seed(0)
    return architectures.build(PRESETS[preset].family, features, OUTPUTS, **PRESETS[preset].options), features


def batch(features: Features, rows: int, seed: int) -> torch.Tensor:
    """Noise of this kind; texts of different lengths, with padding behind them."""
    source = torch.Generator().manual_seed(seed)
    if features.kind != "tokens":
        return 1.0 + 2.0 * torch.randn(rows, *features.shape, generator=source)
    (length,) = features.shape
    tokens = torch.randint(1, features.vocabulary, (rows, length), generator=source)
    lengths = torch.randint(3, length + 1, (rows, 1), generator=source)
    return tokens * (torch.arange(length) < lengths)


def serve(network: nn.Module, features: Features, profile: str = "ort-cpu") -> Served:
    """From a fresh network to proved answers."""
    _stirred(network)
    step(network, features)
    batches = [batch(features, ROWS, seed) for seed in range(BATCHES)]
    norms = [part for part in network.modules() if isinstance(part, BatchNorm)]
    estimated = estimate(network, batches) if any(norm.training for norm in norms) else None
    network.eval()
    examples = batch(features, 4 * ROWS, BATCHES)
    source = export(network, {"x": examples}, ["scores"])
    folded, report = fold(source, profile)
    samples = verify.make_samples(source, [{"x": examples.numpy()}])
    verify.verify(source, folded, samples)
    with torch.no_grad():
        wanted = network(examples).numpy()
    answered = verify.run(folded, {"x": examples.numpy()})["scores"]
    difference = float(np.abs(answered - wanted).max() / np.abs(wanted).max())
    return Served(len(norms), batchnorms(source), batchnorms(folded), estimated, report, difference)


def step(network: nn.Module, features: Features) -> float:
    """One of training, on noise; returns the loss."""
    network.train()
    optimiser = torch.optim.SGD(network.parameters(), lr=0.01)
    scores = network(batch(features, ROWS, 100))
    labels = torch.arange(ROWS) % OUTPUTS
    if scores.dim() > 2:
        labels = labels.reshape(-1, *(1 for _ in scores.shape[2:])).expand(ROWS, *scores.shape[2:])
    loss = functional.cross_entropy(scores, labels)
    loss.backward()  # type: ignore[no-untyped-call]
    optimiser.step()
    return loss.item()


def _stirred(network: nn.Module) -> None:
    """gamma 1, beta 0, mean 0 and variance 1 make nearly every wrong fold right, and gamma 0 hides its branch."""
    source = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for part in network.modules():
            if isinstance(part, BatchNorm):
                if part.weight is not None:
                    part.weight.copy_(torch.empty_like(part.weight).uniform_(0.7, 1.3, generator=source))
                    part.weight[0] *= -1.0
                if part.bias is not None:
                    part.bias.copy_(0.2 * torch.randn(part.bias.shape, generator=source))
                part.running_mean.copy_(0.3 * torch.randn(part.running_mean.shape, generator=source))
                part.running_var.copy_(torch.empty_like(part.running_var).uniform_(0.5, 2.0, generator=source))
