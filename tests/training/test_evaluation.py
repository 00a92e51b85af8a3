"""How good a network is: by rows, or by pixels where each has a class."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from training.datasets.dataset import Examples
from training.evaluation import EVALUATION_ROWS, logits, measure


class Scores(nn.Module):
    """The answers are the inputs."""

    def forward(self, scores: torch.Tensor) -> torch.Tensor:
        return scores


def test_rows_are_measured_in_pieces_as_if_they_were_one() -> None:
    scores = np.random.default_rng(0).normal(size=(2 * EVALUATION_ROWS + 1, 3)).astype(np.float32)
    labels = np.arange(len(scores)) % 3
    examples = Examples({"scores": scores}, labels)

    found = measure(Scores(), examples)

    expected = nn.functional.cross_entropy(torch.from_numpy(scores), torch.from_numpy(labels)).item()
    assert found.loss == pytest.approx(expected, rel=1e-6)
    assert found.accuracy == (scores.argmax(axis=1) == labels).mean()
    assert found.mean_iou is None
    assert np.array_equal(logits(Scores(), examples).numpy(), scores)


def test_pixels_are_counted_and_their_overlap_is_averaged_over_classes() -> None:
    """Of the third class there is no pixel and no answer, so it has no overlap that could be good or bad."""
    answers = np.array([[[0, 0], [1, 1]], [[0, 1], [1, 1]]])
    labels = np.array([[[0, 0], [0, 1]], [[0, 1], [1, 1]]])
    scores = 100.0 * (answers[:, None] == np.arange(3)[None, :, None, None]).astype(np.float32)

    found = measure(Scores(), Examples({"scores": scores}, labels))

    assert found.accuracy == 7 / 8
    assert found.mean_iou == pytest.approx((3 / 4 + 4 / 5) / 2)
    assert found.loss == pytest.approx(100 / 8)
    assert math.isfinite(found.loss)
