"""From a solution to a graph: who holds what, what the report says of it, and what happens where numbers do not fit."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from tests.training.fold.judge import judge
from tests.training.fold.maps import bn, numbers
from tests.training.fold.models import build, constant, op_types
from training.fold import Profile, Verdict, fold

KINDS = {"double": np.float64, "float": np.float32, "float16": np.float16}


def model(nodes: str, kind: str = "double", outputs: str = "y", shape: str = "2,3,4,4", **constants) -> ir.Model:
    dtype, rng = KINDS[kind], np.random.default_rng(0)
    weights = {f"w{i}": rng.normal(size=(3, 3, 1, 1)).astype(dtype) for i in range(4)}
    used = {name: array for name, array in (weights | constants).items() if name in nodes}
    results = ", ".join(f"{kind}[{shape}] {name}" for name in outputs.split())
    return build(f"m ({kind}[{shape}] x) => ({results}) {{ {nodes} }}", **used)


class TestHolders:
    """`into` names who holds a map now: those before it, what is left of it, those behind it."""

    def into(self, nodes: str, profile: Profile = Profile.GENERIC, outputs: str = "y", **constants) -> tuple[str, ...]:
        return judge(model(nodes, outputs=outputs, **constants), profile).report.batchnorms[0].into

    def test_the_operator_before_it(self):
        assert self.into(f"[c] h = Conv (x, w0) {bn('n', 'h', 'y')}", **numbers("n")) == ("c",)

    def test_the_operator_behind_it(self):
        assert self.into(f"{bn('n', 'x', 'h')} [c] y = Conv (h, w0)", **numbers("n")) == ("c",)

    def test_every_reader_behind_it(self):
        nodes = f"{bn('n', 'x', 'h')} [c1] y = Conv (h, w0) [c2] z = Conv (h, w1)"

        assert self.into(nodes, outputs="y z", **numbers("n")) == ("c1", "c2")

    def test_the_clamp_that_moved_and_the_weights_behind_it(self):
        nodes = f"[c] h = Conv (x, w0) [r] p = Relu (h) {bn('n', 'p', 'q')} [t] y = Tanh (q)"

        assert self.into(nodes, **numbers("n")) == ("c", "r")

    def test_both_summands_where_a_scale_passes_a_sum(self):
        nodes = f"""[c1] h = Conv (x, w0) [t] i = Tanh (h) [r] j = Relu (h) [c2] k = Conv (i, w1) [c3] l = Conv (j, w2)
            [add] p = Add (k, l) {bn("n", "p", "q")} [e] y = Sigmoid (q)"""

        assert set(self.into(nodes, **numbers("n"))) == {"c2", "c3"}

    def test_what_is_left_of_it_and_who_took_the_rest(self):
        nodes = f"{bn('n', 'x', 'h')} [c] y = Conv <pads = [1, 1, 1, 1]> (h, w)"
        graph = model(nodes, w=np.ones((3, 3, 3, 3)), **numbers("n"))

        judged = judge(graph, Profile.GENERIC)

        assert (judged.report.batchnorms[0].into, judged.report.batchnorms[0].into_ops) == (("n", "c"), ("Add", "Conv"))
        assert constant(judged.folded, "n_add").shape == (3, 1, 1)

    def test_a_node_without_a_name_goes_by_its_output(self):
        nodes = f"h = Conv (x, w0) {bn('n', 'h', 'y')}"

        (outcome,) = judge(model(nodes, **numbers("n")), Profile.GENERIC).report.batchnorms

        assert len(outcome.into) == 1 and outcome.into_ops == ("Conv",) and outcome.into[0]


class TestNames:
    def test_downstream_the_tensor_keeps_its_own_name_for_it_holds_its_own_numbers(self):
        nodes = f"[t] h = Tanh (x) {bn('n', 'h', 'p')} [c] y = Conv (p, w0)"

        folded = judge(model(nodes, **numbers("n")), Profile.GENERIC).folded

        assert [node.outputs[0].name for node in folded.graph] == ["h", "y"]

    def test_between_an_input_and_an_output_an_identity_is_left(self):
        """Two maps that undo each other, and neither end may change its name."""
        vector = np.array([2.0, -4.0, 0.5]).reshape(3, 1, 1)
        graph = model("[m] p = Mul (x, s) [d] y = Div (p, s)", s=vector)

        judged = judge(graph, Profile.GENERIC)

        assert op_types(judged.folded) == ["Identity"]
        assert [v.name for v in (*judged.folded.graph.inputs, *judged.folded.graph.outputs)] == ["x", "y"]

    def test_a_batchnorm_that_is_the_identity_leaves_one_too(self):
        graph = model(bn("n", "x", "y"), **numbers("n", [1.0] * 3, [0.0] * 3, [0.0] * 3))

        judged = judge(graph, Profile.GENERIC)

        assert op_types(judged.folded) == ["Identity"] and judged.report.count(Verdict.FOLDED) == 1


class TestOverflow:
    """A constant that its type cannot hold: one lift less, and all others as before."""

    @pytest.mark.parametrize(
        ("kind", "gamma", "verdict"),
        [
            ("float16", 1e4, Verdict.KEPT),
            ("float", 1e4, Verdict.FOLDED),
            ("float16", 10.0, Verdict.FOLDED),
        ],
    )
    def test_a_weight_that_does_not_fit_stays(self, kind, gamma, verdict):
        stats = numbers("n", [gamma] * 3, dtype=KINDS[kind])
        graph = model(
            f"[c] h = Conv (x, w) {bn('n', 'h', 'y')}", kind, w=np.full((3, 3, 1, 1), 10, KINDS[kind]), **stats
        )

        folded, report = fold(graph, "generic")

        assert report.batchnorms[0].verdict is verdict and report.changed is (verdict is Verdict.FOLDED)
        assert np.isfinite(constant(folded, "w")).all()

    def test_the_reason_names_operator_and_type(self):
        stats = numbers("n", [1e4] * 3, dtype=np.float16)
        graph = model(
            f"[conv1] h = Conv (x, w) {bn('n', 'h', 'y')}", "float16", w=np.full((3, 3, 1, 1), 10, np.float16), **stats
        )

        reason = fold(graph, "generic")[1].batchnorms[0].reason

        assert "conv1" in reason and "float16" in reason

    def test_the_most_extreme_of_those_that_share_the_weights_is_put_out(self):
        """n1 and n2 around a ReLU; with n2 alone the weights fit."""
        graph = model(
            f"""[c] h = Conv (x, w) {bn("n1", "h", "p")} [r] q = Relu (p) {bn("n2", "q", "s")} [t] y = Tanh (s)""",
            "float16",
            w=np.full((3, 3, 1, 1), 100, np.float16),
            **numbers("n1", [500.0, 2.0, 1.0], [0.0] * 3, [0.0] * 3, dtype=np.float16),
            **numbers("n2", [2.0, 1.0, 1.0], [0.0] * 3, [0.0] * 3, dtype=np.float16),
        )

        first, second = fold(graph, "generic")[1].batchnorms

        assert "float16" in first.reason and second.verdict is Verdict.FOLDED

    def test_a_bound_that_does_not_fit_stays_with_its_batchnorm(self):
        """ReLU's zero would be at -80000."""
        graph = model(
            f"[c] h = Conv (x, w0) [r] p = Relu (h) {bn('n', 'p', 'q')} [t] y = Tanh (q)",
            "float16",
            **numbers("n", [4e4] * 3, [0.0] * 3, [2.0] * 3, dtype=np.float16),
        )

        folded, report = fold(graph, "generic")

        assert report.batchnorms[0].verdict is not Verdict.FOLDED
        assert all(np.isfinite(v.const_value.numpy()).all() for v in folded.graph.initializers.values())

    def test_another_part_of_the_graph_is_not_touched_by_it(self):
        graph = model(
            f"""[c1] h = Conv (x, w) {bn("n1", "h", "y")} [c2] i = Conv (x, w0) {bn("n2", "i", "z")}""",
            "float16",
            "y z",
            w=np.full((3, 3, 1, 1), 10, np.float16),
            **numbers("n1", [1e4] * 3, dtype=np.float16),
            **numbers("n2", dtype=np.float16),
        )

        first, second = fold(graph, "generic")[1].batchnorms

        assert first.verdict is Verdict.KEPT and second.verdict is Verdict.FOLDED


class TestConstantsOfOperators:
    """Constants with a port of their own move by themselves, one copy for each reader."""

    CONCAT = f"""[c] h = Conv (x, w0) [cat] p = Concat <axis = 1> (h, k) {bn("n", "p", "q")} [t] y = Tanh (q)"""

    def model(self, kind: str = "double", more: str = "", outputs: str = "double[2,5,4,4] y", gain: float = 1.0):
        dtype = KINDS[kind]
        stats = numbers("n", [1.5, 2, 0.5, -1, gain], [0.5, -1, 2, 3, 0], [0.1] * 5, dtype=dtype)
        text = f"m ({kind}[2,3,4,4] x) => ({outputs.replace('double', kind)}) {{ {self.CONCAT} {more} }}"
        rng = np.random.default_rng(0)
        shapes = {"w0": (3, 3, 1, 1), "k": (2, 2, 4, 4)}
        constants = {name: (rng.normal(size=shape) + 8).astype(dtype) for name, shape in shapes.items()}
        return build(text, **constants, **stats)

    def test_a_constant_part_of_a_concat(self):
        assert op_types(judge(self.model(), Profile.GENERIC).folded) == ["Conv", "Concat", "Tanh"]

    def test_a_reader_elsewhere_keeps_the_original(self):
        graph = self.model(more="[abs] z = Abs (k)", outputs="double[2,5,4,4] y, double[2,2,4,4] z")

        folded = judge(graph, Profile.GENERIC).folded

        assert np.array_equal(constant(folded, "k"), constant(graph, "k")) and "k_1" in folded.graph.initializers

    def test_one_that_would_overflow_its_type_stays(self):
        outcome = fold(self.model("float16", gain=6e4), "generic")[1].batchnorms[0]

        assert outcome.reason == "constant 'k' would not be finite in float16"


class TestClamped:
    """`clamped` tells which BatchNormalization a ReLU was given up for."""

    def test_the_one_behind_it(self):
        nodes = f"[c] h = Conv (x, w0) [r] p = Relu (h) {bn('n', 'p', 'q')} [t] y = Tanh (q)"

        (outcome,) = judge(model(nodes, **numbers("n")), Profile.GENERIC).report.batchnorms

        assert outcome.clamped and "Relu" not in outcome.into_ops

    def test_one_before_it_is_preferred(self):
        """n1's shift passes the ReLU, because the branch t2 cannot take it; n2 behind is served by its own Conv."""
        nodes = f"{bn('n1', 'x', 'h')} [r] p = Relu (h) [c1] q = Conv (p, w0) {bn('n2', 'q', 's')} [t] y = Tanh (s)"

        first, second = judge(model(nodes, **numbers("n1"), **numbers("n2")), Profile.GENERIC).report.batchnorms

        assert (first.clamped, second.clamped) == (True, False)

    def test_one_beyond_a_sum_where_none_is_next_to_it(self):
        nodes = f"""[c] h = Conv (x, w0) [r] p = Relu (h) [d] k = Conv (x, w1) [a] s = Add (k, p) {bn("n", "s", "q")}
                    [t] y = Tanh (q)"""

        (outcome,) = judge(model(nodes, **numbers("n", [-1.0, 2.0, 3.0])), Profile.GENERIC).report.batchnorms

        assert outcome.clamped

    def test_a_clamp_serves_one_of_two(self):
        nodes = f"""{bn("n1", "x", "h")} [r] p = Relu (h) {bn("n2", "p", "q")} [c] y = Conv (q, w0)"""

        report = judge(model(nodes, **numbers("n1"), **numbers("n2", [-1.0, 2.0, 3.0])), Profile.GENERIC).report

        assert report.summary()["clamped"] == 1 and report.count(Verdict.FOLDED) == 2
