"""Gates, choices and products of computed tensors: exact under every gauge that their laws allow, asked from any side.

Inputs of a graph are gates by themselves, so the factors under test are computed: `a` and `b` by Relu, which tells
nothing about them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from tests.training.fold.carriers.laws_oracle import Asked, assert_laws_hold, refusal
from tests.training.fold.models import build
from training.fold.carriers import gates
from training.fold.laws import Equal, NoShift, Positive

Array = np.ndarray[Any, Any]
Axes = tuple[int, ...]
Shape = tuple[int, ...]
RULES = gates.RULES | {
    "Mul": gates.dynamic_mul,
    "Div": gates.dynamic_div,
    "MatMul": gates.dynamic_matmul,
    "Einsum": gates.dynamic_einsum,
}


@dataclass(frozen=True)
class Product:
    """`y = op (a, b)`; a is computed by `make_a` of an input `p`, b by `make_b` of `q`."""

    id: str
    a: Shape
    b: Shape
    y: Shape
    carrier: str = "a"
    op: str = "Mul (a, b)"
    make_a: str = "a = Relu (p)"
    make_b: str = "b = Relu (q)"
    axes: Axes = (1,)  # of y
    own: Axes = (1,)  # of the carrier
    scales: int = 3
    opset: int = 17
    constants: dict[str, Array] = field(default_factory=dict)

    def model(self) -> ir.Model:
        tensors = f"double{list(self.a)} p, double{list(self.b)} q"
        values = f"double{list(self.a)} a, double{list(self.b)} b"
        text = f"""m ({tensors}) => (double{list(self.y)} y) <{values}>
            {{ {self.make_a} {self.make_b} [op] y = {self.op} }}"""
        return build(text, self.opset, **self.constants)

    def gate(self) -> str:
        return "b" if self.carrier == "a" else "a"

    def holds(self, side: str) -> Asked:
        axes = self.axes if side == "y" else self.own
        away = np.random.default_rng(3).uniform(0.5, 2, self.b)  # from zero, for Div
        return assert_laws_hold(self.model(), "op", side, axes, rules=RULES, feeds={"b": away})


MAP, SQUEEZED, VECTOR, CUBE = (2, 3, 4, 5), (2, 3, 1, 1), (2, 3), (3, 3, 3, 3)

PRODUCTS = [
    # (2) an operator whose output is fixed anyway, or an input
    Product("SiLU's shape", MAP, MAP, MAP, make_b="b = Sigmoid (q)"),
    Product("its mirror image", MAP, MAP, MAP, "b", make_a="a = Sigmoid (p)"),
    Product("seen through Identity", MAP, MAP, MAP, "b", make_a="s = Tanh (p) t = Identity (s) a = Identity (t)"),
    Product("all sizes equal", CUBE, CUBE, CUBE, "b", make_a="a = HardSigmoid (p)"),
    Product("a softmax of attention", SQUEEZED, MAP, MAP, "b", make_a="a = Softmax <axis = 1> (p)"),
    Product("fixed weighs more than spread", MAP, SQUEEZED, MAP, "b", make_a="a = Gelu (p)", opset=20),
    Product("an input", MAP, MAP, MAP, op="Mul (a, q)"),
    # (3) spread
    Product("squeeze and excite", MAP, SQUEEZED, MAP),
    Product("squeeze and excite, mirrored", SQUEEZED, MAP, MAP, "b"),
    Product("a spatial mask", MAP, (2, 1, 4, 5), MAP),
    Product("fewer axes", (4, 5), MAP, MAP, "b"),
    # (4) bounded, written out
    Product(
        "hard sigmoid", MAP, MAP, MAP, "b", make_a="s = Clip (p) a = Div (s, six)", constants={"six": np.array(6.0)}
    ),
    Product(
        "hard sigmoid with everything",
        MAP,
        MAP,
        MAP,
        "b",
        make_a="r = Sigmoid (p) s = Identity (r) t = Mul (two, s) u = Identity (t) a = Sub (u, two)",
        constants={"two": np.array(2.0)},
    ),
    # (5) the first
    Product("nothing tells them apart", MAP, MAP, MAP),
    Product("both fixed", CUBE, CUBE, CUBE, make_a="a = Sigmoid (p)", make_b="b = Tanh (q)"),
    Product("no clip but a product", MAP, MAP, MAP, make_a="c = Clip (p) a = Mul (c, p)"),
    Product("an outer product", (2, 3, 1, 1), (2, 1, 4, 5), MAP),
    # (1) constants that are no channelwise map
    Product("a constant mask", MAP, (4, 5), MAP, op="Mul (a, k)", constants={"k": np.arange(20.0).reshape(4, 5)}),
    Product(
        "a constant mask in front", MAP, (4, 5), MAP, op="Mul (k, a)", constants={"k": np.arange(60.0).reshape(3, 4, 5)}
    ),
    Product(
        "constant over a fixed one",
        MAP,
        MAP,
        MAP,
        "b",
        "Mul (k, b)",
        make_b="b = Sigmoid (q)",
        constants={"k": np.ones((4, 5))},
    ),
    Product(
        "constant over a fixed one, computed",
        (4, 5),
        MAP,
        MAP,
        "b",
        make_a="a = Transpose (k)",
        make_b="b = Sigmoid (q)",
        constants={"k": np.ones((5, 4))},
    ),
    # where the gauge lies
    Product("last axis", (2, 4, 3), (2, 4, 1), (2, 4, 3), axes=(2,), own=(2,)),
    Product("two axes", MAP, SQUEEZED, MAP, axes=(1, 3), own=(1, 3), scales=15),
    Product("the carrier has fewer axes", (3, 1), (2, 3, 5), (2, 3, 5), make_b="b = Sigmoid (q)", own=(0,)),
    Product("the carrier is spread", (2, 1, 5), (2, 3, 5), (2, 3, 5), make_b="b = Sigmoid (q)", scales=1),
    Product(
        "half of it is spread",
        (1, 5),
        (2, 3, 5),
        (2, 3, 5),
        make_b="b = Sigmoid (q)",
        axes=(1, 2),
        own=(0, 1),
        scales=5,
    ),
    # old opsets
    Product("opset 6", MAP, MAP, MAP, opset=6),
    Product("opset 6, spread by attribute", MAP, (3,), MAP, op="Mul <broadcast = 1, axis = 1> (a, b)", opset=6),
    # quotients
    Product("quotient", MAP, SQUEEZED, MAP, op="Div (a, b)"),
    Product("quotient by a mask", MAP, (4, 5), MAP, op="Div (a, k)", constants={"k": np.arange(1.0, 21).reshape(4, 5)}),
    Product("a fixed numerator", CUBE, CUBE, CUBE, op="Div (a, b)", make_a="a = Sigmoid (p)"),
]


@pytest.mark.parametrize("case", PRODUCTS, ids=lambda case: case.id)
def test_the_carrier_and_the_product_share_a_scale_and_have_no_shift(case: Product) -> None:
    for side in (case.carrier, "y"):
        asked = case.holds(side)

        assert asked.axes == {case.carrier: case.own, "y": case.axes}
        assert (asked.scales, asked.shifts) == (case.scales, 0)


@pytest.mark.parametrize(
    "case", [case for case in PRODUCTS if case.gate() in case.op and "k" not in case.op], ids=lambda case: case.id
)
def test_the_gate_is_stored_as_it_is(case: Product) -> None:
    reason = refusal(case.model(), "op", case.gate(), (0,), rules=RULES)

    assert f"'{case.gate()}' scales the other operand of" in reason


def test_a_constant_gate_is_stored_as_it_is() -> None:
    model = build("m (double[2,3,4] x) => (double[2,3,4] y) { [op] y = Mul (x, k) }", k=np.ones((3, 4)))

    assert "'k' scales the other operand" in refusal(model, "op", "k", (0,), rules=RULES)


def test_a_constant_numerator_is_stored_under_the_gauge() -> None:
    model = build("m (double[2,3,4] x) => (double[2,3,4] y) { [op] y = Div (k, x) }", k=np.ones((3, 1)))

    asked = assert_laws_hold(model, "op", "y", (1,), rules=RULES, feeds={"x": np.full((2, 3, 4), 0.5)})

    assert asked.axes["k"] == (0,) and asked.scales == 3


PRODUCTS_REFUSED = [
    ("Mul (x, x)", "y", (1,), 17, "squares 'x'"),
    ("Div (x, x)", "y", (1,), 17, "divides a tensor by itself"),
    ("Mul (k, k2)", "y", (1,), 17, "multiplies constants"),
    ("Mul (m, v)", "y", (0,), 6, "differs in shape from the output, in opset 6"),
    ("Mul (v, m)", "y", (0,), 17, "'v' of Mul 'op' lacks axis (0,)"),
    ("Mul (x, s)", "y", (2,), 17, "the size of 'y'"),
    ("Div (k, x)", "y", (0,), 17, "'k' of Div 'op' lacks axis (0,)"),
]


@pytest.mark.parametrize(("op", "side", "axes", "opset", "reason"), PRODUCTS_REFUSED)
def test_a_product_is_refused(op: str, side: str, axes: Axes, opset: int, reason: str) -> None:
    text = f"""m (double[3,3,L] i, double[3] j, double[3,3,3] m, double[3,3,L] s) => (double[3,3,L] y)
        {{ x = Relu (i) v = Relu (j) [op] y = {op} }}"""
    model = build(text, opset, k=np.ones(3), k2=np.ones((3, 3, 3)))

    assert reason in refusal(model, "op", side, axes, rules=RULES)


# --- Where -----------------------------------------------------------------------------------------------------------


def choice(a: str, b: str, op: str = "Where (c, a, b)", condition: str = "2,3,4", **constants: Array) -> ir.Model:
    text = f"m (bool[{condition}] c, double[{a}] a, double[{b}] b) => (double[2,3,4] y) {{ [op] y = {op} }}"
    return build(text, **constants)


@pytest.mark.parametrize("side", ["a", "b", "y"])
@pytest.mark.parametrize("condition", ["2,3,4", "4", "2,1,1"])
def test_both_branches_have_the_gauge_of_the_choice(side: str, condition: str) -> None:
    asked = assert_laws_hold(choice("2,3,4", "2,3,4", condition=condition), "op", side, (1,), rules=RULES)

    assert asked.axes == {"a": (1,), "b": (1,), "y": (1,)}
    assert (asked.scales, asked.shifts) == (3, 3)


def test_branches_of_one_cube_keep_their_axis() -> None:
    text = "m (bool[3,3,3] c, double[3,3,3] a, double[3,3] b) => (double[3,3,3] y) { [op] y = Where (c, a, b) }"

    asked = assert_laws_hold(build(text), "op", "a", (2,), rules=RULES)

    assert asked.axes == {"a": (2,), "b": (1,), "y": (2,)} and asked.scales == 3


@pytest.mark.parametrize(("b", "axes"), [("1,1", (0,)), ("2,1,4", (1,))])
def test_a_branch_that_is_spread_ties_the_entries_it_meets(b: str, axes: Axes) -> None:
    asked = assert_laws_hold(choice("2,3,4", b), "op", "y", (1,), rules=RULES)

    assert asked.axes["b"] == axes and (asked.scales, asked.shifts) == (1, 1)


CONSTANT_BRANCHES = [
    ("zero", np.array(0.0), NoShift, 3, 0),
    ("zeros of size 1", np.zeros((1, 1, 1)), NoShift, 3, 0),
    ("minus infinity", np.array(-np.inf), Positive, 3, 3),
    ("both infinities", np.array([np.inf, -np.inf, np.inf, np.inf]), Positive, 3, 3),
    ("zeros for each channel", np.zeros((3, 1)), Equal, 3, 3),
    ("numbers for each channel", np.arange(3.0).reshape(3, 1), Equal, 3, 3),
    ("numbers for each element", np.arange(24.0).reshape(2, 3, 4), Equal, 3, 3),
    ("numbers for all channels", np.arange(4.0).reshape(1, 4), Equal, 1, 1),
]


@pytest.mark.parametrize("op", ["Where (c, a, k)", "Where (c, k, a)"])
@pytest.mark.parametrize(
    ("k", "law", "scales", "shifts"), [row[1:] for row in CONSTANT_BRANCHES], ids=[row[0] for row in CONSTANT_BRANCHES]
)
def test_a_constant_branch(op: str, k: Array, law: type, scales: int, shifts: int) -> None:
    asked = assert_laws_hold(choice("2,3,4", "1", op, k=k), "op", "a", (1,), rules=RULES)

    assert asked.tied(law) and (asked.scales, asked.shifts) == (scales, shifts)
    assert asked.tied(Positive) == (law is Positive)


def test_a_number_that_stands_for_all_channels_is_refused() -> None:
    model = choice("2,3,4", "1", "Where (c, a, k)", k=np.array(7.0))

    assert "'k' of Where 'op' lacks axis (1,)" in refusal(model, "op", "a", (1,), rules=RULES)


def test_a_computed_branch_without_the_axis_is_refused() -> None:
    assert "'b' of Where 'op' lacks axis (1,)" in refusal(choice("2,3,4", "4"), "op", "a", (1,), rules=RULES)


def test_a_condition_carries_nothing() -> None:
    assert "'c' is the condition of Where 'op'" in refusal(choice("2,3,4", "4"), "op", "c", (1,), rules=RULES)


# --- MatMul ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MatMulCase:
    """`y = MatMul (a, b)`: the gauge of `carrier` lies along `own`, that of y along `axes`."""

    id: str
    a: Shape
    b: Shape
    y: Shape
    carrier: str
    own: Axes
    axes: Axes
    scales: int
    make_a: str = "a = Relu (p)"
    shifts: bool = False
    opset: int = 17

    def model(self) -> ir.Model:
        tensors = f"double{list(self.a)} p, double{list(self.b)} b"
        text = f"""m ({tensors}) => (double{list(self.y)} y) <double{list(self.a)} a>
            {{ {self.make_a} [op] y = MatMul (a, b) }}"""
        return build(text, self.opset)


SOFTMAX = "s = Softmax <axis = -1> (p) a = Identity (s)"
MATMULS = [
    MatMulCase("rows", (4, 5), (5, 3), (4, 3), "a", (0,), (0,), 4),
    MatMulCase("columns", (4, 5), (5, 3), (4, 3), "b", (1,), (1,), 3),
    MatMulCase("rows of a cube", (3, 3, 3), (3, 3, 3), (3, 3, 3), "a", (1,), (1,), 3),
    MatMulCase("columns of a cube", (3, 3, 3), (3, 3, 3), (3, 3, 3), "b", (2,), (2,), 3),
    MatMulCase("columns of a smaller operand", (2, 4, 5), (5, 3), (2, 4, 3), "b", (1,), (2,), 3),
    MatMulCase("rows of a smaller operand", (4, 5), (2, 5, 3), (2, 4, 3), "a", (0,), (1,), 4),
    MatMulCase("heads and columns", (2, 6, 4, 5), (2, 6, 5, 3), (2, 6, 4, 3), "b", (1, 3), (1, 3), 18),
    MatMulCase("heads and rows", (2, 6, 4, 5), (2, 6, 5, 3), (2, 6, 4, 3), "a", (1, 2), (1, 2), 24),
    MatMulCase("one head for many", (2, 6, 4, 5), (2, 1, 5, 3), (2, 6, 4, 3), "b", (1, 3), (1, 3), 3),
    MatMulCase("opset 1", (4, 5), (5, 3), (4, 3), "b", (1,), (1,), 3, opset=1),
    # rows that sum to one
    MatMulCase("attention", (2, 6, 4, 5), (2, 6, 5, 3), (2, 6, 4, 3), "b", (3,), (3,), 3, SOFTMAX, True),
    MatMulCase("attention, heads", (2, 6, 4, 5), (2, 6, 5, 3), (2, 6, 4, 3), "b", (1, 3), (1, 3), 18, SOFTMAX, True),
    MatMulCase("softmax by default", (4, 5), (5, 3), (4, 3), "b", (1,), (1,), 3, "a = Softmax (p)", True, 13),
    MatMulCase("softmax, opset 12", (4, 5), (5, 3), (4, 3), "b", (1,), (1,), 3, "a = Softmax (p)", True, 12),
    MatMulCase("softmax, opset 11", (2, 4, 5), (5, 3), (2, 4, 3), "b", (1,), (2,), 3, SOFTMAX, True, 11),
    MatMulCase("softmax over more", (2, 4, 5), (5, 3), (2, 4, 3), "b", (1,), (2,), 3, "a = Softmax (p)", False, 12),
    MatMulCase("softmax over rows", (4, 5), (5, 3), (4, 3), "b", (1,), (1,), 3, "a = Softmax <axis = 0> (p)"),
    MatMulCase("no shift through the left", (4, 5), (5, 3), (4, 3), "a", (0,), (0,), 4, SOFTMAX),
]


@pytest.mark.parametrize("case", MATMULS, ids=lambda case: case.id)
def test_rows_of_the_left_and_columns_of_the_right_carry_a_scale(case: MatMulCase) -> None:
    noise = np.exp(np.random.default_rng(8).normal(size=case.a))
    feeds = {"a": noise / noise.sum(axis=-1, keepdims=True)} if case.shifts else {}
    for side, axes in ((case.carrier, case.own), ("y", case.axes)):
        asked = assert_laws_hold(case.model(), "op", side, axes, rules=RULES, feeds=feeds)

        assert asked.axes == {case.carrier: case.own, "y": case.axes}
        assert (asked.scales, asked.shifts) == (case.scales, case.scales if case.shifts else 0)


MATMULS_REFUSED = [
    ("MatMul (a, b)", "a", (2,), "carries rows of its left or columns of its right operand, not (2,)"),
    ("MatMul (a, b)", "b", (1,), "not (1,)"),
    ("MatMul (a, b)", "a", (0,), "not (0,)"),
    ("MatMul (a, b)", "a", (1, 2), "not (1, 2)"),
    ("MatMul (a, b)", "y", (0,), "not (0,)"),
    ("MatMul (a, b)", "y", (1, 2), "not (1, 2)"),
    ("MatMul (a, a)", "a", (1,), "two different operands"),
    ("MatMul (a, a)", "y", (1,), "two different operands"),
    ("MatMul (a, v)", "a", (1,), "of rank 2 or more"),
    ("MatMul (v, b)", "b", (2,), "of rank 2 or more"),
    ("MatMul (a, k)", "a", (1,), "has a constant operand"),
    ("MatMul (k, b)", "b", (2,), "has a constant operand"),
]


@pytest.mark.parametrize(("op", "side", "axes", "reason"), MATMULS_REFUSED)
def test_a_matmul_is_refused(op: str, side: str, axes: Axes, reason: str) -> None:
    """All sizes are 3: only the axis decides."""
    text = f"m (double[3,3,3] a, double[3,3,3] b, double[3] v) => (double[r0,r1,r2] y) {{ [op] y = {op} }}"
    model = build(text.replace("r0,r1,r2", "3,3" if "v" in op else "3,3,3"), k=np.ones((3, 3)))

    found = refusal(model, "op", side, axes, rules=RULES)

    assert reason in found and "MatMul 'op'" in found


# --- Einsum ------------------------------------------------------------------------------------------------------


def einsum(equation: str, a: str = "2,3,4,5", b: str = "2,3,6,5", y: str = "2,3,4,6") -> ir.Model:
    return build(f"""m (double[{a}] a, double[{b}] b) => (double[{y}] y)
        {{ [op] y = Einsum <equation = "{equation}"> (a, b) }}""")


EINSUMS = [
    ("bhid,bhjd->bhij", {}, "a", (2,), (2,), 4),
    ("bhid, bhjd -> bhij", {}, "b", (2,), (3,), 6),
    ("bhid,bhjd->bhij", {}, "a", (1, 2), (1, 2), 12),
    ("bhid,bhjd->bhji", {"y": "2,3,6,4"}, "a", (2,), (3,), 4),
    ("bhid,bhjd->bihj", {"y": "2,4,3,6"}, "a", (1, 2), (1, 2), 12),  # the same axes, in another order
    ("hij,jk->kih", {"a": "3,3,3", "b": "3,3", "y": "3,3,3"}, "a", (0, 1), (1, 2), 9),
    ("hij,jk->kih", {"a": "3,3,3", "b": "3,3", "y": "3,3,3"}, "b", (1,), (0,), 3),
]


@pytest.mark.parametrize(("equation", "shapes", "carrier", "own", "axes", "scales"), EINSUMS)
def test_einsum_carries_along_labels_of_its_result(
    equation: str, shapes: dict[str, str], carrier: str, own: Axes, axes: Axes, scales: int
) -> None:
    for side, along in ((carrier, own), ("y", axes)):
        asked = assert_laws_hold(einsum(equation, **shapes), "op", side, along, rules=RULES)

        assert asked.axes == {carrier: own, "y": axes}
        assert (asked.scales, asked.shifts) == (scales, 0)


EINSUMS_REFUSED = [
    ("bhid,bhjd->bhij", "a", (3,), "not ['d']"),
    ("bhid,bhjd->bhij", "b", (2, 3), "not ['d', 'j']"),
    ("bhid,bhjd->bhij", "a", (1,), "not ['h']"),
    ("bhid,bhjd->bhij", "y", (0, 1), "not ['b', 'h']"),
    ("bhid,bhjd->bhij", "y", (2, 3), "not ['i', 'j']"),
    ("bhid,bhjd->bhij", "y", (4,), "no axis (4,)"),
    ("bhid,bhjd", "a", (2,), "not written out"),
    ("...id,...jd->...ij", "a", (2,), "not written out"),
    ("bhii,bhjd->bhij", "a", (2,), "has a label twice"),
    ("bhid,bhjd,k->bhij", "a", (2,), "not written out"),
    ("bid,bhjd->bhij", "a", (2,), "does not fit the ranks [4, 4, 4]"),
]


@pytest.mark.parametrize(("equation", "side", "axes", "reason"), EINSUMS_REFUSED)
def test_an_einsum_is_refused(equation: str, side: str, axes: Axes, reason: str) -> None:
    assert reason in refusal(einsum(equation), "op", side, axes, rules=RULES)


def test_an_einsum_of_a_tensor_with_itself_is_refused() -> None:
    model = build("""m (double[4,5] a) => (double[4,4] y) { [op] y = Einsum <equation = "id,jd->ij"> (a, a) }""")

    for side in ("a", "y"):
        assert "reads a tensor twice" in refusal(model, "op", side, (0,), rules=RULES)


def test_an_einsum_that_spreads_its_carrier_is_refused() -> None:
    model = einsum("ij,kj->ik", "1,5", "6,5", "4,6")

    assert "'a' of Einsum 'op' is spread along ['i']" in refusal(model, "op", "y", (0,), rules=RULES)
