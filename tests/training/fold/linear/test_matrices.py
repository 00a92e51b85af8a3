"""Gemm and MatMul under gauges: along the axes of their constant, along all others, and where a shift finds a place."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from tests.training.fold.carriers.laws_oracle import assert_laws_hold, known_of, node_of
from tests.training.fold.linear.judging import Given, assert_stored_alike, gauge, judge, kinds, law_of, rewritten
from tests.training.fold.models import build, constant, op_types, reload, rng_of
from training.fold.broadcasting import MOST_GROWN
from training.fold.edits import SetOperand, apply
from training.fold.laws import Equal, Free, NoShift
from training.fold.linear import REWRITES, RULES, bias_behind, native_axes, unheld_shift
from training.fold.linear.layer import read_operand
from training.reference import evaluate

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Case:
    """`nodes` compute y from x, by `op` and constants of these shapes."""

    id: str
    x: list[int]
    nodes: str
    y: list[int]
    shapes: dict[str, tuple[int, ...]]
    after: tuple[str, ...]
    free: bool = True  # can both ends have a shift?
    opset: int = 17

    def model(self, seed: int = 0) -> ir.Model:
        rng = rng_of(seed)
        constants = {name: rng.normal(size=shape) for name, shape in self.shapes.items()}
        return build(f"m (double{self.x} x) => (double{self.y} y) {{ {self.nodes} }}", opset=self.opset, **constants)


W, G = {"w": (6, 7)}, ("Gemm",)
CASES = [
    # F6, B5: alpha, beta, both transpositions, every shape of C
    Case("gemm", [5, 6], "[op] y = Gemm (x, w, k)", [5, 7], W | {"k": (7,)}, G),
    Case("gemm transB", [5, 6], "[op] y = Gemm <transB = 1> (x, w, k)", [5, 7], {"w": (7, 6), "k": (7,)}, G),
    Case("gemm transA", [6, 5], "[op] y = Gemm <transA = 1> (x, w, k)", [5, 7], W | {"k": (7,)}, G),
    Case("gemm both", [4, 4], "[op] y = Gemm <transA = 1, transB = 1> (x, w, k)", [4, 4], {"w": (4, 4), "k": (4,)}, G),
    Case("gemm alpha beta", [5, 6], "[op] y = Gemm <alpha = 0.3, beta = 2.7> (x, w, k)", [5, 7], W | {"k": (7,)}, G),
    Case("gemm alpha, no C", [5, 6], "[op] y = Gemm <alpha = -0.7> (x, w)", [5, 7], W, G),
    Case("gemm beta 0", [5, 6], "[op] y = Gemm <beta = 0.0> (x, w, k)", [5, 7], W | {"k": (7,)}, G),
    Case("gemm without C, beta 3", [5, 6], "[op] y = Gemm <beta = 3.0> (x, w)", [5, 7], W, G),
    *(
        Case(f"gemm C {list(k)}", [5, 6], "[op] y = Gemm <beta = 2.0> (x, w, k)", [5, 7], W | {"k": k}, G)
        for k in [(), (1,), (1, 1), (1, 7), (5, 1), (5, 7)]
    ),
    Case("gemm opset 6", [5, 6], "[op] y = Gemm <broadcast = 1> (x, w, k)", [5, 7], W | {"k": (7,)}, G, opset=6),
    Case("gemm opset 6, C [M, N]", [5, 6], "[op] y = Gemm (x, w, k)", [5, 7], W | {"k": (5, 7)}, G, opset=6),
    # B6: between matrices a MatMul becomes the Gemm that can hold the shift
    Case("matmul", [5, 6], "[op] y = MatMul (x, w)", [5, 7], W, G),
    Case("matmul opset 6", [5, 6], "[op] y = MatMul (x, w)", [5, 7], W, G, opset=6),
    Case("matmul, all 4", [4, 4], "[op] y = MatMul (x, w)", [4, 4], {"w": (4, 4)}, G),
    Case("weight behind a Transpose", [5, 6], "t = Transpose (w) [op] y = MatMul (x, t)", [5, 7], {"w": (7, 6)}, G),
    # N-D: the axis is proved, a shift has no place
    Case("linear on rank 3", [2, 3, 6], "[op] y = MatMul (x, w)", [2, 3, 7], W, ("MatMul",), free=False),
    Case("rank 4, all 4", [4, 4, 4, 4], "[op] y = MatMul (x, w)", [4, 4, 4, 4], {"w": (4, 4)}, ("MatMul",), free=False),
    Case("weight [1, K, N]", [2, 3, 6], "[op] y = MatMul (x, w)", [2, 3, 7], {"w": (1, 6, 7)}, ("MatMul",), free=False),
    # constant on the left: rows
    Case("left operand", [6, 7], "[op] y = MatMul (w, x)", [5, 7], {"w": (5, 6)}, G),
    Case(
        "left operand, opset 6",
        [6, 7],
        "[op] y = MatMul (w, x)",
        [5, 7],
        {"w": (5, 6)},
        ("MatMul",),
        free=False,
        opset=6,
    ),
    Case("gemm A", [6, 7], "[op] y = Gemm <alpha = 0.3> (w, x)", [5, 7], {"w": (5, 6)}, G),
    Case("gemm A transA", [6, 7], "[op] y = Gemm <transA = 1> (w, x)", [5, 7], {"w": (6, 5)}, G),
    Case("gemm A transB", [7, 6], "[op] y = Gemm <transB = 1> (w, x, k)", [5, 7], {"w": (5, 6), "k": (5, 1)}, G),
    Case("gemm A both", [4, 4], "[op] y = Gemm <transA = 1, transB = 1> (w, x)", [4, 4], {"w": (4, 4)}, G),
    *(
        Case(f"gemm A, C {list(k)}", [6, 7], "[op] y = Gemm <beta = 2.0> (w, x, k)", [5, 7], {"w": (5, 6), "k": k}, G)
        for k in [(), (1,), (7,), (1, 1), (1, 7), (5, 1), (5, 7)]
    ),
    Case("left, rank 3", [2, 6, 7], "[op] y = MatMul (w, x)", [2, 5, 7], {"w": (5, 6)}, ("MatMul",), free=False),
    Case("left, all 4", [4, 4, 4], "[op] y = MatMul (w, x)", [4, 4, 4], {"w": (4, 4)}, ("MatMul",), free=False),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
@pytest.mark.parametrize("ends", ["x", "y", "xy"])
def test_the_rewritten_operator_computes_the_same_between_the_gauges(case: Case, ends: str):
    for seed in range(3):
        judged = judge(case.model(seed), rng_of(seed + 10), ends)

        assert kinds(judged.x) == kinds(judged.y) == [Free if case.free else NoShift]
        assert tuple(op_types(judged.model)) == case.after


def test_without_a_shift_a_matmul_stays_one():
    model = Case("", [5, 6], "[op] y = MatMul (x, w)", [5, 7], W, G).model()
    ends = {"x": gauge((1,), np.arange(1.0, 7.0)), "y": gauge((1,), np.arange(-7.0, 0.0))}

    after = rewritten(model, Given(**ends))

    assert op_types(after) == ["MatMul"]
    assert_stored_alike(model, after, ends, rng_of(0))


@pytest.mark.parametrize(("k", "quiet"), [({}, True), ({"k": (7,)}, False)], ids=["no C", "C"])
def test_a_shift_is_quiet_where_a_gemm_has_no_bias_yet(k: dict[str, tuple[int, ...]], quiet: bool):
    (law,) = law_of(Case("", [5, 6], f"[op] y = Gemm (x, w{', k' if k else ''})", [5, 7], W | k, G).model(), "y")

    assert isinstance(law, Free) and law.quiet is quiet


@pytest.mark.parametrize(
    ("before", "of_columns", "of_rows"),
    [
        ((), (7,), (5, 1)),
        ((1,), (7,), (5, 1)),
        ((7,), (7,), (5, 7)),
        ((1, 7), (1, 7), (5, 7)),
        ((5, 1), (5, 7), (5, 1)),
        ((5, 7), (5, 7), (5, 7)),
    ],
    ids=str,
)
def test_gemm_bias_grows_only_as_far_as_it_must(
    before: tuple[int, ...], of_columns: tuple[int, ...], of_rows: tuple[int, ...]
):
    columns = Case("", [5, 6], "[op] y = Gemm (x, w, k)", [5, 7], W | {"k": before}, G).model()
    rows = Case("", [6, 7], "[op] y = Gemm (w, x, k)", [5, 7], {"w": (5, 6), "k": before}, G).model()

    assert constant(rewritten(columns, Given(y=gauge((1,), np.ones(7), 1.0))), "k").shape == of_columns
    assert constant(rewritten(rows, Given(y=gauge((0,), np.ones(5), 1.0))), "k").shape == of_rows


@pytest.mark.parametrize(("rows", "grows"), [(MOST_GROWN // 64, True), (MOST_GROWN // 64 + 1, False)])
def test_a_bias_grows_to_a_limit(rows: int, grows: bool):
    """A number a row under a gauge of 64 columns; a matrix of any size under it stays what it is."""
    text = f"m (double[{rows},2] x) => (double[{rows},64] y) {{ [op] y = Gemm (x, w, k) }}"
    column, matrix = (build(text, w=np.ones((2, 64)), k=np.ones((rows, n))) for n in (1, 64))
    added = build(text.replace("y = Gemm (x, w, k)", "p = MatMul (x, w) y = Add (p, k)"), w=np.ones((2, 64)),
                  k=np.ones((rows, 1)))  # fmt: skip

    found = law_of(column, "y"), law_of(column, "x"), law_of(added, "x"), law_of(matrix, "y")

    if grows:
        assert [kinds(one) for one in found] == [[Free]] * 4
    else:
        assert found[0] == f"bias 'k' of Gemm 'op' would grow from [{rows}, 1] to [{rows}, 64]"
        assert [kinds(one) for one in found[1:]] == [[NoShift], [NoShift], [Free]]


def test_gemm_keeps_alpha_and_folds_beta_into_its_bias():
    model = Case("", [5, 6], "[op] y = Gemm <alpha = 0.3, beta = 2.7> (x, w, k)", [5, 7], W | {"k": (7,)}, G).model()

    gemm = rewritten(model, Given(y=gauge((1,), np.full(7, 2.0)))).graph[0]

    assert gemm.attributes.get_float("alpha") == pytest.approx(0.3)
    assert gemm.attributes.get_float("beta") == 1.0


def test_gemm_leaves_beta_where_its_bias_stays():
    model = Case("", [5, 6], "[op] y = Gemm <beta = 2.7> (x, w, k)", [5, 7], W | {"k": (7,)}, G).model()

    gemm = rewritten(model, Given(x=gauge((1,), np.full(6, 2.0)))).graph[0]

    assert gemm.attributes.get_float("beta") == pytest.approx(2.7)


LAST, ROWS = "[op] y = MatMul (x, w)", "[op] y = MatMul (w, x)"


@pytest.mark.parametrize(
    ("x", "nodes", "y", "w", "axes"),
    [
        ([2, 3, 6], LAST, [2, 3, 7], (6, 7), (1,)),
        ([2, 3, 6], LAST, [2, 3, 7], (6, 7), (0,)),
        ([2, 3, 6], LAST, [2, 3, 7], (6, 7), (0, 1)),
        ([4, 4, 4], LAST, [4, 4, 4], (4, 4), (1,)),
        ([5, 6], LAST, [5, 7], (6, 7), (0,)),
        ([2, 3, 6], LAST, [2, 3, 7], (1, 6, 7), (1,)),
        ([2, 6, 7], ROWS, [2, 5, 7], (5, 6), (2,)),
        ([2, 6, 7], ROWS, [2, 5, 7], (5, 6), (0, 2)),
        ([4, 4, 4], ROWS, [4, 4, 4], (4, 4), (2,)),
    ],
)
@pytest.mark.parametrize("end", ["x", "y"])
def test_along_other_axes_both_ends_share_their_scale(
    x: list[int], nodes: str, y: list[int], w: tuple[int, ...], axes: tuple[int, ...], end: str
):
    """B7: an affine along axis 1 of [N, T, F] is no business of a weight that acts on axis 2, even where T = F."""
    model = Case("", x, nodes, y, {"w": w}, ()).model()

    asked = assert_laws_hold(model, "op", end, axes, rules=RULES)

    assert asked.tied(Equal) and asked.tied(NoShift) and asked.free("x") and asked.free("y") and asked.shifts == 0


def test_a_gauge_that_comes_along_changes_nothing():
    model = Case("", [2, 3, 6], LAST, [2, 3, 7], W, ()).model()
    node, along = node_of(model, "op"), gauge((1,), np.array([1.0, -2.0, 3.0]))

    assert REWRITES["MatMul"](node, Given(x=along, y=along), known_of(model)) == ()


ADDS = {
    "[N]": ("Add (p, k)", (7,)),
    "on the left": ("Add (k, p)", (7,)),
    "a number": ("Add (p, k)", ()),
    "[T, 1]": ("Add (p, k)", (3, 1)),
    "[B, T, N]": ("Add (k, p)", (2, 3, 7)),
}


@pytest.mark.parametrize(("add", "k"), ADDS.values(), ids=ADDS)
@pytest.mark.parametrize("x", [[2, 3, 6], [3, 6]], ids=["rank 3", "rank 2"])
def test_an_add_of_a_constant_behind_a_matmul_takes_what_a_shift_of_the_input_spills(
    x: list[int], add: str, k: tuple[int, ...]
):
    if len(k) > len(x):
        k = k[1:]
    model = Case("", x, f"[op] p = MatMul (x, w) [bias] y = {add}", [*x[:-1], 7], W | {"k": k}, ()).model()
    rng, axes = rng_of(4), (len(x) - 1,)
    (law_x,), (law_p,) = law_of(model, "x"), law_of(model, "p")
    assert isinstance(law_x, Free) and not law_x.quiet
    assert isinstance(law_p, NoShift) and law_p.reason == "MatMul 'op' holds no bias: the Add behind it does"
    ends = {
        "x": gauge(axes, rng.uniform(1, 2, 6) * [1, -1, 1, 1, -1, 1], rng.normal(size=6)),
        "p": gauge(axes, rng.uniform(1, 2, 7) * [1, -1, 1, 1, -1, 1, 1]),
    }
    node, known = node_of(model, "op"), known_of(model)

    unheld = unheld_shift(node, Given(**ends), known)
    after = rewritten(model, Given(**ends))

    assert bias_behind(node, known) is node_of(model, "bias")
    assert unheld is not None and unheld.shape == (7,)
    assert op_types(after) == ["MatMul", "Add"]  # no Gemm, where the Add is there already
    numbers = rng.normal(size=x)
    stored = evaluate(after, {"x": numbers * ends["x"].scale + ends["x"].shift})["y"] - constant(model, "k")
    product = evaluate(model, {"x": numbers})["y"] - constant(model, "k")
    np.testing.assert_allclose(stored, ends["p"].scale * product + unheld, atol=1e-11)


@pytest.mark.parametrize("k", [(), (5, 1), (7,), (5, 7)], ids=str)
def test_an_add_behind_a_constant_left_operand_takes_a_number_a_row(k: tuple[int, ...]):
    nodes = "[op] p = MatMul (w, x) [bias] y = Add (p, k)"
    model = Case("", [2, 6, 7], nodes, [2, 5, 7], {"w": (5, 6), "k": k}, ()).model()
    (law_x,), (law_p,) = law_of(model, "x"), law_of(model, "p")
    node, known = node_of(model, "op"), known_of(model)

    unheld = unheld_shift(node, Given(x=gauge((1,), np.ones(6), np.arange(6.0))), known)

    assert isinstance(law_x, Free) and isinstance(law_p, NoShift)
    np.testing.assert_allclose(unheld, constant(model, "w") @ np.arange(6.0)[:, None])  # type: ignore[arg-type]


def test_an_add_that_subtracts_the_spill_leaves_its_output_as_it_was():
    model = Case("", [2, 3, 6], "[op] p = MatMul (x, w) [bias] y = Add (p, k)", [2, 3, 7], W | {"k": (7,)}, ()).model()
    shifted = gauge((2,), np.arange(1.0, 7.0), np.arange(6.0))
    after = reload(model)
    node, add, known = node_of(after, "op"), node_of(after, "bias"), known_of(after)
    unheld = unheld_shift(node, Given(x=shifted), known)
    old = read_operand(add, 1, "bias", known)
    assert unheld is not None

    edits = REWRITES["MatMul"](node, Given(x=shifted), known)
    apply(after, [*edits, SetOperand(add, 1, constant(after, "k") - unheld, old.value, "bias")])  # type: ignore[misc, union-attr]

    assert_stored_alike(model, after, {"x": shifted}, rng_of(0))


def test_nothing_spills_where_nothing_is_shifted_or_where_the_operator_holds_its_shift():
    shifted, scaled = gauge((1,), np.ones(6), 1.0), gauge((1,), np.full(6, 2.0))
    with_add = Case("", [5, 6], "[op] p = MatMul (x, w) y = Add (p, k)", [5, 7], W | {"k": (7,)}, ()).model()
    alone = Case("", [5, 6], LAST, [5, 7], W, ()).model()
    gemm = Case("", [5, 6], "[op] y = Gemm (x, w)", [5, 7], W, ()).model()

    for model, ends in ((with_add, scaled), (with_add, None), (alone, shifted), (gemm, shifted)):
        given = Given() if ends is None else Given(x=ends)
        assert unheld_shift(node_of(model, "op"), given, known_of(model)) is None


NOT_A_BIAS = {
    "another reader": "[op] p = MatMul (x, w) y = Add (p, k) [other] z = Relu (p)",
    "another Add": "[op] p = MatMul (x, w) y = Add (p, k) [other] z = Add (p, k)",
    "a computed operand": "[op] p = MatMul (x, w) r = Relu (p) y = Add (r, k) z = Relu (y)",
    "a constant that enlarges": "[op] p = MatMul (x, w) y = Add (p, big) z = Relu (y)",
    "doubling": "[op] p = MatMul (x, w) y = Add (p, p) z = Relu (y)",
    "a graph output": "[op] z = MatMul (x, w) y = Add (z, k)",
}


@pytest.mark.parametrize("nodes", NOT_A_BIAS.values(), ids=NOT_A_BIAS)
def test_what_is_no_bias_holds_no_shift(nodes: str):
    rng = rng_of(0)
    model = build(
        f"m (double[3,2,6] x) => (double[A,B,C] y, double[D,E,F] z) {{ {nodes} }}",
        w=rng.normal(size=(6, 7)),
        k=rng.normal(size=7),
        big=rng.normal(size=(5, 1, 1, 7)),
    )

    (law,) = law_of(model, "x")

    assert bias_behind(node_of(model, "op"), known_of(model)) is None
    assert isinstance(law, NoShift) and law.reason == "MatMul 'op' holds no bias"


def test_before_opset_7_an_add_is_no_bias_and_the_matmul_becomes_a_gemm():
    model = Case(
        "", [5, 6], "[op] p = MatMul (x, w) y = Add <broadcast = 1> (p, k)", [5, 7], W | {"k": (7,)}, (), opset=6
    )

    (law,) = law_of(model.model(), "x")

    assert isinstance(law, Free) and law.quiet
    assert bias_behind(node_of(model.model(), "op"), known_of(model.model())) is None


def test_where_no_operand_is_constant_only_free_axes_come_along():
    model = build("m (double[2,3,6] x, double[2,6,7] z) => (double[2,3,7] y) { [op] y = MatMul (x, z) }")

    asked = assert_laws_hold(model, "op", "x", (1,), rules=RULES)

    assert asked.free("x") and asked.free("y")
    node, known = node_of(model, "op"), known_of(model)
    assert [native_axes(node, value, known) for value in node.inputs if value is not None] == [None, None]


@dataclass(frozen=True)
class Refused:
    id: str
    x: list[int]
    nodes: str
    end: str
    axes: tuple[int, ...]
    reason: str
    y: list[int]
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    inputs: str = ""


LAYER = "[op] y = Gemm (x, w)"
REFUSED = [
    Refused("dynamic gemm B", [5, 6], "[op] y = Gemm (x, z)", "y", (1,),
            "weight 'z' of Gemm 'op' is not constant: 'z' is a graph input", [5, 7], inputs=", double[6,7] z"),
    Refused("columns of a constant gemm A", [6, 7], "[op] y = Gemm (w, x)", "y", (1,),
            "'y' is stored along axis (1,), weight 'w' of Gemm 'op' acts on axis 0", [5, 7], {"w": (5, 6)}),
    Refused("gemm A, C of wrong length", [6, 7], "[op] y = Gemm (w, x, k)", "y", (0,),
            "bias 'k' of Gemm 'op' has shape [4, 1], expected [5, 1]", [5, 7], {"w": (5, 6), "k": (4, 1)}),
    Refused("dynamic gemm C", [5, 6], "[op] y = Gemm (x, w, z)", "y", (1,),
            "bias C 'z' of Gemm 'op' is not constant: 'z' is a graph input", [5, 7], W, ", double[7] z"),
    Refused("gemm rows", [5, 6], LAYER, "y", (0,),
            "'y' is stored along axis (0,), weight 'w' of Gemm 'op' acts on axis 1", [5, 7], W),
    Refused("gemm rows of A", [5, 6], LAYER, "x", (0,),
            "'x' is stored along axis (0,), weight 'w' of Gemm 'op' acts on axis 1", [5, 7], W),
    Refused("gemm that adds what it multiplies", [5, 6], "[op] y = Gemm (x, w, x)", "x", (1,),
            "Gemm 'op' reads 'x' twice", [5, 6], {"w": (6, 6)}),
    Refused("gemm C of wrong length", [5, 6], "[op] y = Gemm (x, w, k)", "y", (1,),
            "bias 'k' of Gemm 'op' has shape [5], expected [7]", [5, 7], W | {"k": (5,)}),
    Refused("a matmul along both", [2, 3, 6], LAST, "x", (1, 2),
            "'x' is stored along axis (1, 2), weight 'w' of MatMul 'op' acts on axis 2", [2, 3, 7], W),
    Refused("weight with more axes", [4, 4], LAST, "y", (1,),
            "weight 'w' of MatMul 'op' has shape [1, 4, 4], expected a matrix", [1, 4, 4], {"w": (1, 4, 4)}),
    Refused("a vector of weights", [5, 6], LAST, "x", (1,),
            "weight 'w' of MatMul 'op' has shape [6], expected a matrix", [5], {"w": (6,)}),
    Refused("a vector of data", [6], LAST, "x", (0,),
            "MatMul 'op': the rank of 'x' is 1, so the axis of its weight is not proved", [7], W),
    Refused("two constants", [5, 6], "[op] y = MatMul (w, w)", "y", (1,),
            "MatMul 'op' has only constant operands", [4, 4], {"w": (4, 4)}),
]  # fmt: skip


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.id)
def test_what_is_refused_says_why(case: Refused):
    model = build(
        f"m (double{case.x} x{case.inputs}) => (double{case.y} y) {{ {case.nodes} }}",
        **{name: np.ones(shape) for name, shape in case.shapes.items()},
    )

    assert law_of(model, case.end, case.axes) == case.reason


def test_a_matmul_of_unknown_rank_is_refused():
    """Rank 2 has to be proved: with x of rank 3 the weight would act on another axis."""
    model = build("m (double[] x) => (y) { [op] y = MatMul (x, w) }", w=np.ones((4, 4)))
    model.graph.inputs[0].shape = None

    expected = "MatMul 'op': the rank of 'x' is not known, so the axis of its weight is not proved"
    assert law_of(model, "x", (1,)) == expected


@pytest.mark.parametrize(
    ("x", "nodes", "y", "w", "axes"),
    [
        ([5, 6], LAYER, [5, 7], (6, 7), {"x": (1,), "y": (1,), "w": None}),
        ([6, 5], "[op] y = Gemm <transA = 1> (x, w)", [5, 7], (6, 7), {"x": (0,), "y": (1,)}),
        ([2, 3, 6], LAST, [2, 3, 7], (6, 7), {"x": (2,), "y": (2,), "w": None}),
        ([2, 6, 7], ROWS, [2, 5, 7], (5, 6), {"x": (1,), "y": (1,)}),
        ([6, 7], "[op] y = Gemm (w, x)", [5, 7], (5, 6), {"x": (0,), "y": (0,)}),
        ([5, 6], "[op] y = Relu (x)", [5, 6], (6, 7), {"x": None, "y": None}),
    ],
)
def test_native_axes_are_where_the_weight_acts(
    x: list[int], nodes: str, y: list[int], w: tuple[int, ...], axes: dict[str, tuple[int, ...] | None]
):
    model = Case("", x, nodes, y, {"w": w}, ()).model()
    node, known = node_of(model, "op"), known_of(model)
    values = {v.name: v for v in (*node.inputs, *node.outputs) if v is not None}

    assert {name: native_axes(node, values[name], known) for name in axes} == axes
