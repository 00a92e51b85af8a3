"""Einsum, and MatMul with many matrices, under gauges: what each label means, and where a shift finds a place.

What MatMul does with one matrix is in test_matrices.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from tests.training.fold.carriers.laws_oracle import assert_laws_hold, known_of, node_of
from tests.training.fold.judge import judge as judge_fold
from tests.training.fold.linear.judging import Given, gauge, judge, kinds, law_of, rewritten
from tests.training.fold.models import build, constant, op_types, rng_of, statistics
from training.fold import Profile
from training.fold.laws import Equal, Free, NoShift
from training.fold.linear import REWRITES, RULES, bias_behind, native_axes, unheld_shift
from training.reference import evaluate

Axes = tuple[int, ...]
Array = np.ndarray[Any, Any]


def product(x: list[int], call: str, y: list[int], w: tuple[int, ...], seed: int = 0, **more: Array) -> ir.Model:
    weight = rng_of(seed).normal(size=w)
    return build(f"m (double{x} x) => (double{y} y) {{ [op] y = {call} }}", w=weight, **more)


def einsum(equation: str, operands: str = "x, w") -> str:
    return f'Einsum <equation = "{equation}"> ({operands})'


LAST, ROWS = "MatMul (x, w)", "MatMul (w, x)"
# x, call, y, w, the axes of both ends that the weight acts on
PRODUCTS = {
    "a matrix on the right": ([2, 3, 6], einsum("btk,kn->btn"), [2, 3, 7], (6, 7), (2,), (2,)),
    "a matrix on the left": ([2, 3, 6], einsum("kn,btk->btn", "w, x"), [2, 3, 7], (6, 7), (2,), (2,)),
    "channels first": ([2, 6, 3, 5], einsum("nchw,dc->ndhw"), [2, 7, 3, 5], (7, 6), (1,), (1,)),
    "channels first, all 4": ([4, 4, 4, 4], einsum("nchw,dc->ndhw"), [4, 4, 4, 4], (4, 4), (1,), (1,)),
    "a result in another order": ([2, 3, 6], einsum("btk, kn -> nbt"), [7, 2, 3], (6, 7), (2,), (0,)),
    "in another order, all 4": ([4, 4, 4], einsum("btk,kn->nbt"), [4, 4, 4], (4, 4), (2,), (0,)),
    "an implicit result": ([2, 6], einsum("bk,kc"), [2, 7], (6, 7), (1,), (1,)),
    "heads made": ([2, 3, 6], einsum("btk,khn->bhtn"), [2, 5, 3, 7], (6, 5, 7), (2,), (1, 3)),
    "heads made, turned": ([2, 3, 6], einsum("btk,khn->bnth"), [2, 7, 3, 5], (6, 5, 7), (2,), (1, 3)),
    "heads summed over": ([2, 5, 3, 6], einsum("bhtk,hkn->btn"), [2, 3, 7], (5, 6, 7), (1, 3), (2,)),
    "heads summed over, turned": ([2, 6, 3, 5], einsum("bkth,hkn->btn"), [2, 3, 7], (5, 6, 7), (1, 3), (2,)),
    "a matrix a head": ([2, 5, 3, 6], einsum("bhtk,hkn->bhtn"), [2, 5, 3, 7], (5, 6, 7), (1, 3), (1, 3)),
    "a matrix a head, turned": ([2, 6, 3, 5], einsum("bkth,hkn->nbht"), [7, 2, 5, 3], (5, 6, 7), (1, 3), (0, 2)),
    "a matrix a head, all 4": ([4, 4, 4, 4], einsum("bkth,hkn->nbht"), [4, 4, 4, 4], (4, 4, 4), (1, 3), (0, 2)),
    "nothing summed over": ([2, 5], einsum("bc,c->bc"), [2, 5], (5,), (1,), (1,)),
    "an outer product": ([2, 5], einsum("bc,n->bcn"), [2, 5, 7], (7,), None, (2,)),
    "all summed over": ([2, 5], einsum("bc,c->b"), [2], (5,), (1,), None),
    "an axis of x summed over by itself": ([2, 3, 6], einsum("btk,kn->bn"), [2, 7], (6, 7), (2,), (1,)),
    "an axis of w summed over by itself": ([2, 6], einsum("bk,kln->bn"), [2, 7], (6, 3, 7), (1,), (1,)),
    "matrices on the right": ([2, 5, 3, 6], LAST, [2, 5, 3, 7], (5, 6, 7), (1, 3), (1, 3)),
    "matrices on the right, all 4": ([4, 4, 4, 4], LAST, [4, 4, 4, 4], (4, 4, 4), (1, 3), (1, 3)),
    "matrices for rank 3": ([5, 3, 6], LAST, [5, 3, 7], (5, 6, 7), (0, 2), (0, 2)),
    "matrices on two axes": ([2, 5, 3, 6], LAST, [2, 5, 3, 7], (2, 5, 6, 7), (0, 1, 3), (0, 1, 3)),
    "an axis of size 1": ([2, 5, 3, 6], LAST, [2, 5, 3, 7], (2, 1, 6, 7), (0, 3), (0, 3)),
    "matrices on the left": ([2, 5, 6, 7], ROWS, [2, 5, 3, 7], (5, 3, 6), (1, 2), (1, 2)),
    "matrices on the left, all 4": ([4, 4, 4, 4], ROWS, [4, 4, 4, 4], (4, 4, 4), (1, 2), (1, 2)),
    "what is made between what is summed over": ([2, 5, 6], einsum("bhk,hnk->bn"), [2, 7], (5, 7, 6), (1, 2), (1,)),
    "likewise, all 4": ([4, 4, 4], einsum("bkh,hnk->bn"), [4, 4], (4, 4, 4), (1, 2), (1,)),
    "one x for all matrices": ([2, 1, 3, 6], LAST, [2, 5, 3, 7], (5, 6, 7), (3,), (1, 3)),
}


@pytest.mark.parametrize(("x", "call", "y", "w", "of_x", "of_y"), PRODUCTS.values(), ids=PRODUCTS)
@pytest.mark.parametrize("ends", ["x", "y", "xy"])
def test_the_weight_takes_scales_along_its_own_axes(
    x: list[int], call: str, y: list[int], w: Axes, of_x: Axes | None, of_y: Axes | None, ends: str
):
    for seed in range(2):
        model = product(x, call, y, w, seed)
        judged = judge(model, rng_of(seed + 5), ends)

        node, known = node_of(model, "op"), known_of(model)
        value = next(v for v in node.inputs if v is not None and v.name == "x")
        assert (native_axes(node, value, known), native_axes(node, node.outputs[0], known)) == (of_x, of_y)
        for axes, answer in ((of_x, judged.x), (of_y, judged.y)):
            assert answer == "no native axes" if axes is None else kinds(answer) == [NoShift]
        assert op_types(judged.model) == [node.op_type]


@pytest.mark.parametrize(("of_x", "of_y"), [((1,), (1,)), ((3,), (3,)), ((1,), (3,)), ((3,), (1, 3)), ((1, 3), (1,))])
@pytest.mark.parametrize("call", [LAST, einsum("bhtk,hkn->bhtn"), einsum("hkn,bhtk->bhtn", "w, x")])
@pytest.mark.parametrize(("x", "y", "w"), [([2, 5, 3, 6], [2, 5, 3, 7], (5, 6, 7)), ([4] * 4, [4] * 4, (4, 4, 4))])
def test_a_gauge_may_lie_along_some_of_these_axes(
    of_x: Axes, of_y: Axes, call: str, x: list[int], y: list[int], w: Axes
):
    judged = judge(product(x, call, y, w), rng_of(1), x=of_x, y=of_y)

    assert kinds(judged.x) == kinds(judged.y) == [NoShift]


CARRIED = {
    "tokens": ([2, 3, 6], einsum("btk,kn->btn"), [2, 3, 7], (6, 7), (1,), (1,)),
    "tokens, all 4": ([4, 4, 4], einsum("btk,kn->btn"), [4, 4, 4], (4, 4), (1,), (1,)),
    "in another order": ([2, 3, 6], einsum("btk,kn->tnb"), [3, 7, 2], (6, 7), (0, 1), (0, 2)),
    "in another order, all 4": ([4, 4, 4], einsum("btk,kn->tnb"), [4, 4, 4], (4, 4), (0, 1), (0, 2)),
    "the channels of a graph": ([2, 3, 4, 5, 6], einsum("nkctv,kvw->nctw"), [2, 4, 5, 7], (3, 6, 7), (2,), (1,)),
    "with a matrix a head": ([2, 5, 3, 6], LAST, [2, 5, 3, 7], (5, 6, 7), (2,), (2,)),
    "along heads too": ([2, 5, 3, 6], LAST, [2, 5, 3, 7], (5, 6, 7), (1, 2), (1, 2)),
}


@pytest.mark.parametrize(("x", "call", "y", "w", "of_x", "of_y"), CARRIED.values(), ids=CARRIED)
def test_along_axes_that_the_weight_has_not_both_ends_share_their_scale(
    x: list[int], call: str, y: list[int], w: Axes, of_x: Axes, of_y: Axes
):
    model = product(x, call, y, w)
    for end, axes in (("x", of_x), ("y", of_y)):
        asked = assert_laws_hold(model, "op", end, axes, rules=RULES)

        assert asked.tied(Equal) and asked.tied(NoShift) and asked.free("x") and asked.free("y") and asked.shifts == 0
        assert asked.axes == {"x": of_x, "y": of_y}
    node = node_of(model, "op")
    given = Given(**{name: gauge(axes, np.ones(1)) for name, axes in (("x", of_x), ("y", of_y))})
    assert REWRITES[node.op_type](node, given, known_of(model)) == ()


SPILLS = {
    "a matrix": ([2, 3, 6], einsum("btk,kn->btn"), [2, 3, 7], (6, 7), (7,), (2,), (7,)),
    "channels first": ([2, 6, 3], einsum("nch,dc->ndh"), [2, 7, 3], (7, 6), (7, 1), (1,), (7, 1)),
    "a matrix a head": ([2, 5, 3, 6], einsum("bhtk,hkn->bhtn"), [2, 5, 3, 7], (5, 6, 7), (7,), (1, 3), (5, 1, 7)),
    "turned": ([2, 6, 3, 5], einsum("bkth,hkn->nbht"), [7, 2, 5, 3], (5, 6, 7), (7, 1, 1, 1), (1, 3), (7, 1, 5, 1)),
    "turned, along some": ([2, 6, 3, 5], einsum("bkth,hkn->nbht"), [7, 2, 5, 3], (5, 6, 7), (), (1,), (7, 1, 5, 1)),
    "summed over by itself": ([2, 3, 6], einsum("btk,kn->bn"), [2, 7], (6, 7), (), (2,), (7,)),
    "all 4": ([4, 4, 4, 4], einsum("bkth,hkn->nbht"), [4, 4, 4, 4], (4, 4, 4), (4,), (1, 3), (4, 1, 4, 1)),
    "matrices": ([2, 5, 3, 6], LAST, [2, 5, 3, 7], (5, 6, 7), (5, 1, 7), (1, 3), (5, 1, 7)),
    "matrices on the left": ([2, 5, 6, 7], ROWS, [2, 5, 3, 7], (5, 3, 6), (7,), (1, 2), (5, 3, 1)),
    "matrices on the left, all 4": ([4] * 4, ROWS, [4] * 4, (4, 4, 4), (4,), (1, 2), (4, 4, 1)),
}


@pytest.mark.parametrize(("x", "call", "y", "w", "k", "axes", "shape"), SPILLS.values(), ids=SPILLS)
def test_an_add_of_a_constant_behind_takes_what_a_shift_of_the_input_spills(
    x: list[int], call: str, y: list[int], w: Axes, k: Axes, axes: Axes, shape: Axes
):
    rng = rng_of(3)
    nodes = f"[op] p = {call} [bias] y = Add (p, k)"
    model = build(f"m (double{x} x) => (double{y} y) {{ {nodes} }}", w=rng.normal(size=w), k=rng.normal(size=k))
    node, known = node_of(model, "op"), known_of(model)
    (law_x,) = law_of(model, "x", axes)
    sizes = [x[axis] for axis in axes]
    drawn = rng.uniform(1, 2, sizes) * rng.choice([-1, 1], sizes), rng.normal(size=sizes)
    parts = [np.array(part).reshape([n if i in axes else 1 for i, n in enumerate(x)]) for part in drawn]
    given = Given(x=_gauge(axes, tuple(sizes), *drawn))

    unheld = unheld_shift(node, given, known)
    after = rewritten(model, given)

    assert isinstance(law_x, Free) and bias_behind(node, known) is node_of(model, "bias")
    assert unheld is not None and unheld.shape == shape
    numbers = rng.normal(size=x)
    stored = evaluate(after, {"x": numbers * parts[0] + parts[1]})["y"]
    np.testing.assert_allclose(stored - unheld, evaluate(model, {"x": numbers})["y"], atol=1e-10)


def _gauge(axes: Axes, sizes: Axes, scale: Array, shift: Array) -> Any:
    whole = gauge(axes, scale.reshape(-1), shift.reshape(-1))
    return type(whole)(axes, sizes, whole.scale, whole.shift)


REFUSED = {
    "an ellipsis": ([2, 6], einsum("...k,kn->...n"), [2, 7], (6, 7), "x", (1,), "has an ellipsis"),
    "a label twice": ([6, 6], einsum("kk,kn->n"), [7], (6, 7), "y", (0,), "a label twice in a term"),
    "a label twice in the result": ([2, 6], einsum("bk,kn->bb"), [2, 2], (6, 7), "x", (1,), "a label twice"),
    "an open order": ([2, 6], einsum("Bk,kn"), [2, 7], (6, 7), "x", (1,), "leaves the order of its result open"),
    "too few labels": ([2, 3, 6], einsum("bk,kn->bn"), [2, 7], (6, 7), "x", (2,), "is not proved to fit 'x' [2, 3, 6]"),
    "a weight of other rank": ([2, 6], einsum("bk,k->b"), [2], (6, 7), "x", (1,), "is not proved to fit 'x'"),
    "a label of neither": ([2, 6], einsum("bk,kn->bz"), [2, 7], (6, 7), "x", (1,), "is not proved to fit 'x'"),
    "x spread over the weight": ([2, 1], einsum("bk,kn->bn"), [2, 7], (6, 7), "y", (1,),
                                 "'x' [2, 1] of Einsum 'op' is not proved to have the sizes of weight 'w' [6, 7]"),
    "the weight spread over x": ([2, 6], einsum("bk,kn->bn"), [2, 7], (1, 7), "y", (1,), "is not proved to have"),
    "along what is summed over by itself": ([2, 3, 6], einsum("btk,kn->bn"), [2, 7], (6, 7), "x", (1,),
                                            "'x' is stored along axis (1,), weight 'w' of Einsum 'op' acts on axis 2"),
    "along both kinds": ([2, 5, 3, 6], LAST, [2, 5, 3, 7], (5, 6, 7), "x", (2, 3),
                         "'x' is stored along axis (2, 3), weight 'w' of MatMul 'op' acts on axis (1, 3)"),
    "too few matrices": ([2, 5, 3, 6], LAST, [2, 5, 3, 7], (4, 6, 7), "x", (3,),
                         "'x' [2, 5, 3, 6] of MatMul 'op' is not proved to have the sizes of weight 'w' [4, 6, 7]"),
    "two constants": ([2, 6], einsum("bk,kn->bn", "w, w"), [2, 7], (6, 6), "y", (1,), "has only constant operands"),
    "three operands": ([2, 6], einsum("bk,kn,kn->bn", "x, w, w"), [2, 7], (6, 7), "x", (1,), "reads a tensor twice"),
}  # fmt: skip


@pytest.mark.parametrize(("x", "call", "y", "w", "end", "axes", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused_says_why(x: list[int], call: str, y: list[int], w: Axes, end: str, axes: Axes, reason: str):
    assert reason in str(law_of(product(x, call, y, w), end, axes))


@pytest.mark.parametrize(("call", "w"), [(LAST, (4, 4, 4)), (einsum("bhtk,hkn->bhtn"), (4, 4, 4))])
def test_an_unknown_size_where_the_weight_has_many_matrices_is_refused(call: str, w: Axes):
    """It could turn out to be 1, and x be spread over the matrices."""
    model = build(f"m (double[4,H,4,4] x) => (double[4,4,4,4] y) {{ [op] y = {call} }}", w=np.ones(w))

    assert "is not proved to have the sizes of weight 'w' [4, 4, 4]" in str(law_of(model, "x", (3,)))


def test_where_no_operand_is_constant_only_labels_that_are_summed_nowhere_come_along():
    model = build(f"""m (double[2,3,6] x, double[2,6,7] z) => (double[2,3,7] y)
        {{ [op] y = {einsum("bmk,bkn->bmn", "x, z")} }}""")

    asked = assert_laws_hold(model, "op", "x", (1,), rules=RULES)

    assert asked.free("x") and asked.free("y") and asked.shifts == 0
    assert "not ['k']" in str(law_of(model, "x", (2,)))


BEHIND, BN = "[bn] y = BatchNormalization (q, g, b, m, v)", "[bn] h = BatchNormalization (p, g, b, m, v)"
FOLDS = {
    "behind an Einsum": (f'p = {einsum("nchw,cd->ndhw")} q = Add (p, k) {BEHIND}',
                         (4, 4), 1, 0, "Einsum Add"),
    "behind an Einsum alone": (f'p = {einsum("nchw,cd->ndhw")} [bn] y = BatchNormalization (p, g, b, m, v)',
                               (4, 4), 0, 1, "Einsum Add"),
    "in front of an Einsum": (f'p = Tanh (x) {BN} q = {einsum("nchw,cd->ndhw", "h, w")} y = Add (q, k)',
                              (4, 4), 1, 0, "Tanh Einsum Add"),
    "in front of an Einsum alone": (f'p = Tanh (x) {BN} y = {einsum("nchw,cd->ndhw", "h, w")}',
                                    (4, 4), 0, 1, "Tanh Add Einsum"),
    "of heads, behind a MatMul of many": (f"p = MatMul (x, w) q = Add (p, k) {BEHIND}",
                                          (4, 5, 6), 1, 0, "MatMul Add"),
    "of heads, in front of a MatMul of many": (f"p = Tanh (x) {BN} q = MatMul (h, w) y = Add (q, k)",
                                               (4, 5, 6), 1, 0, "Tanh MatMul Add"),
}  # fmt: skip


@pytest.mark.parametrize(("nodes", "w", "folded", "reduced", "ops"), FOLDS.values(), ids=FOLDS)
@pytest.mark.parametrize("coincident", [False, True])
def test_a_batchnorm_next_to_a_product_goes_into_it(
    nodes: str, w: Axes, folded: int, reduced: int, ops: str, coincident: bool
):
    rng = rng_of(7)
    x, w = ([4] * 4, (4,) * len(w)) if coincident else ([2, 4, 3, 5], w)
    stats = statistics(rng, 4)
    stats["g"][stats["g"] == 0] = 1.0
    model = build(f"m (double{x} x) => (double y) {{ {nodes} }}", w=rng.normal(size=w), k=rng.normal(size=(4, 1, 1)),
                  **stats)  # fmt: skip
    model.graph.outputs[0].shape = None

    judged = judge_fold(model, Profile.GENERIC)

    found = judged.report.summary()
    assert (found["folded"], found["reduced"]) == (folded, reduced), judged.report.as_text(verbose=True)
    assert op_types(judged.folded) == ops.split()


def test_folded_numbers_are_the_ones_on_paper():
    """`w[c, d] s[d]`, `s (k - m) + b`."""
    rng = rng_of(9)
    stats, w = statistics(rng, 4), rng.normal(size=(4, 4))
    nodes = f"p = {einsum('nch,cd->ndh')} q = Add (p, k) [bn] y = BatchNormalization <epsilon = 0.0> (q, g, b, m, v)"
    k = rng.normal(size=(4, 1))
    model = build(f"m (double[4,4,4] x) => (double[4,4,4] y) {{ {nodes} }}", w=w, k=k, **stats)
    slope = stats["g"] / np.sqrt(stats["v"])

    folded = judge_fold(model, Profile.GENERIC).folded

    np.testing.assert_allclose(constant(folded, "w"), w * slope, rtol=1e-12)
    np.testing.assert_allclose(constant(folded, "k")[:, 0], slope * (k[:, 0] - stats["m"]) + stats["b"], rtol=1e-9)
