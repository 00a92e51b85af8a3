"""Calls of local functions become nodes where a BatchNormalization is behind one; nothing else changes."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from tests.training.fold.models import build, mild_statistics, op_types, rng_of, serialized
from training.fold import fold
from training.fold.normalise import normalise, repaired
from training.reference import evaluate
from training.verify import verify

STATS = mild_statistics(rng_of(3), 4, np.float32)
W = rng_of(4).normal(size=(4, 4)).astype(np.float32)
CALLS = "m (float[N,4] x) => (float[N,4] y) { h = own.block (x, w, g, b, m, v) y = own.block (h, w, g, b, m, v) }"
BLOCK = """<domain: "own", opset_import: ["" : 17]>
block (x, w, g, b, m, v) => (y) {
    [linear] h = MatMul (x, w) [bn] n = BatchNormalization <epsilon = 0.01> (h, g, b, m, v) y = Relu (n) }"""


def model(graph: str = CALLS, functions: str = BLOCK, **constants) -> ir.Model:
    return build(graph, functions=functions, **(constants or {"w": W, **STATS}))


def names(graph: ir.Graph) -> list[str]:
    return [output.name for node in graph.all_nodes() for output in node.outputs]


def assert_same_answers(a: ir.Model, b: ir.Model) -> None:
    x = {value.name: rng_of(9).normal(size=(3, 4)) for value in a.graph.inputs if value.name == "x"}
    for one, other in zip(evaluate(a, x).values(), evaluate(b, x).values(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_each_call_becomes_the_nodes_it_stands_for():
    original = model()
    before = serialized(original)

    inlined = normalise(original)

    assert op_types(inlined) == ["MatMul", "BatchNormalization", "Relu"] * 2
    assert not inlined.functions
    assert len(set(names(inlined.graph))) == 6
    assert len({node.name for node in inlined.graph if node.name}) == sum(bool(node.name) for node in inlined.graph)
    assert serialized(original) == before
    onnx.checker.check_model(ir.to_proto(inlined), full_check=True)
    assert_same_answers(original, inlined)


def test_a_function_that_only_calls_is_inlined_with_what_it_calls():
    outer = """<domain: "own", opset_import: ["" : 17, "own" : 1]>
    twice (x, w, g, b, m, v) => (y) { h = own.block (x, w, g, b, m, v) y = own.block (h, w, g, b, m, v) }"""
    original = model("m (float[N,4] x) => (float[N,4] y) { y = own.twice (x, w, g, b, m, v) }", f"{BLOCK}\n{outer}")

    inlined = normalise(original)

    assert op_types(inlined) == ["MatMul", "BatchNormalization", "Relu"] * 2
    assert_same_answers(original, inlined)


def test_attributes_of_the_call_and_defaults_of_the_function_reach_the_nodes():
    block = """<domain: "own", opset_import: ["" : 17]> block <eps> (x, g, b, m, v) => (y)
    { y = BatchNormalization <epsilon : float = @eps> (x, g, b, m, v) }"""
    original = model(
        "m (float[N,4] x) => (float[N,4] y) { y = own.block <eps = 0.25> (x, g, b, m, v) }", block, **STATS
    )

    assert normalise(original).graph[0].attributes["epsilon"].as_float() == 0.25


def test_a_call_inside_an_if_is_inlined_and_names_stay_unique():
    """The function's own names are used in the main graph, in a branch, and by the graph that surrounds the call."""
    original = model(
        """m (float[N,4] x) => (float[N,4] y) {
            h = own.block (x, w, g, b, m, v)
            c = Constant <value = bool {1}> ()
            q = If (c) <
                then_branch = yes () => (float[N,4] s) { n = Neg (h) s = own.block (n, w, g, b, m, v) },
                else_branch = no () => (float[N,4] t) { t = Neg (h) }>
            y = Neg (q) }"""
    )

    inlined = normalise(original)

    assert len(names(inlined.graph)) == len(set(names(inlined.graph)))
    onnx.checker.check_model(ir.to_proto(inlined), full_check=True)
    assert_same_answers(original, inlined)


UNTOUCHED = {
    "no functions": ("m (float[N,4] x) => (float[N,4] y) { y = BatchNormalization (x, g, b, m, v) }", ""),
    "no BatchNormalization in a function": (
        "m (float[N,4] x) => (float[N,4] y) { h = own.f (x) y = BatchNormalization (h, g, b, m, v) }",
        '<domain: "own", opset_import: ["" : 17]> f (x) => (y) { y = Relu (x) }'),
    "a function that nobody calls": (
        "m (float[N,4] x) => (float[N,4] y) { y = own.f (x) }",
        f'<domain: "own", opset_import: ["" : 17]> f (x) => (y) {{ y = Relu (x) }}\n{BLOCK}'),
    "another opset": (
        "m (float[N,4] x) => (float[N,4] y) { y = own.block (x, w, g, b, m, v) }",
        BLOCK.replace(": 17", ": 16")),
    "an output that is an input": (
        "m (float[N,4] x) => (float[N,4] y) { h, i = own.f (x, g, b, m, v) y = Add (h, i) }",
        """<domain: "own", opset_import: ["" : 17]> f (x, g, b, m, v) => (y, x)
        { y = BatchNormalization (x, g, b, m, v) }"""),
    "recursion": (
        "m (float[N,4] x) => (float[N,4] y) { y = own.f (x, g, b, m, v) }",
        """<domain: "own", opset_import: ["" : 17, "own" : 1]> f (x, g, b, m, v) => (y)
        { h = BatchNormalization (x, g, b, m, v) y = own.f (h, g, b, m, v) }"""),
}  # fmt: skip


@pytest.mark.parametrize(("graph", "functions"), UNTOUCHED.values(), ids=UNTOUCHED.keys())
def test_what_need_not_or_cannot_be_inlined_is_the_same_model(graph, functions):
    original = model(graph, functions)
    before = serialized(original)

    assert normalise(original) is original
    assert serialized(original) == before


def test_the_models_own_notes_are_kept():
    original = model()
    original.metadata_props["mine"] = "kept"
    original.meta["where"] = "kept too"

    inlined = normalise(original)

    assert inlined.metadata_props["mine"] == "kept" and inlined.meta["where"] == "kept too"


VIDEO = """m (float[N,3,4,4,4] x) => (float[N,4,2,2,2] y) {{
    {bias} c = {op} <group = {group}> (x, w, k) y = BatchNormalization (c, g, b, m, v) }}"""
EXPORTED = """s = Shape <end = 1> (w) two = Constant <value_ints = [2]> () t = Concat <axis = 0> (s, two)
    z = Constant <value = float {0.0}> () l = CastLike (z, x) k = Expand (l, t)"""
KERNEL = rng_of(5).normal(size=(4, 3, 3, 3, 3)).astype(np.float32)


def video(bias: str = "", op: str = "Conv", group: int = 1, w=KERNEL, **constants) -> ir.Model:
    return build(VIDEO.format(bias=bias, op=op, group=group), w=w, **constants, **STATS)


UNFIT = {
    "as torch's exporter writes it": video(EXPORTED),
    "stored": video(k=np.zeros((4, 2), np.float32)),
    "one zero": video(k=np.zeros(1, np.float32)),
    "of a transposed convolution": video(
        op="ConvTranspose", group=2, w=KERNEL[:, :2], k=np.zeros((2,), np.float32)),
}  # fmt: skip


@pytest.mark.parametrize("original", UNFIT.values(), ids=UNFIT.keys())
def test_a_bias_of_zeros_that_no_run_time_takes_goes_and_all_that_it_was_made_from(original):
    before = serialized(original)

    mended = normalise(original)

    assert [len(node.inputs) for node in mended.graph] == [2, 5]
    assert set(mended.graph.initializers) == {"w", *STATS}
    assert serialized(original) == before
    assert repaired(mended) is mended


def test_what_reads_the_zeros_besides_keeps_them():
    original = build(
        "m (float[N,3,4,4,4] x) => (float[N,4,2,2,2] y, float[4,2] z) { y = Conv (x, w, k) z = Identity (k) }",
        w=KERNEL,
        k=np.zeros((4, 2), np.float32),
    )

    assert set(repaired(original).graph.initializers) == {"w", "k"}


def test_the_batchnorm_behind_it_folds_and_the_proof_against_the_mended_model_holds():
    original = video(EXPORTED)

    folded, report = fold(original)

    assert report.summary()["folded"] == 1 and op_types(folded) == ["Conv"]
    x = {"x": rng_of(6).normal(size=(2, 3, 4, 4, 4)).astype(np.float32)}
    verify(repaired(original), folded, [x])


FIT = {
    "zeros of the right shape": video(k=np.zeros(4, np.float32)),
    "of a transposed convolution in groups": video(
        op="ConvTranspose", group=2, w=KERNEL[:, :2], k=np.zeros(4, np.float32)),
    "another number": video(k=np.eye(4, 2, dtype=np.float32)),
    "data": video("r = ReduceSum (x) k = Relu (r)"),
    "what a caller may override": build(
        "m (float[N,3,4,4,4] x, float[4,2] k) => (float[N,4,2,2,2] y) { y = Conv (x, w, k) }",
        w=KERNEL, k=np.zeros((4, 2), np.float32)),
    "none": build("m (float[N,3,4,4,4] x) => (float[N,4,2,2,2] y) { y = Conv (x, w, ) }", w=KERNEL),
}  # fmt: skip


@pytest.mark.parametrize("original", FIT.values(), ids=FIT.keys())
def test_any_other_bias_stays_and_the_model_is_the_same(original):
    before = serialized(original)

    assert repaired(original) is original and serialized(original) == before


def test_where_nothing_folds_even_such_a_bias_comes_back_as_it_was():
    original = build(
        "m (float[N,3,4,4,4] x) => (float[N,4,2,2,2] y) { y = Conv (x, w, k) }",
        w=KERNEL,
        k=np.zeros((4, 2), np.float32),
    )

    assert serialized(fold(original)[0]) == serialized(original)
