"""BatchNorm itself in NumPy: forward, backward, and the affine map that is left of it when it serves.

    training    y = gamma (x - mu_B) / sqrt(var_B + eps) + beta       mu_B, var_B of the batch, var_B divided by n
    serving     y = gamma (x - mean) / sqrt(var + eps) + beta         the running statistics: y = a x + b

S. Ioffe and C. Szegedy, arXiv 1502.03167, algorithms 1 and 2, and the chain rule of section 3. For reading and for
tests; nothing is trained with it. Columns [rows, channels]; images are rows times positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True, slots=True)
class Normalised:
    """What a forward pass in training leaves for the backward pass. x_hat: [rows, channels]; the rest [channels]."""

    y: Array
    x_hat: Array
    mean: Array
    variance: Array
    inverse_deviation: Array


def forward(x: Array, gamma: Array, beta: Array, eps: float = 0.0) -> Normalised:
    """One batch in training."""
    mean, variance = x.mean(axis=0), x.var(axis=0)
    inverse_deviation = 1.0 / np.sqrt(variance + eps)
    x_hat = (x - mean) * inverse_deviation
    return Normalised(gamma * x_hat + beta, x_hat, mean, variance, inverse_deviation)


def backward(dy: Array, gamma: Array, saved: Normalised) -> tuple[Array, Array, Array]:
    """Gradients of x, gamma and beta, from that of y.

    The mean and the variance depend on every row, so each row's gradient loses what the batch has in common, and what
    lies along x_hat: a bias, or a larger weight, before BatchNorm has no gradient at all.
    """
    dgamma, dbeta = (dy * saved.x_hat).sum(axis=0), dy.sum(axis=0)
    rows = len(dy)
    dx = gamma * saved.inverse_deviation * (dy - dbeta / rows - saved.x_hat * dgamma / rows)
    return dx, dgamma, dbeta


def serving_affine(gamma: Array, beta: Array, mean: Array, variance: Array, eps: float) -> tuple[Array, Array]:
    """a and b of y = a x + b, all [channels]: what folding multiplies into the weights next to it."""
    a = gamma / np.sqrt(variance + eps)
    return a, beta - mean * a
