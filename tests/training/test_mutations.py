"""Each mistake that a fold could make in one place of a residual network is found; the fold itself holds.

The network is written out here: three convolutions in the trunk and a shortcut, all padded as they are in a ResNet, a
BatchNormalization behind each, pooling and a classifier. The folded graph is the engine's own; a mutation changes one
constant of it as the mistake would have.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from tests.training.fold.models import build, constant, op_types, rng_of
from training.fold import fold
from training.samples import make_samples
from training.verify import VerificationFailed, verify

Array = NDArray[np.float64]
Weights = Mapping[str, Array]
WIDTH = 8  # input channels, output channels and sides coincide: a wrong axis still fits
NAMES = ("stem", "first", "second", "short")
BIASED = ("stem", "first", "short")  # what `second` adds, `short` adds for it: the sum of both needs one bias
EPSILON = 1e-3

GRAPH = """
resnet (float[N,8,8,8] x) => (float[N,10] y) {
    [stem] c0 = Conv <pads = [1, 1, 1, 1]> (x, stem_w)
    [stem_bn] n0 = BatchNormalization <epsilon = 0.001> (c0, stem_g, stem_b, stem_m, stem_v)
    r0 = Relu (n0)
    [first] c1 = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (r0, first_w)
    [first_bn] n1 = BatchNormalization <epsilon = 0.001> (c1, first_g, first_b, first_m, first_v)
    r1 = Relu (n1)
    [second] c2 = Conv <pads = [1, 1, 1, 1]> (r1, second_w)
    [second_bn] n2 = BatchNormalization <epsilon = 0.001> (c2, second_g, second_b, second_m, second_v)
    [short] c3 = Conv <strides = [2, 2]> (r0, short_w)
    [short_bn] n3 = BatchNormalization <epsilon = 0.001> (c3, short_g, short_b, short_m, short_v)
    sum = Add (n2, n3)
    r3 = Relu (sum)
    pooled = GlobalAveragePool (r3)
    flat = Flatten (pooled)
    [head] y = Gemm (flat, head_w, head_b)
}"""


def weights() -> dict[str, Array]:
    rng = rng_of(11)
    found: dict[str, Array] = {}
    for name in NAMES:
        kernel = 1 if name == "short" else 3
        found[f"{name}_w"] = rng.normal(size=(WIDTH, WIDTH, kernel, kernel)) / (kernel * WIDTH**0.5)
        found[f"{name}_g"] = rng.choice([-1.0, 1.0], WIDTH) * rng.uniform(0.7, 1.3, WIDTH)
        found[f"{name}_b"] = 0.2 * rng.normal(size=WIDTH)
        found[f"{name}_m"] = 0.5 * rng.normal(size=WIDTH)
        found[f"{name}_v"] = rng.uniform(0.5, 2.0, WIDTH)
    found |= {"head_w": rng.normal(size=(WIDTH, 10)), "head_b": rng.normal(size=10)}
    return {name: array.astype(np.float32).astype(np.float64) for name, array in found.items()}


def network() -> ir.Model:
    return build(GRAPH, **{name: array.astype(np.float32) for name, array in weights().items()})


def folded() -> ir.Model:
    """To be changed: whose constants are replaced is a copy."""
    return _folded().clone()


@functools.cache
def _folded() -> ir.Model:
    model, report = fold(network(), profile="generic")
    assert report.summary()["folded"] == len(NAMES)
    assert "BatchNormalization" not in op_types(model)
    return model


def scale(w: Weights, name: str, epsilon: float = float(np.float32(EPSILON))) -> Array:
    return w[f"{name}_g"] / np.sqrt(w[f"{name}_v"] + epsilon)


def along(vector: Array, axis: int) -> Array:
    return vector.reshape([-1 if index == axis else 1 for index in range(4)])


def shift(w: Weights, name: str, **how: float) -> Array:
    return w[f"{name}_b"] - w[f"{name}_m"] * scale(w, name, **how)


def one_channel_off(bias: Array, share: float) -> Array:
    """One that a ReLU lets through: of a channel that is never above zero nothing can be seen."""
    wrong = bias.copy()
    wrong[bias.argmax()] *= 1 + share
    return wrong


def one_kernel_off(kernels: Array, share: float) -> Array:
    wrong = kernels.copy()
    wrong[3] *= 1 + share
    return wrong


def border_off(kernels: Array) -> Array:
    """As if the padding were a pixel narrower on one side: what the first row of taps sees is lost."""
    wrong = kernels.copy()
    wrong[:, :, 0] = 0.0
    return wrong


# What the mistake makes of the folded kernel, or of the folded bias, of the convolution `name`.
KERNELS: dict[str, Callable[[Weights, str, Array], Array]] = {
    "scale along the input channels": lambda w, name, _: w[f"{name}_w"] * along(scale(w, name), 1),
    "sign of gamma dropped": lambda w, name, _: w[f"{name}_w"] * along(np.abs(scale(w, name)), 0),
    "epsilon dropped": lambda w, name, _: w[f"{name}_w"] * along(scale(w, name, epsilon=0.0), 0),
    "variance instead of deviation": lambda w, name, _: (
        w[f"{name}_w"] * along(w[f"{name}_g"] / (w[f"{name}_v"] + EPSILON), 0)
    ),
    "not scaled": lambda w, name, _: w[f"{name}_w"],
    "kernel turned over": lambda _w, _name, kernels: np.ascontiguousarray(kernels.swapaxes(0, 1)),
    "channels shifted by one": lambda _w, _name, kernels: np.roll(kernels, 1, 0),
    "border lost": lambda _w, _name, kernels: border_off(kernels),
    "one channel off by 1e-4": lambda _w, _name, kernels: one_kernel_off(kernels, 1e-4),
}
BIASES: dict[str, Callable[[Weights, str, Array], Array]] = {
    "sign of the mean": lambda w, name, _: w[f"{name}_b"] + w[f"{name}_m"] * scale(w, name),
    "mean not scaled": lambda w, name, _: w[f"{name}_b"] - w[f"{name}_m"],
    "epsilon dropped": lambda w, name, _: shift(w, name, epsilon=0.0),
    "epsilon 1e-5 for 1e-3": lambda w, name, _: shift(w, name, epsilon=1e-5),
    "beta dropped": lambda w, name, _: -w[f"{name}_m"] * scale(w, name),
    "bias dropped": lambda _w, _name, bias: np.zeros_like(bias),
    "channels shifted by one": lambda _w, _name, bias: np.roll(bias, 1),
    "one channel off by 1e-4": lambda _w, _name, bias: one_channel_off(bias, 1e-4),
}


def mutated(model: ir.Model, name: str, place: int, change: Callable[[Weights, str, Array], Array]) -> ir.Model:
    """The graph with operand `place` of the convolution `name` changed."""
    (conv,) = (node for node in model.graph if node.name == name)
    value = conv.inputs[place]
    assert value is not None
    before = constant(model, value.name or "")
    after = change(weights(), name, before.astype(np.float64)).astype(before.dtype)
    assert after.shape == before.shape
    assert (after != before).any()
    value.const_value = ir.tensor(after, name=value.name)
    return model


def test_the_fold_itself_is_proved() -> None:
    original = network()
    assert verify(original, folded(), make_samples(original)).passed


HAS_NO_BORDER = "short"  # a kernel of one tap


@pytest.mark.parametrize(
    ("mistake", "name"),
    [(mistake, name) for mistake in KERNELS for name in NAMES if (mistake, name) != ("border lost", HAS_NO_BORDER)],
)
def test_a_mistake_in_a_kernel_is_found(mistake: str, name: str) -> None:
    original = network()
    wrong = mutated(folded(), name, 1, KERNELS[mistake])
    with pytest.raises(VerificationFailed, match="the folded graph is not the same function"):
        verify(original, wrong, make_samples(original))


@pytest.mark.parametrize("name", BIASED)
@pytest.mark.parametrize("mistake", BIASES)
def test_a_mistake_in_a_bias_is_found(mistake: str, name: str) -> None:
    original = network()
    wrong = mutated(folded(), name, 2, BIASES[mistake])
    with pytest.raises(VerificationFailed, match="the folded graph is not the same function"):
        verify(original, wrong, make_samples(original))


@pytest.mark.parametrize("mistake", ["epsilon dropped", "one channel off by 1e-4"])
def test_it_is_found_with_the_samples_of_a_network_that_is_too_large_for_all_of_them(
    mistake: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.verify.MOST_WORK", 1)
    original = network()
    report = verify(original, folded(), make_samples(original))
    assert report.note.startswith(
        "an evaluation takes 0.0 billion multiply-adds: judged by 4 of 9 samples, without ones"
    )
    for name in BIASED:
        with pytest.raises(VerificationFailed, match="the folded graph is not the same function"):
            verify(original, mutated(folded(), name, 2, BIASES[mistake]), make_samples(original))
