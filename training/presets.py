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
        "cnn6": Preset(
            "cnn6", "image", options={"widths": (16, 16, 32, 32, 64, 64)}, reason="small images, from 8 pixels on"
        ),
    }
)
