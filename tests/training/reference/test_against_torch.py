"""Convolutions, normalisations, pools, activations give what torch gives in float64; hyper-parameters by property."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F  # noqa: N812  torch's own documentation calls it so

from tests.training.reference.models import Array, one_node, ours

CONVOLUTION = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def reals(seed: int, *shape: int) -> Array:
    return np.random.default_rng((seed, *shape)).standard_normal(shape)


def tensors(arrays: list[Any]) -> list[Any]:
    return [None if array is None else torch.from_numpy(array) for array in arrays]


@st.composite
def geometries(draw: st.DrawFn) -> dict[str, Any]:
    """Rank, sizes, groups, strides, dilations and symmetric pads of a convolution that has an output."""
    rank = draw(st.integers(1, 3))
    coincident = draw(st.booleans())  # every size alike: a wrong axis keeps all shapes legal
    groups = draw(st.integers(1, 3))
    small = st.lists(st.integers(1, 2 if rank == 3 else 3), min_size=rank, max_size=rank)
    kernel, strides, dilations = draw(small), draw(small), draw(small)
    pads = [draw(st.integers(0, k)) for k in kernel]
    least = [max((k - 1) * d + 1 - 2 * p, 1) for k, d, p in zip(kernel, dilations, pads, strict=True)]
    spatial = [size + draw(st.integers(0, 3)) for size in least]
    if coincident:
        spatial = [max(spatial)] * rank
    into, out = (2, 2) if coincident else (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    return {
        "rank": rank,
        "batch": 2,
        "groups": groups,
        "in": into * groups,
        "out": out * groups,
        "spatial": spatial,
        "kernel": kernel,
        "strides": strides,
        "dilations": dilations,
        "pads": pads,
        "bias": draw(st.booleans()),
        "seed": draw(st.integers(0, 10**6)),
    }


@given(geometries())
@settings(max_examples=120, deadline=None)
def test_conv_equals_torch_for_every_geometry(g: dict[str, Any]) -> None:
    x = reals(g["seed"], g["batch"], g["in"], *g["spatial"])
    w = reals(g["seed"], g["out"], g["in"] // g["groups"], *g["kernel"])
    inputs = [x, w, reals(g["seed"], g["out"]) if g["bias"] else None]
    model = one_node(
        "Conv", inputs, group=g["groups"], strides=g["strides"], dilations=g["dilations"], pads=g["pads"] * 2
    )
    expected = CONVOLUTION[g["rank"]](
        *tensors(inputs), stride=g["strides"], padding=g["pads"], dilation=g["dilations"], groups=g["groups"]
    )
    np.testing.assert_allclose(ours(model, inputs)[0], expected.numpy(), rtol=1e-12, atol=1e-12)


@given(geometries(), st.data())
@settings(max_examples=120, deadline=None)
def test_conv_transpose_equals_torch_for_every_geometry(g: dict[str, Any], data: st.DataObject) -> None:
    limits = [max(s, d) - 1 for s, d in zip(g["strides"], g["dilations"], strict=True)]  # torch's own condition
    extra = [data.draw(st.integers(0, limit)) for limit in limits]
    sizes = zip(g["spatial"], g["strides"], g["kernel"], g["dilations"], g["pads"], extra, strict=True)
    full = [(n - 1) * s + (k - 1) * d + 1 + e - 2 * p for n, s, k, d, p, e in sizes]
    if min(full) < 1:
        return
    x = reals(g["seed"], g["batch"], g["in"], *g["spatial"])
    w = reals(g["seed"], g["in"], g["out"] // g["groups"], *g["kernel"])
    inputs = [x, w, reals(g["seed"], g["out"]) if g["bias"] else None]
    attributes = {"group": g["groups"], "strides": g["strides"], "dilations": g["dilations"], "pads": g["pads"] * 2}
    model = one_node("ConvTranspose", inputs, output_padding=extra, **attributes)
    expected = TRANSPOSED[g["rank"]](
        *tensors(inputs),
        stride=g["strides"],
        padding=g["pads"],
        output_padding=extra,
        groups=g["groups"],
        dilation=g["dilations"],
    )
    np.testing.assert_allclose(ours(model, inputs)[0], expected.numpy(), rtol=1e-12, atol=1e-12)


def test_a_conv_larger_than_one_block_of_windows_equals_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The window copy is cut into bands of rows; the seams must not show."""
    monkeypatch.setattr("training.reference.convolution.BLOCK_BYTES", 4096)
    inputs = [reals(1, 2, 4, 13, 11), reals(2, 6, 4, 3, 3), reals(3, 6)]
    model = one_node("Conv", inputs, strides=[2, 1], pads=[1, 1, 1, 1])
    expected = F.conv2d(*tensors(inputs), stride=(2, 1), padding=1)
    np.testing.assert_allclose(ours(model, inputs)[0], expected.numpy(), rtol=1e-12, atol=1e-12)


NORMALISED = [reals(0, 4, 3, 5, 2), reals(1, 3), reals(2, 3), reals(3, 3), reals(4, 3) ** 2]


@pytest.mark.parametrize(
    ("opset", "attributes"),
    [(1, {"is_test": 1}), (6, {"is_test": 1}), (7, {}), (8, {"spatial": 1}), (9, {}), (14, {}), (15, {}), (22, {})],
    ids=lambda value: str(value),
)
def test_batch_normalization_at_inference_equals_torch_at_every_opset(opset: int, attributes: dict[str, Any]) -> None:
    x, scale, b, mean, var = tensors(NORMALISED)
    # The attribute is a float32: 1e-3 is stored as 0.0010000000475.
    expected = F.batch_norm(x, mean, var, scale, b, eps=float(np.float32(1e-3)))
    model = one_node("BatchNormalization", NORMALISED, opset=opset, epsilon=1e-3, **attributes)
    found = ours(model, NORMALISED)[0]
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("opset", "outputs", "attributes"),
    [
        (1, 5, {}),
        (6, 5, {"is_test": 0}),
        (7, 5, {}),
        (9, 5, {}),
        (14, 3, {"training_mode": 1}),
        (15, 3, {"training_mode": 1}),
    ],
    ids=lambda value: str(value),
)
def test_batch_normalization_in_training_uses_the_batch_and_moves_the_running_statistics(
    opset: int, outputs: int, attributes: dict[str, Any]
) -> None:
    x, scale, b, mean, var = NORMALISED
    model = one_node(
        "BatchNormalization", NORMALISED, opset=opset, outputs=outputs, momentum=0.75, epsilon=0.5, **attributes
    )
    y, *statistics = ours(model, NORMALISED)
    expected = F.batch_norm(*tensors([x, mean.copy(), var.copy(), scale, b]), training=True, eps=0.5)
    np.testing.assert_allclose(y, expected.numpy(), rtol=1e-12)
    own_mean, own_var = x.mean(axis=(0, 2, 3)), x.var(axis=(0, 2, 3))
    wanted = [0.75 * mean + 0.25 * own_mean, 0.75 * var + 0.25 * own_var, own_mean, own_var]
    assert len(statistics) == outputs - 1
    for found, figure in zip(statistics, wanted, strict=False):
        np.testing.assert_allclose(found, figure, rtol=1e-12)


def test_batch_normalization_of_opset_1_and_6_trains_unless_told_that_it_is_a_test() -> None:
    x = NORMALISED[0]
    y = ours(one_node("BatchNormalization", NORMALISED, opset=6), NORMALISED)[0]
    own = (x - x.mean(axis=(0, 2, 3), keepdims=True)) / np.sqrt(x.var(axis=(0, 2, 3), keepdims=True) + np.float32(1e-5))
    shape = (1, 3, 1, 1)
    np.testing.assert_allclose(y, own * NORMALISED[1].reshape(shape) + NORMALISED[2].reshape(shape), rtol=1e-9)


def test_spatial_0_gives_every_position_its_own_statistics() -> None:
    """Up to opset 8; with all sizes alike, so that a broadcast along the wrong axis would go unnoticed by shape."""
    x, scale, b, mean = (reals(seed, 3, 3, 3) for seed in range(4))
    var = reals(5, 3, 3, 3) ** 2
    inputs = [reals(9, 2, 3, 3, 3), scale, b, mean, var]
    y = ours(one_node("BatchNormalization", inputs, opset=7, spatial=0, epsilon=0.25), inputs)[0]
    np.testing.assert_allclose(y, (inputs[0] - mean) / np.sqrt(var + 0.25) * scale + b, rtol=1e-12)
    assert x.shape == scale.shape


ACTIVATIONS: list[tuple[str, dict[str, Any], Any]] = [
    ("Erf", {}, torch.erf),
    ("Gelu", {}, F.gelu),
    ("Gelu", {"approximate": "tanh"}, lambda x: F.gelu(x, approximate="tanh")),
    ("HardSwish", {}, F.hardswish),
    ("HardSigmoid", {"alpha": 0.125}, lambda x: torch.clamp(0.125 * x + 0.5, 0, 1)),
    ("Mish", {}, F.mish),
    ("Softplus", {}, lambda x: torch.log1p(torch.exp(x))),
    ("Elu", {}, F.elu),
    ("Celu", {"alpha": 0.5}, lambda x: F.celu(x, 0.5)),
    ("Softmax", {"axis": 1}, lambda x: F.softmax(x, 1)),
    ("LogSoftmax", {"axis": 1}, lambda x: F.log_softmax(x, 1)),
    ("Sigmoid", {}, torch.sigmoid),
    ("LeakyRelu", {"alpha": 0.125}, lambda x: F.leaky_relu(x, 0.125)),
    ("GlobalAveragePool", {}, lambda x: F.adaptive_avg_pool2d(x, 1)),
    ("GlobalMaxPool", {}, lambda x: F.adaptive_max_pool2d(x, 1)),
    (
        "MaxPool",
        {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1], "ceil_mode": 1},
        lambda x: F.max_pool2d(x, 3, 2, 1, ceil_mode=True),
    ),
    (
        "AveragePool",
        {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 1, 1, 1], "count_include_pad": 1, "ceil_mode": 1},
        lambda x: F.avg_pool2d(x, (3, 2), 2, 1, ceil_mode=True),
    ),
    (
        "AveragePool",
        {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 1, 1, 1], "ceil_mode": 1},
        lambda x: F.avg_pool2d(x, (3, 2), 2, 1, ceil_mode=True, count_include_pad=False),
    ),
    ("DepthToSpace", {"blocksize": 2, "mode": "CRD"}, lambda x: F.pixel_shuffle(x, 2)),
]


@pytest.mark.parametrize("case", ACTIVATIONS, ids=lambda case: f"{case[0]}-{case[1]}")
def test_activation_or_pool_equals_torch(case: tuple[str, dict[str, Any], Any]) -> None:
    kind, attributes, function = case
    x = reals(7, 2, 4, 6, 5) * 3
    found = ours(one_node(kind, [x], **attributes), [x])[0]
    np.testing.assert_allclose(found, function(torch.from_numpy(x)).numpy(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("align", [False, True], ids=["half_pixel", "align_corners"])
@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(9, 7), (3, 2), (1, 5)], ids=str)
def test_resize_equals_torch(mode: str, align: bool, size: tuple[int, int]) -> None:
    x = reals(8, 1, 2, 6, 5)
    sizes = np.array([1, 2, *size], dtype=np.int64)
    model = one_node(
        "Resize",
        [x, None, None, sizes],
        mode={"bilinear": "linear", "bicubic": "cubic"}[mode],
        coordinate_transformation_mode="align_corners" if align else "half_pixel",
    )
    expected = F.interpolate(torch.from_numpy(x), size, mode=mode, align_corners=align)
    np.testing.assert_allclose(ours(model, [x, None, None, sizes])[0], expected.numpy(), rtol=1e-12, atol=1e-12)


GATES = {
    "RNN": [0],
    "GRU": [1, 0, 2],
    "LSTM": [0, 3, 1, 2],
}  # ONNX's order of gates in torch's: zrh of rzn, iofc of ifco
LAYERS = {"RNN": torch.nn.RNN, "GRU": torch.nn.GRU, "LSTM": torch.nn.LSTM}


def recurrent(kind: str, directions: int, **more: Any) -> tuple[Any, list[Array | None], Array]:
    """A torch layer of input size 3 and hidden size 4 in float64, its operands as ONNX has them, and an input."""
    torch.manual_seed(5)
    layer = LAYERS[kind](3, 4, bidirectional=directions == 2, dtype=torch.float64, **more)
    order = GATES[kind]

    def operand(name: str) -> Array:
        parts = [getattr(layer, name + end).detach().numpy() for end in ("", "_reverse")[:directions]]
        return np.stack([np.concatenate([np.split(part, len(order))[gate] for gate in order]) for part in parts])

    bias = np.concatenate([operand("bias_ih_l0"), operand("bias_hh_l0")], axis=1) if layer.bias else None
    return layer, [operand("weight_ih_l0"), operand("weight_hh_l0"), bias], reals(11, 5, 2, 3)


def linear_before_reset(kind: str) -> dict[str, Any]:
    return {"linear_before_reset": 1} if kind == "GRU" else {}  # torch multiplies by the reset gate behind the product


@pytest.mark.parametrize("opset", [7, 14, 22])
@pytest.mark.parametrize("directions", [1, 2], ids=["forward", "bidirectional"])
@pytest.mark.parametrize("kind", LAYERS)
def test_recurrent_layers_equal_torch(kind: str, directions: int, opset: int) -> None:
    layer, operands, x = recurrent(kind, directions)
    states = [reals(seed, directions, 2, 4) for seed in range(2 if kind == "LSTM" else 1)]
    direction = {1: "forward", 2: "bidirectional"}[directions]
    model = one_node(
        kind, [x, *operands, None, *states], opset=opset, outputs=1 + len(states), hidden_size=4, direction=direction,
        **linear_before_reset(kind),
    )  # fmt: skip
    start = tuple(map(torch.from_numpy, states))
    y, ends = layer(torch.from_numpy(x), start if kind == "LSTM" else start[0])

    found = ours(model, [x, *operands, None, *states])

    np.testing.assert_allclose(
        found[0].transpose(0, 2, 1, 3).reshape(5, 2, -1), y.detach().numpy(), rtol=1e-12, atol=1e-14
    )
    for end, expected in zip(found[1:], ends if kind == "LSTM" else (ends,), strict=True):
        np.testing.assert_allclose(end, expected.detach().numpy(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("kind", LAYERS)
def test_recurrent_layers_of_sequences_of_different_lengths_equal_torch(kind: str) -> None:
    """The shorter one ends earlier; backwards it begins at its own end."""
    layer, operands, x = recurrent(kind, 2, bias=False)
    lengths = np.array([5, 3], dtype=np.int32)
    model = one_node(
        kind, [x, *operands, lengths], outputs=2, hidden_size=4, direction="bidirectional", **linear_before_reset(kind)
    )
    packed = torch.nn.utils.rnn.pack_padded_sequence(torch.from_numpy(x), torch.from_numpy(lengths).long())
    y, ends = layer(packed)
    expected, _ = torch.nn.utils.rnn.pad_packed_sequence(y)

    found, end = ours(model, [x, *operands, lengths])
    last = ends[0] if kind == "LSTM" else ends

    np.testing.assert_allclose(
        found.transpose(0, 2, 1, 3).reshape(5, 2, -1), expected.detach().numpy(), rtol=1e-12, atol=1e-14
    )
    np.testing.assert_allclose(end, last.detach().numpy(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("kind", LAYERS)
def test_recurrent_layers_with_the_batch_first_and_backwards(kind: str) -> None:
    """layout=1 swaps the axes; reverse is the forward layer on the input turned round."""
    _, operands, x = recurrent(kind, 1)
    forward = one_node(kind, [x[::-1].copy(), *operands], outputs=2, hidden_size=4, **linear_before_reset(kind))
    batch_first = x.swapaxes(0, 1).copy()
    turned = one_node(
        kind,
        [batch_first, *operands],
        outputs=2,
        hidden_size=4,
        direction="reverse",
        layout=1,
        **linear_before_reset(kind),
    )

    y, end = ours(forward, [x[::-1].copy(), *operands])
    y_turned, end_turned = ours(turned, [batch_first, *operands])

    np.testing.assert_allclose(y_turned, y[::-1].transpose(2, 0, 1, 3), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(end_turned, end.swapaxes(0, 1), rtol=1e-12, atol=1e-14)


def test_an_lstm_with_peepholes_clipping_and_coupled_gates_is_what_its_page_says() -> None:
    """One step, written out: no other implementation has all three."""
    x, w, r, b = reals(0, 1, 2, 3), reals(1, 1, 16, 3), reals(2, 1, 16, 4), reals(3, 1, 32)
    h, c, p = reals(4, 1, 2, 4), reals(5, 1, 2, 4), reals(6, 1, 12)
    inputs = [x, w, r, b, None, h, c, p]
    model = one_node(
        "LSTM", inputs, outputs=3, hidden_size=4, clip=0.75, input_forget=1,
        activations=["HardSigmoid", "Relu", "LeakyRelu"], activation_alpha=[0.25, 0.5], activation_beta=[0.375],
    )  # fmt: skip
    gates = x[0] @ w[0].T + h[0] @ r[0].T + b[0, :16] + b[0, 16:]
    clipped = lambda value: np.clip(value, -0.75, 0.75)  # noqa: E731
    hard = lambda value: np.clip(0.25 * clipped(value) + 0.375, 0, 1)  # noqa: E731
    i = hard(gates[:, :4] + p[0, :4] * c[0])
    cell = (1 - i) * c[0] + i * np.maximum(clipped(gates[:, 12:]), 0)
    o = hard(gates[:, 4:8] + p[0, 4:8] * cell)
    hidden = o * np.where(cell < 0, 0.5 * cell, cell)

    y, last, last_cell = ours(model, inputs)

    np.testing.assert_allclose(y[0, 0], hidden, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(last[0], hidden, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(last_cell[0], cell, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("corners", [False, True])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize(
    ("mode", "opset"), [("bilinear", 16), ("linear", 20), ("nearest", 20), ("bicubic", 16), ("cubic", 20)]
)
def test_grid_sample_equals_torch(mode: str, opset: int, padding: str, corners: bool) -> None:
    """Coordinates reach beyond both borders."""
    x, grid = reals(1, 2, 3, 5, 4), np.random.default_rng(2).uniform(-1.7, 1.7, (2, 3, 2, 2))
    word = {"linear": "bilinear", "cubic": "bicubic"}.get(mode, mode)
    model = one_node("GridSample", [x, grid], opset=opset, mode=mode, padding_mode=padding, align_corners=int(corners))
    expected = F.grid_sample(*tensors([x, grid]), mode=word, padding_mode=padding, align_corners=corners)

    np.testing.assert_allclose(ours(model, [x, grid])[0], expected.numpy(), rtol=1e-11, atol=1e-12)


def test_grid_sample_of_volumes_equals_torch() -> None:
    x, grid = reals(1, 2, 3, 5, 4, 3), np.random.default_rng(2).uniform(-1.4, 1.4, (2, 3, 2, 4, 3))
    model = one_node("GridSample", [x, grid], opset=20, mode="linear", padding_mode="border")
    expected = F.grid_sample(*tensors([x, grid]), padding_mode="border", align_corners=False)

    np.testing.assert_allclose(ours(model, [x, grid])[0], expected.numpy(), rtol=1e-11, atol=1e-12)
