"""The best epoch's weights are kept, and enough epochs without a better one are enough."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from training.datasets.dataset import Examples
from training.patience import Patience

EXAMPLES = Examples({"x": np.ones((4, 1), np.float32)}, np.zeros(4, np.int64))


def network(weight: float) -> nn.Module:
    """The larger, the surer that the class is 0."""
    module = nn.Linear(1, 2, bias=False)
    with torch.no_grad():
        module.weight[:] = torch.tensor([[weight], [0.0]])
    return module


def judged(weights: list[float], epochs: int) -> Patience:
    patience = Patience(EXAMPLES, epochs)
    for epoch, weight in enumerate(weights, start=1):
        patience.judge(network(weight), epoch)
    return patience


def test_the_best_epoch_is_kept_and_patience_ends_so_many_epochs_behind_it() -> None:
    patient, over = judged([0.0, 2.0, 1.0], 2), judged([0.0, 2.0, 1.0, 1.0], 2)

    assert (patient.is_over, over.is_over, over.best_epoch) == (False, True, 2)
    assert torch.equal(over.best["weight"], network(2.0).state_dict()["weight"])


def test_an_equal_loss_is_no_better_one() -> None:
    assert judged([1.0, 1.0], 1).is_over


def test_a_first_epoch_without_a_number_is_the_best_until_there_is_another() -> None:
    assert judged([float("nan")], 2).best_epoch == 1
    assert judged([float("nan"), 0.0], 2).best_epoch == 2


def test_figures_are_told() -> None:
    told = Patience(EXAMPLES, 1).judge(network(9.0), 1)

    assert told["held_out_accuracy"] == 1.0
    assert told["held_out_loss"] < 0.001


def test_it_goes_on_as_it_was() -> None:
    before = judged([0.0, 2.0, 1.0], 2)
    after = Patience(EXAMPLES, 2)
    after.restore(before.as_values(), before.best)
    after.judge(network(1.0), 4)

    assert (after.is_over, after.best_epoch) == (True, 2)
