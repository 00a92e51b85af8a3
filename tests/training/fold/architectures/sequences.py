"""BatchNorm before recurrent layers: CRNN for text in images (Shi et al. 2015), DeepSpeech2 (Amodei et al. 2016).

In both the recurrent layer's own output is bounded by its nonlinearity; what stands before it goes into its weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn


class CRNN(nn.Module):
    """Images [rows, 1, 32, width] -> scores [width / 4 + 1, rows, classes]. 3 BatchNorms."""

    def __init__(self, width: int = 64, hidden: int = 256, classes: int = 37) -> None:
        super().__init__()
        widths = (width, 2 * width, 4 * width, 4 * width, 8 * width, 8 * width, 8 * width)
        pools: dict[int, nn.Module] = {
            0: nn.MaxPool2d(2, 2),
            1: nn.MaxPool2d(2, 2),
            3: nn.MaxPool2d((2, 2), (2, 1), (0, 1)),
            5: nn.MaxPool2d((2, 2), (2, 1), (0, 1)),
        }
        layers: list[nn.Module] = []
        for number, (inputs, outputs) in enumerate(zip((1, *widths), widths, strict=False)):
            kernel, padding = (2, 0) if number == 6 else (3, 1)
            layers.append(nn.Conv2d(inputs, outputs, kernel, 1, padding))
            if number in (2, 4, 6):
                layers.append(nn.BatchNorm2d(outputs))
            if number < 6:  # the last BatchNorm feeds the recurrent layer
                layers += [nn.ReLU(), *([pools[number]] if number in pools else [])]
        self.features = nn.Sequential(*layers)
        self.rnn = nn.LSTM(8 * width, hidden, bidirectional=True)
        self.scores = nn.Linear(2 * hidden, classes)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.features(image).squeeze(2).permute(2, 0, 1)
        return self.scores(self.rnn(x)[0])


class SequenceNorm(nn.Module):
    """BatchNorm of every step of [steps, rows, features]."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm1d(features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        steps, rows, features = x.shape
        return self.bn(x.reshape(steps * rows, features)).view(steps, rows, features)


class RecurrentLayer(nn.Module):
    """A BatchNorm, unless it is the first layer, and a GRU in both directions, whose outputs are added."""

    def __init__(self, features: int, hidden: int, first: bool) -> None:
        super().__init__()
        self.norm = None if first else SequenceNorm(features)
        self.rnn = nn.GRU(features, hidden, bidirectional=True, bias=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x, _ = self.rnn(x if self.norm is None else self.norm(x))
        steps, rows, _ = x.shape
        return x.view(steps, rows, 2, -1).sum(2)


class DeepSpeech2(nn.Module):
    """Spectrograms [rows, 1, frequencies, steps] -> scores [steps / 2, rows, classes].

    2 + `layers` BatchNorms: behind the two convolutions, between the recurrent layers, and before the last Linear.
    """

    def __init__(self, frequencies: int = 161, width: int = 32, hidden: int = 800, layers: int = 5, classes: int = 29):
        super().__init__()
        shapes: Sequence[tuple[int, tuple[int, int], tuple[int, int], tuple[int, int]]] = (
            (1, (41, 11), (2, 2), (20, 5)),
            (width, (21, 11), (2, 1), (10, 5)),
        )
        convs: list[nn.Module] = []
        for inputs, kernel, stride, padding in shapes:
            convs += [nn.Conv2d(inputs, width, kernel, stride, padding), nn.BatchNorm2d(width), nn.Hardtanh(0, 20)]
        self.convs = nn.Sequential(*convs)
        features = width * (((frequencies + 1) // 2 + 1) // 2)
        self.rnns = nn.Sequential(
            *(RecurrentLayer(hidden if number else features, hidden, number == 0) for number in range(layers))
        )
        self.norm = SequenceNorm(hidden)
        self.scores = nn.Linear(hidden, classes, bias=False)

    def forward(self, spectrogram: torch.Tensor) -> torch.Tensor:
        x = self.convs(spectrogram).flatten(1, 2).permute(2, 0, 1)
        return self.scores(self.norm(self.rnns(x)))
