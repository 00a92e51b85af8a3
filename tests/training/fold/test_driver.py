"""Whole models: chains, shared weights, several consumers, subgraphs, local functions, the sweep."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from tests.training.fold.models import affine_of, build, constant, mild_statistics, op_types, rng_of, statistics
from tests.training.fold.oracle import assert_same_function, evaluate
from training.fold import Verdict, fold
from training.fold.weights import round_once


def named(prefix: str, stats: dict) -> dict:
    return {f"{prefix}{key}": part for key, part in stats.items()}


def verdicts(report) -> list[tuple[str, str]]:
    return [(o.verdict.value, o.reason) for o in report.batchnorms]


class TestChains:
    GRAPH = """m (double[2,3,8] x) => (double[2,4,6] y) {
        [conv] h = Conv (x, w)
        [bn1] p = BatchNormalization (h, g1, b1, m1, v1)
        [bn2] q = BatchNormalization <epsilon = 0.001> (p, g2, b2, m2, v2)
        [bn3] y = BatchNormalization (q, g3, b3, m3, v3)
    }"""

    def model(self, dtype=np.float64):
        rng = rng_of(3)
        parts = {"w": rng.normal(size=(4, 3, 3)).astype(dtype)}
        for i in "123":
            parts |= {f"{key}{i}": part for key, part in mild_statistics(rng, 4, dtype).items()}
        kind = {np.float32: "float", np.float64: "double"}[dtype]
        return build(self.GRAPH.replace("double", kind), **parts)

    def test_a_chain_of_batchnorms_folds_into_one_conv(self):
        model = self.model()

        folded, report = fold(model)

        assert op_types(folded) == ["Conv"]
        assert [o.into for o in report.batchnorms] == [("conv",)] * 3
        assert_same_function(model, folded)

    def test_a_chain_rounds_once(self):
        """Each float32 weight is the float32 nearest to the product in exact arithmetic, not a product of roundings."""
        model = self.model(np.float32)
        slope = np.ones(4)
        for i, epsilon in (("1", 1e-5), ("2", 1e-3), ("3", 1e-5)):
            slope *= affine_of({key: constant(model, f"{key}{i}") for key in "gbmv"}, epsilon)[0]
        exact = constant(model, "w").astype(np.float64) * slope[:, None, None]

        assert np.array_equal(constant(fold(model)[0], "w"), exact.astype(np.float32))

    def test_a_matmul_with_maps_before_and_after_its_bias(self):
        """MatMul - BatchNormalization - Add - BatchNormalization: the second map's scale goes on top of the first."""
        rng = rng_of(4)
        model = build(
            """m (double[5,6] x) => (double[5,7] y) {
                h = MatMul (x, w) p = BatchNormalization (h, g1, b1, m1, v1)
                q = Add (k, p) y = BatchNormalization (q, g2, b2, m2, v2)
            }""",
            w=rng.normal(size=(6, 7)),
            k=rng.normal(size=(5, 1)),
            **{f"{key}1": part for key, part in statistics(rng, 7).items()},
            **{f"{key}2": part for key, part in statistics(rng, 7).items()},
        )

        folded, _ = fold(model)

        assert op_types(folded) == ["MatMul", "Add"]
        assert_same_function(model, folded)

    def test_two_behind_a_matmul_with_a_constant_left_operand_share_one_add(self):
        rng = rng_of(5)
        model = build(
            """m (double[2,6,5] x) => (double[2,7,5] y) {
                [mm] h = MatMul (w, x) [bn1] p = BatchNormalization (h, g1, b1, m1, v1)
                [bn2] y = BatchNormalization (p, g2, b2, m2, v2)
            }""",
            w=rng.normal(size=(7, 6)),
            **{f"{key}1": part for key, part in statistics(rng, 7).items()},
            **{f"{key}2": part for key, part in statistics(rng, 7).items()},
        )

        folded, report = fold(model, "generic")

        assert op_types(folded) == ["MatMul", "Add"]
        assert [o.verdict for o in report.batchnorms] == [Verdict.FOLDED, Verdict.REDUCED]
        assert "MatMul 'mm'" in report.batchnorms[1].reason and "'y' is a graph output" in report.batchnorms[1].reason
        assert_same_function(model, folded)

    def test_both_shifts_go_into_the_one_add_that_was_there(self):
        """bn1's comes from before it."""
        rng = rng_of(5)
        model = build(
            """m (double[2,6,5] x) => (double[2,7,5] y) {
                [mm] h = MatMul (w, x) [bn1] p = BatchNormalization (h, g1, b1, m1, v1)
                [sum] q = Add (p, k) [bn2] y = BatchNormalization (q, g2, b2, m2, v2)
            }""",
            w=rng.normal(size=(7, 6)),
            k=rng.normal(size=(7, 1)),
            **{f"{key}1": part for key, part in statistics(rng, 7).items()},
            **{f"{key}2": part for key, part in statistics(rng, 7).items()},
        )

        folded, report = fold(model)

        assert verdicts(report) == [("folded", "")] * 2
        assert op_types(folded) == ["MatMul", "Add"]
        assert_same_function(model, folded)

    def test_two_between_an_input_and_an_output_become_one(self):
        model = build(
            """m (double[2,4] x) => (double[2,4] y) {
                [bn1] p = BatchNormalization (x, g, b, m, v) [bn2] y = BatchNormalization (p, g, b, m, v) }""",
            **mild_statistics(rng_of(0), 4),
        )

        assert verdicts(fold(model)[1]) == [
            ("folded", ""),
            ("kept", "its scale can go neither way: 'x' is a graph input; 'y' is a graph output"),
        ]


class TestSharedWeights:
    """B11: a weight that several nodes read is never written in place."""

    GRAPH = """m (double[2,3,8] x, double[2,3,8] z) => (double[2,4,6] y1, double[2,4,6] y2, double[2,4,6] y3) {
        h1 = Conv (x, w, k) y1 = BatchNormalization (h1, g1, b1, m1, v1)
        h2 = Conv (z, w, k) y2 = BatchNormalization (h2, g2, b2, m2, v2)
        LAST
    }"""

    def model(self, last: str, same: bool = False) -> ir.Model:
        rng = rng_of(6)
        one, two = statistics(rng, 4), statistics(rng, 4)
        parts = {f"{key}1": part for key, part in one.items()}
        parts |= {f"{key}2": part.copy() for key, part in (one if same else two).items()}
        return build(self.GRAPH.replace("LAST", last), w=rng.normal(size=(4, 3, 3)), k=rng.normal(size=4), **parts)

    def test_each_batchnorm_gets_its_own_and_the_third_reader_keeps_the_original(self):
        model = self.model("y3 = Conv (x, w, k)")

        folded, report = fold(model)

        assert report.summary()["folded"] == 2
        assert np.array_equal(constant(folded, "w"), constant(model, "w"))
        assert sorted(folded.graph.initializers) == ["k", "k_1", "k_2", "w", "w_1", "w_2"]
        assert_same_function(model, folded)

    def test_identical_contents_become_one_constant(self):
        model = self.model("y3 = Conv (x, w, k)", same=True)

        folded, _ = fold(model)

        assert sorted(folded.graph.initializers) == ["k", "k_1", "w", "w_1"]
        assert_same_function(model, folded)

    def test_where_no_reader_of_the_original_is_left_its_name_lives_on(self):
        model = self.model("y3 = Relu (x)")
        model.graph.outputs[2].shape = None

        folded, _ = fold(model)

        assert sorted(folded.graph.initializers) == ["k", "k_1", "w", "w_1"]

    def test_one_conv_without_bias_applied_twice_with_one_batchnorm_stays_one_weight_and_one_bias(self):
        rng = rng_of(7)
        model = build(
            """m (double[2,3,8] x, double[2,3,8] z) => (double[2,4,6] y1, double[2,4,6] y2) {
                h1 = Conv (x, w) y1 = BatchNormalization (h1, g, b, m, v)
                h2 = Conv (z, w) y2 = BatchNormalization (h2, g, b, m, v) }""",
            w=rng.normal(size=(4, 3, 3)),
            **statistics(rng, 4),
        )

        folded, _ = fold(model)

        assert sorted(folded.graph.initializers) == ["w", "w_bias"]
        assert_same_function(model, folded)

    def test_a_weight_that_is_a_graph_output_stays(self):
        model = build(
            """m (double[2,3,8] x) => (double[2,4,6] y, double[4,3,3] w) {
                h = Conv (x, w) y = BatchNormalization (h, g, b, m, v) }""",
            w=rng_of(8).normal(size=(4, 3, 3)),
            **statistics(rng_of(8), 4),
        )

        folded, _ = fold(model)

        assert_same_function(model, folded)
        assert [v.name for v in folded.graph.outputs] == ["y", "w"]

    def test_parameters_that_a_kept_batchnorm_shares_stay(self):
        model = build(
            """m (double[2,3,8] x) => (double[2,4,6] y, double[2,4,6] z) {
                h = Conv (x, w) y = BatchNormalization (h, g, b, m, v)
                i = Relu (y) z = BatchNormalization (i, g, b, m, v) }""",
            w=rng_of(8).normal(size=(4, 3, 3)),
            **statistics(rng_of(8), 4),
        )

        folded, report = fold(model)

        assert [o.verdict.value for o in report.batchnorms] == ["folded", "kept"]
        assert_same_function(model, folded)


def test_b10_a_second_consumer_keeps_it():
    model = build(
        """m (double[2,3,8] x) => (double[2,4,6] y, double[2,4,6] z) {
            [conv1] h3 = Conv (x, w) [bn] y = BatchNormalization (h3, g, b, m, v) [relu1] z = Relu (h3) }""",
        w=np.ones((4, 3, 3)),
        **statistics(rng_of(0), 4),
    )

    assert verdicts(fold(model)[1]) == [
        ("kept", "its scale can go neither way: 'z' is a graph output; 'y' is a graph output")
    ]


def test_b12_an_input_that_is_also_a_graph_output_keeps_it():
    model = build(
        """m (double[2,3,8] x) => (double[2,4,6] y, double[2,4,6] h3) {
            [conv1] h3 = Conv (x, w) y = BatchNormalization (h3, g, b, m, v) }""",
        w=np.ones((4, 3, 3)),
        **statistics(rng_of(0), 4),
    )

    assert verdicts(fold(model)[1]) == [
        ("kept", "its scale can go neither way: 'h3' is a graph output; 'y' is a graph output")
    ]


def test_a_graph_output_keeps_name_type_shape_and_doc():
    model = build(
        """m (double[N,3,8] x) => (double[N,4,L] y) {
            h = Conv (x, w) y = BatchNormalization (h, g, b, m, v) }""",
        w=np.ones((4, 3, 3)),
        **statistics(rng_of(0), 4),
    )
    model.graph.outputs[0].doc_string = "what it is"

    output = fold(model)[0].graph.outputs[0]

    assert (output.name, str(output.shape), output.dtype) == ("y", "[N,4,L]", ir.DataType.DOUBLE)
    assert output.doc_string == "what it is"


def test_the_tensor_that_stays_has_the_name_of_what_it_holds():
    """Inside the graph too: 'h' is gone, 'p' still means the normalised tensor."""
    model = build(
        """m (double[2,3,8] x) => (double[2,4,6] y) {
            h = Conv (x, w) p = BatchNormalization (h, g, b, m, v) y = Relu (p) }""",
        w=np.ones((4, 3, 3)),
        **statistics(rng_of(0), 4),
    )

    assert [node.outputs[0].name for node in fold(model)[0].graph] == ["p", "y"]


class TestSweep:
    """What folding leaves behind is removed; what was dead before is none of its business."""

    def test_the_chains_of_affine_false_and_of_an_expanded_bias_go(self):
        model = build(
            """m (float[2,3,8] x) => (float[2,4,6] y) {
                c = Constant <value_floats = [0.0]> () s = Shape <start = 0, end = 1> (w)
                k0 = CastLike (c, x) k = Expand (k0, s)
                h = Conv (x, w, k)
                one = Constant <value_floats = [1.0]> () zero = Constant <value_floats = [0.0]> ()
                d = CastLike (one, h) e = CastLike (zero, h) t = Shape <start = 1, end = 2> (h)
                g = Expand (d, t) b = Expand (e, t)
                y = BatchNormalization (h, g, b, m, v)
            }""",
            w=np.ones((4, 3, 3), np.float32),
            m=np.ones(4, np.float32),
            v=np.ones(4, np.float32),
        )

        folded, report = fold(model)

        assert op_types(folded) == ["Conv"]
        assert report.summary()["nodes_before"] == 13 and report.summary()["nodes_after"] == 1
        assert sorted(folded.graph.initializers) == ["k", "w"]

    def test_a_weight_behind_a_transpose(self):
        model = build(
            """m (double[5,6] x) => (double[5,7] y) {
                wt = Transpose (w) h = MatMul (x, wt) y = BatchNormalization (h, g, b, m, v) }""",
            w=rng_of(0).normal(size=(7, 6)),
            **statistics(rng_of(0), 7),
        )

        folded, _ = fold(model)

        assert op_types(folded) == ["Gemm"]
        assert constant(folded, "wt").shape == (6, 7) and "w" not in folded.graph.initializers
        assert_same_function(model, folded)

    def test_what_was_dead_or_foreign_before_stays(self):
        model = build(
            """m (double[2,3,8] x) => (double[2,4,6] y) {
                dead = Relu (x) custom = own.Thing (x, unused2)
                h = Conv (x, w) y = BatchNormalization (h, g, b, m, v) }""",
            w=np.ones((4, 3, 3)),
            unused=np.ones(3),
            unused2=np.ones(3),
            **statistics(rng_of(0), 4),
        )

        folded, _ = fold(model)

        assert op_types(folded) == ["Relu", "Thing", "Conv"]
        assert sorted(folded.graph.initializers) == ["unused", "unused2", "w", "w_bias"]


class TestTypes:
    """C7 to C10: the graph's types never change; one rounding, from float64."""

    KINDS = pytest.mark.parametrize("kind", ["float16", "bfloat16", "float", "double"])

    def model(self, kind: str, statistics_kind: str | None = None, scale_kind: str | None = None, gain: float = 1.0):
        types = {"float16": "FLOAT16", "bfloat16": "BFLOAT16", "float": "FLOAT", "double": "DOUBLE"}
        rng = rng_of(9)
        stats = mild_statistics(rng, 4)
        stats["g"] = stats["g"] * gain
        parts = {"w": rng.normal(size=(4, 3, 3)), "k": rng.normal(size=4)} | stats
        kinds = dict.fromkeys("wk", kind) | dict.fromkeys("gb", scale_kind or kind)
        kinds |= dict.fromkeys("mv", statistics_kind or kind)
        return build(
            f"""m ({kind}[2,3,8] x) => ({kind}[2,4,6] y) {{
                [conv] h = Conv (x, w, k) y = BatchNormalization (h, g, b, m, v) }}""",
            **{name: round_once(array, ir.DataType[types[kinds[name]]].numpy()) for name, array in parts.items()},
        )

    @KINDS
    def test_weights_are_the_nearest_of_their_type(self, kind):
        model = self.model(kind)
        slope, _ = affine_of({key: constant(model, key) for key in "gbmv"})

        folded, _ = fold(model)

        w = constant(model, "w")
        assert np.array_equal(constant(folded, "w"), round_once(w.astype(np.float64) * slope[:, None, None], w.dtype))

    @pytest.mark.parametrize(
        ("kind", "scale_kind", "statistics_kind"),
        [("float16", "float", "float"), ("bfloat16", "float", "float"), ("float16", "float16", "float")],
    )
    def test_mixed_types_of_opset_15_leave_the_graphs_type(self, kind, scale_kind, statistics_kind):
        model = self.model(kind, statistics_kind, scale_kind)
        before = {v.name: v.dtype for v in (*model.graph.inputs, *model.graph.outputs)}

        folded, report = fold(model)

        assert report.summary()["folded"] == 1
        assert {v.name: v.dtype for v in (*folded.graph.inputs, *folded.graph.outputs)} == before
        assert {value.dtype for value in folded.graph.initializers.values()} == {model.graph.initializers["w"].dtype}

    def test_a_variance_above_the_half_range_is_fine_when_it_is_a_float(self):
        model = self.model("float16", statistics_kind="float")
        model.graph.initializers["v"].const_value = ir.tensor(np.full(4, 1e8, np.float32), name="v")

        assert fold(model)[1].summary()["folded"] == 1

    @pytest.mark.parametrize(("kind", "gain"), [("float16", 5e4), ("float", 1e39), ("bfloat16", 1e39)])
    def test_a_weight_that_overflows_its_type_is_refused(self, kind, gain):
        """The scale is given in a wider type, so that it is the weight that overflows, not the scale."""
        model = self.model(kind, "double", "double", gain)

        folded, report = fold(model)

        dtype = {"float": "float32"}.get(kind, kind)
        assert verdicts(report) == [("kept", f"folded weight of Conv 'conv' is not finite in {dtype}")]
        assert op_types(folded) == ["Conv", "BatchNormalization"]

    def test_a_bias_that_overflows_its_type_is_refused(self):
        model = self.model("float16", "float", "float")
        model.graph.initializers["b"].const_value = ir.tensor(np.full(4, 1e6, np.float32), name="b")

        assert verdicts(fold(model)[1]) == [("kept", "folded bias of Conv 'conv' is not finite in float16")]

    def test_a_constant_that_overflows_its_type_is_refused_and_leaves_the_weight_alone(self):
        model = build(
            """m (float16[5,6] x) => (float16[5,4] y) {
                h = MatMul (x, w) [sum] p = Add (h, k) y = BatchNormalization (p, g, b, m, v) }""",
            w=np.ones((6, 4), np.float16),
            k=np.ones(4, np.float16),
            **mild_statistics(rng_of(0), 4, np.float32) | {"b": np.full(4, 1e6, np.float32)},
        )

        folded, report = fold(model)

        assert verdicts(report) == [("kept", "the constant of Add 'sum' is not finite in float16")]
        assert np.array_equal(constant(folded, "w"), constant(model, "w"))


class TestMergedBranches:
    GRAPH = """m (double[2,3,8] x) => (double[2,3,8] y) {
        [c1] h = Conv (x, w) [bn1] p = BatchNormalization (h, g1, b1, m1, v1)
        [c2] i = Conv (x, k) [bn2] q = BatchNormalization (i, g2, b2, m2, v2)
        [bn3] r = BatchNormalization (x, g3, b3, m3, v3)
        [add] s = Sum (p, q, r) [relu] y = Relu (s)
    }"""

    def test_their_batchnorms_and_the_report_name_the_operator_they_became(self):
        rng = rng_of(11)
        parts = {"w": rng.normal(size=(3, 3, 1)), "k": rng.normal(size=(3, 3, 1))}
        for i in "123":
            parts |= {f"{key}{i}": part for key, part in mild_statistics(rng, 3).items()}

        folded, report = fold(build(self.GRAPH, **parts))

        into = folded.graph.node(0).name
        assert op_types(folded) == ["Conv", "Relu"]
        assert [(o.into, o.into_ops) for o in report.batchnorms] == [((into,), ("Conv",))] * 3
        assert report.as_dict()["merges"] == [{"into": into, "kind": "Conv", "branches": 3}]
        assert "  folded  3 into Conv" in report.as_text().splitlines()

    def test_nodes_without_names_are_told_by_what_they_are_called_in_the_end(self):
        """The BatchNormalization behind the sum goes last, and its output's name is the sum's then."""
        graph = """m (double[2,3,8] x) => (double[2,3,8] y) {
            h = Conv (x, w) [bn1] p = BatchNormalization (h, g1, b1, m1, v1)
            i = Conv (x, k) [bn2] q = BatchNormalization (i, g2, b2, m2, v2)
            s = Add (p, q) [bn3] r = BatchNormalization (s, g3, b3, m3, v3)
            y = Sigmoid (r)
        }"""
        rng = rng_of(12)
        parts = {"w": rng.normal(size=(3, 3, 1)), "k": rng.normal(size=(3, 3, 1))}
        for i in "123":
            parts |= {f"{key}{i}": part for key, part in mild_statistics(rng, 3).items()}

        folded, report = fold(build(graph, **parts))

        assert [(n.op_type, n.outputs[0].name) for n in folded.graph] == [("Conv", "r"), ("Sigmoid", "y")]
        assert {o.into for o in report.batchnorms} == {("r",)} and report.merges[0].node == "r"
        assert "  branches merged into 'r' (2 of them)" in report.as_text().splitlines()

    def test_a_map_that_merges_with_them_is_told_as_folded(self):
        """In a pass of its own: the size that tells how the Conv pads is computed, and known when that is stored."""
        graph = """m (double[2,4,8,8] x) => (double[2,4,16,16] y) {
            sc = Concat <axis = 0> (ones, twos) r = Resize <mode = "nearest"> (x, , sc)
            [conv] c = Conv <auto_pad = "SAME_UPPER", kernel_shape = [3, 3]> (r, w)
            b = BatchNormalization (r, n_g, n_b, n_m, n_v) [mul] d = Mul (b, k)
            [add] a = Add (c, d) y = Sigmoid (a)
        }"""
        rng = rng_of(13)
        model = build(
            graph,
            **named("n_", mild_statistics(rng, 4)),
            w=rng.normal(size=(4, 4, 3, 3)),
            k=rng.normal(size=(1, 4, 1, 1)),
            ones=np.ones(2, np.float32),
            twos=np.full(2, 2, np.float32),
        )

        folded, report = fold(model)

        assert "Mul" not in op_types(folded) and "Conv" in op_types(folded)
        outcomes = (*report.batchnorms, *report.affines)
        assert [(o.name, o.verdict, o.into, o.into_ops) for o in outcomes] == [
            ("b", "folded", ("conv",), ("Conv",)),
            ("mul", "folded", ("conv",), ("Conv",)),
        ]

    def test_a_map_on_a_branch_is_told_as_folded_into_what_the_branch_became(self):
        model = build(
            """m (double[2,3,8] x) => (double[2,3,8] y) {
                [c1] h = Conv (x, w) [mul] p = Mul (h, s) [c2] q = Conv (x, k) [add] t = Add (p, q) y = Relu (t) }""",
            w=rng_of(1).normal(size=(3, 3, 1)),
            k=rng_of(2).normal(size=(3, 3, 1)),
            s=np.array([2.0, -3.0, 0.5]).reshape(1, 3, 1),
        )

        folded, report = fold(model)

        (into,) = (node.name for node in folded.graph if node.op_type == "Conv")
        assert [(o.name, o.verdict, o.into) for o in report.affines] == [("mul", "folded", (into,))]


class TestSubgraphs:
    GRAPH = """m (bool c, double[2,3,8] x) => (double[2,4,6] y) {
        y = If (c) <
            then_branch = then () => (double[2,4,6] t) {
                [conv1] h = Conv (x, w) [bn1] t = BatchNormalization (h, g, b, m, v) },
            else_branch = other () => (double[2,4,6] e) {
                [conv2] i = Conv (x, w) [bn2] e = BatchNormalization (i, g, b, m, v) }
        >
        LAST
    }"""

    def model(self, last: str = "") -> ir.Model:
        rng = rng_of(10)
        return build(self.GRAPH.replace("LAST", last), w=rng.normal(size=(4, 3, 3)), **statistics(rng, 4))

    def test_branches_are_folded_over_weights_of_the_surrounding_graph(self):
        model = self.model()

        folded, report = fold(model)

        assert [o.into for o in report.batchnorms] == [("conv1",), ("conv2",)]
        assert sorted(folded.graph.initializers) == ["w", "w_bias"]
        for taken in (True, False):
            self.check(model, folded, taken)

    def check(self, model, folded, taken):
        feeds = {"c": np.array(taken), "x": rng_of(1).normal(size=(2, 3, 8))}
        (a,), (b,) = evaluate(model, feeds), evaluate(folded, feeds)
        stats = {key: constant(model, key) for key in "gbmv"}
        slope, _ = affine_of(stats)
        size = (np.abs(slope) * (30 + np.abs(stats["m"])) + np.abs(stats["b"])).reshape(1, -1, 1)
        assert (np.abs(a - b) <= 1e-13 * size).all()

    def test_a_weight_also_read_outside_is_cloned(self):
        model = self.model("q = own.Use (w)")

        folded, _ = fold(model)

        assert np.array_equal(constant(folded, "w"), constant(model, "w"))
        assert sorted(folded.graph.initializers) == ["w", "w_1", "w_bias"]

    def test_a_tensor_of_the_surrounding_graph_is_not_folded_into(self):
        model = build(
            """m (bool c, double[2,3,8] x) => (double[2,4,6] y) {
                [conv] h = Conv (x, w)
                y = If (c) <
                    then_branch = then () => (double[2,4,6] t) { [bn] t = BatchNormalization (h, g, b, m, v) },
                    else_branch = other () => (double[2,4,6] e) { e = Identity (h) } >
            }""",
            w=np.ones((4, 3, 3)),
            **statistics(rng_of(0), 4),
        )

        why = "'h' is read inside a subgraph, by BatchNormalization 'bn'; 't' is a graph output"
        expected = f"its scale can go neither way: {why}"
        assert verdicts(fold(model)[1]) == [("kept", expected)]

    def test_a_captured_tensor_is_not_folded_into(self):
        model = build(
            """m (bool c, double[2,3,8] x) => (double[2,4,6] y, double[2,4,6] z) {
                [conv] h = Conv (x, w) y = BatchNormalization (h, g, b, m, v)
                z = If (c) <then_branch = then () => (double[2,4,6] t) { [neg] t = Neg (h) },
                            else_branch = other () => (double[2,4,6] e) { e = Identity (x) }> }""",
            w=np.ones((4, 3, 3)),
            **statistics(rng_of(0), 4),
        )

        why = "'h' is read inside a subgraph, by Neg 'neg'; 'y' is a graph output"
        expected = f"its scale can go neither way: {why}"
        assert verdicts(fold(model)[1]) == [("kept", expected)]

    @pytest.mark.parametrize(
        ("last", "left"),
        [
            ("[bn] t = BatchNormalization <epsilon = 0.0> (h, one, zero, zero, one)", ["Identity"]),
            ("[mul] t = Mul (h, ones)", ["Identity"]),
            ("[mul] u = Mul (h, ones) [last] t = Sigmoid (u)", ["Sigmoid"]),
        ],
    )
    def test_an_identity_of_a_tensor_of_the_surrounding_graph_leaves_that_tensor_its_name(self, last, left):
        model = build(
            f"""m (bool c, double[2,3,8] x) => (double[2,4,6] y, double[2,4,6] z) {{
                [conv] h = Conv (x, w)
                y = If (c) <then_branch = then () => (double[2,4,6] t) {{ {last} }},
                            else_branch = other () => (double[2,4,6] e) {{ [neg] t = Neg (h) e = Neg (t) }}>
                z = Neg (h)
            }}""",
            w=rng_of(3).normal(size=(4, 3, 3)),
            ones=np.ones((1, 4, 1)),
            one=np.ones(4),
            zero=np.zeros(4),
        )

        folded, report = fold(model)

        onnx.checker.check_model(ir.to_proto(folded), full_check=True)
        assert [o.verdict for o in (*report.batchnorms, *report.affines)] == ["folded"]
        assert op_types(folded) == ["Conv", "If", "Neg"] and folded.graph.node(0).outputs[0].name == "h"
        assert [n.op_type for n in folded.graph.node(1).attributes["then_branch"].as_graph()] == left
        for taken in (True, False):
            feeds = {"c": np.array(taken), "x": rng_of(1).normal(size=(2, 3, 8))}
            for a, b in zip(evaluate(folded, feeds), evaluate(model, feeds), strict=True):
                np.testing.assert_array_equal(a, b)

    def test_a_loop_body_is_folded(self):
        model = build(
            """m (int64 n, bool c, double[2,3,8] x) => (double[2,3,8] y) {
                y = Loop (n, c, x) <body = body (int64 i, bool go, double[2,3,8] s) => (bool go2, double[2,3,8] s2) {
                    go2 = Identity (go) [conv] h = Conv (s, w) [bn] s2 = BatchNormalization (h, g, b, m, v) }> }""",
            w=rng_of(0).normal(size=(3, 3, 1)),
            **mild_statistics(rng_of(0), 3),
        )
        folded, report = fold(model)

        assert [o.into for o in report.batchnorms] == [("conv",)]
        feeds = {"n": np.array(3), "c": np.array(True), "x": rng_of(1).normal(size=(2, 3, 8))}
        np.testing.assert_allclose(evaluate(folded, feeds)[0], evaluate(model, feeds)[0], rtol=1e-11, atol=1e-11)


def test_in_a_local_function_that_cannot_be_inlined_it_is_kept():
    """Its body is of another opset than the model: the operators mean something else there."""
    model = build(
        "m (double[2,4] x, double[4] a) => (double[2,4] y) { y = own.norm (x, a) }",
        functions="""<domain: "own", opset_import: ["" : 13]>
            norm (x, a) => (y) { [bn] y = BatchNormalization (x, a, a, a, a) }""",
    )

    (outcome,) = fold(model)[1].batchnorms

    assert (outcome.name, outcome.verdict) == ("bn", Verdict.KEPT)
    assert outcome.reason == "it is inside local function 'norm' of domain 'own', which cannot be inlined"


def test_below_ir_version_4_new_constants_are_nodes():
    """There every initializer had to be a graph input, and inputs never change."""
    model = build(
        """m (double[1,1,3] x) => (double[1,1,3] y) {
            w = Constant <value = double[1,1,1] {2.0}> () a = Constant <value = double[1] {3.0}> ()
            h = Conv (x, w) y = BatchNormalization (h, a, a, a, a) }""",
        opset=14,  # onnx.reference trains in opsets 7 to 13
        ir_version=3,
    )

    folded, _ = fold(model)

    assert op_types(folded) == ["Constant", "Constant", "Conv"]
    assert not folded.graph.initializers and [v.name for v in folded.graph.inputs] == ["x"]
    assert_same_function(model, folded)


def test_five_thousand_nodes_are_no_matter():
    layers = "\n".join(
        f"h{i} = Conv (x{i}, w) p{i} = BatchNormalization (h{i}, g, b, m, v) x{i + 1} = Relu (p{i})"
        for i in range(1700)
    )
    model = build(
        f"m (float[1,3,8] x0) => (float[1,3,8] x1700) {{ {layers} }}",
        w=rng_of(0).normal(size=(3, 3, 1)).astype(np.float32),
        **mild_statistics(rng_of(0), 3, np.float32),
    )

    folded, report = fold(model)

    assert report.summary()["folded"] == 1700
    assert sorted(folded.graph.initializers) == ["w", "w_bias"]
