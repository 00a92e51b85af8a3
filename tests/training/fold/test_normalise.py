"""Calls of local functions become nodes where a BatchNormalization is behind one; nothing else changes."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from tests.training.fold.models import build, mild_statistics, op_types, rng_of, serialized
from training.fold.normalise import normalise
from training.reference import evaluate

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
