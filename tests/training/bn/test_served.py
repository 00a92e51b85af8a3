"""What any variant becomes when it is exported and folded: nothing. The answers stay."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from tests.training.bn.cases import NormAct, Renorm, numbers
from training import verify
from training.bn.replacing import replace
from training.export import export
from training.fold import fold


def network(norm: str) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, bias=False), nn.BatchNorm2d(4)
    )
    replace(model, norm)
    for seed in range(3):
        model(numbers(4, 3, 7, 7, seed=seed))
    return model.eval()


def folded_error(model: nn.Module, values: torch.Tensor) -> tuple[dict[str, int], float]:
    """The summary of the fold, and the largest difference between torch and the folded file in ONNX Runtime."""
    model.eval()
    source = export(model, {"x": values}, ["y"])
    folded, report = fold(source)
    with torch.no_grad():
        expected = model(values).numpy()
    return report.summary(), float(np.abs(verify.run(folded, {"x": values.numpy()})["y"] - expected).max())


@pytest.mark.parametrize("norm", ["bn", "ghost:2", "renorm", "sync", "masked", "frozen"])
def test_a_network_of_any_variant_folds_to_its_convolutions(norm: str):
    summary, error = folded_error(network(norm), numbers(2, 3, 7, 7))

    assert (summary["found"], summary["folded"]) == (2, 2)
    assert error < 1e-5


def test_one_with_the_activation_inside_folds_as_well():
    model = nn.Sequential(nn.Conv2d(3, 3, 3), NormAct(3))
    model(numbers(4, 3, 7, 7))

    summary, error = folded_error(model, numbers(2, 3, 7, 7))

    assert summary["folded"] == 1
    assert error < 1e-5


def test_renorm_of_other_names_is_an_affine_that_is_folded():
    """sb3-contrib's: written out in subtractions and divisions, so there is no BatchNormalization to be found."""
    model = nn.Sequential(nn.Linear(3, 5), Renorm(5), nn.Linear(5, 2))
    for seed in range(3):
        model(numbers(16, 3, seed=seed))

    summary, error = folded_error(model, numbers(4, 3))

    assert summary["affines_found"] >= 1
    assert summary["affines_folded"] == summary["affines_found"]
    assert error < 1e-5
