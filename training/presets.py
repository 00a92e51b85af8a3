"""Networks that can be asked for by name, with settings that train them well. Values only, importable without torch.

A preset is an architecture family with its options and the defaults of its domain; all of it can be overridden.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Preset:
    """family, options: see `architectures.build`. takes: the kind of `Features` it is for. The rest are defaults of a
    recipe, and `reason` says in a few words why these."""

    family: str
    takes: Literal["image", "clip", "row", "tokens"]
    task: Literal["classify", "segment"] = "classify"
    options: Mapping[str, Any] = field(default_factory=dict)
    optimiser: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = 0.1
    weight_decay: float = 5e-4
    epochs: int = 30
    batch_size: int = 64
    reason: str = ""


PRESETS: Mapping[str, Preset] = types.MappingProxyType(
    {
        # Rows of numbers.
        "mlp": Preset(
            "mlp", "row", optimiser="adamw", learning_rate=3e-3, weight_decay=1e-4, epochs=60,
            reason="rows whose columns are of one size; the smallest that learns what is not linear",
        ),
        "mlp-in": Preset(
            "mlp", "row", options={"normalise_inputs": True},
            optimiser="adamw", learning_rate=3e-3, weight_decay=1e-4, epochs=60,
            reason="raw columns of all sizes: BatchNorm scales them, and nothing of it is left when it serves",
        ),
        "tabresnet": Preset(
            "tabresnet", "row", optimiser="adamw", learning_rate=1e-3, weight_decay=1e-4, epochs=60,
            reason="many columns and rows: skips let it be deeper than mlp",
        ),
        # Images.
        "cnn6": Preset(
            "cnn6", "image", options={"widths": (16, 16, 32, 32, 64, 64)}, reason="small images, from 8 pixels on"
        ),
        "resnet8": Preset("resnet", "image", reason="small images; the least that has skips"),
        "resnet20": Preset(
            "resnet", "image", options={"depths": (3, 3, 3)}, epochs=60,
            reason="small images and more data than resnet8 needs",
        ),
        "resnet18": Preset(
            "resnet", "image", options={"widths": (64, 128, 256, 512), "depths": (2, 2, 2, 2)}, epochs=60,
            reason="images of any size, where 11 million weights are no burden",
        ),
        "preact-mini": Preset(
            "resnet", "image", options={"preactivated": True}, reason="resnet8 with BatchNorm before the convolutions"
        ),
        "mobilenet-mini": Preset(
            "mobilenet", "image", optimiser="adamw", learning_rate=2e-3, weight_decay=1e-2, epochs=60,
            reason="few multiplications for its accuracy; gates and depthwise layers learn slowly under SGD",
        ),
        "repvgg-mini": Preset(
            "repvgg", "image", reason="serves as plain convolutions: folding merges the branches it was trained with"
        ),
        "densenet-mini": Preset("densenet", "image", reason="few weights; each layer sees all before it"),
        "shufflenet-mini": Preset(
            "shufflenet", "image", learning_rate=0.05, weight_decay=4e-5, epochs=60,
            reason="few multiplications without gates; small layers want little weight decay",
        ),
        "inception-mini": Preset(
            "inception", "image", learning_rate=0.05, reason="windows of several sizes side by side"
        ),
        # A class for each pixel.
        "unet": Preset(
            "unet", "image", "segment", optimiser="adamw", learning_rate=1e-3, weight_decay=1e-4, epochs=40,
            batch_size=8, reason="a class for each pixel; images weigh much here, so batches are small",
        ),
        "centernet-mini": Preset(
            "centernet", "image", "segment", optimiser="adamw", learning_rate=1e-3, weight_decay=1e-4, epochs=40,
            batch_size=16, reason="where things are: score maps by one head that two levels share",
        ),
        # Text.
        "textcnn": Preset(
            "textcnn", "tokens", optimiser="adamw", learning_rate=1e-3, weight_decay=1e-4, epochs=20,
            reason="which words occur decides; padding never enters its statistics",
        ),
        "vdcnn9": Preset(
            "vdcnn", "tokens", optimiser="adamw", learning_rate=1e-3, weight_decay=1e-4, epochs=20,
            reason="bytes or characters, whose meaning takes several layers",
        ),
        "tcn-lm": Preset(
            "tcn", "tokens", optimiser="adamw", learning_rate=1e-3, weight_decay=1e-4, epochs=20,
            reason="order matters; each position knows only what came before it",
        ),
        # Clips.
        "video3d-mini": Preset(
            "video3d", "clip", learning_rate=0.05, batch_size=16,
            reason="short clips; one weighs as much as many images",
        ),
    }
)  # fmt: skip
