"""Networks to fold, written for these tests: true depth and block structure, narrow and for small inputs.

`NETWORKS` is the list; `Network.module` makes one with the weights and statistics of its seed. The files know torch and
nothing of folding: what folding must make of each network is stated in `test_architectures.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from tests.training.fold.architectures.branched import mobileone_s0, repvgg_a0
from tests.training.fold.architectures.cells import NasNet
from tests.training.fold.architectures.dense import densenet121
from tests.training.fold.architectures.images import HRNet, shufflenet_v2, unet, vgg11, xception
from tests.training.fold.architectures.levit import LeViT
from tests.training.fold.architectures.mixer import convmixer
from tests.training.fold.architectures.points import PointNet
from tests.training.fold.architectures.preparing import settle
from tests.training.fold.architectures.residual import (
    iresnet50,
    preact_resnet18,
    preact_resnet20_a,
    preact_resnet50,
    pyramidnet20,
    se_resnet50,
)
from tests.training.fold.architectures.sequences import CRNN, DeepSpeech2
from tests.training.fold.architectures.tabular import TabularMLP

__all__ = ["NETWORKS", "Network", "seeded"]


@dataclass(frozen=True)
class Network:
    """`narrow` is for tests, `published` for measurements, each with the shape of one row; `batchnorms` of either."""

    batchnorms: int
    narrow: Callable[[], nn.Module]
    shape: tuple[int, ...]
    published: Callable[[], nn.Module]
    published_shape: tuple[int, ...]

    def module(self, seed: int = 0, published: bool = False) -> nn.Module:
        """With random weights and settled statistics, in eval mode."""
        build, shape = (self.published, self.published_shape) if published else (self.narrow, self.shape)
        return settle(seeded(build, seed), shape, np.random.default_rng(seed))


def seeded(build: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """`build()` with the weights that `seed` gives; torch's own generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


SMALL, MIDDLE, LARGE = (3, 32, 32), (3, 64, 64), (3, 224, 224)

# One entry a family. Where a network is its authors', so is the number of its BatchNorms.
NETWORKS = {
    "densenet121": Network(121, lambda: densenet121(4, 10), SMALL, densenet121, LARGE),
    "preact-resnet50": Network(49, lambda: preact_resnet50(8, 10), SMALL, preact_resnet50, LARGE),
    "preact-resnet18": Network(17, lambda: preact_resnet18(8), SMALL, preact_resnet18, SMALL),
    "preact-resnet20-a": Network(19, lambda: preact_resnet20_a(8), SMALL, preact_resnet20_a, SMALL),
    "pyramidnet20": Network(29, lambda: pyramidnet20(8, 18), SMALL, pyramidnet20, SMALL),
    "iresnet50": Network(79, lambda: iresnet50(8, 32, 16), SMALL, iresnet50, (3, 112, 112)),
    "convmixer-relu": Network(
        65,
        lambda: convmixer(nn.ReLU, 12, patch=4, classes=10), SMALL,
        lambda: convmixer(nn.ReLU), LARGE,
    ),
    "convmixer-gelu": Network(
        65,
        lambda: convmixer(nn.GELU, 12, patch=4, classes=10), SMALL,
        lambda: convmixer(nn.GELU), LARGE,
    ),
    "levit": Network(52, lambda: LeViT(64, (16, 32, 48), key=8, classes=10), MIDDLE, LeViT, LARGE),
    "pointnet": Network(15, lambda: PointNet(4, 10), (3, 32), PointNet, (3, 1024)),
    "repvgg-a0": Network(61, lambda: repvgg_a0(8, 10), SMALL, repvgg_a0, LARGE),
    "mobileone-s0": Network(226, lambda: mobileone_s0(8, 10), SMALL, mobileone_s0, LARGE),
    "shufflenet-v2": Network(56, lambda: shufflenet_v2(8, 10), SMALL, shufflenet_v2, LARGE),
    "unet": Network(7, lambda: unet(4), SMALL, unet, (3, 256, 256)),
    "vgg11": Network(8, lambda: vgg11(4, 32, 10), SMALL, vgg11, LARGE),
    "nasnet": Network(50, lambda: NasNet(4, classes=10), SMALL, NasNet, LARGE),
    "se-resnet50": Network(53, lambda: se_resnet50(8, 10), SMALL, se_resnet50, LARGE),
    "xception": Network(40, lambda: xception(4, 10), MIDDLE, xception, (3, 299, 299)),
    "hrnet": Network(43, lambda: HRNet(4, classes=10), SMALL, HRNet, LARGE),
    "crnn": Network(3, lambda: CRNN(4, 8), (1, 32, 48), CRNN, (1, 32, 128)),
    "deepspeech2": Network(
        7,
        lambda: DeepSpeech2(17, 4, 8), (1, 17, 24),
        DeepSpeech2, (1, 161, 200),
    ),
    "tabular": Network(4, TabularMLP, (20,), lambda: TabularMLP(200, (1024, 512, 256)), (200,)),
}  # fmt: skip
