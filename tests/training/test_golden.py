"""Golden samples: the unfolded model's float64 answers, and a tolerance that forgives rounding and nothing else."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from training import architectures, reference, verify
from training.export import export
from training.features import Features
from training.fold import fold
from training.golden import Golden, make_golden, tolerance


def new_source(seed: int = 0) -> ir.Model:
    torch.manual_seed(seed)
    network = architectures.build("cnn6", Features("image", (1, 8, 8)), 10, widths=(8, 8, 16, 16, 32, 32))
    for part in network.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            for tensor in (part.weight.data, part.bias.data, part.running_mean, part.running_var):
                tensor.uniform_(0.5, 1.5)
    return export(network.eval(), {"image": torch.zeros(2, 1, 8, 8)}, ["logits"])


@pytest.fixture(scope="module")
def source() -> ir.Model:
    return new_source()


@pytest.fixture(scope="module")
def folded(source: ir.Model) -> ir.Model:
    return fold(source)[0]


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 17, (10, 1, 8, 8)).astype(np.float32)


@pytest.fixture(scope="module")
def golden(source, folded, images) -> Golden:
    return make_golden(source, folded, {"image": images})


def test_answers_are_the_unfolded_models_in_float64_rounded_once(source, golden, images) -> None:
    exact = reference.evaluate(source, {"image": images})["logits"]

    assert golden.outputs["logits"].dtype == np.float32
    assert np.array_equal(golden.outputs["logits"], exact.astype(np.float32))
    assert golden.samples == 10


def worst_difference(model: ir.Model, golden: Golden) -> float:
    answers = verify.run(model, golden.inputs)["logits"].astype(np.float64)
    return float(np.abs(answers - golden.outputs["logits"]).max())


def test_folded_and_unfolded_reproduce_them_with_room_to_spare(source, folded, golden) -> None:
    allowed = golden.tolerance["logits"]

    assert worst_difference(folded, golden) < allowed / 8
    assert worst_difference(source, golden) < allowed / 8


def test_another_networks_weights_are_noticed(golden) -> None:
    assert worst_difference(fold(new_source(seed=1))[0], golden) > 100 * golden.tolerance["logits"]


@given(error=st.floats(0, 1e-3), scale=st.floats(1e-3, 1e3))
@settings(max_examples=50)
def test_the_tolerance_follows_the_measured_error_and_never_falls_below_rounding(error, scale) -> None:
    exact = np.array([scale, -scale / 2])
    measured = (exact + np.array([0, error])).astype(np.float32)
    found = np.abs(measured.astype(np.float64) - exact).max()

    assert tolerance(exact, measured) == max(16 * found, 64 * 2.0**-23 * scale)


def test_integer_outputs_must_be_exact() -> None:
    assert tolerance(np.array([3]), np.array([3], np.int64)) == 0.0
