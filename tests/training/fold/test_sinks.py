"""Each rule: its formula against onnx.reference in float64 under hostile statistics, and one test a condition."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from tests.training.fold.models import affine_of, build, constant, mild_statistics, op_types, rng_of, statistics
from tests.training.fold.oracle import assert_same_function
from training.fold import Verdict, fold

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Case:
    """`nodes` compute h from x (and perhaps z); a BatchNormalization of h gives y."""

    id: str
    x: list[int]
    nodes: str
    h: list[int]
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)  # of the constants
    into: tuple[str, ...] = ("op",)
    after: tuple[str, ...] = ()  # op types of the folded graph
    opset: int = 17
    verdict: Verdict = Verdict.FOLDED

    def model(self, seed: int = 0, epsilon: float = 1e-5) -> ir.Model:
        rng = rng_of(seed)
        test = ", is_test = 1" if self.opset < 7 else ""
        graph = f"""m (double{self.x} x) => (double{self.h} y) {{
            {self.nodes}
            [bn] y = BatchNormalization <epsilon = {epsilon}{test}> (h, g, b, m, v)
        }}"""
        constants = {name: rng.normal(size=shape) for name, shape in self.shapes.items()}
        return build(graph, opset=self.opset, **constants, **statistics(rng, self.h[1]))


C3 = {"w": (4, 3, 3), "k": (4,)}
GEMM = {"w": (6, 7)}
FOLDED = [
    # B1: any number of spatial axes; dimensions all distinct
    Case("conv1d", [2, 3, 8], "[op] h = Conv (x, w, k)", [2, 4, 6], C3, after=("Conv",)),
    Case("conv2d", [2, 3, 8, 9], "[op] h = Conv (x, w, k)", [2, 4, 7, 7], {"w": (4, 3, 2, 3), "k": (4,)}),
    Case("conv3d", [2, 3, 5, 6, 7], "[op] h = Conv (x, w, k)", [2, 4, 4, 4, 4], {"w": (4, 3, 2, 3, 4), "k": (4,)}),
    Case(
        "conv padded, strided, dilated",
        [2, 3, 8, 9],
        "[op] h = Conv <pads = [2, 1, 2, 1], strides = [2, 1], dilations = [2, 1]> (x, w, k)",
        [2, 4, 4, 9],
        {"w": (4, 3, 3, 3), "k": (4,)},
    ),
    # B2
    Case("depthwise conv", [2, 4, 8], "[op] h = Conv <group = 4> (x, w, k)", [2, 8, 6], {"w": (8, 1, 3), "k": (8,)}),
    Case("grouped conv", [2, 6, 8], "[op] h = Conv <group = 2> (x, w, k)", [2, 4, 6], {"w": (4, 3, 3), "k": (4,)}),
    # B3
    Case("deconv1d", [2, 3, 8], "[op] h = ConvTranspose (x, w, k)", [2, 4, 10], {"w": (3, 4, 3), "k": (4,)}),
    Case(
        "deconv2d with output padding",
        [2, 3, 4, 5],
        "[op] h = ConvTranspose <strides = [2, 3], output_padding = [1, 2], pads = [1, 0, 0, 1]> (x, w, k)",
        [2, 4, 9, 16],
        {"w": (3, 4, 3, 3), "k": (4,)},
    ),
    Case("deconv3d", [1, 2, 3, 4, 5], "[op] h = ConvTranspose (x, w)", [1, 4, 4, 5, 6], {"w": (2, 4, 2, 2, 2)}),
    # B4
    Case(
        "grouped deconv",
        [2, 6, 4, 5],
        "[op] h = ConvTranspose <group = 2> (x, w, k)",
        [2, 8, 5, 6],
        {"w": (6, 4, 2, 2), "k": (8,)},
    ),
    Case(
        "depthwise deconv, two channels each",
        [2, 3, 4],
        "[op] h = ConvTranspose <group = 3> (x, w, k)",
        [2, 6, 6],
        {"w": (3, 2, 3), "k": (6,)},
    ),
    # B5: every shape of C, alpha, beta and both transpositions
    Case("gemm", [5, 6], "[op] h = Gemm (x, w, k)", [5, 7], GEMM | {"k": (7,)}, after=("Gemm",)),
    Case("gemm transB", [5, 6], "[op] h = Gemm <transB = 1> (x, w, k)", [5, 7], {"w": (7, 6), "k": (7,)}),
    Case("gemm transA", [6, 5], "[op] h = Gemm <transA = 1> (x, w, k)", [5, 7], GEMM | {"k": (7,)}),
    Case("gemm alpha beta", [5, 6], "[op] h = Gemm <alpha = 0.3, beta = 2.7> (x, w, k)", [5, 7], GEMM | {"k": (7,)}),
    Case("gemm beta 0", [5, 6], "[op] h = Gemm <beta = 0.0> (x, w, k)", [5, 7], GEMM | {"k": (7,)}),
    Case("gemm without C, beta 3", [5, 6], "[op] h = Gemm <beta = 3.0> (x, w)", [5, 7], GEMM),
    Case("gemm C scalar", [5, 6], "[op] h = Gemm <beta = 2.0> (x, w, k)", [5, 7], GEMM | {"k": ()}),
    Case("gemm C [1]", [5, 6], "[op] h = Gemm (x, w, k)", [5, 7], GEMM | {"k": (1,)}),
    Case("gemm C [1, N]", [5, 6], "[op] h = Gemm (x, w, k)", [5, 7], GEMM | {"k": (1, 7)}),
    Case("gemm C [M, 1]", [5, 6], "[op] h = Gemm <beta = 2.0> (x, w, k)", [5, 7], GEMM | {"k": (5, 1)}),
    Case("gemm C [M, N]", [5, 6], "[op] h = Gemm (x, w, k)", [5, 7], GEMM | {"k": (5, 7)}),
    Case("gemm opset 6", [5, 6], "[op] h = Gemm <broadcast = 1> (x, w, k)", [5, 7], GEMM | {"k": (7,)}, opset=6),
    # B6: without Add; Add on either side; constants of every shape
    Case("matmul", [5, 6], "[op] h = MatMul (x, w)", [5, 7], GEMM, after=("Gemm",)),
    Case("matmul opset 6", [5, 6], "[op] h = MatMul (x, w)", [5, 7], GEMM, after=("Gemm",), opset=6),
    Case(
        "matmul, add right",
        [5, 6],
        "[op] p = MatMul (x, w) [sum] h = Add (p, k)",
        [5, 7],
        GEMM | {"k": (7,)},
        into=("op", "sum"),
        after=("MatMul", "Add"),
    ),
    *(
        Case(
            f"matmul, add left {list(shape)}",
            [5, 6],
            "[op] p = MatMul (x, w) [sum] h = Add (k, p)",
            [5, 7],
            GEMM | {"k": shape},
            into=("op", "sum"),
        )
        for shape in [(), (1,), (7,), (1, 7), (5, 1), (5, 7), (1, 1)]
    ),
    Case(
        "matmul, add opset 6",
        [5, 6],
        "[op] p = MatMul (x, w) [sum] h = Add <broadcast = 1> (p, k)",
        [5, 7],
        GEMM | {"k": (7,)},
        into=("op", "sum"),
        opset=6,
    ),
    Case(
        "conv, legacy add with an axis",
        [2, 3, 8],
        "[op] p = Conv (x, w) [sum] h = Add <broadcast = 1, axis = 1> (p, k)",
        [2, 4, 6],
        {"w": (4, 3, 3), "k": (4,)},
        into=("op", "sum"),
        opset=6,
    ),
    Case(
        "conv, add [C, 1], add scalar",
        [2, 3, 8],
        "[op] p = Conv (x, w, k) [sum] q = Add (p, a) [sum2] h = Add (c, q)",
        [2, 4, 6],
        C3 | {"a": (4, 1), "c": ()},
        into=("op", "sum", "sum2"),
    ),
    Case(
        "conv, add along the last axis",
        [2, 3, 8],
        "[op] p = Conv (x, w, k) [sum] h = Add (p, a)",
        [2, 4, 6],
        C3 | {"a": (6,)},
        into=("op", "sum"),
    ),
    Case(
        "constant left operand, add",
        [2, 6, 5],
        "[op] p = MatMul (w, x) [sum] h = Add (p, k)",
        [2, 7, 5],
        {"w": (7, 6), "k": (7, 1)},
        into=("op", "sum"),
    ),
    Case(
        "constant left operand of rank 3, add",
        [2, 6, 5],
        "[op] p = MatMul (w, x) [sum] h = Add (p, k)",
        [2, 7, 5],
        {"w": (1, 7, 6), "k": (1, 7, 1)},
        into=("op", "sum"),
    ),
    Case(
        "constant left operand alone keeps an Add",
        [2, 6, 5],
        "[op] h = MatMul (w, x)",
        [2, 7, 5],
        {"w": (7, 6)},
        into=("op", "op_shift"),
        after=("MatMul", "Add"),
        verdict=Verdict.REDUCED,
    ),
    Case(
        "axis 1 is a batch axis of both",
        [2, 3, 4, 5],
        "[op] p = MatMul (x, w) [sum] h = Add (p, k)",
        [2, 3, 4, 6],
        {"w": (3, 5, 6), "k": (3, 1, 1)},
        into=("op", "sum"),
    ),
    # B8: no bias, or an empty name for it
    Case("conv without bias", [2, 3, 8], "[op] h = Conv (x, w)", [2, 4, 6], {"w": (4, 3, 3)}, after=("Conv",)),
    Case("gemm with an empty C", [5, 6], "[op] h = Gemm (x, w, )", [5, 7], GEMM),
    Case("conv with an empty bias", [2, 3, 8], "[op] h = Conv (x, w, )", [2, 4, 6], {"w": (4, 3, 3)}),
    # Coincident dimensions: N = C = H = W, in = out
    Case("conv, all 4", [4, 4, 4, 4], "[op] h = Conv (x, w, k)", [4, 4, 4, 4], {"w": (4, 4, 1, 1), "k": (4,)}),
    Case("conv, all 3", [3, 3, 5], "[op] h = Conv (x, w, k)", [3, 3, 3], {"w": (3, 3, 3), "k": (3,)}),
    Case(
        "deconv, all 4",
        [4, 4, 4, 4],
        "[op] h = ConvTranspose <pads = [2, 1, 1, 2]> (x, w, k)",
        [4, 4, 4, 4],
        {"w": (4, 4, 4, 4), "k": (4,)},
    ),
    Case(
        "grouped deconv, in = out",
        [4, 4, 4],
        "[op] h = ConvTranspose <group = 2> (x, w, k)",
        [4, 4, 5],
        {"w": (4, 2, 2), "k": (4,)},
    ),
    Case("gemm, all 4", [4, 4], "[op] h = Gemm <transA = 1> (x, w, k)", [4, 4], {"w": (4, 4), "k": (4, 1)}),
    Case("gemm transB, all 4", [4, 4], "[op] h = Gemm <transB = 1> (x, w, k)", [4, 4], {"w": (4, 4), "k": (4, 4)}),
    Case("matmul, all 4", [4, 4], "[op] h = MatMul (x, w)", [4, 4], {"w": (4, 4)}),
    Case(
        "matmul add [M, 1], all 4",
        [4, 4],
        "[op] p = MatMul (x, w) [sum] h = Add (p, k)",
        [4, 4],
        {"w": (4, 4), "k": (4, 1)},
        into=("op", "sum"),
    ),
    Case(
        "left operand, all 4",
        [4, 4, 4],
        "[op] p = MatMul (w, x) [sum] h = Add (p, k)",
        [4, 4, 4],
        {"w": (4, 4), "k": (4,)},
        into=("op", "sum"),
    ),
    Case("one channel", [2, 1, 3], "[op] h = Conv (x, w, k)", [2, 1, 3], {"w": (1, 1, 1), "k": (1,)}),
]


@pytest.mark.parametrize("case", FOLDED, ids=lambda case: case.id)
@pytest.mark.parametrize("epsilon", [0.0, 1e-12, 1e-5, 1e-3])
def test_what_is_folded_computes_the_same(case: Case, epsilon: float):
    model = case.model(seed=1, epsilon=epsilon)

    folded, report = fold(model)

    assert [(o.verdict, o.into) for o in report.batchnorms] == [(case.verdict, case.into)]
    if case.after:
        assert tuple(op_types(folded)) == case.after
    assert_same_function(model, folded)


@dataclass(frozen=True)
class Refused:
    id: str
    x: list[int]
    nodes: str
    h: list[int]
    reason: str
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    inputs: str = ""
    opset: int = 17


REFUSED = [
    Refused("dynamic conv weight", [2, 3, 8], "[op] h = Conv (x, z)", [2, 4, 6],
            "weight 'z' of Conv 'op' is not constant: 'z' is a graph input", inputs=", double[4,3,3] z"),
    Refused("computed conv weight", [2, 3, 8], "[r] q = Relu (w) [op] h = Conv (x, q)", [2, 4, 6],
            "weight 'q' of Conv 'op' is not constant: 'q' is computed by Relu 'r'", {"w": (4, 3, 3)}),
    Refused("dynamic conv bias", [2, 3, 8], "[op] h = Conv (x, w, z)", [2, 4, 6],
            "bias 'z' of Conv 'op' is not constant: 'z' is a graph input", {"w": (4, 3, 3)}, ", double[4] z"),
    Refused("conv bias of wrong length", [2, 3, 8], "[op] h = Conv (x, w, k)", [2, 4, 6],
            "bias 'k' of Conv 'op' has shape [5], expected [4]", {"w": (4, 3, 3), "k": (5,)}),
    Refused("conv weight that group does not divide", [2, 3, 8], "[op] h = Conv <group = 3> (x, w)", [2, 4, 6],
            "weight 'w' of Conv 'op' has shape [4, 1, 3] with group=3", {"w": (4, 1, 3)}),
    Refused("conv with another number of channels", [2, 3, 8], "[op] h = Conv (x, w)", [2, 4, 6],
            "Conv 'op' has 5 channels, the BatchNormalization 4", {"w": (5, 3, 3)}),
    Refused("dynamic deconv weight", [2, 3, 8], "[op] h = ConvTranspose (x, z)", [2, 4, 10],
            "weight 'z' of ConvTranspose 'op' is not constant: 'z' is a graph input", inputs=", double[3,4,3] z"),
    Refused("dynamic gemm B", [5, 6], "[op] h = Gemm (x, z)", [5, 7],
            "weight 'z' of Gemm 'op' is not constant: 'z' is a graph input", inputs=", double[6,7] z"),
    Refused("constant gemm A does not help", [6, 7], "[op] h = Gemm (w, x)", [5, 7],
            "weight 'x' of Gemm 'op' is not constant: 'x' is a graph input", {"w": (5, 6)}),
    Refused("dynamic gemm C", [5, 6], "[op] h = Gemm (x, w, z)", [5, 7],
            "bias C 'z' of Gemm 'op' is not constant: 'z' is a graph input", GEMM, ", double[7] z"),
    Refused("two dynamic operands", [5, 6], "[op] h = MatMul (x, z)", [5, 7],
            "weight 'z' of MatMul 'op' is not constant: 'z' is a graph input", inputs=", double[6,7] z"),
    # B7: BatchNormalization is along axis 1, a Linear on [N, T, F] acts on axis 2, whatever the sizes
    Refused("linear on rank 3", [2, 3, 6], "[op] h = MatMul (x, w)", [2, 3, 7],
            "the affine is along axis 1 of rank-3 'h', weight 'w' of MatMul 'op' acts on axis 2", GEMM),
    Refused("linear on rank 3, T = F", [4, 4, 4], "[op] h = MatMul (x, w)", [4, 4, 4],
            "the affine is along axis 1 of rank-3 'h', weight 'w' of MatMul 'op' acts on axis 2", {"w": (4, 4)}),
    Refused("linear with bias on rank 3, T = F", [4, 4, 4], "[op] p = MatMul (x, w) [sum] h = Add (p, k)", [4, 4, 4],
            "the affine is along axis 1 of rank-3 'p', weight 'w' of MatMul 'op' acts on axis 2",
            {"w": (4, 4), "k": (4,)}),
    Refused("linear on rank 4", [4, 4, 4, 4], "[op] h = MatMul (x, w)", [4, 4, 4, 4],
            "the affine is along axis 1 of rank-4 'h', weight 'w' of MatMul 'op' acts on axis 3", {"w": (4, 4)}),
    Refused("weight per batch, summed over axis 1", [4, 4, 4], "[op] h = MatMul (x, w)", [4, 4, 4],
            "the affine is along axis 1 of rank-3 'h', weight 'w' of MatMul 'op' acts on axis 2", {"w": (4, 4, 4)}),
    Refused("constant left operand of rank 2", [4, 4], "[op] h = MatMul (w, x)", [4, 4],
            "the affine is along axis 1 of rank-2 'h', weight 'w' of MatMul 'op' acts on axis 0", {"w": (4, 4)}),
    Refused("vector times tensor", [4], "[op] h = MatMul (x, w)", [3, 5],
            "MatMul 'op': the rank of 'x' is 1, so the axis of its weight is not proved", {"w": (3, 4, 5)}),
    Refused("constant left operand alone, before opset 7", [2, 6, 5], "[op] h = MatMul (w, x)", [2, 7, 5],
            "MatMul 'op' would need an Add after it, which opset 6 cannot broadcast", {"w": (7, 6)}, opset=6),
    Refused("add of two tensors", [2, 4], "[op] h = Add (x, z)", [2, 4],
            "producer is Add 'op', which has no constant operand", inputs=", double[2,4] z"),
    Refused("add of two constants", [2, 4], "[op] h = Add (w, k)", [2, 4],
            "producer is Add 'op', which has only constant operands", {"w": (2, 4), "k": (4,)}),
    Refused("add to a graph input", [2, 4], "[op] h = Add (x, k)", [2, 4],
            "'x' is a graph input, no node computes it", {"k": (4,)}),
    Refused("add of a constant with more axes", [5, 6], "[op] p = MatMul (x, w) [sum] h = Add (p, k)", [2, 5, 5],
            "'k' [2, 5, 5] of Add 'sum' does not broadcast to the 5 channels of rank-2 'p'",
            {"w": (6, 5), "k": (2, 5, 5)}),
    Refused("add that widens one channel to many", [5, 6], "[op] p = MatMul (x, w) [sum] h = Add (p, k)", [5, 7],
            "'k' [7] of Add 'sum' does not broadcast to the 1 channels of rank-2 'p'", {"w": (6, 1), "k": (7,)}),
    Refused("legacy add along another axis", [2, 3, 8],
            "[op] p = Conv (x, w) [sum] h = Add <broadcast = 1> (p, k)", [2, 4, 6],
            "'k' [6] of Add 'sum' does not hold the channels", {"w": (4, 3, 3), "k": (6,)}, opset=6),
    Refused("a nonlinear operator", [2, 4], "[op] h = Relu (x)", [2, 4],
            "producer of 'h' is Relu 'op', which holds no weight to fold into"),
    Refused("an operator of another domain", [2, 4], "[op] h = own.Conv (x, w)", [2, 4],
            "producer of 'h' is Conv 'op', which holds no weight to fold into", {"w": (4, 4)}),
    Refused("no operator", [2, 4], "[op] other = Relu (x)", [2, 4], "'x' is a graph input, no node computes it"),
]  # fmt: skip


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.id)
def test_what_is_refused_says_why_and_stays_as_it_is(case: Refused):
    test = "<is_test = 1>" if case.opset < 7 else ""
    h = "x" if case.id == "no operator" else "h"
    graph = f"""m (double{case.x} x{case.inputs}) => (double{case.h} y) {{
        {case.nodes}
        [bn] y = BatchNormalization {test} ({h}, g, b, m, v)
    }}"""
    rng = rng_of(0)
    constants = {name: rng.normal(size=shape) for name, shape in case.shapes.items()}
    model = build(graph, opset=case.opset, **constants, **mild_statistics(rng, case.h[1]))

    folded, report = fold(model)

    assert [(o.verdict, o.into, o.reason) for o in report.batchnorms] == [(Verdict.KEPT, (), case.reason)]
    assert ir.to_proto(folded).SerializeToString() == ir.to_proto(model).SerializeToString()


def test_conv_weights_and_bias_follow_the_formula():
    model = next(case for case in FOLDED if case.id == "conv2d").model()
    slope, shift = affine_of({key: constant(model, key) for key in "gbmv"})

    folded, _ = fold(model)

    np.testing.assert_allclose(constant(folded, "w"), constant(model, "w") * slope[:, None, None, None], rtol=1e-15)
    expected = constant(model, "k") * slope + shift
    scale = np.abs(constant(model, "k") * slope) + np.abs(constant(model, "m") * slope) + np.abs(constant(model, "b"))
    assert (np.abs(constant(folded, "k") - expected) <= 1e-15 * scale * 4).all()


def test_gemm_keeps_alpha_and_folds_beta_into_its_bias():
    model = next(case for case in FOLDED if case.id == "gemm alpha beta").model()

    gemm = fold(model)[0].graph[0]

    assert gemm.attributes.get_float("alpha") == pytest.approx(0.3)
    assert gemm.attributes.get_float("beta") == 1.0


@pytest.mark.parametrize(
    ("before", "after"),
    [((), (7,)), ((1,), (7,)), ((7,), (7,)), ((1, 7), (1, 7)), ((5, 1), (5, 7)), ((5, 7), (5, 7))],
    ids=str,
)
def test_gemm_bias_grows_only_as_far_as_it_must(before: tuple[int, ...], after: tuple[int, ...]):
    case = Case("", [5, 6], "[op] h = Gemm (x, w, k)", [5, 7], GEMM | {"k": before})

    assert constant(fold(case.model())[0], "k").shape == after


def test_a_shift_of_zero_adds_no_bias():
    model = Case("", [5, 6], "[op] h = MatMul (x, w)", [5, 7], GEMM).model()
    for name in "bm":
        model.graph.initializers[name].const_value = ir.tensor(np.zeros(7), name=name)

    folded, _ = fold(model)

    assert op_types(folded) == ["MatMul"]
    assert_same_function(model, folded)


def test_a_mean_alone_is_a_shift_too():
    model = Case("", [2, 3, 8], "[op] h = Conv (x, w)", [2, 4, 6], {"w": (4, 3, 3)}).model()
    model.graph.initializers["b"].const_value = ir.tensor(np.zeros(4), name="b")

    assert_same_function(model, fold(model)[0])


def test_a_matmul_of_unknown_rank_is_refused():
    """Rank 2 has to be proved: with x of rank 3 the weight would act on another axis."""
    model = build(
        "m (double[] x) => (y) { [op] h = MatMul (x, w) [bn] y = BatchNormalization (h, g, b, m, v) }",
        w=rng_of(0).normal(size=(4, 4)),
        **mild_statistics(rng_of(0), 4),
    )
    model.graph.inputs[0].shape = None

    _, report = fold(model)

    expected = "MatMul 'op': the rank of 'x' is not known, so the axis of its weight is not proved"
    assert report.batchnorms[0].reason == expected


def test_a_rank_that_no_one_declared_is_inferred():
    model = build(
        """m (double[5, 6] x) => (double[5, 4] y) {
            r = Relu (x) h = MatMul (r, w) y = BatchNormalization (h, g, b, m, v)
        }""",
        w=rng_of(0).normal(size=(6, 4)),
        **statistics(rng_of(0), 4),
    )
    assert model.graph[0].outputs[0].shape is None

    folded, report = fold(model)

    assert report.summary()["folded"] == 1
    assert_same_function(model, folded)
    assert folded.graph[0].outputs[0].shape is None


def test_a_long_row_of_adds_is_refused_rather_than_walked():
    adds = "\n".join(f"h{i + 1} = Add (h{i}, k)" for i in range(2000))
    model = build(
        f"""m (double[2, 3, 8] x) => (double[2, 4, 6] y) {{
            h0 = Conv (x, w) {adds} y = BatchNormalization (h2000, g, b, m, v)
        }}""",
        w=rng_of(0).normal(size=(4, 3, 3)),
        k=np.ones(()),
        **mild_statistics(rng_of(0), 4),
    )

    assert "too many Add nodes" in fold(model)[1].batchnorms[0].reason
