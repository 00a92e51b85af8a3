"""Reductions, TopK and Mean: exact under every gauge that their laws allow, from either end; each refusal."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from tests.training.fold.carriers.laws_oracle import assert_laws_hold, refusal
from tests.training.fold.models import build
from training.fold.carriers.reductions import RULES
from training.fold.laws import NoShift, Positive

Axes = tuple[int, ...]
DISTINCT, COINCIDENT = [2, 3, 4, 5], [3, 3, 3, 3]


def ints(*numbers: int) -> np.ndarray[Any, Any]:
    return np.array(numbers, dtype=np.int64)


@dataclass(frozen=True)
class Case:
    """`op` reduces x of shape `x`; the gauge lies along `x_axes` before and along `y_axes` after."""

    id: str
    op: str
    x: list[Any]
    rank: int  # of y
    x_axes: Axes = (1,)
    y_axes: Axes = (1,)
    axes: tuple[int, ...] | None = None  # as an operand
    opset: int = 17
    shifts: bool = True
    positive: bool = False
    sizes: dict[str, int] = field(default_factory=dict)

    def model(self) -> ir.Model:
        x = ", ".join(map(str, self.x))
        y = ", ".join(self.y())
        operands = "x" if self.axes is None else "x, axes"
        constants = {} if self.axes is None else {"axes": ints(*self.axes)}
        text = f"m (double[{x}] x) => (double[{y}] y) {{ [op] y = {self.op} ({operands}) }}"
        return build(text, opset=self.opset, **constants)

    def y(self) -> list[str]:
        """Only the sizes along the gauge matter; the others are left symbolic."""
        shape = [f"r{axis}" for axis in range(self.rank)]
        for mine, its in zip(self.y_axes, self.x_axes, strict=True):
            shape[mine] = str(self.x[its])
        return shape


CASES = [
    # where axes are named, by opset
    Case("mean, opset 1", "ReduceMean <axes = [2, 3]>", DISTINCT, 4, opset=1),
    Case("mean, opset 17", "ReduceMean <axes = [2, 3]>", DISTINCT, 4),
    Case("mean, opset 18", "ReduceMean", DISTINCT, 4, axes=(2, 3), opset=18),
    Case("sum, opset 12", "ReduceSum <axes = [2, 3]>", DISTINCT, 4, opset=12),
    Case("sum, opset 13", "ReduceSum", DISTINCT, 4, axes=(2, 3), opset=13),
    Case("negative axes", "ReduceMean <axes = [-1, -2]>", DISTINCT, 4),
    Case("negative axes as operand", "ReduceSum", DISTINCT, 4, axes=(-1,), opset=13),
    # no axes: nothing is reduced where that is what they say
    Case("mean of nothing", "ReduceMean <noop_with_empty_axes = 1>", DISTINCT, 4, opset=18),
    Case("mean of nothing, empty axes", "ReduceMean <noop_with_empty_axes = 1>", DISTINCT, 4, axes=(), opset=18),
    Case("sum of nothing", "ReduceSum <noop_with_empty_axes = 1>", DISTINCT, 4, opset=13),
    # vanishing axes renumber the others
    Case("keepdims 0 behind", "ReduceMean <axes = [2, 3], keepdims = 0>", DISTINCT, 2),
    Case("keepdims 0 before", "ReduceMean <axes = [0], keepdims = 0>", DISTINCT, 3, y_axes=(0,)),
    Case("keepdims 0 around", "ReduceMean <axes = [0, 2], keepdims = 0>", COINCIDENT, 2, y_axes=(0,)),
    Case("keepdims 0, last axis", "ReduceMean <axes = [0, 1], keepdims = 0>", DISTINCT, 2, (3,), (1,)),
    Case("keepdims 0, two axes", "ReduceMean <axes = [0, 2], keepdims = 0>", DISTINCT, 2, (1, 3), (0, 1)),
    Case("keepdims 0, as operand", "ReduceSum <keepdims = 0>", COINCIDENT, 3, (2,), (1,), (1,), 13),
    # what passes
    Case("sum of a known number", "ReduceSum <axes = [0, 3]>", COINCIDENT, 4, opset=11),
    Case("sum of one", "ReduceSum <axes = [2]>", [2, 3, 1], 3, opset=11),
    Case("sum of a symbolic number", "ReduceSum <axes = [2]>", [2, 3, "L"], 3, opset=11, shifts=False),
    Case("mean of a symbolic number", "ReduceMean <axes = [0, 2]>", ["N", 3, "L"], 3, sizes={"N": 2, "L": 7}),
    Case("maximum", "ReduceMax <axes = [2, 3]>", DISTINCT, 4, positive=True),
    Case("maximum, opset 1", "ReduceMax <axes = [2, 3]>", COINCIDENT, 4, opset=1, positive=True),
    Case("maximum, opset 20", "ReduceMax <keepdims = 0>", DISTINCT, 3, (2,), (1,), (1,), 20, positive=True),
    Case("minimum", "ReduceMin <axes = [0]>", COINCIDENT, 4, positive=True),
    Case("norm 1", "ReduceL1 <axes = [2, 3]>", DISTINCT, 4, shifts=False, positive=True),
    Case("norm 2", "ReduceL2", DISTINCT, 4, axes=(2,), opset=18, shifts=False, positive=True),
    # TopK
    Case("largest along the last axis", "TopK <k = 2>", DISTINCT, 4, opset=9, positive=True),
    Case("largest along the spatial axis", "TopK <axis = -1>", DISTINCT, 4, axes=(2,), opset=10, positive=True),
    Case("smallest", "TopK <largest = 0, axis = 0>", COINCIDENT, 4, axes=(2,), opset=11, positive=True),
]


@pytest.mark.parametrize("side", ["x", "y"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_a_gauge_passes_along_the_axes_that_stay(case: Case, side: str) -> None:
    axes = case.x_axes if side == "x" else case.y_axes
    asked = assert_laws_hold(case.model(), "op", side, axes, rules=RULES, sizes=case.sizes)

    assert (asked.axes["x"], asked.axes["y"]) == (case.x_axes, case.y_axes)
    assert asked.scales == np.prod([case.x[axis] for axis in case.x_axes])
    assert asked.shifts == (asked.scales if case.shifts else 0)
    assert asked.tied(NoShift) != case.shifts
    assert asked.tied(Positive) == case.positive


@dataclass(frozen=True)
class Refused:
    id: str
    op: str
    side: str
    axes: Axes
    reason: str
    operand: tuple[int, ...] | None = None
    opset: int = 17
    rank: int = 4

    def model(self) -> ir.Model:
        constants = {} if self.operand is None else {"axes": ints(*self.operand)}
        operands = "x" if self.operand is None else "x, axes"
        y = ", ".join(["3"] * self.rank)
        text = f"m (double[3,3,3,3] x) => (double[{y}] y) {{ [op] y = {self.op} ({operands}) }}"
        return build(text, opset=self.opset, **constants)


REFUSED = [
    Refused("mean over the gauge", "ReduceMean <axes = [1]>", "x", (1,), "reduces axes [1]"),
    Refused("mean over one of the gauge's axes", "ReduceMean <axes = [2]>", "x", (1, 2), "reduces axes [2]"),
    Refused("mean over everything", "ReduceMean", "x", (1,), "reduces axes [0, 1, 2, 3]"),
    Refused("empty axes, opset 18", "ReduceMean", "x", (1,), "reduces axes [0, 1, 2, 3]", (), 18),
    Refused(
        "noop before its opset", "ReduceMean <noop_with_empty_axes = 1>", "x", (1,), "reduces axes [0, 1", None, 17
    ),
    Refused("from a kept axis of size 1", "ReduceMean <axes = [1]>", "y", (1,), "reduces axes [1]"),
    Refused("from an axis that y lacks", "ReduceMean <axes = [2], keepdims = 0>", "y", (3,), "has 3 axes", rank=3),
    Refused("axes out of range", "ReduceMean <axes = [4]>", "x", (1,), "reduces axes [4] of 4"),
    Refused("axes named twice", "ReduceMean <axes = [2, -2]>", "x", (1,), "reduces axes [2, -2]"),
    Refused("operand too early", "ReduceMean", "x", (1,), "opset 17 does not know", (2,), 17),
    Refused("attribute too late", "ReduceSum <axes = [2]>", "x", (1,), "opset 13 does not know", None, 13),
    Refused("TopK along the gauge", "TopK <k = 1, axis = 1>", "x", (1,), "picks along axis 1", opset=9),
    Refused("TopK along the last axis", "TopK <k = 1>", "y", (0, 3), "picks along axis -1", opset=9),
]


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.id)
def test_a_reduction_is_refused(case: Refused) -> None:
    reason = refusal(case.model(), "op", case.side, case.axes, rules=RULES)

    assert case.reason in reason and "'op'" in reason


def test_axes_that_are_computed_are_refused() -> None:
    model = build("m (double[2,3,4] x, int64[1] axes) => (double[2,3,1] y) { [op] y = ReduceMean (x, axes) }", opset=18)

    assert "the axes 'axes' of ReduceMean 'op' are not constant" in refusal(model, "op", "x", (1,), rules=RULES)


def test_an_unknown_rank_is_refused() -> None:
    model = build("m (double[2,3,4] x, int64[r] s) => (double[2,3] y) { h = Reshape (x, s) [op] y = ReduceMean (h) }")

    assert "the rank of what ReduceMean 'op' reduces" in refusal(model, "op", "h", (1,), rules=RULES)


@pytest.mark.parametrize(
    ("outputs", "last"), [("double[2,3,4] y, int64[2,3,4] i", ""), ("double[2,3,4] y", "u = own.Use (i)")]
)
def test_a_top_k_whose_indices_are_read_is_refused(outputs: str, last: str) -> None:
    """A gauge that makes a channel constant would keep its values, and lose which elements they were."""
    model = build(f"m (double[2,3,7] x) => ({outputs}) {{ [op] y, i = TopK (x, k) {last} }}", k=ints(4))

    assert refusal(model, "op", "x", (1,), rules=RULES) == "'i', the indices of TopK 'op', is read"


def test_the_values_of_a_top_k_pass_where_its_indices_are_named_only() -> None:
    model = build("m (double[2,3,7] x) => (double[2,3,4] y) { [op] y, i = TopK (x, k) }", k=ints(4))

    assert assert_laws_hold(model, "op", "x", (1,), rules=RULES, draws=8).shifts == 3


@pytest.mark.parametrize(
    "op", ["ReduceSumSquare", "ReduceProd", "ReduceLogSum", "ReduceLogSumExp", "ArgMax", "ArgMin", "CumSum"]
)
def test_what_is_no_affine_function_has_no_rule(op: str) -> None:
    assert op not in RULES


# --- Mean of tensors -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["a", "b", "c", "y"])
@pytest.mark.parametrize("shape", [[2, 3, 4], [3, 3, 3]], ids=str)
@pytest.mark.parametrize("opset", [1, 6, 8, 13])
def test_the_mean_of_three_has_one_scale_and_the_mean_of_their_shifts(side: str, shape: list[int], opset: int) -> None:
    tensors = ", ".join(f"double{shape} {name}" for name in "abc")
    model = build(f"m ({tensors}) => (double{shape} y) {{ [op] y = Mean (a, b, c) }}", opset=opset)

    asked = assert_laws_hold(model, "op", side, (1,), rules=RULES)

    assert (asked.scales, asked.shifts) == (3, 9)


def test_the_mean_spreads_smaller_operands() -> None:
    model = build("m (double[2,3,4] a, double[1,1] b) => (double[2,3,4] y) { [op] y = Mean (a, b) }")

    asked = assert_laws_hold(model, "op", "a", (1,), rules=RULES)

    assert asked.axes["b"] == (0,)
    assert asked.scales == 1  # b meets every channel
    assert asked.shifts == 4


def test_the_mean_of_a_tensor_with_itself_is_the_tensor() -> None:
    model = build("m (double[2,3,4] a) => (double[2,3,4] y) { [op] y = Mean (a, a) }")

    assert assert_laws_hold(model, "op", "y", (1,), rules=RULES).shifts == 3


def test_a_constant_in_a_mean_is_stored_under_the_gauge() -> None:
    model = build("m (double[2,3,4] a) => (double[2,3,4] y) { [op] y = Mean (a, k) }", k=np.arange(3.0).reshape(3, 1))

    asked = assert_laws_hold(model, "op", "y", (1,), rules=RULES)

    assert asked.axes["k"] == (0,) and asked.scales == 3


MEANS_REFUSED = [
    ("double[2,3,4] a, double[4] b", 17, "'b' of Mean 'op' lacks axis (1,)"),
    ("double[2,3,4] a, double[2,1,4] b", 7, "differ in shape, under opset 7"),
    ("double[2,3,4] a, double[2,c,4] b", 17, "the size of 'b'"),
]


@pytest.mark.parametrize(("tensors", "opset", "reason"), MEANS_REFUSED)
def test_a_mean_is_refused(tensors: str, opset: int, reason: str) -> None:
    model = build(f"m ({tensors}) => (double[2,3,4] y) {{ [op] y = Mean (a, b) }}", opset=opset)

    assert reason in refusal(model, "op", "y", (1,), rules=RULES)
