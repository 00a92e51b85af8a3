"""What each profile wants of what algebra permits."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from tests.training.fold.judge import judge
from tests.training.fold.maps import bn, numbers
from tests.training.fold.models import build, op_types
from training.fold import Profile, Verdict

ALL = pytest.mark.parametrize("profile", Profile)
CHEAP = pytest.mark.parametrize("profile", [Profile.ORT_CPU, Profile.ORT_CUDA])

AT_RANK_4 = {Profile.ORT_CPU: "slower on ort-cpu", Profile.ORT_CUDA: "not measured to be faster on ort-cuda"}


def model(nodes: str, shape: str = "2,3,4,4", **constants) -> ir.Model:
    rng = np.random.default_rng(0)
    weights = {"w": rng.normal(size=(3, 3, 1, 1)), "k": rng.normal(size=(3, 3, 3, 3))}
    used = {name: array for name, array in weights.items() if f", {name})" in nodes}
    return build(f"m (double[{shape}] x) => (double[{shape}] y) {{ {nodes} }}", **used, **constants)


def after_relu(gamma=(1.0, -2.0, 0.5), beta=(0.0, 0.0, 1.0)) -> ir.Model:
    """Conv, ReLU, BatchNormalization, and nothing behind that could take it."""
    return model(
        f"[conv] h = Conv (x, w) [relu] p = Relu (h) {bn('n', 'p', 'q')} [end] y = Sigmoid (q)",
        **numbers("n", gamma, beta, [0.0] * 3),
    )


def padded() -> ir.Model:
    """The scale goes into the convolution, the shift does not pass its padding."""
    return model(f"{bn('n', 'x', 'q')} [conv] y = Conv <pads = [1, 1, 1, 1]> (q, k)", **numbers("n"))


@ALL
def test_what_costs_nothing_folds_under_every_profile(profile):
    plain = model(f"[conv] h = Conv (x, w) {bn('n', 'h', 'y')}", **numbers("n"))

    assert op_types(judge(plain, profile).folded) == ["Conv"]


@ALL
def test_a_positive_scale_passes_a_relu_under_every_profile(profile):
    judged = judge(after_relu((1.0, 2.0, 0.5), (0.0, 0.0, 0.0)), profile)

    assert op_types(judged.folded) == ["Conv", "Relu", "Sigmoid"] and not judged.report.batchnorms[0].clamped


@pytest.mark.parametrize(
    ("gamma", "beta"), [((1, -2, 0.5), (0, 0, 0)), ((1, 2, 3), (0, 0, 1)), ((1, -1, 1), (1, 1, 1))]
)
def test_generic_pays_with_a_clamp_for_a_shift_or_a_negative_scale(gamma, beta):
    judged = judge(after_relu(gamma, beta), Profile.GENERIC)

    assert judged.report.batchnorms[0].clamped and "BatchNormalization" not in op_types(judged.folded)


@CHEAP
def test_others_keep_the_batchnorm_and_name_the_way_out(profile):
    judged = judge(after_relu(), profile)
    (outcome,) = judged.report.batchnorms

    assert op_types(judged.folded) == ["Conv", "Relu", "BatchNormalization", "Sigmoid"] and not judged.report.changed
    assert (outcome.verdict, outcome.reason) == (Verdict.KEPT, AT_RANK_4[profile])
    assert outcome.way_out == "--profile generic folds it"


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        ("2,3", "not faster on ort-cpu"),
        ("2,3,5", "not faster on ort-cpu"),
        ("2,3,4,4", "slower on ort-cpu"),
        ("2,3,2,2,2", "not measured to be faster on ort-cpu"),
    ],
)
def test_the_reason_says_no_more_than_was_measured_at_that_rank(shape, reason):
    spatial = shape.count(",") - 1
    layer = f"[layer] h = {'Conv' if spatial else 'MatMul'} (x, f)"
    nodes = f"{layer} [relu] p = Relu (h) {bn('n', 'p', 'q')} [end] y = Sigmoid (q)"
    kept = judge(model(nodes, shape, f=np.ones((3, 3, *[1] * spatial)), **numbers("n", (1, -2, 0.5))), Profile.ORT_CPU)

    assert kept.report.batchnorms[0].reason == reason


def test_of_another_map_than_a_batchnorm_nothing_was_measured():
    nodes = "[c] h = Conv (x, w) [r] p = Relu (h) [m] q = Mul (p, s) [end] y = Sigmoid (q)"
    graph = model(nodes, s=np.array([-1.0, 2.0, 3.0]).reshape(3, 1, 1))

    assert judge(graph, Profile.ORT_CPU).report.affines[0].reason == "not measured to be faster on ort-cpu"


@CHEAP
def test_a_max_that_stays_one_is_no_price(profile):
    graph = model(
        f"[conv] h = Conv (x, w) [max] p = Max (h, low) {bn('n', 'p', 'q')} [end] y = Sigmoid (q)",
        low=np.array(0.0),
        **numbers("n"),
    )

    assert op_types(judge(graph, profile).folded) == ["Conv", "Max", "Sigmoid"]


def test_generic_reduces_what_it_cannot_fold():
    judged = judge(padded(), Profile.GENERIC)

    assert op_types(judged.folded) == ["Add", "Conv"]
    assert judged.report.batchnorms[0].verdict is Verdict.REDUCED


@CHEAP
def test_others_leave_it_whole_for_its_price(profile):
    judged = judge(padded(), profile)
    (outcome,) = judged.report.batchnorms

    assert (outcome.verdict, outcome.reason) == (Verdict.KEPT, AT_RANK_4[profile])
    assert outcome.way_out == "--profile generic leaves one Add" and not judged.report.changed


REDUCED = {
    "Add": (f"{bn('n', 'x', 'q')} [d] y = Conv <pads = [1, 1, 1, 1]> (q, k)", numbers("n")),
    "Mul": (f"[t] h = Tanh (x) {bn('n', 'h', 'q')} [s] y = Sigmoid (q)", numbers("n", beta=[0.0] * 3, mean=[0.0] * 3)),
}  # fmt: skip


@CHEAP
@pytest.mark.parametrize("left", REDUCED)
def test_what_generic_would_reduce_is_not_blamed_on_the_algebra(profile, left):
    nodes, stats = REDUCED[left]
    generic, other = (judge(model(nodes, **stats), p).report.batchnorms[0] for p in (Profile.GENERIC, profile))

    assert generic.verdict is Verdict.REDUCED and left in generic.into_ops
    assert (other.verdict, other.reason) == (Verdict.KEPT, AT_RANK_4[profile])
    assert other.way_out == f"--profile generic leaves one {left}"


@CHEAP
def test_widening_is_named_before_a_reduction_and_not_before_a_fold(profile):
    nodes = f"[c] h = Conv (x, w) [t] i = Relu (h) {bn('n', 'i', 'q')} [d] y = Conv <pads = [1, 1, 1, 1]> (q, k)"

    reduced = judge(model(nodes.replace("Relu", "LeakyRelu"), **numbers("n")), profile).report.batchnorms[0]
    folded = judge(model(nodes, **numbers("n")), profile).report.batchnorms[0]

    assert reduced.way_out == "--widen folds it, with one channel more"
    assert folded.way_out == "--profile generic folds it"


@ALL
def test_what_algebra_forbids_is_never_called_slow(profile):
    graph = model(f"{bn('n', 'x', 'y')}", **numbers("n"))

    assert judge(graph, profile).report.batchnorms[0].reason == (
        "its scale can go neither way: 'x' is a graph input; 'y' is a graph output"
    )


def test_clamps_are_paid_only_where_nothing_cheaper_folds_as_much():
    """The Conv behind can take it all; the ReLU before stays one."""
    graph = model(
        f"[c1] h = Conv (x, w) [relu] p = Relu (h) {bn('n', 'p', 'q')} [c2] y = Conv (q, w)",
        **numbers("n", [1.0, -2.0, 0.5]),
    )

    judged = judge(graph, Profile.GENERIC)

    assert op_types(judged.folded) == ["Conv", "Relu", "Conv"]
    assert judged.report.batchnorms[0].into == ("c2",)


def test_batchnorms_come_before_other_maps():
    """One scale fits into the convolution: the Mul comes first in the graph, and stays."""
    graph = model(
        f"""[conv] h = Conv (x, w) [mul] p = Mul (h, s) {bn("n", "h", "q")} [e1] a = Sigmoid (p) [e2] b = Sigmoid (q)
            [add] y = Add (a, b)""",
        s=np.array([1.5, -2.0, 3.0]).reshape(3, 1, 1),
        **numbers("n", beta=[0.0] * 3, mean=[0.0] * 3),
    )

    report = judge(graph, Profile.GENERIC).report

    assert report.batchnorms[0].verdict is Verdict.FOLDED and report.affines[0].verdict is Verdict.KEPT
    assert "Sigmoid 'e2' takes 'q' only as it is; Sigmoid 'e1' takes 'p'" in report.affines[0].reason


def test_of_two_batchnorms_that_exclude_each_other_the_first_folds_and_stands_in_the_way_of_the_other():
    graph = model(
        f"""[conv] h = Conv (x, w) {bn("n1", "h", "p")} {bn("n2", "h", "q")} [e1] a = Sigmoid (p) [e2] b = Tanh (q)
            [add] y = Add (a, b)""",
        **numbers("n1"),
        **numbers("n2", [3.0, 4.0, -5.0]),
    )

    first, second = judge(graph, Profile.GENERIC).report.batchnorms

    assert first.verdict is Verdict.FOLDED and first.into == ("conv",)
    assert second.verdict is Verdict.KEPT
    assert "Sigmoid 'e1' takes 'p' only as it is; Tanh 'e2' takes 'q' only as it is" in second.reason


def test_two_with_the_same_numbers_both_fold():
    same = [numbers(name) for name in ("n1", "n2")]
    graph = model(
        f"""[conv] h = Conv (x, w) {bn("n1", "h", "p")} {bn("n2", "h", "q")} [e1] a = Sigmoid (p) [e2] b = Tanh (q)
            [add] y = Add (a, b)""",
        **same[0],
        **same[1],
    )

    assert judge(graph, Profile.GENERIC).report.count(Verdict.FOLDED) == 2


RESIDUAL = """
[conv] h = Conv (x, w) [relu] p = Relu (h) {bn} [add] s = Add (q, x) [conv2] y = Conv (s, w)
"""


@pytest.mark.parametrize(
    ("profile", "kept"), [(Profile.GENERIC, False), (Profile.ORT_CPU, True), (Profile.ORT_CUDA, False)]
)
def test_a_batchnorm_between_a_relu_and_an_add_stays_where_it_carries_the_add(profile, kept):
    """Its scale could go through the Add: x is free to be stored otherwise, because the first BN is behind it."""
    block = RESIDUAL.format(bn=bn("n", "p", "q")).replace("(x,", "(e,").replace("q, x", "q, e")
    graph = model(f"{bn('f', 'x', 'e')} {block}", **numbers("f"), **numbers("n", (1, 2, 0.5), (0, 0, 0), (0, 0, 0)))

    judged = judge(graph, profile)

    names = [entry.name for entry in judged.report.batchnorms if entry.verdict is Verdict.KEPT]
    assert ("n" in names) is kept
    if kept:
        assert judged.report.batchnorms[1].reason == "slower on ort-cpu"


@pytest.mark.parametrize("behind", ["s = Add (q, x) y = Mul (s, q)", "s = Mul (q, x) y = Relu (s)"])
def test_a_batchnorm_that_carries_no_add_alone_folds_as_before(behind):
    nodes = f"[conv] h = Conv (x, w) {bn('n', 'h', 'p')} [relu] q = Relu (p) {behind}"

    assert judge(model(nodes, **numbers("n")), Profile.ORT_CPU).report.batchnorms[0].verdict is Verdict.FOLDED
