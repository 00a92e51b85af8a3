"""Linear layers, each Linear-BatchNorm-ReLU, and a Linear on top: for rows of numbers.

With `normalise_inputs` a BatchNorm stands in front of everything. It learns the columns' means and scales, which a
scaler outside the network would otherwise have to; folded, it is part of the first Linear.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from training.architectures.blocks import closing, expect, is_normalised, linear_block, norm_layer
from training.architectures.norms import Norms
from training.errors import UserError
from training.features import Features


def build(
    features: Features,
    outputs: int,
    *,
    norms: Norms,
    widths: Sequence[int] = (256, 256, 256),
    normalise_inputs: bool = False,
    dropout: float = 0.0,
) -> nn.Module:
    """widths: of the hidden layers. dropout: behind the last of them, where no statistics can notice it."""
    expect("mlp", features, "row")
    if not widths:
        raise UserError("mlp has at least one hidden layer; widths names none")
    (columns,) = features.shape
    network = nn.Sequential()
    if normalise_inputs and is_normalised(norms):
        network.add_module("inputs", norm_layer(norms, columns, 0))
    pairs = zip((columns, *widths), widths, strict=False)
    hidden = [linear_block(norms, fan_in, fan_out, is_first=i == 0) for i, (fan_in, fan_out) in enumerate(pairs)]
    network.add_module("hidden", nn.Sequential(*hidden, *closing(norms, widths[-1], 0)))
    if dropout:
        network.add_module("dropout", nn.Dropout(dropout))
    network.add_module("head", nn.Linear(widths[-1], outputs))
    return network
