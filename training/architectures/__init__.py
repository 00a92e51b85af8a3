"""Networks with BatchNorm by family name. One file a family; each has `build(features, outputs, *, task, norms, ...)`.

Naming a family costs nothing: its file, and torch with it, are imported when a network is built.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from training.architectures.norms import DEFAULT, Norms

if TYPE_CHECKING:
    from torch import nn

    from training.features import Features

FAMILIES: Mapping[str, str] = {
    "centernet": "training.architectures.centernet",
    "cnn6": "training.architectures.cnn6",
    "densenet": "training.architectures.densenet",
    "inception": "training.architectures.inception",
    "mlp": "training.architectures.mlp",
    "mobilenet": "training.architectures.mobilenet",
    "repvgg": "training.architectures.repvgg",
    "resnet": "training.architectures.resnet",
    "shufflenet": "training.architectures.shufflenet",
    "tabresnet": "training.architectures.tabresnet",
    "tcn": "training.architectures.tcn",
    "textcnn": "training.architectures.textcnn",
    "unet": "training.architectures.unet",
    "vdcnn": "training.architectures.vdcnn",
    "video3d": "training.architectures.video3d",
}


def build(family: str, features: Features, outputs: int, *, norms: Norms = DEFAULT, **options: Any) -> nn.Module:
    """A freshly initialised network (torch's global generator) from what a front gives to scores: [rows, outputs], or
    [rows, outputs, height, width] from a family that segments.

    `options` are the family's own. Raises UserError when they do not fit the family or the input.
    """
    module = importlib.import_module(FAMILIES[family])
    network: nn.Module = module.build(features, outputs, norms=norms, **options)
    return network
