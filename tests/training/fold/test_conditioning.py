"""A shift into a tensor that others share is left where it is if it would bury that tensor's digits."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from tests.training.fold.judge import judge
from tests.training.fold.maps import bn, numbers
from tests.training.fold.models import build, constant, op_types
from training.fold import Profile, Verdict, fold


def stream(ratio: float, mean: float = 0.0, gamma: float = 1.0, variance: float = 1.0) -> ir.Model:
    """A residual stream `t`, whose BatchNormalization has `beta / gamma == ratio` in channel 1."""
    rng = np.random.default_rng(0)
    beta = np.array([0.1, ratio * gamma, -0.1])
    return build(
        f"""m (double[2,3,4,4] x) => (double[2,3,4,4] y) {{
            [stem] s = Tanh (x) [left] a = Conv (s, w) [relu] r = Relu (a) [right] b = Conv (r, w2) [add] t = Add (a, b)
            {bn("n", "t", "u")} [end] y = Sigmoid (u) }}""",
        w=rng.normal(size=(3, 3, 1, 1)),
        w2=rng.normal(size=(3, 3, 1, 1)),
        **numbers("n", [gamma] * 3, beta, [0.0, mean, 0.0], [variance] * 3),
    )


SIGNS = pytest.mark.parametrize("sign", [1, -1])


@SIGNS
@pytest.mark.parametrize(("ratio", "folds"), [(1, True), (8, True), (15.9, True), (16.1, False), (32, False)])
def test_a_shift_of_more_than_sixteen_deviations_stays(ratio, folds, sign):
    outcome = judge(stream(sign * ratio), Profile.GENERIC).report.batchnorms[0]

    assert (outcome.verdict is Verdict.FOLDED) is folds


def test_what_is_predicted_is_said_in_the_worst_channel():
    outcome = judge(stream(32), Profile.GENERIC).report.batchnorms[0]

    assert outcome.reason == (
        "ill-conditioned: 't' would be stored 32 deviations from zero in channel 1 (was 0, limit 16)"
    )


def test_the_deviations_are_the_statistics():
    """beta / gamma is 8, but of normalised units: the map shifts by as many deviations, whatever they are."""
    assert judge(stream(8, variance=1e-4), Profile.GENERIC).report.count(Verdict.FOLDED) == 1
    assert judge(stream(32, variance=1e4), Profile.GENERIC).report.count(Verdict.FOLDED) == 0


@pytest.mark.parametrize(
    ("ratio", "mean", "folds"),
    [
        (32, 100.0, True),  # stored around 32 instead of 100
        (100, 100.0, True),
        (100, 32.0, False),
    ],
)
def test_a_tensor_that_was_as_far_from_zero_before_is_no_worse_for_it(ratio, mean, folds):
    outcome = judge(stream(ratio, mean), Profile.GENERIC).report.batchnorms[0]

    assert (outcome.verdict is Verdict.FOLDED) is folds


def test_a_convolution_of_its_own_takes_any_shift():
    """Nothing else is rounded at that size: the product is computed as it was."""
    graph = build(
        f"""m (double[2,3,4,4] x) => (double[2,3,4,4] y) {{
            [conv] t = Conv (x, w) {bn("n", "t", "u")} [end] y = Sigmoid (u) }}""",
        w=np.ones((3, 3, 1, 1)),
        **numbers("n", [1.0] * 3, [0.0, 1e4, 0.0]),
    )

    assert op_types(judge(graph, Profile.GENERIC).folded) == ["Conv", "Sigmoid"]


def test_nor_does_a_tensor_that_two_convolutions_read_take_it():
    """Upstream there is no room, and both readers would be stored around it."""
    graph = build(
        f"""m (double[2,3,4,4] x) => (double[2,3,4,4] y, double[2,3,4,4] z) {{
            [conv] t = Conv (x, w) {bn("n", "t", "u")} [end] y = Sigmoid (u) [other] z = Conv (t, w) }}""",
        w=np.ones((3, 3, 1, 1)),
        **numbers("n", [1.0] * 3, [0.0, 32.0, 0.0]),
    )

    outcome = judge(graph, Profile.GENERIC).report.batchnorms[0]

    assert outcome.verdict is Verdict.KEPT and outcome.reason.startswith("ill-conditioned: 't' would be stored 32")


def test_one_ill_conditioned_shift_leaves_the_others_of_the_stream():
    rng = np.random.default_rng(0)
    graph = build(
        f"""m (double[2,3,4,4] x) => (double[2,3,4,4] y) {{
            [stem] s = Conv (x, w) {bn("n1", "s", "p")} [r1] q = Relu (p) [c1] h = Conv (q, w2) [add] t = Add (s, h)
            {bn("n2", "t", "u")} [r2] a = Relu (u) [c2] y = Conv (a, w2) }}""",
        w=rng.normal(size=(3, 3, 1, 1)),
        w2=rng.normal(size=(3, 3, 1, 1)),
        **numbers("n1", [1.0] * 3, [0.0, 64.0, 0.0]),
        **numbers("n2", [1.0] * 3, [1.0, 2.0, 3.0]),
    )

    first, second = judge(graph, Profile.GENERIC).report.batchnorms

    assert first.verdict is Verdict.KEPT and first.reason.startswith("ill-conditioned: 's'")
    assert second.verdict is Verdict.FOLDED


@pytest.mark.parametrize("profile", Profile)
def test_it_stays_whole_with_its_statistics_so_that_no_later_pass_forgets_them(profile):
    """An Add that was left of it would be like any other, and go."""
    judged = judge(stream(32), profile)

    assert op_types(judged.folded) == ["Tanh", "Conv", "Relu", "Conv", "Add", "BatchNormalization", "Sigmoid"]
    assert not judged.report.changed and judged.report.batchnorms[0].reason.startswith("ill-conditioned: 't'")


def test_what_stays_goes_on_with_the_deviations_of_what_is_stored_now():
    """The stream is stored 8 times as large for n1; a Mul that was left of n2 would have its shift in the stream."""
    rng = np.random.default_rng(0)
    graph = build(
        f"""m (double[2,3,4,4] x) => (double[2,3,4,4] y, double[2,3,4,4] z) {{
            [stem] s = Conv (x, w) {bn("n1", "s", "p")} [t1] z = Tanh (p) [c1] h = Conv (z, w) [add] t = Add (s, h)
            {bn("n2", "t", "u")} [t2] y = Tanh (u) }}""",
        w=rng.normal(size=(3, 3, 1, 1)),
        **numbers("n1", [8.0] * 3, [0.0] * 3, [0.0] * 3),
        **numbers("n2", [1.0] * 3, [0.0, 32.0, 0.0], [0.0, 1.0, 0.0]),
    )

    judged = judge(graph, Profile.GENERIC)

    assert [o.verdict for o in judged.report.batchnorms] == [Verdict.FOLDED, Verdict.KEPT]
    assert judged.report.batchnorms[1].reason.startswith("ill-conditioned: 't' would be stored 32 deviations")
    assert constant(judged.folded, "n2_v").tolist() == [64.0] * 3 and constant(judged.folded, "n2_m")[1] == 8.0
    assert constant(judged.folded, "n2_g").tolist() == [1.0] * 3


def test_a_channel_that_is_stored_as_one_number_has_no_digits_to_lose():
    """Both maps have gamma = 0 there, and put out 100: so does the convolution that both read."""
    dead = numbers("n", [1.0, 0.0, 2.0], [0.0, 100.0, 0.0]), numbers("o", [1.0, 0.0, 2.0], [0.0, 100.0, 0.0])
    graph = build(
        f"""m (double[2,3,4,4] x) => (double[2,3,4,4] y, double[2,3,4,4] z) {{
            [c] h = Conv (x, w) {bn("n", "h", "p")} {bn("o", "h", "q")} [t] y = Tanh (p) [s] z = Sigmoid (q) }}""",
        w=np.random.default_rng(0).normal(size=(3, 3, 1, 1)),
        **dead[0],
        **dead[1],
    )

    assert op_types(judge(graph, Profile.GENERIC).folded) == ["Conv", "Tanh", "Sigmoid"]


def normalised_input(ratio: float, kind: str) -> ir.Model:
    dtype = {"float": np.float32, "double": np.float64}[kind]
    weights = {
        "w": np.random.default_rng(0).normal(size=(3, 5)),
        **numbers("n", [1.0] * 3, [0.0] * 3, [0.0, ratio, 1.0]),
    }
    return build(
        f"m ({kind}[N,3] x) => ({kind}[N,5] y) {{ {bn('n', 'x', 'u')} [fc] y = MatMul (u, w) }}",
        **{name: array.astype(dtype) for name, array in weights.items()},
    )


@pytest.mark.parametrize(
    ("ratio", "kind", "folds"),
    [(100, "float", True), (255, "float", True), (257, "float", False), (-1e4, "float", False), (1e4, "double", True)],
)
def test_a_graph_input_far_from_zero_is_normalised_before_it_is_multiplied(ratio, kind, folds):
    """Nothing has rounded it yet: `w x - w mean` would lose what `x - mean` keeps."""
    outcome = fold(normalised_input(ratio, kind), Profile.GENERIC)[1].batchnorms[0]

    assert (outcome.verdict is Verdict.FOLDED) is folds
    if not folds:
        stored = f"would be stored {abs(ratio):.3g} deviations from zero in channel 1 (was 0, limit 256)"
        assert outcome.reason == f"ill-conditioned: 'u' {stored}"


@pytest.mark.parametrize(
    ("mean", "deviation", "told"),
    [
        (1.0, 1.0, ""),
        (3.0, 1.0, ""),
        (5.0, 1.0, "'u' would be stored 5 deviations from zero in channel 1 (was 0, limit 4)"),
        (0.0, 1e5, "'u' would reach 8e+05 in channel 1, where a Cast leaves 6.55e+04"),
    ],
)
def test_a_cast_to_fewer_digits_gets_what_is_normalised(mean, deviation, told):
    graph = build(
        f"""m (float[N,3] x) => (float16[N,5] y) {{
            h = Sigmoid (x) {bn("n", "h", "u")} c = Cast <to=10> (u) [fc] y = MatMul (c, w) }}""",
        w=np.random.default_rng(0).normal(size=(3, 5)).astype(np.float16),
        **{k: v.astype(np.float32) for k, v in numbers(
            "n", [1.0] * 3, [0.0] * 3, [0.0, mean, 0.0], [1.0, deviation**2, 1.0]).items()},
    )  # fmt: skip

    outcome = fold(graph, Profile.GENERIC)[1].batchnorms[0]

    assert outcome.reason == (f"ill-conditioned: {told}" if told else "")
