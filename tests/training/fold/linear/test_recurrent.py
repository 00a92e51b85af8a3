"""LSTM, GRU and RNN whose input is stored under a gauge (F9): in W and Wb, direction by direction."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from tests.training.fold.linear.judging import Given, assert_stored_alike, gauge, judge, kinds, law_of, rewritten
from tests.training.fold.models import build, constant, op_types, rng_of
from training.fold.laws import Free, NoShift

Array = np.ndarray[Any, Any]
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
STEPS, BATCH, FEATURES, HIDDEN = 3, 2, 5, 4


def model_of(op: str, attributes: str = "", directions: int = 1, bias: bool = True, seed: int = 0) -> ir.Model:
    """y holds the states of all steps; x is [steps, batch, features], or with batch first in layout 1."""
    rng, rows = rng_of(seed), GATES[op] * HIDDEN
    constants = {
        "w": rng.normal(size=(directions, rows, FEATURES)),
        "r": rng.normal(size=(directions, rows, HIDDEN)) * 0.5,
    }
    if bias:
        constants["b"] = rng.normal(size=(directions, 2 * rows))
    x, y = [STEPS, BATCH, FEATURES], [STEPS, directions, BATCH, HIDDEN]
    if "layout = 1" in attributes:
        x, y = [BATCH, STEPS, FEATURES], [BATCH, STEPS, directions, HIDDEN]
    return build(
        f"""m (double{x} x) => (double{y} y) {{
            [op] y = {op} <hidden_size = {HIDDEN}{attributes}> (x, w, r{", b" if bias else ""}) }}""",
        **constants,
    )


@pytest.mark.parametrize("op", GATES)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("attributes", ["", ', direction = "reverse"'])
def test_a_gauge_of_the_input_goes_into_its_weights(op: str, bias: bool, attributes: str):
    for seed in range(2):
        judged = judge(model_of(op, attributes, bias=bias, seed=seed), rng_of(seed + 5), "x")

        assert kinds(judged.x) == [Free]
        assert judged.x[0].quiet is not bias  # type: ignore[union-attr]
        assert op_types(judged.model) == [op]


@pytest.mark.parametrize("linear_before_reset", [0, 1])
def test_the_reset_of_a_gru_concerns_the_other_half_of_its_bias(linear_before_reset: int):
    judge(model_of("GRU", f", linear_before_reset = {linear_before_reset}"), rng_of(1), "x")


def test_batch_first_has_its_features_on_the_same_axis():
    judged = judge(model_of("LSTM", ", layout = 1"), rng_of(1), "x")

    assert judged.gauges["x"].axes == (2,)


@pytest.mark.parametrize("op", GATES)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_both_directions_see_the_same_sum(op: str, bias: bool):
    """What each gate of each direction reads of x, before and after, by definition."""
    model = model_of(op, ', direction = "bidirectional"', directions=2, bias=bias)
    rng, rows = rng_of(2), GATES[op] * HIDDEN
    stored = gauge((2,), rng.uniform(1, 2, FEATURES) * [1, -1, 1, -1, 1], rng.normal(size=FEATURES))

    after = rewritten(model, Given(x=stored))

    x = rng.normal(size=FEATURES)
    old = constant(model, "b") if bias else np.zeros((2, 2 * rows))
    name = after.graph[0].inputs[3].name  # type: ignore[union-attr]
    new = constant(after, name or "")
    before = constant(model, "w") @ x + old[:, :rows]
    np.testing.assert_allclose(
        constant(after, "w") @ (stored.scale * x + stored.shift) + new[:, :rows], before, atol=1e-12
    )
    np.testing.assert_array_equal(new[:, rows:], old[:, rows:])


def test_a_scale_alone_makes_no_bias():
    model = model_of("LSTM", bias=False)
    scaled = gauge((2,), np.arange(1.0, FEATURES + 1))

    after = rewritten(model, Given(x=scaled))

    assert set(after.graph.initializers) == {"w", "r"}
    assert_stored_alike(model, after, {"x": scaled}, rng_of(0))


def test_sequences_of_different_lengths_read_no_padding():
    model = model_of("LSTM")
    lengths = ir.tensor(np.array([STEPS, 1], np.int32), name="lengths")
    model.graph.register_initializer(ir.Value(name="lengths", const_value=lengths, type=ir.TensorType(lengths.dtype)))
    model.graph[0].resize_inputs(5)
    model.graph[0].replace_input_with(4, model.graph.initializers["lengths"])

    assert kinds(law_of(model, "x")) == [Free]


@pytest.mark.parametrize("op", GATES)
def test_outputs_stay_as_they_are(op: str):
    assert law_of(model_of(op), "y", (3,)) == f"{op} 'op' is linear in its input alone"


REFUSED = [
    ("x", (1,), "'x' is stored along axis (1,), weight 'w' of LSTM 'op' acts on axis 2", {}),
    ("r", (2,), "'r' is a constant of LSTM 'op', or no data it reads", {}),
    ("h", (2,), "'h' is a constant of LSTM 'op', or no data it reads", {}),
    ("x", (2,), "weight 'w' of LSTM 'op' has shape [16, 5]", {"w": (16, 5)}),
    ("x", (2,), "LSTM 'op' has 4 channels, 'x' 5", {"w": (1, 16, 4)}),
]


@pytest.mark.parametrize(("end", "axes", "reason", "shapes"), REFUSED)
def test_what_is_refused_says_why(end: str, axes: tuple[int, ...], reason: str, shapes: dict[str, tuple[int, ...]]):
    sizes = {"w": (1, 16, 5), "r": (1, 16, 4)} | shapes
    model = build(
        """m (double[3,2,5] x, double[1,2,4] h) => (double[3,1,2,4] y) {
            [op] y = LSTM <hidden_size = 4> (x, w, r, , , h) }""",
        **{name: np.ones(size) for name, size in sizes.items()},
    )

    assert law_of(model, end, axes) == reason


def test_an_input_that_is_also_the_first_state_is_refused():
    model = build(
        "m (double[1,2,4] x) => (double[1,1,2,4] y) { [op] y = RNN <hidden_size = 4> (x, w, r, , , x) }",
        w=np.ones((1, 4, 4)),
        r=np.ones((1, 4, 4)),
    )

    assert law_of(model, "x", (2,)) == "RNN 'op' reads 'x' twice"


def test_behind_a_bias_that_is_computed_the_input_keeps_its_shift():
    model = build(
        """m (double[3,2,5] x, double[1,8] b) => (double[3,1,2,4] y) {
            [op] y = RNN <hidden_size = 4> (x, w, r, b) }""",
        w=np.ones((1, 4, 5)),
        r=np.ones((1, 4, 4)),
    )

    (law,) = law_of(model, "x")

    assert isinstance(law, NoShift) and law.reason == "bias 'b' of RNN 'op' is not constant: 'b' is a graph input"
