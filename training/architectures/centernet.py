"""Where is the centre of an object of which class: score maps of two levels, by one head that both share.

    image -> stem -> residual/2 -> residual/2 -> 1x1
                         |                        |
                        1x1  --- sum <--- twice as large
                                  |               |
                              head (shared)   head (shared)

(X. Zhou, D. Wang and P. Krähenbühl, arXiv 1904.07850; the pyramid: T.-Y. Lin and others, arXiv 1612.03144.) The head's
BatchNorms normalise each level by its own batch in training and by statistics of both when the network serves.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from training.architectures.blocks import conv_block, expect, expect_divisible, expect_post
from training.architectures.norms import Norms
from training.architectures.resnet import Residual
from training.errors import UserError
from training.features import Features


def build(
    features: Features, outputs: int, *, norms: Norms, widths: Sequence[int] = (24, 64, 96), pyramid: int = 64
) -> CenterNet:
    """widths: channels of the stem and of each level, which halves the image. pyramid: channels of each level's map."""
    expect("centernet", features, "image")
    expect_post("centernet", norms)
    if len(widths) != 3:
        raise UserError(f"centernet has a stem and 2 levels; widths names {len(widths)} instead of 3: {list(widths)}")
    expect_divisible("centernet", features.shape[1:], 4)
    return CenterNet(norms, features.shape[0], outputs, widths, pyramid)


class CenterNet(nn.Module):
    """[rows, channels, height, width] -> [rows, outputs, height, width]: of both levels, the higher score."""

    def __init__(self, norms: Norms, channels: int, outputs: int, widths: Sequence[int], pyramid: int) -> None:
        super().__init__()
        stem, near, far = widths
        self.stem = conv_block(norms, channels, stem)
        self.near = Residual(norms, stem, near, 2)
        self.far = Residual(norms, near, far, 2)
        self.near_map = conv_block(norms, near, pyramid, kernel=1, activation=None)
        self.far_map = conv_block(norms, far, pyramid, kernel=1, activation=None)
        self.head = nn.Sequential(
            conv_block(norms, pyramid, pyramid), conv_block(norms, pyramid, pyramid), nn.Conv2d(pyramid, outputs, 1)
        )

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        near = self.near(self.stem(image))
        far = self.far_map(self.far(near))
        near = self.near_map(near) + _larger(far, 2)
        return torch.maximum(_larger(self.head(near), 2), _larger(self.head(far), 4))


def _larger(image: torch.Tensor, times: int) -> torch.Tensor:
    return functional.interpolate(image, scale_factor=float(times), mode="nearest")
