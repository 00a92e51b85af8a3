"""BatchNorm in NumPy is torch's, forward and backward, and serves as one affine map."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from training.bn.algorithm import backward, forward, serving_affine

ROOT_2 = 2.0**0.5


def test_the_worked_column():
    """1, 3, 5, 7, 9: mean 5, variance 8, and the normalised column of every textbook."""
    column = np.array([[1.0], [3.0], [5.0], [7.0], [9.0]])

    found = forward(column, np.ones(1), np.zeros(1))

    assert (found.mean.item(), found.variance.item()) == (5.0, 8.0)
    np.testing.assert_allclose(found.x_hat[:, 0], [-ROOT_2, -ROOT_2 / 2, 0.0, ROOT_2 / 2, ROOT_2])


@pytest.mark.parametrize(("rows", "channels", "eps"), [(2, 1, 1e-5), (7, 3, 1e-5), (64, 5, 1e-3)])
def test_forward_and_backward_are_torchs(rows: int, channels: int, eps: float):
    chance = np.random.default_rng(rows)
    x, dy = chance.standard_normal((2, rows, channels)) * 3 + 1
    gamma, beta = chance.standard_normal((2, channels))
    layer = nn.BatchNorm1d(channels, eps=eps).double()
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(gamma))
        layer.bias.copy_(torch.from_numpy(beta))
    inputs = torch.from_numpy(x).requires_grad_()
    theirs = layer(inputs)
    theirs.backward(torch.from_numpy(dy))

    ours = forward(x, gamma, beta, eps)
    dx, dgamma, dbeta = backward(dy, gamma, ours)

    np.testing.assert_allclose(ours.y, theirs.detach().numpy(), rtol=1e-10, atol=1e-10)
    for mine, parameter in ((dx, inputs), (dgamma, layer.weight), (dbeta, layer.bias)):
        np.testing.assert_allclose(mine, parameter.grad.numpy(), rtol=1e-9, atol=1e-9)


def test_what_all_rows_have_in_common_and_what_scales_them_has_no_gradient():
    x, dy = np.random.default_rng(0).standard_normal((2, 8, 3))
    saved = forward(x, np.ones(3), np.zeros(3))

    dx, _, _ = backward(dy, np.ones(3), saved)

    np.testing.assert_allclose(dx.sum(axis=0), 0.0, atol=1e-12)
    np.testing.assert_allclose((dx * saved.x_hat).sum(axis=0), 0.0, atol=1e-12)


def test_serving_is_one_affine_map():
    chance = np.random.default_rng(0)
    layer = nn.BatchNorm1d(4).double().eval()
    with torch.no_grad():
        for tensor in (layer.weight, layer.bias, layer.running_mean, layer.running_var):
            tensor.copy_(torch.from_numpy(chance.uniform(0.5, 2.0, 4)))
    x = chance.standard_normal((5, 4))

    a, b = serving_affine(
        *(tensor.detach().numpy() for tensor in (layer.weight, layer.bias, layer.running_mean, layer.running_var)),
        layer.eps,
    )

    np.testing.assert_allclose(a * x + b, layer(torch.from_numpy(x)).detach().numpy(), rtol=1e-12)
