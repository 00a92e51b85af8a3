"""Activations: which gauges pass, and that a moved clamp still clamps to the same numbers."""

from __future__ import annotations

import numpy as np
import pytest

from tests.training.fold.carriers.laws_oracle import ask, assert_laws_hold, refusal
from tests.training.fold.judge import judge
from tests.training.fold.maps import bn, numbers
from tests.training.fold.models import build, constant, op_types
from training.fold import Profile
from training.fold.affine import Float64s
from training.fold.carriers.activations import RULES, Bounds, moved_bounds
from training.fold.laws import Clamp, Equal, Gauge, NoShift, Positive, Stays

HALF = np.array(0.5)
CHANNELS = np.array([-1.0, 0.0, 2.0]).reshape(3, 1, 1)


def model(call: str, opset: int = 17, shape: str = "2,3,4,4", kind: str = "double", **constants):
    text = f"m ({kind}[{shape}] x) => ({kind}[{shape}] y) {{ [op] y = {call} }}"
    return build(text, opset=opset, **constants)


CLAMPS = {
    "a ReLU": ("Relu (x)", 17, {}, Stays.UNSHIFTED),
    "a ReLU of opset 14": ("Relu (x)", 14, {}, Stays.UNSHIFTED),
    "a Clip by operands": ("Clip (x, low, high)", 17, {"low": -HALF, "high": HALF}, Stays.UNMOVED),
    "a Clip with a lower bound only": ("Clip (x, low)", 13, {"low": -HALF}, Stays.UNMOVED),
    "a Clip with an upper bound only": ("Clip (x, , high)", 11, {"high": HALF}, Stays.UNMOVED),
    "a Clip without bounds": ("Clip (x)", 12, {}, Stays.UNMOVED),
    "a Clip by bounds of one element": ("Clip (x, low)", 17, {"low": np.array([-0.5])}, Stays.UNMOVED),
    "a Max with a number": ("Max (x, k)", 17, {"k": HALF}, Stays.UPRIGHT),
    "a Max with the number first": ("Max (k, x)", 17, {"k": HALF}, Stays.UPRIGHT),
    "a Min with a vector": ("Min (x, k)", 17, {"k": CHANNELS}, Stays.UPRIGHT),
    "a Min of opset 8": ("Min (x, k)", 8, {"k": CHANNELS}, Stays.UPRIGHT),
}


@pytest.mark.parametrize("side", ["x", "y"])
@pytest.mark.parametrize("case", CLAMPS)
def test_any_gauge_may_pass_a_clamp_that_may_change(case, side):
    call, opset, constants, stays = CLAMPS[case]

    (law,) = ask(model(call, opset, **constants), "op", side, (1,), rules=RULES)

    assert isinstance(law, Clamp) and law.stays is stays
    assert (law.x.value.name, law.y.value.name, law.x.axes, law.y.axes) == ("x", "y", (1,), (1,))


@pytest.mark.parametrize("axes", [(1,), (3,), (1, 2), (0, 1, 2, 3)])
def test_a_relu_that_stays_commutes_with_positive_scales_along_any_axes(axes):
    asked = assert_laws_hold(model("Relu (x)"), "op", "x", axes, rules=RULES)

    assert asked.scales == np.prod([(2, 3, 4, 4)[axis] for axis in axes]) and asked.shifts == 0


@pytest.mark.parametrize("side", ["x", "y"])
@pytest.mark.parametrize(
    ("call", "opset", "constants"),
    [
        ("LeakyRelu (x)", 17, {}),
        ("LeakyRelu <alpha = -0.5> (x)", 17, {}),
        ("Abs (x)", 17, {}),
        ("PRelu (x, slope)", 17, {"slope": np.array([0.25, -1.5, 0.0]).reshape(3, 1, 1)}),
        ("PRelu (x, slope)", 17, {"slope": np.array([0.25])}),
        ("PRelu (x, slope)", 9, {"slope": np.ones((3, 4, 4)) / 4}),
        ("Relu (x)", 6, {}),
    ],
)
def test_a_homogeneous_function_commutes_with_positive_scales_and_nothing_else(call, opset, constants, side):
    asked = assert_laws_hold(model(call, opset, **constants), "op", side, (1,), rules=RULES)

    assert asked.scales == 3 and asked.shifts == 0 and asked.free("x") and asked.free("y")
    assert asked.tied(NoShift) and asked.tied(Positive)


def test_a_slope_that_is_computed_is_nobodys_affair_but_its_own_scale_does_not_pass():
    graph = build("m (double[2,3,4,4] x, double[3,1,1] s) => (double[2,3,4,4] y) { [op] y = PRelu (x, s) }")

    assert assert_laws_hold(graph, "op", "x", (1,), rules=RULES).scales == 3
    assert (
        refusal(graph, "op", "s", (0,), rules=RULES)
        == "'s' is no data that PRelu 'op' hands on, or not only (operand [1])"
    )


@pytest.mark.parametrize("op_type", ["Max", "Min"])
@pytest.mark.parametrize("side", ["x", "z", "y"])
def test_a_choice_among_tensors_commutes_with_a_positive_scale_and_one_shift(op_type, side):
    graph = build(
        f"m (double[2,3,4] x, double[2,3,4] z) => (double[2,3,4] y) {{ [op] y = {op_type} (x, z) }}", opset=17
    )

    asked = assert_laws_hold(graph, "op", side, (1,), rules=RULES)

    assert asked.scales == 3 and asked.shifts == 3 and asked.tied(Equal) and asked.tied(Positive)


SHORT = build("m (double[2,3,4] x, double[3,1] z) => (double[2,3,4] y) { [op] y = Max (x, z) }")
DYNAMIC = build(
    "m (double[2,3,4] x, double low) => (double[2,3,4] y) { [op] y = Clip (x, low) }",
)
REFUSED = {
    "a bound that is computed": (DYNAMIC, "x", "'low', a bound of Clip 'op', is not one constant number"),
    "bounds that cross": (
        model("Clip (x, low, high)", low=HALF, high=-HALF),
        "x",
        "Clip 'op' has bounds 0.5 > -0.5",
    ),
    "a bound of three numbers": (
        model("Clip (x, low)", low=np.zeros(3)),
        "x",
        "'low', a bound of Clip 'op', is not one constant number",
    ),
    "three operands, two of them constants": (
        model("Max (x, k, j)", k=HALF, j=HALF),
        "x",
        "Max 'op' has 2 constants among 3 operands",
    ),
    "tensors of two shapes": (SHORT, "x", "the operands of Max 'op' differ in shape"),
    "a constant that enlarges": (
        build("m (double[1,3] x) => (double[2,3] y) { [op] y = Max (x, k) }", k=np.zeros((2, 3))),
        "x",
        "a constant of shape [2, 3] is not proved to fit 'x' [1, 3]",
    ),
    "asked from the constant": (
        model("Max (x, k)", k=CHANNELS),
        "k",
        "'k' is no data that Max 'op' hands on, or not only (operand [1])",
    ),
    "a bound a pixel, under a gauge a channel": (
        build("m (double[1,3,200,200] x) => (double[1,3,200,200] y) { [op] y = Max (x, k) }", k=np.zeros((200, 200))),
        "x",
        "the bounds of Max 'op', which differ along other axes than (1,), would grow",
    ),
    "a Clip before Max could broadcast": (
        model("Clip <min = 0.0, max = 6.0> (x)", 6),
        "x",
        "Clip 'op': Max and Min do not broadcast in opset 6",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    graph, side, reason = REFUSED[case]
    axes = (0,) if side == "k" else (1,)

    assert refusal(graph, "op", side, axes, rules=RULES) == reason


# One channel each: identity, shrunk and moved, mirrored, mirrored and moved.
SCALE, SHIFT = np.array([1.0, 0.5, -1.0, -2.0]), np.array([0.0, 3.0, 0.0, -1.0])
INF = np.inf


@pytest.mark.parametrize(
    ("bounds", "lower", "upper"),
    [
        ((0, INF), [0, 3, -INF, -INF], [INF, INF, 0, -1]),
        ((-INF, 6), [-INF, -INF, -6, -13], [6, 6, INF, INF]),
        ((-1, 2), [-1, 2.5, -2, -5], [2, 4, 1, 1]),
        ((-INF, INF), [-INF] * 4, [INF] * 4),
    ],
)
def test_bounds_move_with_the_gauge_and_change_places_under_a_negative_scale(bounds, lower, upper):
    low, high = moved_bounds(Bounds(*map(number, bounds)), Gauge((1,), (4,), SCALE, SHIFT), 3)

    assert low.shape == high.shape == (1, 4, 1)
    assert low.ravel().tolist() == lower and high.ravel().tolist() == upper


def test_what_nobody_reads_has_no_bounds():
    gauge = Gauge((0,), (2,), np.array([np.inf, 2.0]), np.array([0.0, 1.0]), np.array([5.0, 0.0]))

    low, high = moved_bounds(Bounds(np.array(0.0), np.array(6.0)), gauge, 1)

    assert (low.tolist(), high.tolist()) == ([-INF, 1.0], [INF, 13.0])


def test_a_channel_that_holds_one_number_is_held_between_it_and_itself():
    gauge = Gauge((0,), (2,), np.array([0.0, 1.0]), np.array([7.0, 0.0]))

    low, high = moved_bounds(Bounds(number(0), number(INF)), gauge, 1)

    assert low.tolist() == [7, 0] and high.tolist() == [7, INF]


def number(value: float) -> Float64s:
    return np.asarray(value, dtype=np.float64)


# A Conv, the clamp, a BatchNormalization, and a tensor that nobody may move: the clamp has to follow.
AFTER = {
    "a ReLU under positive scales": ("Relu (h)", [1.0, 2.0, 0.5], {}, ["Max"]),
    "a ReLU under negative scales": ("Relu (h)", [-1.0, -2.0, -0.5], {}, ["Min"]),
    "a ReLU under both": ("Relu (h)", [1.0, -2.0, 0.5], {}, ["Max", "Min"]),
    "a Clip on both sides": ("Clip (h, low, high)", [1.0, -2.0, 0.5], {"low": -HALF, "high": HALF}, ["Max", "Min"]),
    "a Clip from below, positive": ("Clip (h, low)", [1.0, 2.0, 0.5], {"low": -HALF}, ["Max"]),
    "a Clip from below, negative": ("Clip (h, low)", [-1.0, -2.0, -3.0], {"low": -HALF}, ["Min"]),
    "a Clip from above, both": ("Clip (h, , high)", [1.0, -2.0, 0.5], {"high": HALF}, ["Max", "Min"]),
    "a Max under positive scales": ("Max (h, k)", [1.0, 2.0, 0.5], {"k": CHANNELS}, ["Max"]),
    "a Max, constant first, under both": ("Max (k, h)", [1.0, -2.0, 0.5], {"k": CHANNELS}, ["Max", "Min"]),
    "a Min under negative scales": ("Min (h, k)", [-1.0, -2.0, -0.5], {"k": CHANNELS}, ["Max"]),
    "a Max with one number": ("Max (h, k)", [1.0, 2.0, 3.0], {"k": HALF}, ["Max"]),
    "a Max with one number for each pixel": ("Max (h, k)", [1.0, 2.0, 3.0], {"k": np.eye(4)}, ["Max"]),
}


@pytest.mark.parametrize("case", AFTER)
def test_a_clamp_before_a_batchnorm_becomes_what_clamps_to_the_moved_bounds(case):
    call, gamma, constants, left = AFTER[case]
    graph = build(
        f"""m (double[2,3,4,4] x) => (double[2,3,4,4] y) {{
            [conv] h = Conv (x, w) [clamp] p = {call} {bn("n", "p", "q")} [tanh] y = Tanh (q) }}""",
        w=np.random.default_rng(0).normal(size=(3, 3, 1, 1)),
        **constants,
        **numbers("n", gamma),
    )

    judged = judge(graph, Profile.GENERIC)

    assert op_types(judged.folded) == ["Conv", *left, "Tanh"]
    assert judged.report.batchnorms[0].clamped is (left != [call[:3]])  # a Max that stays one is as cheap as before


@pytest.mark.parametrize("case", AFTER)
def test_a_clamp_behind_a_batchnorm_of_an_input_becomes_one_too(case):
    """Upstream nothing gives way, so the Conv behind it undoes the map."""
    call, gamma, constants, left = AFTER[case]
    graph = build(
        f"""m (double[2,3,4,4] x) => (double[2,3,4,4] y) {{
            {bn("n", "x", "h")} [clamp] p = {call} [conv] y = Conv (p, w) }}""",
        w=np.random.default_rng(0).normal(size=(3, 3, 1, 1)),
        **constants,
        **numbers("n", gamma),
    )

    assert op_types(judge(graph, Profile.GENERIC).folded) == [*left, "Conv"]


def test_the_moved_bounds_are_those_of_the_formula_in_the_operators_type():
    """Behind the map `2 x - 1` and its like, ReLU's 0 is at the shift."""
    stats = numbers("n", [2.0, 1.0, 4.0], [1.0, -2.0, 0.5], [0.5, 0.0, 1.0], dtype=np.float32)
    graph = build(
        f"""m (float[2,3,4] x) => (float[2,3,4] y) {{
            [conv] h = Conv (x, w) [relu] p = Relu (h) {bn("n", "p", "q")} [tanh] y = Tanh (q) }}""",
        w=np.ones((3, 3, 1), np.float32),
        **stats,
    )

    bound = constant(judge(graph, Profile.GENERIC).folded, "relu_max")

    assert bound.dtype == np.float32 and bound.shape == (1, 3, 1)
    assert bound.ravel().tolist() == [0.0, -2.0, -3.5]  # beta - gamma * mean


@pytest.mark.parametrize("opset", [6, 9, 11, 13, 17, 21])
def test_a_clip_of_every_opset(opset):
    """Attributes up to opset 10; before opset 8 there is no Max that broadcasts, and it pins."""
    bounds = "Clip <min = -0.5, max = 0.5> (h)" if opset < 11 else "Clip (h, low, high)"
    constants = {"low": -HALF, "high": HALF} if opset >= 11 else {}
    norm = bn("n", "p", "q") if opset > 6 else bn("n", "p", "q").replace("<", "<is_test = 1, ")
    graph = build(
        f"""m (double[2,3,4,4] x) => (double[2,3,4,4] y) {{
            [conv] h = Conv (x, w) [clip] p = {bounds} {norm} [tanh] y = Tanh (q) }}""",
        opset=opset,
        w=np.random.default_rng(0).normal(size=(3, 3, 1, 1)),
        **constants,
        **numbers("n"),
    )

    (outcome,) = judge(graph, Profile.GENERIC).report.batchnorms

    if opset < 8:
        assert "Max and Min do not broadcast in opset 6" in outcome.reason
    else:
        assert outcome.clamped


@pytest.mark.parametrize("call", ["Sigmoid", "Elu", "Softplus", "Gelu", "HardSigmoid", "Exp", "Erf", "Selu"])
def test_what_is_no_clamp_and_not_homogeneous_has_no_rule(call):
    assert call not in RULES
