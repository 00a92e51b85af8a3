"""Why a map stayed: the nearest operator and tensor on either side that stood in its way."""

from __future__ import annotations

import numpy as np
import pytest

from tests.training.fold.judge import judge
from tests.training.fold.maps import bn, numbers
from tests.training.fold.models import build
from training.fold import Profile, Verdict, fold

RNG = np.random.default_rng(0)
WEIGHTS = {f"w{i}": RNG.normal(size=(3, 3, 1, 1)) for i in range(4)} | {"w3x3": RNG.normal(size=(3, 3, 3, 3))}
PADDED = "Conv <pads = [1, 1, 1, 1]>"


def model(nodes: str, outputs: str = "y", **stats):
    used = {name: array for name, array in WEIGHTS.items() if f", {name})" in nodes}
    results = ", ".join(f"double[2,3,4,4] {name}" for name in outputs.split())
    return build(f"m (double[2,3,4,4] x) => ({results}) {{ {nodes} }}", **used, **(stats or numbers("n")))


def outcome(profile: Profile, nodes: str, outputs: str = "y", **stats):
    """Of the first BatchNormalization that did not fold."""
    report = judge(model(nodes, outputs, **stats), profile).report
    return next(o for o in report.batchnorms if o.verdict is not Verdict.FOLDED)


GENERIC = {
    "a graph's ends": (
        bn("n", "x", "y"),
        "its scale can go neither way: 'x' is a graph input; 'y' is a graph output",
    ),
    "operators that have no rule": (
        f"[t] h = Tanh (x) {bn('n', 'h', 'p')} [s] y = Sigmoid (p)",
        "its scale can go neither way: Tanh 't' takes 'h' only as it is; Sigmoid 's' takes 'p' only as it is",
    ),
    "what stands behind operators that pass it on": (
        f"[t] h = Tanh (x) [m] i = Neg (h) {bn('n', 'i', 'p')} [i] q = Identity (p) [s] y = Sigmoid (q)",
        "its scale can go neither way: Tanh 't' takes 'h' only as it is; Sigmoid 's' takes 'p' only as it is",
    ),
    "zeros that a convolution pads with": (
        f"[t] h = Tanh (x) {bn('n', 'h', 'p')} [c] y = {PADDED} (p, w3x3)",
        "its shift can go neither way: Tanh 't' takes 'h' only as it is; Conv 'c' pads 'p' with zeros",
    ),
    "a function that passes no shift": (
        f"[c] h = Conv (x, w0) [l] i = LeakyRelu (h) {bn('n', 'i', 'p')} [s] y = Sigmoid (p)",
        (
            "its shift can go neither way: LeakyRelu 'l' lets no shift and no negative scale pass; "
            "Sigmoid 's' takes 'p' only as it is"
        ),
    ),
}


def test_what_holds_other_channels_is_not_blamed_where_something_holds_these():
    """Zeros are put behind the channels, and rows of zeros around all of them."""
    nodes = f"[t] h = Tanh (x) {bn('n', 'h', 'p')} [pad] q = Pad (p, ends) [c] r = {PADDED} (q, wide) y = Identity (r)"
    graph = build(
        f"m (double[2,3,4,4] x) => (double[2,3,4,4] y) {{ {nodes} }}",
        wide=RNG.normal(size=(3, 5, 3, 3)),
        ends=np.array([0, 0, 0, 0, 0, 2, 0, 0]),
        **numbers("n"),
    )

    assert judge(graph, Profile.GENERIC).report.batchnorms[0].reason == (
        "its shift can go neither way: Tanh 't' takes 'h' only as it is; Conv 'c' pads 'q' with zeros"
    )


@pytest.mark.parametrize("case", GENERIC)
def test_both_sides_are_named(case):
    nodes, reason = GENERIC[case]

    assert outcome(Profile.GENERIC, nodes).reason == reason


def test_a_negative_scale_names_its_channel_and_who_stands_in_its_way_on_either_side():
    nodes = f"[c] h = Conv (x, w0) [l] i = LeakyRelu (h) {bn('n', 'i', 'p')} [s] y = Sigmoid (p)"

    reason = outcome(Profile.GENERIC, nodes, **numbers("n", [1.0, -2.0, 0.5])).reason

    assert reason == (
        "its scale is negative in channel 1: LeakyRelu 'l' lets no shift and no negative scale pass; "
        "Sigmoid 's' takes 'p' only as it is"
    )


def test_what_stands_in_the_way_on_both_sides_is_said_once():
    nodes = f"[c] h = Conv (x, w0) {bn('n', 'h', 'p')} [cat] y = Concat <axis = 0> (h, p)"
    graph = build(f"m (double[2,3,4,4] x) => (double[4,3,4,4] y) {{ {nodes} }}", w0=WEIGHTS["w0"], **numbers("n"))

    assert judge(graph, Profile.GENERIC).report.batchnorms[0].reason == (
        "its scale can go neither way: 'y' is a graph output"
    )


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ("double[3] n_g", "scale is not constant: 'n_g' is a graph input with a default that a caller may override"),
        (
            "double[3,3,1,1] w0",
            (
                "its scale can go neither way: weight 'w0' of Conv 'c' is not constant: 'w0' is a graph input with a "
                "default that a caller may override; 'y' is a graph output"
            ),
        ),
    ],
)
def test_what_a_caller_may_override_has_a_way_out(given, reason):
    nodes = f"[c] h = Conv (x, w0) {bn('n', 'h', 'y')}"
    text = f"m (double[2,3,4,4] x, {given}) => (double[2,3,4,4] y) {{ {nodes} }}"
    graph = build(text, ir_version=3, w0=WEIGHTS["w0"], **numbers("n"))

    (outcome,) = fold(graph)[1].batchnorms

    assert outcome.reason == reason
    assert outcome.way_out == "take it off the graph's inputs (from IR version 4 on), so that it is a constant"


DEAD = numbers("n", [1.0, 1.0, 0.0])


@pytest.mark.parametrize(
    ("nodes", "outputs", "reason"),
    [
        (
            f"[c] h = Conv (x, w0) {bn('n', 'h', 'p')} [t] y = Tanh (p) [e] z = Conv (h, w2)",
            "y z",
            "its scale is 0 in channel 2: Conv 'e' reads 'h'; Tanh 't' takes 'p' only as it is",
        ),
        (
            bn("n", "x", "y"),
            "y",
            "its scale is 0 in channel 2: 'x' is a graph input; 'y' is a graph output",
        ),
        (
            f"[t] h = Tanh (x) {bn('n', 'h', 'p')} [c] y = {PADDED} (p, w3x3)",
            "y",
            "its scale is 0 in channel 2: Tanh 't' takes 'h' only as it is; Conv 'c' pads 'p' with zeros",
        ),
    ],
)
def test_a_dead_channel_names_who_wants_its_input_and_who_its_output(nodes, outputs, reason):
    assert outcome(Profile.GENERIC, nodes, outputs, **DEAD).reason == reason


def test_a_dead_channel_is_not_blamed_for_what_the_living_ones_cannot_do():
    """Of channel 2 the Conv is told; the others have a negative scale."""
    nodes = f"[t] h = Tanh (x) {bn('n', 'h', 'p')} [l] q = MaxPool <kernel_shape = [1, 1]> (p) [c] y = Conv (q, w0)"

    reason = outcome(Profile.GENERIC, nodes, **numbers("n", [-1.0, 1.0, 0.0])).reason

    assert reason.startswith("its scale is negative in channel 0") and "is 0" not in reason


def test_the_map_that_was_served_first_is_named():
    """`h` can be stored for n1 or for n2, whose outputs are added, behind a ReLU each."""
    nodes = f"""[c] h = Conv (x, w0) {bn("n1", "h", "p")} {bn("n2", "h", "q")} [r1] i = Relu (p) [r2] j = Relu (q)
        [add] k = Add (i, j) [d] y = Conv (k, w1)"""

    reason = outcome(Profile.GENERIC, nodes, **numbers("n1"), **numbers("n2", [3.0, 4.0, 5.0])).reason

    assert reason.endswith("the scale that is left serves BatchNormalization 'n1'")


def test_one_side_that_gives_way_is_not_blamed():
    """Upstream is a convolution, which would take a scale, if not for the other reader."""
    nodes = f"[c] h = Conv (x, w0) {bn('n', 'h', 'p')} [s] y = Sigmoid (p) [t] z = Tanh (h)"

    reason = outcome(Profile.GENERIC, nodes, "y z").reason

    assert reason == (
        "its scale can go neither way: Tanh 't' takes 'h' only as it is; Sigmoid 's' takes 'p' only as it is"
    )


@pytest.mark.parametrize("call", ["Clip (h, low)", "Relu (h)", "MaxPool <kernel_shape = [1, 1]> (h)"])
def test_what_a_carrier_passes_on_is_not_blamed_for_the_end_that_does_not(call):
    nodes = f"[t] h = Tanh (x) [r] i = {call} {bn('n', 'i', 'p')} [s] y = Sigmoid (p)"
    stats = numbers("n") | ({"low": np.array(-0.5)} if "low" in call else {})

    assert outcome(Profile.GENERIC, nodes, **stats).reason == (
        "its scale can go neither way: Tanh 't' takes 'h' only as it is; Sigmoid 's' takes 'p' only as it is"
    )


def test_a_profile_without_clamps_blames_the_clamp_where_there_is_one():
    nodes = f"[t] h = Tanh (x) [r] i = Clip (h, low) {bn('n', 'i', 'p')} [s] y = Sigmoid (p)"
    stats = numbers("n") | {"low": np.array(-0.5)}

    assert outcome(Profile.ORT_CPU, nodes, **stats).reason == (
        "its scale can go neither way: Clip 'r' stays what it is under the identity only; "
        "Sigmoid 's' takes 'p' only as it is"
    )


def test_a_captured_tensor_is_named_with_its_reader():
    text = f"""m (double[2,3,4,4] x, bool c) => (double[2,3,4,4] y, double[2,3,4,4] z) {{
        [conv] h = Conv (x, w0) {bn("n", "h", "y")}
        [if] z = If (c) <then_branch = one () => (double[2,3,4,4] a) {{ [inner] a = Tanh (h) }},
                         else_branch = two () => (double[2,3,4,4] b) {{ b = Sigmoid (h) }}>
    }}"""
    graph = build(text, w0=WEIGHTS["w0"], **numbers("n"))

    report = judge(graph, Profile.GENERIC).report

    assert report.batchnorms[0].reason == (
        "its scale can go neither way: 'h' is read inside a subgraph, by Tanh 'inner'; 'y' is a graph output"
    )
