"""The proof accepts exact folds, hostile ones too, and catches each classic mistake. Folds are made by hand here."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper

from tests.training.graphs import Statistics, batch_norm, model, random
from training.errors import UserError
from training.samples import CannotMakeSamples
from training.verify import VerificationFailed, VerifyReport, _certainty, _Session, make_samples, run, verify

Pair = tuple[ir.Model, ir.Model]
node = helper.make_node


def prove(pair: Pair) -> VerifyReport:
    return verify(*pair, make_samples(pair[0]))


# --- one original and its fold for each place where tools go wrong; `wrong` makes the classic mistake ---------------


def conv_bn(
    statistics: Statistics | None = None, *, wrong: Callable[[Any], Any] | None = None, dtype: Any = np.float32
) -> Pair:
    """Conv with zero padding, then BN. `wrong` changes the folded weights (a dict of w and b) or the statistics."""
    s = statistics or Statistics.plausible(4)
    w, b = random(1, 4, 3, 3, 3), random(2, 4)
    conv = node("Conv", ["x", "w", "b"], ["c"], pads=[1, 1, 1, 1])
    shapes = {"inputs": {"x": [2, 3, 6, 5]}, "outputs": {"y": [2, 4, 6, 5]}, "dtype": dtype}
    original = model([conv, batch_norm("c", "y", s.epsilon)], weights={"w": w, "b": b, **s.weights()}, **shapes)
    folded = {"w": w * s.scale[:, None, None, None], "b": (b - s.mean) * s.scale + s.beta}
    if wrong is not None:
        folded = wrong((w, b, s, folded))
    conv = node("Conv", ["x", "w", "b"], ["y"], pads=[1, 1, 1, 1])
    return original, model([conv], weights=folded, **shapes)


def folded_with(s: Statistics, w: Any, b: Any) -> dict[str, Any]:
    return {"w": w * s.scale[:, None, None, None], "b": (b - s.mean) * s.scale + s.beta}


def bn_before_padded_conv(*, naive: bool) -> Pair:
    """BN, then a Conv with zero padding. Right: a map of shifts, added once. Naive: the shift as a bias."""
    s, w = Statistics.plausible(3), random(1, 4, 3, 3, 3)
    shapes = {"inputs": {"x": [1, 3, 5, 5]}, "outputs": {"y": [1, 4, 5, 5]}}
    original = model(
        [batch_norm("x", "n"), node("Conv", ["n", "w"], ["y"], pads=[1, 1, 1, 1])],
        weights={"w": w, **s.weights()},
        **shapes,
    )
    scaled = {"w": w * s.scale[None, :, None, None]}
    if naive:
        bias = np.einsum("oikl,i->o", w, s.shift)
        nodes = [node("Conv", ["x", "w", "b"], ["y"], pads=[1, 1, 1, 1])]
        return original, model(nodes, weights={**scaled, "b": bias}, **shapes)
    plane = np.zeros((4, 5, 5))
    ones = np.pad(np.ones((5, 5)), 1)
    for k, m in np.ndindex(3, 3):
        plane += np.einsum("oi,i->o", w[:, :, k, m], s.shift)[:, None, None] * ones[k : k + 5, m : m + 5]
    nodes = [node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]), node("Add", ["c", "plane"], ["y"])]
    return original, model(nodes, weights={**scaled, "plane": plane}, **shapes)


def conv_transpose_bn(*, wrong_axis: bool) -> Pair:
    """ConvTranspose with two groups: output channel g * 2 + j is column j of group g's rows. All sizes coincide."""
    s, w = Statistics.plausible(4), random(1, 4, 2, 3, 3)
    shapes = {"inputs": {"x": [4, 4, 4, 4]}, "outputs": {"y": [4, 4, 6, 6]}}
    original = model(
        [node("ConvTranspose", ["x", "w"], ["c"], group=2), batch_norm("c", "y")],
        weights={"w": w, **s.weights()},
        **shapes,
    )
    right = (w.reshape(2, 2, 2, 3, 3) * s.scale.reshape(2, 1, 2, 1, 1)).reshape(w.shape)
    folded = w * s.scale[:, None, None, None] if wrong_axis else right
    nodes = [node("ConvTranspose", ["x", "w", "b"], ["y"], group=2)]
    return original, model(nodes, weights={"w": folded, "b": s.shift}, **shapes)


def gemm_bn(*, ignore_beta: bool) -> Pair:
    """0.5 x W' + 2 C, then BN: C is scaled by beta before the mean goes off."""
    s, w, c = Statistics.plausible(5), random(1, 5, 7), random(2, 5)
    shapes = {"inputs": {"x": [3, 7]}, "outputs": {"y": [3, 5]}}
    original = model(
        [node("Gemm", ["x", "w", "c"], ["g"], alpha=0.5, beta=2.0, transB=1), batch_norm("g", "y")],
        weights={"w": w, "c": c, **s.weights()},
        **shapes,
    )
    bias = ((1.0 if ignore_beta else 2.0) * c - s.mean) * s.scale + s.beta
    nodes = [node("Gemm", ["x", "w", "c"], ["y"], alpha=0.5, transB=1)]
    return original, model(nodes, weights={"w": w * s.scale[:, None], "c": bias}, **shapes)


def shared_weight(*, written_twice: bool) -> Pair:
    """One weight, two convolutions, two BNs. Wrong: both scales end up in the one weight."""
    a, b, w = Statistics.plausible(3, 1), Statistics.plausible(3, 2), random(1, 3, 3, 1, 1)
    shapes = {"inputs": {"x": [2, 3, 4, 4]}, "outputs": {"y": [2, 3, 4, 4], "z": [2, 3, 4, 4]}}
    original = model(
        [
            node("Conv", ["x", "w"], ["c"]),
            batch_norm("c", "y", prefix="a_"),
            node("Conv", ["x", "w"], ["d"]),
            batch_norm("d", "z", prefix="b_"),
        ],
        weights={"w": w, **a.weights("a_"), **b.weights("b_")},
        **shapes,
    )
    each = [w * s.scale[:, None, None, None] for s in (a, b)]
    if written_twice:
        each = [w * (a.scale * b.scale)[:, None, None, None]] * 2
    weights = {"wa": each[0], "wb": each[1], "ba": a.shift, "bb": b.shift}
    nodes = [node("Conv", ["x", "wa", "ba"], ["y"]), node("Conv", ["x", "wb", "bb"], ["z"])]
    return original, model(nodes, weights=weights, **shapes)


RIGHT: dict[str, Callable[[], Pair]] = {
    "conv": conv_bn,
    "conv in float16": lambda: conv_bn(dtype=np.float16),
    "conv in float64": lambda: conv_bn(dtype=np.float64),
    "conv in bfloat16": lambda: conv_bn(dtype=ml_dtypes.bfloat16),
    "bn before a padded conv, as a map": lambda: bn_before_padded_conv(naive=False),
    "conv transpose": lambda: conv_transpose_bn(wrong_axis=False),
    "gemm with alpha and beta": lambda: gemm_bn(ignore_beta=False),
    "shared weight, cloned": lambda: shared_weight(written_twice=False),
    "nothing folded": lambda: (conv_bn()[0], conv_bn()[0]),
}


@pytest.mark.parametrize("name", RIGHT)
def test_an_exact_fold_is_proved(name: str) -> None:
    report = prove(RIGHT[name]())
    assert report.passed
    figures = report.as_dict()
    assert figures["algebra_error"] <= 1e-9
    assert figures["outputs_compared"] >= 1000 or "float64 only" in figures["note"]


WRONG: dict[str, Callable[[], Pair]] = {
    "shift through zero padding as a bias": lambda: bn_before_padded_conv(naive=True),
    "conv transpose: group axis": lambda: conv_transpose_bn(wrong_axis=True),
    "gemm: beta ignored": lambda: gemm_bn(ignore_beta=True),
    "shared weight written twice": lambda: shared_weight(written_twice=True),
    "epsilon 1e-3 for 1e-5": lambda: conv_bn(wrong=lambda p: folded_with(replace(p[2], epsilon=1e-3), *p[:2])),
    "epsilon 1.1e-5 for 1e-5": lambda: conv_bn(wrong=lambda p: folded_with(replace(p[2], epsilon=1.1e-5), *p[:2])),
    "sign of the mean": lambda: conv_bn(wrong=lambda p: folded_with(replace(p[2], mean=-p[2].mean), *p[:2])),
    "sign of gamma": lambda: conv_bn(wrong=lambda p: folded_with(replace(p[2], gamma=abs(p[2].gamma)), *p[:2])),
    "bias not scaled": lambda: conv_bn(wrong=lambda p: {**p[3], "b": p[1] + p[2].shift}),
    "bias dropped": lambda: conv_bn(wrong=lambda p: {**p[3], "b": p[2].shift}),
    "two channels swapped": lambda: conv_bn(wrong=lambda p: {**p[3], "b": p[3]["b"][[1, 0, 2, 3]]}),
    "in float16, epsilon 0.1": lambda: conv_bn(
        dtype=np.float16, wrong=lambda p: folded_with(replace(p[2], epsilon=0.1), *p[:2])
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_classic_mistake_is_caught_by_the_algebra(name: str) -> None:
    with pytest.raises(VerificationFailed) as error:
        prove(WRONG[name]())
    message = str(error.value)
    assert message.startswith("verification failed: output '")
    assert "the folded graph is not the same function" in message
    assert "\n" not in message
    assert isinstance(error.value, UserError)
    assert not error.value.report.passed
    assert error.value.report.as_dict()["algebra_error"] > 1e-9


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("channel", range(4))
def test_one_shift_off_by_a_millionth_is_caught(dtype: Any, channel: int) -> None:
    def nudged(parts: Any) -> dict[str, Any]:
        b = parts[3]["b"].copy()
        b[channel] *= 1 + 1e-6
        return {**parts[3], "b": b}

    with pytest.raises(VerificationFailed, match="not the same function"):
        prove(conv_bn(wrong=nudged, dtype=dtype))


@pytest.mark.parametrize("seed", range(12))
def test_hostile_statistics_do_not_fail_the_algebra_of_an_exact_fold(seed: int) -> None:
    """In float32 a mean of 1e4 deviations may lose accuracy, which is the other judgement's business."""
    try:
        report = prove(conv_bn(Statistics.hostile(4, seed)))
    except VerificationFailed as failed:
        assert "it is the same function, but loses accuracy" in str(failed)
        report = failed.report
    assert report.as_dict()["algebra_error"] <= 1e-9


@pytest.mark.parametrize("seed", range(6))
def test_hostile_statistics_with_a_mistake_fail_the_algebra(seed: int) -> None:
    s = Statistics.hostile(4, seed)
    with pytest.raises(VerificationFailed, match="not the same function"):
        prove(conv_bn(s, wrong=lambda p: folded_with(replace(s, mean=s.mean * (1 + 1e-3)), *p[:2])))


def test_the_same_function_with_less_accuracy_fails_the_second_judgement() -> None:
    """y = x W folded as (x + 1e4) W - 1e4 W: exact algebra, but float32 cancels four digits."""
    w = random(1, 8, 8)
    shapes = {"inputs": {"x": [4, 8]}, "outputs": {"y": [4, 8]}}
    original = model([node("MatMul", ["x", "w"], ["y"])], weights={"w": w}, **shapes)
    detour = [
        node("Add", ["x", "far"], ["a"]),
        node("MatMul", ["a", "w"], ["m"]),
        node("Sub", ["m", "back"], ["y"]),
    ]
    far = np.full(8, 16384.0)
    folded = model(detour, weights={"w": w, "far": far, "back": far @ w}, **shapes)
    with pytest.raises(VerificationFailed) as error:
        verify(original, folded, make_samples(original)[-2:])
    assert "RMS error" in str(error.value)
    assert "it is the same function, but loses accuracy" in str(error.value)
    figures = error.value.report.as_dict()
    assert figures["algebra_error"] <= 1e-9
    assert figures["rounding_ratio"] > 100


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inputs": {"z": [2, 3, 6, 5]}}, "the graph's inputs changed: ('x'"),
        ({"inputs": {"x": ["n", 3, 6, 5]}}, "the graph's inputs changed: ('x'"),
        ({"outputs": {"y": [2, 4, 6, None]}}, "the graph's outputs changed: ('y'"),
        ({"outputs": {"y": [2, 4, 6, 5], "w": [4, 3, 3, 3]}}, "the graph's outputs changed"),
        ({"output_dtype": np.float64}, "the graph's outputs changed: ('y', 'FLOAT'"),
    ],
    ids=["name", "shape", "output shape", "another output", "type"],
)
def test_inputs_and_outputs_may_not_change(change: dict[str, Any], message: str) -> None:
    original, _ = conv_bn()
    shapes = {"inputs": {"x": [2, 3, 6, 5]}, "outputs": {"y": [2, 4, 6, 5]}, **change}
    conv = node("Conv", [next(iter(shapes["inputs"])), "w"], ["y"], pads=[1, 1, 1, 1])
    folded = model([conv], weights={"w": random(1, 4, 3, 3, 3)}, **shapes)
    with pytest.raises(VerificationFailed) as error:
        verify(original, folded, make_samples(original))
    assert message in str(error.value)


def test_a_folded_graph_that_onnx_runtime_refuses_is_a_failure() -> None:
    """Evaluates in float64, but the weight's type does not fit the input's."""
    original, folded = conv_bn()
    exact = random(1, 4, 3, 3, 3) * Statistics.plausible(4).scale[:, None, None, None]
    folded.graph.initializers["w"].const_value = ir.tensor(exact, name="w")
    with pytest.raises(VerificationFailed, match="ONNX Runtime runs the original but not the folded graph: "):
        verify(original, folded, make_samples(original))


# --- outputs that are not real numbers, or not finite -----------------------------------------------------------------


def classifier(shift: float, *, wrong: int = 0) -> Pair:
    """MatMul, BN, ArgMax; in the folded graph the columns of MatMul are rolled by `wrong`."""
    s, w = Statistics.plausible(5), random(3, 6, 5) + shift
    shapes = {"inputs": {"x": [50, 6]}, "outputs": {"y": [50]}, "output_dtype": np.int64}
    arg = node("ArgMax", ["n"], ["y"], axis=1, keepdims=0)
    original = model(
        [node("MatMul", ["x", "w"], ["m"]), batch_norm("m", "n"), arg], weights={"w": w, **s.weights()}, **shapes
    )
    weights = {"w": np.roll(w * s.scale, wrong, 1), "b": s.shift}
    nodes = [node("MatMul", ["x", "w"], ["m"]), node("Add", ["m", "b"], ["n"]), arg]
    return original, model(nodes, weights=weights, **shapes)


def test_an_argmax_output_is_compared_for_equality() -> None:
    report = prove(classifier(0.0))
    assert report.outputs_compared >= 1000
    with pytest.raises(VerificationFailed, match="values differ in float64, and no rounding explains it"):
        prove(classifier(0.0, wrong=1))


def test_an_argmax_may_differ_where_the_graph_itself_is_undecided() -> None:
    """Two equal columns before folding; after it they differ by rounding, and either may win."""
    s = Statistics(np.array([0.7, 0.7]), np.zeros(2), np.full(2, 0.3), np.full(2, 0.9))
    w = np.repeat(random(3, 6, 1), 2, 1)
    shapes = {"inputs": {"x": [50, 6]}, "outputs": {"y": [50]}, "output_dtype": np.int64}
    arg = node("ArgMax", ["n"], ["y"], axis=1, keepdims=0)
    original = model(
        [node("MatMul", ["x", "w"], ["m"]), batch_norm("m", "n"), arg], weights={"w": w, **s.weights()}, **shapes
    )
    weights = {"w": w * s.scale, "b": s.shift + np.array([0.0, 1e-8])}
    folded = model([node("MatMul", ["x", "w"], ["m"]), node("Add", ["m", "b"], ["n"]), arg], weights=weights, **shapes)
    report = prove((original, folded))
    assert report.outputs[0].decided_by_rounding > 0


def test_the_same_infinities_and_nan_are_equal_and_others_are_not() -> None:
    shapes = {"inputs": {"x": [2, 4]}, "outputs": {"y": [2, 4]}}

    def divided(by: list[float]) -> ir.Model:
        return model([node("Div", ["x", "d"], ["y"])], weights={"d": np.array(by)}, **shapes)

    assert prove((divided([0.0, 1.0, 2.0, 0.0]), divided([0.0, 1.0, 2.0, 0.0]))).passed
    with pytest.raises(VerificationFailed):
        prove((divided([0.0, 1.0, 2.0, 0.0]), divided([0.0, 0.0, 2.0, 0.0])))


def test_an_overflow_that_the_original_does_not_have_is_a_failure() -> None:
    """1e4 x stays finite, (1e38 x) / 1e34 does not, and in float64 both are the same."""
    shapes = {"inputs": {"x": [2, 600]}, "outputs": {"y": [2, 600]}}
    original = model([node("Mul", ["x", "k"], ["y"])], weights={"k": np.array(1e4)}, **shapes)
    detour = [node("Mul", ["x", "big"], ["b"]), node("Div", ["b", "back"], ["y"])]
    folded = model(detour, weights={"big": np.array(1e38), "back": np.array(1e34)}, **shapes)
    with pytest.raises(VerificationFailed, match="not finite, where the original is"):
        prove((original, folded))


# --- a proof that saw nothing is none ---------------------------------------------------------------------------------


def branches(threshold: float, *, wrong: bool) -> Pair:
    """If the largest input is above `threshold`: MatMul and BN; otherwise MatMul alone. The fold is in the branch."""
    s, w = Statistics.plausible(5), random(3, 6, 5)
    shapes = {"inputs": {"x": [4, 6]}, "outputs": {"y": [4, 5]}}

    def built(nodes: list[Any], weights: dict[str, Any]) -> ir.Model:
        bodies = {
            name: helper.make_graph(
                body, name, [], [helper.make_tensor_value_info(body[-1].output[0], TensorProto.FLOAT, [4, 5])]
            )
            for name, body in (("then_branch", nodes), ("else_branch", [node("MatMul", ["x", "w"], ["e"])]))
        }
        outer = [
            node("ReduceMax", ["x"], ["most"], keepdims=0),
            node("Greater", ["most", "threshold"], ["above"]),
            node("If", ["above"], ["y"], **bodies),
        ]
        return model(outer, weights={"w": w, "threshold": np.array(threshold), **weights}, **shapes)

    original = built([node("MatMul", ["x", "w"], ["m"]), batch_norm("m", "t")], s.weights())
    shift = -s.shift if wrong else s.shift
    folded = [node("MatMul", ["x", "scaled"], ["m"]), node("Add", ["m", "shift"], ["t"])]
    return original, built(folded, {"scaled": w * s.scale, "shift": shift})


@pytest.mark.parametrize("threshold", [-1.0, 1e9], ids=["taken", "never taken"])
def test_a_fold_inside_a_branch_is_proved_whether_or_not_a_sample_takes_it(threshold: float) -> None:
    assert prove(branches(threshold, wrong=False)).passed
    with pytest.raises(VerificationFailed, match="the folded graph is not the same function"):
        prove(branches(threshold, wrong=True))


def loop(trips: int) -> Pair:
    """y = x, `trips` times scaled by 2 and 3; folded, by 6."""

    def built(nodes: list[Any], weights: dict[str, Any]) -> ir.Model:
        infos = [
            helper.make_tensor_value_info(name, kind, shape)
            for name, kind, shape in (
                ("i", TensorProto.INT64, []),
                ("on", TensorProto.BOOL, []),
                ("v", TensorProto.FLOAT, [4, 5]),
                ("going", TensorProto.BOOL, []),
                ("u", TensorProto.FLOAT, [4, 5]),
            )
        ]
        body = helper.make_graph([node("Identity", ["on"], ["going"]), *nodes], "body", infos[:3], infos[3:])
        weights = {"trips": np.array(trips), "true": np.array(True), **weights}
        shapes = {"inputs": {"x": [4, 5]}, "outputs": {"y": [4, 5]}}
        return model([node("Loop", ["trips", "true", "x"], ["y"], body=body)], weights=weights, **shapes)

    original = built(
        [node("Mul", ["v", "two"], ["d"]), node("Mul", ["d", "three"], ["u"])],
        {"two": np.array(2.0), "three": np.array(3.0)},
    )
    return original, built([node("Mul", ["v", "six"], ["u"], name="times_six")], {"six": np.array(6.0)})


def test_a_changed_node_that_no_sample_reaches_is_a_failure_that_names_it() -> None:
    assert prove(loop(2)).passed
    with pytest.raises(VerificationFailed, match=r"no sample reaches 3 of the changed nodes: .*'?times_six'? \(Mul\)"):
        prove(loop(0))


@pytest.mark.parametrize(
    ("end", "kind", "message"),
    [
        ([node("Log", ["negative"], ["y"])], np.float32, "has no finite number in any sample"),
        ([node("Greater", ["m", "far"], ["hit"]), node("NonZero", ["hit"], ["y"])], np.int64, "is empty in any sample"),
    ],
    ids=["all NaN", "no hit"],
)
def test_an_output_that_never_had_a_value_is_a_failure(end: list[Any], kind: Any, message: str) -> None:
    """Both graphs agree on nothing: so would any wrong fold."""
    nodes = [
        node("MatMul", ["x", "w"], ["m"]),
        node("Abs", ["m"], ["a"]),
        node("Sub", ["minus_one", "a"], ["negative"]),
        *end,
    ]
    weights = {"w": random(0, 6, 5), "minus_one": np.array(-1.0), "far": np.array(1e9)}
    shapes = {"inputs": {"x": [4, 6]}, "outputs": {"y": [None, None]}, "output_dtype": kind}
    graph = model(nodes, weights=weights, **shapes)
    with pytest.raises(VerificationFailed) as error:
        prove((graph, graph))
    assert f"output 'y' {message}, so that nothing was compared" in str(error.value)
    assert str(error.value).endswith("(--samples)")


def test_a_batch_of_no_rows_is_no_proof() -> None:
    graph = model([node("Relu", ["x"], ["y"])], inputs={"x": [0, 3]}, outputs={"y": [0, 3]}, weights={})
    with pytest.raises(VerificationFailed, match="output 'y' is empty in any sample"):
        prove((graph, graph))


def test_numbers_that_are_not_finite_are_not_counted_as_compared() -> None:
    shapes = {"inputs": {"x": [2, 4]}, "outputs": {"y": [2, 4]}}
    graph = model([node("Div", ["x", "d"], ["y"])], weights={"d": np.array([0.0, 1.0, 2.0, 1.0])}, **shapes)
    report = verify(graph, graph, make_samples(graph)[-1:] * 10)
    assert report.outputs_compared % 6 == 0


# --- heavy tails, and where ONNX Runtime means something else ---------------------------------------------------------


TAILS: dict[str, list[Any]] = {
    "Round": [node("Round", ["n"], ["y"])],
    "Floor": [node("Floor", ["n"], ["y"])],
    "Reciprocal": [node("Reciprocal", ["n"], ["y"])],
    "Log": [node("Abs", ["n"], ["a"]), node("Log", ["a"], ["y"])],
    "1/Sqrt": [node("Abs", ["n"], ["a"]), node("Sqrt", ["a"], ["r"]), node("Reciprocal", ["r"], ["y"])],
    "Div by the mean": [node("ReduceMean", ["n"], ["r"], axes=[1], keepdims=1), node("Div", ["n", "r"], ["y"])],
}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("tail", TAILS)
def test_a_pole_or_a_step_after_a_right_fold_raises_no_alarm(tail: str, seed: int) -> None:
    """One or two elements beside it decide the root mean square, for either graph."""
    s, w = Statistics.plausible(16, seed), np.random.default_rng(seed).standard_normal((16, 16, 3, 3)) / 12
    shapes = {"inputs": {"x": ["rows", 16, 14, 14]}, "outputs": {"y": ["rows", 16, 14, 14]}}
    pads = {"pads": [1, 1, 1, 1]}
    end = TAILS[tail]
    original = model(
        [node("Conv", ["x", "w"], ["c"], **pads), batch_norm("c", "n"), *end], weights={"w": w, **s.weights()}, **shapes
    )
    rounded = w.astype(np.float32).astype(float)
    weights = {"w": rounded * s.scale[:, None, None, None], "b": s.shift}
    assert prove((original, model([node("Conv", ["x", "w", "b"], ["n"], **pads), *end], weights=weights, **shapes)))


@pytest.mark.parametrize(
    ("errors", "certain"),
    [
        ([[1.0, 900.0]] * 24, True),
        ([[1.0, 1.0]] * 23 + [[1.0, 1e9]], False),
        ([[1.0, 400.0]] * 22 + [[1e9, 1e9], [1.0, 1.0]], False),
        ([[1.0, 900.0]] * 23 + [[1.0, 0.0]], True),
    ],
    ids=["every row is worse", "one row decides", "one row hides it", "all but one are worse"],
)
def test_the_second_look_rejects_only_what_nearly_every_resample_shows(
    errors: list[list[float]], certain: bool
) -> None:
    sums = np.array([[old, new, 1.0] for old, new in errors])
    assert (_certainty(sums) >= 0.999) is certain


def test_a_steady_loss_of_accuracy_before_a_pole_is_still_rejected() -> None:
    w = random(1, 8, 8)
    shapes = {"inputs": {"x": ["rows", 8]}, "outputs": {"y": ["rows", 8]}}
    far = np.full(8, 16384.0)
    end = node("Reciprocal", ["n"], ["y"])
    original = model([node("MatMul", ["x", "w"], ["n"]), end], weights={"w": w}, **shapes)
    detour = [
        node("Add", ["x", "far"], ["a"]),
        node("MatMul", ["a", "w"], ["m"]),
        node("Sub", ["m", "back"], ["n"]),
        end,
    ]
    folded = model(detour, weights={"w": w, "far": far, "back": far @ w}, **shapes)
    real = {"x": np.abs(random(5, 64, 8)) + 1}
    with pytest.raises(VerificationFailed, match="it is the same function, but loses accuracy"):
        verify(original, folded, [real])


def same_upper(*, wrong: bool) -> Pair:
    """ConvTranspose with SAME_UPPER: 16 by the operator's page, 15 in ONNX Runtime, whose kernel is short of it."""
    s, w = Statistics.plausible(4), random(1, 3, 4, 1, 1)
    shapes = {"inputs": {"x": [1, 3, 8, 8]}, "outputs": {"y": [1, 4, None, None]}}
    how = {"auto_pad": "SAME_UPPER", "strides": [2, 2]}
    original = model(
        [node("ConvTranspose", ["x", "w"], ["c"], **how), batch_norm("c", "y")],
        weights={"w": w, **s.weights()},
        **shapes,
    )
    weights = {"w": w * s.scale[None, :, None, None], "b": -s.shift if wrong else s.shift}
    return original, model([node("ConvTranspose", ["x", "w", "b"], ["y"], **how)], weights=weights, **shapes)


def test_where_onnx_runtime_disagrees_with_the_specification_its_two_runs_are_compared() -> None:
    report = prove(same_upper(wrong=False))
    assert (
        "ONNX Runtime disagrees with the specification at output 'y' (shape [1, 4, 15, 15], not [1, 4, 16"
        in report.note
    )
    assert report.rounding is None
    assert 0 < report.as_dict()["max_rel_error"] < 1e-5
    with pytest.raises(VerificationFailed, match="not the same function"):
        prove(same_upper(wrong=True))


def resized(*, wrong: bool) -> Pair:
    """5 times float32(1.4): 6 by the specification, 7 in ONNX Runtime, where the last window then reads padding."""
    s, w = Statistics.plausible(3), random(1, 2, 3, 2, 2)
    shapes = {"inputs": {"x": [2, 3, 5, 5]}, "outputs": {"y": [2, 2, 1, 1]}}
    how = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    resize, scales = node("Resize", ["x", "", "scales"], ["r"], **how), {"scales": np.array([1, 1, 1.4, 1.4])}
    conv = {"strides": [2, 2], "pads": [0, 0, 1, 1]}
    pool = node("GlobalAveragePool", ["c"], ["y"])
    nodes = [resize, batch_norm("r", "n"), node("Conv", ["n", "w"], ["c"], **conv), pool]
    original = model(nodes, weights={"w": w, **scales, **s.weights()}, **shapes)
    into = {"w": w * s.scale[:, None, None], "b": (w.sum((2, 3)) @ s.shift)}
    if wrong:
        folded = [resize, node("Conv", ["r", "w", "b"], ["c"], **conv), pool]
        return original, model(folded, weights={**into, **scales}, **shapes)
    folded = [resize, node("Add", ["r", "t"], ["n"]), node("Conv", ["n", "w"], ["c"], **conv), pool]
    shift = (s.shift / s.scale)[:, None, None]
    return original, model(folded, weights={"w": into["w"], "t": shift, **scales}, **shapes)


def test_far_from_the_specification_for_another_reason_than_rounding_its_two_runs_are_compared() -> None:
    report = prove(resized(wrong=False))
    assert "ONNX Runtime disagrees with the specification at output 'y': proved in float64 only" in report.note
    with pytest.raises(VerificationFailed, match="ONNX Runtime's runs of the two graphs are"):
        prove(resized(wrong=True))


@pytest.mark.parametrize("opset", [10, 13, 17, 19])
def test_a_quantized_graph_of_any_opset_is_proved(opset: int) -> None:
    s, w = Statistics.plausible(5), random(3, 6, 5)
    shapes = {"inputs": {"x": ["rows", 6]}, "outputs": {"y": ["rows", 5]}, "opset": opset}
    head = [node("QuantizeLinear", ["x", "s", "z"], ["q"]), node("DequantizeLinear", ["q", "s", "z"], ["d"])]
    step = {"s": np.array(0.05), "z": np.array(0, dtype=np.int8)}
    original = model(
        [*head, node("MatMul", ["d", "w"], ["m"]), batch_norm("m", "y")],
        weights={"w": w, **step, **s.weights()},
        **shapes,
    )
    folded = [*head, node("MatMul", ["d", "w"], ["m"]), node("Add", ["m", "b"], ["y"])]
    assert prove((original, model(folded, weights={"w": w * s.scale, "b": s.shift, **step}, **shapes))).passed


# --- the oracle, the count, the report --------------------------------------------------------------------------------


def test_when_onnx_runtime_cannot_run_the_original_the_report_says_float64_only() -> None:
    """It has no double Conv on the CPU."""
    report = prove(conv_bn(dtype=np.float64))
    assert report.oracle == "float64 only"
    assert report.note.startswith("the proof is float64 only: ONNX Runtime cannot run the original (")
    assert report.as_dict()["rounding_ratio"] is None


def test_at_least_a_thousand_outputs_are_compared_even_if_one_sample_is_given() -> None:
    original, folded = gemm_bn(ignore_beta=False)
    report = verify(original, folded, make_samples(original)[-1:])
    assert report.outputs_compared >= 1000
    assert report.rounding is not None
    assert report.rounding.elements == report.outputs_compared
    assert report.samples == 1 + -(-(1000 - 15) // 15)


def test_real_inputs_come_first_and_are_cast_to_the_graphs_types() -> None:
    original, folded = conv_bn()
    real = {"x": np.arange(180).reshape(2, 3, 6, 5)}
    report = verify(original, folded, make_samples(original, [real]))
    assert report.passed
    with pytest.raises(VerificationFailed, match=r"sample 1 \(held-out 0\)"):
        verify(original, WRONG["bias dropped"]()[1], make_samples(original, [real]))


def test_no_samples_and_samples_that_do_not_fit_are_refused() -> None:
    original, folded = conv_bn()
    with pytest.raises(CannotMakeSamples, match="at least one sample"):
        verify(original, folded, [])
    with pytest.raises(CannotMakeSamples, match=r"number 0: input 'x': shape \[1\] does not fit \[2, 3, 6, 5\]"):
        verify(original, folded, [{"x": np.zeros(1)}])


def test_the_report_is_plain_json_and_readable_text() -> None:
    report = prove(conv_bn())
    figures = json.loads(json.dumps(report.as_dict(), allow_nan=False))
    wanted = {"algebra_error", "rounding_ratio", "max_abs_error", "max_rel_error", "samples", "oracle"}
    assert wanted <= set(figures)
    assert 0 < figures["rounding_ratio"] < 1.5
    assert 0 < figures["max_abs_error"] < 1e-1
    assert 0 < figures["max_rel_error"] < 1e-5
    assert figures["samples"] == report.samples
    assert figures["oracle"].startswith("float64, onnxruntime ")
    assert figures["rounding"]["elements"] == figures["outputs_compared"]
    assert report.as_text().startswith(f"verified: {report.samples} samples")


def test_a_failed_report_is_plain_json_too() -> None:
    """The error of an infinite difference has no JSON number."""
    shapes = {"inputs": {"x": [2, 4]}, "outputs": {"y": [2, 4]}}
    pair = [model([node(kind, ["x"], ["y"])], weights={}, **shapes) for kind in ("Neg", "Reciprocal")]
    with pytest.raises(VerificationFailed) as error:
        verify(pair[0], pair[1], make_samples(pair[0]))
    assert json.loads(json.dumps(error.value.report.as_dict(), allow_nan=False))["passed"] is False
    assert error.value.report.as_text().startswith("NOT verified: output 'y'")


def test_the_proof_does_not_change_either_graph() -> None:
    original, folded = conv_bn()
    before = [ir.serde.serialize_model(m).SerializeToString() for m in (original, folded)]
    verify(original, folded, make_samples(original))
    assert [ir.serde.serialize_model(m).SerializeToString() for m in (original, folded)] == before


def test_run_answers_with_the_model_unoptimised() -> None:
    original, _ = conv_bn()
    x = random(5, 2, 3, 6, 5)
    assert run(original, {"x": x})["y"].dtype == np.float32
    with pytest.raises(UserError, match="ONNX Runtime cannot run the model: "):
        run(conv_bn(dtype=np.float64)[0], {"x": x})


def test_one_session_is_gone_before_the_next_one_opens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each holds all weights."""
    alive = []
    enter = _Session.__enter__

    def counted(self: _Session) -> _Session:
        alive.append(sum(type(each) is onnxruntime.InferenceSession for each in gc.get_objects()))
        return enter(self)

    monkeypatch.setattr(_Session, "__enter__", counted)
    assert prove(conv_bn()).passed
    assert alive == [0, 0]


def deep(classes: int) -> Pair:
    """Two Gemm and a BatchNormalization, `classes` outputs; folded by hand."""
    s, w, head = Statistics.plausible(5), random(1, 7, 5), random(2, 5, classes)
    shapes = {"inputs": {"x": [2, 7]}, "outputs": {"y": [2, classes]}}
    last = node("MatMul", ["n", "head"], ["y"])
    weights = {"w": w, "head": head, **s.weights()}
    original = model([node("MatMul", ["x", "w"], ["m"]), batch_norm("m", "n"), last], weights=weights, **shapes)
    nodes = [node("MatMul", ["x", "w"], ["m"]), node("Add", ["m", "b"], ["n"]), last]
    return original, model(nodes, weights={"w": w * s.scale, "b": s.shift, "head": head}, **shapes)


@pytest.mark.parametrize(
    ("classes", "samples", "told"),
    [(200, 4, "judged by 4 of 8 samples, without ones, one-hot borders 1, noise times 10000, noise 1"), (3, 5, "")],
    ids=["many outputs", "few outputs"],
)
def test_where_an_evaluation_takes_too_long_it_says_what_is_left_out(
    classes: int, samples: int, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Samples that show little more than others do, and numbers that the rounding would be judged over."""
    monkeypatch.setattr("training.verify.MOST_WORK", 1)
    report = prove(deep(classes))
    assert report.samples == samples
    assert told in report.note
    assert ("the rounding was judged over" in report.note) == (classes == 3)


def test_real_inputs_are_never_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.verify.MOST_WORK", 1)
    original, folded = deep(200)
    real = [{"x": random(seed, 2, 7)} for seed in range(5)]
    assert verify(original, folded, make_samples(original, real)).samples == 5 + 4


def test_a_model_too_large_for_one_message_reaches_onnx_runtime_through_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.verify._IN_MEMORY_BYTES", 0)
    report = prove(conv_bn())
    assert report.oracle.startswith("float64, onnxruntime")


def test_importing_the_proof_does_not_import_onnx_runtime_and_running_it_turns_telemetry_off() -> None:
    code = (
        "import os, sys; from training import verify; assert 'onnxruntime' not in sys.modules;"
        "verify._runtime(); assert os.environ['ORT_DISABLE_TELEMETRY'] == '1'; assert 'torch' not in sys.modules"
    )
    environment = {key: value for key, value in os.environ.items() if key != "ORT_DISABLE_TELEMETRY"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
