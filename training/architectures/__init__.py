"""Networks with BatchNorm by family name. One file a family; each has `build(**options) -> torch.nn.Module`.

Naming a family costs nothing: its file, and torch with it, are imported when a network is built.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

FAMILIES: Mapping[str, str] = {
    "cnn6": "training.architectures.cnn6",
}


def build(family: str, *, input_shape: Sequence[int], input_maximum: float, classes: int, **options: Any) -> nn.Module:
    """A freshly initialised network (torch's global generator) from raw inputs [rows, *input_shape] to [rows, classes].

    `options` are the family's own. Raises UserError when they do not fit the family or the input.
    """
    module = importlib.import_module(FAMILIES[family])
    network: nn.Module = module.build(input_shape=input_shape, input_maximum=input_maximum, classes=classes, **options)
    return network
