"""The float64 judgement's parts: spacing, differences, perturbations, and the tolerance they add up to."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from onnx import helper

from tests.training.fold.models import build, mild_statistics, rng_of
from tests.training.graphs import model, random
from training.algebra import Algebra, Finding, decided_by_rounding, difference, perturbed, spacing
from training.fold import Verdict, fold
from training.reference import evaluate
from training.verify import make_samples, verify


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64], ids=lambda d: d.__name__)
def test_spacing_is_numpys_for_its_own_types(dtype: Any) -> None:
    values = np.array([0.0, 1.0, 1.5, -3.0, 1023.0, 6e-5, 1e-7, 1e-30, 3e4]).astype(dtype)
    np.testing.assert_array_equal(
        spacing(values.astype(float), np.dtype(dtype)), np.abs(np.spacing(values)).astype(float)
    )


def test_spacing_of_bfloat16_has_eight_bits() -> None:
    values = np.array([1.0, 1.99, 2.0, -256.0])
    assert spacing(values, np.dtype(ml_dtypes.bfloat16)).tolist() == [2.0**-7, 2.0**-7, 2.0**-6, 2.0]


def test_difference_treats_equal_infinities_and_nan_as_equal_and_unequal_ones_as_infinitely_far() -> None:
    a = np.array([1.0, np.inf, np.inf, np.nan, np.nan, -np.inf])
    b = np.array([3.0, np.inf, -np.inf, np.nan, 1.0, 5.0])
    assert difference(a, b).tolist() == [2.0, 0.0, np.inf, 0.0, np.inf, np.inf]


@pytest.mark.parametrize(
    ("dtype", "unit"),
    [(np.float16, 2.0**-11), (ml_dtypes.bfloat16, 2.0**-8), (np.float32, 2.0**-24), (np.float64, 4 * 2.0**-53)],
)
def test_a_perturbation_has_the_unit_roundoff_of_the_type_as_its_deviation(dtype: Any, unit: float) -> None:
    stored = np.full(20000, 1.0).astype(dtype)
    moved = perturbed(0)(stored) - 1.0
    assert abs(moved.std() / unit - 1) < 0.1
    assert abs(moved.mean()) < 0.1 * unit


def test_a_perturbation_is_repeatable_and_leaves_integers_alone() -> None:
    w = random(0, 50).astype(np.float32)
    assert (perturbed(3)(w) == perturbed(3)(w)).all()
    assert (perturbed(3)(w) != perturbed(4)(w)).any()
    whole = np.arange(5)
    assert perturbed(3)(whole) is whole


def test_a_float16_subnormal_moves_by_its_absolute_spacing() -> None:
    """Below 6e-5 a relative half ulp would be far too little: 1e-7 has only one bit."""
    tiny = np.full(1000, 1e-7).astype(np.float16)
    assert abs((perturbed(0)(tiny) - tiny.astype(float)).std() / (2.0**-25) - 1) < 0.1


def linear(w: Any, dtype: Any = np.float32) -> Any:
    shapes = {"inputs": {"x": [4, 8]}, "outputs": {"y": [4, 3]}}
    return model([helper.make_node("MatMul", ["x", "w"], ["y"])], weights={"w": w}, dtype=dtype, **shapes)


def judged(original: Any, folded: Any, x: Any) -> Finding:
    (finding,) = Algebra(original, folded).judge({"x": x}, evaluate(original, {"x": x}))
    return finding


def test_a_graph_without_new_constants_gets_no_allowance() -> None:
    w = random(0, 8, 3)
    finding = judged(linear(w), linear(w), random(1, 4, 8))
    assert finding.error == 0
    assert finding.condition == 1


def test_the_tolerance_grows_with_the_coarseness_of_the_storage_type() -> None:
    w, x = np.random.default_rng(0).standard_normal((8, 3)), random(1, 4, 8)
    exact = linear(w, np.float64)
    conditions = []
    for dtype in (np.float32, np.float16):
        mixed = linear(w.astype(dtype), np.float64)
        mixed.graph.initializers["w"].const_value = linear(w, dtype).graph.initializers["w"].const_value
        finding = judged(exact, mixed, x)
        assert finding.holds
        conditions.append(finding.condition)
    assert 10 < conditions[0] < 3000
    assert 2.0**12 < conditions[1] / conditions[0] < 2.0**15  # 2^13, at channels of different scales


def test_an_error_of_a_few_dozen_units_in_one_weight_does_not_hold() -> None:
    w, x = np.random.default_rng(0).standard_normal((8, 3)).astype(np.float32).astype(float), random(1, 4, 8)
    x[:, 0] = 4.0
    wrong = w.copy()
    wrong[0, 1] *= 1 + 100 * 2.0**-24
    assert judged(linear(w), linear(w), x).holds
    assert not judged(linear(w), linear(wrong), x).holds


def test_a_channel_is_not_excused_by_the_noise_of_another() -> None:
    """The output's scale is one figure, but each channel has its own response: a thousandfold one does not help."""
    r = np.random.default_rng(0)
    w = r.standard_normal((8, 3)) * np.array([1.0, 1.0, 1e3])
    right = w.astype(np.float32).astype(float)
    wrong = right.copy()
    wrong[:, 0] *= 1 + 3e-5
    original = linear(w, np.float64)
    for candidate, holds in ((right, True), (wrong, False)):
        folded = linear(w, np.float64)
        folded.graph.initializers["w"].const_value = linear(candidate).graph.initializers["w"].const_value
        assert judged(original, folded, r.standard_normal((4, 8))).holds is holds


def test_a_shape_or_kind_of_output_that_differs_never_holds() -> None:
    original = linear(random(0, 8, 3))
    shapes = {"inputs": {"x": [4, 8]}, "outputs": {"y": [4, 3]}}
    weights = {"w": random(0, 8, 2)}
    folded = model([helper.make_node("MatMul", ["x", "w"], ["y"])], weights=weights, **shapes)
    assert not judged(original, folded, random(1, 4, 8)).holds


def test_a_decision_is_the_roundings_only_where_the_margin_is_small() -> None:
    """Greater(x, 1): at 1 + 1e-8 rounding in float32 decides, at 1.001 it does not."""
    graph = model(
        [helper.make_node("Greater", ["x", "one"], ["y"])],
        inputs={"x": [2]},
        outputs={"y": [2]},
        weights={"one": np.ones(1)},
        output_dtype=np.bool_,
    )
    x = np.array([1.0, 1.001], dtype=np.float32)
    wanted, asked = np.array([True, False]), np.array([True, True])
    assert decided_by_rounding(graph, {"x": x}, "y", wanted, asked).tolist() == [True, False]


@pytest.mark.parametrize("axes", [(0, 1, 2), (0, 2, 1)], ids=["channels first", "channels last"])
def test_a_huge_channel_does_not_excuse_its_neighbours(axes: tuple[int, ...]) -> None:
    """With one scale for the whole output, a channel at 1e12 would allow an error of 1e3 in the others."""
    w = random(0, 3, 3) * np.array([1e12, 1.0, 1.0])
    wrong = w * np.array([1.0, 1.0, -1.0])
    shapes = {"inputs": {"x": [2, 5, 3]}, "outputs": {"y": [None, None, None]}}
    nodes = [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Transpose", ["m"], ["y"], perm=axes)]
    original, right, folded = (model(nodes, weights={"w": each}, **shapes) for each in (w, w, wrong))
    assert judged(original, right, random(1, 2, 5, 3)).holds
    assert not judged(original, folded, random(1, 2, 5, 3)).holds


def test_a_channel_that_cancels_to_nothing_is_judged_by_its_size_in_other_samples() -> None:
    """0.1 + 0.2 - 0.3 is 5.6e-17: on a sample of zeros that is an infinite relative error, and no mistake."""
    weights = {name: np.full(1, value) for name, value in {"a": 0.1, "b": 0.2, "c": 0.3, "o": 0.0}.items()}
    shapes = {"inputs": {"x": [3, 2]}, "outputs": {"y": [3, 2]}}
    plain = [helper.make_node("Add", ["x", "o"], ["y"])]
    detour = [
        helper.make_node("Add", ["x", "a"], ["s"]),
        helper.make_node("Add", ["s", "b"], ["t"]),
        helper.make_node("Sub", ["t", "c"], ["y"]),
    ]
    algebra = Algebra(*(model(nodes, weights=weights, dtype=np.float64, **shapes) for nodes in (plain, detour)))

    def holds(x: Any) -> bool:
        return algebra.judge({"x": x}, algebra.expected({"x": x}))[0].holds

    assert not holds(np.zeros((3, 2)))  # nothing says yet how large it usually is
    assert holds(random(1, 3, 2).astype(np.float64))
    assert holds(np.zeros((3, 2)))


SIZED = {
    "a Resize whose scales are a Constant's floats": """
        s = Constant <value_floats = [1.0, 1.0, 1.5, 2.0]> ()  u = Resize (n, , s)""",
    "a Resize whose scales are computed": """
        a = Constant <value_float = 2.0> ()  p = Constant <value_floats = [0.5, 0.5, 0.75, 1.0]> ()
        s = Mul (p, a)  u = Resize (n, , s)""",
    "a Range whose limits are cast": """
        i = Constant <value_int = 3> ()  e = Cast <to = 1> (i)  z = Constant <value_float = 0.0> ()
        d = Constant <value_float = 1.0> ()  r = Range (z, e, d)  u = Add (n, r)""",
}


@pytest.mark.parametrize("case", SIZED)
def test_constants_that_decide_on_sizes_are_not_moved(case: str) -> None:
    """A scale of 2 (1 - 1e-7) is another graph: one row less, and nothing to compare."""
    stats = mild_statistics(rng_of(0), 4, np.float32)
    original = build(
        f"""m (float[2,4,3,3] x) => (float[2,4,h,w] y) {{
            c = Conv (x, k)  n = BatchNormalization (c, g, b, m, v) {SIZED[case]}  y = Conv (u, k) }}""",
        k=random(0, 4, 4, 1, 1).astype(np.float32),
        **stats,
    )
    folded, report = fold(original)
    assert report.count(Verdict.FOLDED) == 1
    verify(original, folded, make_samples(original))
