"""Sums of tensors: one scale for all, and shifts that add up."""

from __future__ import annotations

import numpy as np
import pytest

from tests.training.fold.carriers.laws_oracle import ask, assert_laws_hold, refusal
from tests.training.fold.judge import judge
from tests.training.fold.maps import bn, numbers
from tests.training.fold.models import build
from training.fold import Profile
from training.fold.carriers import junctions
from training.fold.laws import Sum

RULES = {"Add": junctions.junction, "Sub": junctions.junction, **junctions.RULES}


def model(call: str, a: str = "2,3,4", b: str = "2,3,4", y: str = "2,3,4", opset: int = 17):
    return build(
        f"m (double[{a}] a, double[{b}] b, double[{y}] c) => (double[{y}] y) {{ [op] y = {call} }}", opset=opset
    )


# call, shifts that may be chosen (3 channels, one equation each)
SUMS = {
    "an Add": ("Add (a, b)", 6),
    "a Sub": ("Sub (a, b)", 6),
    "a Sum of two": ("Sum (a, b)", 6),
    "a Sum of three": ("Sum (a, b, c)", 9),
    "a Sum of one": ("Sum (a)", 3),
    "a Sum that reads one twice": ("Sum (a, b, a)", 6),
    "an Add of a tensor to itself": ("Add (a, a)", 3),
}


@pytest.mark.parametrize("side", ["a", "y"])
@pytest.mark.parametrize("case", SUMS)
def test_summands_share_a_scale_and_their_shifts_add_up(case, side):
    call, shifts = SUMS[case]

    asked = assert_laws_hold(model(call), "op", side, (1,), rules=RULES)

    assert (asked.scales, asked.shifts) == (3, shifts)


@pytest.mark.parametrize("side", ["a", "b", "y"])
@pytest.mark.parametrize("opset", [1, 6])
def test_equal_shapes_before_opset_7(opset, side):
    asked = assert_laws_hold(model("Add (a, b)", opset=opset), "op", side, (1,), rules=RULES)

    assert (asked.scales, asked.shifts) == (3, 6)


def test_a_difference_of_a_tensor_from_itself_has_no_shift():
    asked = assert_laws_hold(model("Sub (a, a)"), "op", "y", (1,), rules=RULES)

    assert asked.scales == 3 and asked.shifts == 3  # of a's: y's is zero


@pytest.mark.parametrize("side", ["x", "y"])
def test_a_negative_has_the_negative_shift(side):
    graph = build("m (double[2,3,4] x) => (double[2,3,4] y) { [op] y = Neg (x) }")

    asked = assert_laws_hold(graph, "op", side, (1,), rules=RULES)

    assert (asked.scales, asked.shifts) == (3, 3)
    assert asked.axes == {"x": (1,), "y": (1,)}


BROADCASTS = {  # a, b, y; where y's gauge lies; where b's does; scales, shifts
    "one number for each channel": ("2,3,4", "3,1", "2,3,4", (1,), (0,), 3, 6),
    "missing leading axes": ("2,3,4", "4", "2,3,4", (2,), (0,), 4, 8),
    "one for all images": ("2,3,4", "1,3,4", "2,3,4", (1,), (1,), 3, 6),
    "one for all channels": ("2,3,4", "2,1,4", "2,3,4", (1,), (1,), 1, 4),
    "both grow": ("2,3,1", "3,4", "2,3,4", (1,), (0,), 3, 6),
    "all sizes equal": ("3,3,3", "3,1", "3,3,3", (1,), (0,), 3, 6),
    "two axes": ("2,3,4", "3,4", "2,3,4", (1, 2), (0, 1), 12, 24),
}


@pytest.mark.parametrize("case", BROADCASTS)
def test_a_broadcast_operand_lies_on_the_outputs_axes(case):
    a, b, y, axes, own, scales, shifts = BROADCASTS[case]

    asked = assert_laws_hold(model("Add (a, b)", a, b, y), "op", "y", axes, rules=RULES)

    assert asked.axes["b"] == own and (asked.scales, asked.shifts) == (scales, shifts)


@pytest.mark.parametrize("case", BROADCASTS)
def test_and_says_so_itself(case):
    a, b, y, axes, own, scales, shifts = BROADCASTS[case]

    asked = assert_laws_hold(model("Add (a, b)", a, b, y), "op", "b", own, rules=RULES)

    assert asked.axes["y"] == axes and (asked.scales, asked.shifts) == (scales, shifts)


REFUSED = {
    "an operand without the axis": ("4", "2,3,4", 17, "'b' of Add 'op' lacks axis (1,) of its output"),
    "sizes that nobody knows": ("N,K,4", "N,C,4", 17, "the size of 'y' of Add 'op' along axis (1,) is not known"),
    "an operand of unknown size": ("N,K,4", "2,3,4", 17, "the size of 'b' of Add 'op' along axis (1,) is not known"),
    "shapes that differ before opset 7": (
        "3,4",
        "2,3,4",
        6,
        "the operands of Add 'op' differ in shape, under opset 6",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    b, y, opset, reason = REFUSED[case]

    assert refusal(model("Add (a, b)", y, b, y, opset), "op", "y", (1,), rules=RULES) == reason


def test_the_law_is_the_same_from_every_side():
    graph = model("Sub (a, b)")
    laws = [ask(graph, "op", side, (1,), rules=RULES) for side in "aby"]

    for (law,) in laws:
        assert isinstance(law, Sum) and law.out.value.name == "y" and not law.holds_shift
        assert [(term.port.value.name, term.factor) for term in law.terms] == [("a", 1.0), ("b", -1.0)]


@pytest.mark.parametrize(
    "call", ["Add (s, h)", "Add (h, s)", "Sub (h, s)", "Sub (s, h)", "Sum (s, h)", "Sum (s, h, s)"]
)
def test_a_shift_behind_a_sum_goes_into_one_summand_where_the_other_is_fixed(call):
    graph = build(
        f"""m (double[2,3,4,4] x) => (double[2,3,4,4] y, double[2,3,4,4] t) {{
            [stem] s = Conv (x, w) [tanh] t = Tanh (s) [conv] h = Conv (x, w2) [add] p = {call}
            {bn("n", "p", "q")} [end] y = Sigmoid (q) }}""",
        w=np.random.default_rng(0).normal(size=(3, 3, 1, 1)),
        w2=np.random.default_rng(1).normal(size=(3, 3, 1, 1)),
        **numbers("n", gamma=[1.0, 1.0, 1.0]),
    )

    judged = judge(graph, Profile.GENERIC)

    assert judged.report.summary()["folded"] == 1 and judged.report.batchnorms[0].into == ("conv",)


@pytest.mark.parametrize("gamma", [[1.0, -2.0, 0.5], [-1.0, -1.0, -1.0]])
def test_scales_of_both_signs_pass_a_negative(gamma):
    graph = build(
        f"""m (double[2,3,4,4] x) => (double[2,3,4,4] y) {{
            [conv] h = Conv (x, w) [neg] p = Neg (h) {bn("n", "p", "q")} [end] y = Sigmoid (q) }}""",
        w=np.random.default_rng(0).normal(size=(3, 3, 1, 1)),
        **numbers("n", gamma),
    )

    assert judge(graph, Profile.GENERIC).report.batchnorms[0].into == ("conv",)
