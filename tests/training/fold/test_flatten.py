"""A Reshape moves past a MatMul where that gives a BatchNormalization an operator that can hold it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from tests.training.fold.judge import judge
from tests.training.fold.maps import bn, numbers
from tests.training.fold.models import build, op_types
from training.fold import Profile, Verdict, fold
from training.fold.driver import known_of
from training.fold.flatten import flatten_linears
from training.reference import evaluate

FIVE = numbers("n", [1.0, 2.0, -1.0, 0.5, 3.0], [1.0] * 5, [0.5] * 5)
SIX = numbers("n", [1.0, 2.0, -1.0, 0.5, 3.0, 4.0], [1.0] * 6, [0.5] * 6)
WEIGHT = np.random.default_rng(0).normal(size=(6, 5))


def up(target=(8, 5), shape: str = "2,4,6", reshape: str = "Reshape (h, s)", more: str = "", outputs: str = ""):
    """MatMul on [2, 4, 6], Reshape to [8, 5], BatchNormalization."""
    text = f"""m (double[{shape}] x) => (double[8,5] y{outputs}) {{
        [mm] h = MatMul (x, w) [flat] f = {reshape} {bn("n", "f", "b")} [end] y = Sigmoid (b) {more} }}"""
    return build(text, w=WEIGHT, s=np.array(target), **FIVE)


def down(target=(2, 4, 6), before: str = bn("n", "i", "f"), more: str = "", outputs: str = "", y: str = "2,4,5"):
    """BatchNormalization on [8, 6] behind a sigmoid, Reshape to [2, 4, 6], MatMul."""
    text = f"""m (double[8,6] x) => (double[{y}] y{outputs}) {{
        [in] i = Sigmoid (x) {before} [split] p = Reshape (f, s) [mm] y = MatMul (p, w) {more} }}"""
    used = {"s": np.array(target)} | (SIX if "BatchNorm" in before else {})
    return build(text, w=WEIGHT, **used)


class TestUp:
    """MatMul, Reshape, BatchNormalization: the Reshape goes first."""

    @pytest.mark.parametrize("target", [(8, 5), (-1, 5), (8, -1)])
    def test_one_gemm_on_rows_holds_all(self, target):
        judged = judge(up(target), Profile.GENERIC)

        assert op_types(judged.folded) == ["Reshape", "Gemm", "Sigmoid"] or (
            sorted(op_types(judged.folded)) == ["Constant", "Gemm", "Reshape", "Sigmoid"]
        )
        assert judged.report.count(Verdict.FOLDED) == 1

    def test_of_more_axes(self):
        graph = up((8, 5), "2,2,2,6")

        assert flatten_linears(graph, known_of(graph, 17)) == 1
        assert judge(up((8, 5), "2,2,2,6"), Profile.GENERIC).report.count(Verdict.FOLDED) == 1

    def test_a_computed_target_does_not_matter_because_rows_are_what_is_left(self):
        graph = build(
            f"""m (double[N,4,6] x, int64[2] s) => (double[M,5] y) <double[M,5] f> {{
                [mm] h = MatMul (x, w) [flat] f = Reshape (h, s) {bn("n", "f", "b")} [end] y = Sigmoid (b) }}""",
            w=WEIGHT,
            **FIVE,
        )

        assert flatten_linears(graph, known_of(graph, 17)) == 1
        assert [node.op_type for node in graph.graph if node.op_type != "Constant"] == [
            "Reshape", "MatMul", "BatchNormalization", "Sigmoid",
        ]  # fmt: skip

    def test_a_flatten_with_the_shape_taken_before_it_and_put_back_after(self):
        """As torch's TorchScript exporter writes `bn(x.flatten(0, 1)).reshape_as(x)`, for a batch of any size."""
        graph = build(
            f"""m (double[N,4,6] x) => (double[N,4,5] y) {{
                [mm] h = MatMul (x, w) [flat] f = Flatten <axis = 2> (h) {bn("n", "f", "b")}
                [shape] s = Shape (h) [back] r = Reshape (b, s) [end] y = Sigmoid (r) }}""",
            w=WEIGHT,
            **FIVE,
        )

        folded, report = fold(graph, Profile.GENERIC)

        assert report.count(Verdict.FOLDED) == 1 and "Gemm" in op_types(folded)
        for rows in (1, 3):
            x = {"x": np.random.default_rng(rows).normal(size=(rows, 4, 6))}
            before, after = (evaluate(model, x)["y"] for model in (graph, folded))
            np.testing.assert_allclose(after, before, rtol=1e-12, atol=1e-12)

    @pytest.mark.parametrize("asker", ["Shape <start = 1> (h)", "Size (h)"])
    def test_not_where_something_else_is_asked_of_the_product(self, asker: str):
        graph = up(more=f"z = {asker}", outputs=", int64[K] z" if "Shape" in asker else ", int64 z")

        assert flatten_linears(graph, known_of(graph, 17)) == 0

    def test_the_tensor_that_the_batchnorm_reads_keeps_its_name(self):
        graph = up()
        flatten_linears(graph, known_of(graph, 17))

        names = [node.outputs[0].name for node in graph.graph if node.op_type in ("MatMul", "BatchNormalization")]
        assert names == ["f", "b"]


class TestDown:
    """BatchNormalization, Reshape, MatMul: the Reshape goes last."""

    @pytest.mark.parametrize("target", [(2, 4, 6), (2, 4, -1), (-1, 4, 6), (2, -1, 6), (2, 2, 2, 6)])
    def test_one_gemm_on_rows_holds_all(self, target):
        judged = judge(down(target, y="2,2,2,5" if len(target) == 4 else "2,4,5"), Profile.GENERIC)

        kinds = [op for op in op_types(judged.folded) if op != "Constant"]
        assert kinds == ["Sigmoid", "Gemm", "Reshape"] and judged.report.count(Verdict.FOLDED) == 1

    def test_a_target_that_is_put_together_of_computed_sizes(self):
        graph = build(
            f"""m (double[M,6] x, int64[1] n) => (double[N,4,5] y) <double[N,4,6] p> {{
                [in] i = Sigmoid (x) {bn("n", "i", "f")} [cat] s = Concat <axis = 0> (n, four, six)
                [split] p = Reshape (f, s) [mm] y = MatMul (p, w) }}""",
            w=WEIGHT,
            four=np.array([4]),
            six=np.array([6]),
            **SIX,
        )

        assert flatten_linears(graph, known_of(graph, 17)) == 1
        assert [node.op_type for node in graph.graph if node.op_type != "Constant"][-2:] == ["MatMul", "Reshape"]

    @pytest.mark.parametrize("rows", [0, 3])
    def test_with_allowzero_a_size_that_is_0_is_one_and_no_copy(self, rows: int):
        """As torch writes it for a batch of any size: [steps * rows, 6] to [steps, rows, 6]."""
        graph = build(
            f"""m (double[M,6] x, int64[1] n) => (double[2,N,5] y) <double[2,N,6] p> {{
                [in] i = Sigmoid (x) {bn("n", "i", "f")} [cat] s = Concat <axis = 0> (two, n, six)
                [split] p = Reshape <allowzero = 1> (f, s) [mm] y = MatMul (p, w) }}""",
            w=WEIGHT,
            two=np.array([2]),
            six=np.array([6]),
            **SIX,
        )
        feeds = {"x": np.random.default_rng(0).normal(size=(2 * rows, 6)), "n": np.array([rows])}

        folded, report = fold(graph, Profile.GENERIC)

        assert "Gemm" in op_types(folded) and report.count(Verdict.FOLDED) == 1
        before, after = (evaluate(model, feeds)["y"] for model in (graph, folded))
        assert before.shape == after.shape == (2, rows, 5)
        np.testing.assert_allclose(after, before, rtol=1e-12)


UNMOVED = {
    "the MatMul has another reader": lambda: up(more="[t] z = Tanh (h)", outputs=", double[2,4,5] z"),
    "the Reshape merges the last axis": lambda: build(
        f"""m (double[8,2,6] x) => (double[8,10] y) {{
            [mm] h = MatMul (x, w) [flat] f = Reshape (h, s) {bn("n", "f", "b")} [end] y = Sigmoid (b) }}""",
        w=WEIGHT,
        s=np.array([8, 10]),
        **numbers("n", [1.0] * 10, [1.0] * 10, [0.5] * 10),
    ),
    "no BatchNormalization behind it": lambda: build(
        "m (double[2,4,6] x) => (double[8,5] y) { h = MatMul (x, w) f = Reshape (h, s) y = Sigmoid (f) }",
        w=WEIGHT,
        s=np.array([8, 5]),
    ),
    "no BatchNormalization before it": lambda: down(before="[t] f = Tanh (i)"),
    "the split tensor is an output": lambda: down(outputs=", double[2,4,6] p"),
    "the split tensor has another reader": lambda: down(more="[t] z = Tanh (p)", outputs=", double[2,4,6] z"),
    "the last axis is split": lambda: build(
        f"""m (double[8,6] x) => (double[8,2,5] y) {{
            [in] i = Sigmoid (x) {bn("n", "i", "f")} [split] p = Reshape (f, s) [mm] y = MatMul (p, w) }}""",
        w=WEIGHT[:3],
        s=np.array([8, 2, 3]),
        **SIX,
    ),
    "a size that is computed might be copied from it": lambda: build(
        f"""m (double[M,6] x, int64[1] n) => (double[A,B,5] y) <double[A,B,6] p> {{
            [in] i = Sigmoid (x) {bn("n", "i", "f")} [cat] s = Concat <axis = 0> (two, n, six)
            [split] p = Reshape (f, s) [mm] y = MatMul (p, w) }}""",
        w=WEIGHT,
        two=np.array([2]),
        six=np.array([6]),
        **SIX,
    ),
    "a size is copied from the axis that changes": lambda: build(
        f"""m (double[12,6] x) => (double[2,6,5] y) {{
            [in] i = Sigmoid (x) {bn("n", "i", "f")} [split] p = Reshape (f, s) [mm] y = MatMul (p, w) }}""",
        w=WEIGHT,
        s=np.array([2, 0, 6]),
        **SIX,
    ),
    "the target is computed as a whole": lambda: build(
        f"""m (double[8,6] x, int64[3] s) => (double[2,4,5] y) <double[2,4,6] p> {{
            [in] i = Sigmoid (x) {bn("n", "i", "f")} [split] p = Reshape (f, s) [mm] y = MatMul (p, w) }}""",
        w=WEIGHT,
        **SIX,
    ),
    "the weight is computed": lambda: build(
        f"""m (double[8,6] x, double[6,5] w) => (double[2,4,5] y) {{
            [in] i = Sigmoid (x) {bn("n", "i", "f")} [split] p = Reshape (f, s) [mm] y = MatMul (p, w) }}""",
        s=np.array([2, 4, 6]),
        **SIX,
    ),
    "the weight is no matrix": lambda: build(
        f"""m (double[8,6] x) => (double[2,4,5] y) {{
            [in] i = Sigmoid (x) {bn("n", "i", "f")} [split] p = Reshape (f, s) [mm] y = MatMul (p, w) }}""",
        w=np.ones((2, 6, 5)),
        s=np.array([2, 4, 6]),
        **SIX,
    ),
}


@pytest.mark.parametrize("case", UNMOVED)
def test_nothing_moves_where(case):
    graph: ir.Model = UNMOVED[case]()
    before = op_types(graph)

    assert flatten_linears(graph, known_of(graph, 17)) == 0 and op_types(graph) == before
    if all(value.dtype is ir.DataType.DOUBLE for value in graph.graph.inputs):  # no sizes, which cannot be random
        judge(UNMOVED[case](), Profile.GENERIC)


COMPUTED_TARGET = f"""m (double[M,6] x, int64[1] n) => (double[N,4,5] y) <double[N,4,6] p> {{
    [in] i = Sigmoid (x) {bn("n", "i", "f")} [cat] s = Concat <axis = 0> (n, four, six)
    [split] p = Reshape (f, s) [mm] y = MatMul (p, w) }}"""
ASKED_FOR_ITS_SHAPE = f"""m (double[N,4,6] x) => (double[N,4,5] y) {{
    [mm] h = MatMul (x, w) [flat] f = Flatten <axis = 2> (h) {bn("n", "f", "b")}
    [shape] s = Shape (h) [back] r = Reshape (b, s) [end] y = Sigmoid (r) }}"""
MOVED = {
    "up": up,
    "up, past who asks for the shape": lambda: build(ASKED_FOR_ITS_SHAPE, w=WEIGHT, **FIVE),
    "down": down,
    "down, to sizes that are computed": lambda: build(
        COMPUTED_TARGET, w=WEIGHT, four=np.array([4]), six=np.array([6]), **SIX
    ),
}


def all_names(graph: ir.Model) -> list[str | None]:
    """Of tensors, in all scopes."""
    return [
        value.name
        for scope in graph.graphs()
        for value in (
            *(value for value in scope.inputs if not value.is_initializer()),
            *scope.initializers.values(),
            *(output for node in scope for output in node.outputs),
        )
    ]


def with_tensors_called(graph: ir.Model, names: list[str | None], where: str) -> ir.Model:
    """More tensors, of these names, which the others have nothing to do with."""
    if where == "inputs":
        graph.graph.inputs.extend(
            ir.Value(name=name, type=ir.TensorType(ir.DataType.DOUBLE), shape=ir.Shape([2])) for name in names
        )
        return graph
    x = graph.graph.inputs[0]
    nodes = [ir.Node("", "Relu", [x], outputs=[ir.Value(name=name)]) for name in names]
    if where == "in a subgraph":
        ends = [ir.Node("", "Tanh", [x], outputs=[ir.Value(name=f"end{i}")]) for i in range(2)]
        branches = [
            ir.Graph([], [end.outputs[0]], nodes=[*(nodes if end is ends[0] else []), end], name="branch")
            for end in ends
        ]
        known = ir.Value(name="yes", const_value=ir.tensor(np.array(True), name="yes"))
        graph.graph.register_initializer(known)
        attributes = [ir.AttrGraph(f"{word}_branch", one) for word, one in zip(("then", "else"), branches, strict=True)]
        graph.graph.append(ir.Node("", "If", [known], attributes, outputs=[ir.Value(name="chosen")]))
    else:
        graph.graph.extend(nodes)
    return graph


@pytest.mark.parametrize("where", ["inputs", "later in the graph", "in a subgraph"])
@pytest.mark.parametrize("case", MOVED)
def test_new_tensors_take_no_name_that_is_taken_in_any_scope(case: str, where: str):
    moved = MOVED[case]()
    before = set(all_names(moved))
    assert flatten_linears(moved, known_of(moved, 17)) == 1
    invented = [name for name in all_names(moved) if name not in before]
    graph = with_tensors_called(MOVED[case](), invented, where)

    assert invented and flatten_linears(graph, known_of(graph, 17)) == 1

    names = all_names(graph)
    assert sorted(set(names)) == sorted(names) and set(invented) < set(names)


@pytest.mark.parametrize("case", ["up", "down"])
def test_sizes_that_nobody_reads_any_more_are_gone(case: str):
    graph = MOVED[case]()

    assert flatten_linears(graph, known_of(graph, 17)) == 1 and "s" not in graph.graph.initializers


def test_an_output_of_the_graph_keeps_its_name_when_the_reshape_goes_behind():
    judged = judge(down(), Profile.GENERIC)

    assert judged.folded.graph.outputs[0].name == "y" and judged.folded.graph[-1].op_type == "Reshape"
