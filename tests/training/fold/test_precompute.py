"""What is computed from constants alone is stored, unless the file would grow for it."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_ir as ir
import pytest

from tests.training.fold.judge import judge
from tests.training.fold.models import build, constant, mild_statistics, op_types, rng_of, serialized
from tests.training.fold.oracle import assert_same_function
from tests.training.fold.random_graphs import random_model
from training.fold import Profile, fold
from training.fold.precompute import precompute

BIG = np.random.default_rng(0).normal(size=(64, 64))  # 32 KiB


def precomputed(graph: ir.Model) -> ir.Model:
    after = graph.clone()
    precompute(after)
    assert_same_function(graph, after)
    return after


def stored_bytes(model: ir.Model) -> int:
    return sum(value.const_value.nbytes for graph in model.graphs() for value in graph.initializers.values())


def constants_of(model: ir.Model) -> set[str]:
    return set(model.graph.initializers)


class TestStored:
    def test_slices_of_a_weight_that_are_joined_in_another_order(self):
        """As torch's exporter reorders the gates of an LSTM."""
        after = precomputed(
            build(
                """m (double[2,64] x) => (double[2,64] y) {
                    a = Slice (w, zero, half, axis)  b = Slice (w, half, all, axis)
                    v = Concat <axis = 0> (b, a)  y = MatMul (x, v) }""",
                w=BIG,
                zero=np.array([0]),
                half=np.array([32]),
                all=np.array([64]),
                axis=np.array([0]),
            )
        )
        assert op_types(after) == ["MatMul"]
        assert constants_of(after) == {"v"}
        np.testing.assert_array_equal(constant(after, "v"), np.roll(BIG, 32, axis=0))

    def test_a_transposed_weight_that_nobody_reads_as_it_is(self):
        after = precomputed(
            build("m (double[2,64] x) => (double[2,64] y) { t = Transpose (w)  y = MatMul (x, t) }", w=BIG)
        )
        assert op_types(after) == ["MatMul"]
        assert stored_bytes(after) == BIG.nbytes

    def test_small_tensors_even_where_nothing_goes(self):
        after = precomputed(
            build(
                """m (double[2,8] x) => (double[2,8] y, double[1] z) {
                    e = Expand (one, s)  y = Add (x, e)  z = Identity (one) }""",
                one=np.ones(1),
                s=np.array([8]),
            )
        )
        assert op_types(after) == ["Add", "Identity"]

    def test_both_halves_of_a_weight(self):
        after = precomputed(
            build(
                """m (double[2,64] x) => (double[2,32] y) {
                    a, c = Split <axis = 1> (w, halves)  h = MatMul (x, a)  i = MatMul (x, c)  y = Mul (h, i) }""",
                w=BIG,
                halves=np.array([32, 32]),
            )
        )
        assert op_types(after) == ["MatMul", "MatMul", "Mul"]
        assert stored_bytes(after) == BIG.nbytes

    def test_a_function_of_parameters(self):
        after = precomputed(
            build("m (double[2,64] x) => (double[2,64] y) { s = Softmax (w)  y = MatMul (x, s) }", w=BIG, opset=20)
        )
        assert op_types(after) == ["MatMul"]
        assert stored_bytes(after) == BIG.nbytes

    def test_arithmetic_is_rounded_once(self):
        third = np.full(8, 1 / 3, dtype=np.float32)
        graph = build(
            """m (float[2,8] x) => (float[2,8] y) { a = Mul (t, t)  b = Sqrt (a)  c = Sub (b, t)  y = Add (x, c) }""",
            t=third,
        )
        precompute(graph)
        assert op_types(graph) == ["Add"]
        assert not constant(graph, "c").any()

    def test_the_shape_of_what_has_a_known_one(self):
        after = precomputed(
            build(
                """m (double[2,8] x, double[16] z) => (double[2,8] y) <double[2,8] h> {
                    h = Relu (x)  s = Shape (h)  r = Reshape (z, s)  y = Add (r, h) }"""
            )
        )
        assert op_types(after) == ["Relu", "Reshape", "Add"]

    def test_inside_a_branch(self):
        after = precomputed(
            build(
                """m (double[2,8] x) => (double[2,8] y) {
                    m = ReduceMax <keepdims = 0> (x)  c = Greater (m, one)
                    y = If (c) <
                        then_branch = t () => (double[2,8] u) { n = Neg (w)  u = Add (x, n) },
                        else_branch = e () => (double[2,8] v) { v = Identity (x) }> }""",
                w=np.arange(8.0),
                one=np.float64(1.0),
            )
        )
        assert sorted(node.op_type for node in after.graph.all_nodes()) == [
            "Add",
            "Greater",
            "Identity",
            "If",
            "ReduceMax",
        ]

    def test_as_a_constant_node_where_an_initializer_would_be_an_input(self):
        graph = build(
            """m (double[2,4] x) => (double[2,4] y) {
                w = Constant <value = double[4] {1., 2., 3., 4.}> ()  n = Neg (w)  y = Add (x, n) }""",
            ir_version=3,
        )
        assert op_types(precomputed(graph)) == ["Constant", "Add"]


class TestLeft:
    """Every one of these would make the file larger, or is not for us to decide."""

    CASES: ClassVar = {
        "a weight that is also read as it is": (
            "m (double[2,64] x) => (double[2,64] y) { h = MatMul (x, w)  t = Transpose (w)  y = MatMul (h, t) }",
            {"w": BIG},
        ),
        "half precision behind a Cast": (
            "m (float[2,64] x) => (float[2,64] y) { c = Cast <to = 1> (w)  y = MatMul (x, c) }",
            {"w": BIG.astype(np.float16)},
        ),
        "quantised weights": (
            """m (float[2,64] x) => (float[2,64] y) {
                d = DequantizeLinear (w, s)  t = Transpose (d)  y = MatMul (x, t) }""",
            {"w": np.ones((64, 64), np.int8), "s": np.float32(0.5)},
        ),
        "zeros expanded to a picture": (
            "m (double[64,64] x) => (double[64,64] y) { e = Expand (z, s)  y = Max (x, e) }",
            {"z": np.zeros(1), "s": np.array([64, 64])},
        ),
        "a graph output and what it is made from": (
            "m (double[2,64] x) => (double[2,64] y, double[64,64] t) { t = Transpose (w)  y = MatMul (x, t) }",
            {"w": BIG},
        ),
        "a weight that is read transposed and negated, both": (
            """m (double[2,64] x) => (double[2,64] y) {
                t = Transpose (w)  n = Neg (t)  a = MatMul (x, t)  y = MatMul (a, n) }""",
            {"w": BIG},
        ),
    }  # fmt: skip

    @pytest.mark.parametrize("case", CASES)
    def test_it_stays(self, case: str):
        text, constants = self.CASES[case]
        graph = build(text, **constants)
        before = serialized(graph)
        precompute(graph)
        assert serialized(graph) == before

    def test_a_constant_that_a_caller_may_override(self):
        graph = build("m (double[2,8] x, double[8] w) => (double[2,8] y) { n = Neg (w)  y = Add (x, n) }", w=np.ones(8))
        assert graph.graph.inputs[1].is_initializer()
        precompute(graph)
        assert op_types(graph) == ["Neg", "Add"]

    def test_what_depends_on_the_data(self):
        graph = build(
            """m (double[N,8] x) => (double[K] y) {
                s = Shape (x)  n = ReduceProd <keepdims = 1> (s)  y = Reshape (x, n) }"""
        )
        before = serialized(graph)
        precompute(graph)
        assert serialized(graph) == before


TEXT = """m (float[1,4,5,5] x) => (float[1,4,5,5] y) {{
    {bn}  n = Neg (t)  y = Add (b, n) }}"""


def test_a_graph_in_which_nothing_folds_keeps_its_constant_nodes() -> None:
    graph = build(TEXT.format(bn="b = Softmax <axis = 1> (x)"), t=np.ones((1, 4, 1, 1), np.float32))
    folded, report = fold(graph)
    assert not report.changed
    assert serialized(folded) == serialized(graph)


def test_a_graph_in_which_something_folds_loses_them() -> None:
    stats = mild_statistics(rng_of(0), 4, np.float32)
    stats["b0"] = stats.pop("b")
    bn = "c = Conv (x, w)  b = BatchNormalization (c, g, b0, m, v)"
    graph = build(TEXT.format(bn=bn), t=BIG[:4, :1, None].reshape(1, 4, 1, 1).astype(np.float32),
                  w=np.ones((4, 4, 1, 1), np.float32), **stats)  # fmt: skip
    judged = judge(graph, Profile.GENERIC)
    assert "Neg" not in op_types(judged.folded)


@pytest.mark.parametrize("seed", range(40))
def test_no_file_grows_by_more_than_small_constants(seed: int) -> None:
    graph = random_model(seed)
    after = graph.clone()
    before_constants = constants_of(after)
    precompute(after)
    fresh = [after.graph.initializers[name].const_value for name in constants_of(after) - before_constants]
    allowed = sum(min(tensor.nbytes, 4096) for tensor in fresh)
    assert stored_bytes(after) <= stored_bytes(graph) + allowed
