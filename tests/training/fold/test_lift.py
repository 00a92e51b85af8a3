"""Maps that are no BatchNormalization, what is left of a map between two gauges, and that both fold alike."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
import pytest

from tests.training.fold.judge import judge
from tests.training.fold.maps import bn, numbers
from tests.training.fold.models import Array, affine_of, build, constant, op_types
from training.fold import Profile, Verdict
from training.fold.driver import known_of
from training.fold.edits import SetOperand
from training.fold.laws import Gauge, Lift, Port, Sum
from training.fold.lift import RULES, keep, operands_of, residue, seeds
from training.fold.refusal import Refusal

VECTOR = np.array([2.0, -4.0, 0.5]).reshape(3, 1, 1)


def single(call: str, opset: int = 17, x: str = "2,3,4,4", **constants: Array) -> ir.Model:
    return build(f"m (double[{x}] x) => (double[{x}] y) {{ [op] y = {call} }}", opset=opset, **constants)


def said(model: ir.Model, axes: tuple[int, ...] = (1,)):
    node = model.graph[0]
    return RULES[node.op_type](node, Port(node.outputs[0], axes), known_of(model, model.opset_imports[""]))


class TestLaws:
    @pytest.mark.parametrize(
        ("call", "scale", "shift"),
        [
            ("Mul (x, k)", [2, -4, 0.5], [0, 0, 0]),
            ("Mul (k, x)", [2, -4, 0.5], [0, 0, 0]),
            ("Div (x, k)", [0.5, -0.25, 2], [0, 0, 0]),
            ("Add (x, k)", [1, 1, 1], [2, -4, 0.5]),
            ("Add (k, x)", [1, 1, 1], [2, -4, 0.5]),
            ("Sub (x, k)", [1, 1, 1], [-2, 4, -0.5]),
        ],
    )
    @pytest.mark.parametrize("shape", [(3, 1, 1), (1, 3, 1, 1)])
    def test_a_constant_of_one_number_a_channel_is_a_map(self, call, scale, shift, shape):
        (law,) = said(single(call, k=VECTOR.reshape(shape)))

        assert isinstance(law, Lift) and (law.scale.tolist(), law.shift.tolist()) == (scale, shift)
        assert (law.holds_scale, law.holds_shift) == ((True, False) if call[0] in "MD" else (False, True))

    @pytest.mark.parametrize("shape", [(), (1,), (1, 1, 1)])
    def test_one_number_is_the_same_map_in_every_channel(self, shape):
        (law,) = said(single("Mul (x, k)", k=np.full(shape, 0.5)))

        assert law.scale.tolist() == [0.5] * 3

    @pytest.mark.parametrize("axis", [1, 2])
    def test_before_opset_7_the_constants_place_is_an_attribute(self, axis):
        (law,) = said(single(f"Add <broadcast = 1, axis = {axis}> (x, k)", 6, "2,3,3,4", k=VECTOR.ravel()), (axis,))

        assert law.shift.tolist() == [2, -4, 0.5]

    @pytest.mark.parametrize(("call", "factor"), [("Sub (k, x)", -1.0), ("Add (x, m)", 1.0)])
    def test_what_is_no_map_of_its_own_lets_scales_pass_and_takes_any_shift(self, call, factor):
        """A constant minus the tensor; a constant that differs from pixel to pixel."""
        constants = {"k": VECTOR} if "k" in call else {"m": np.arange(16.0).reshape(4, 4)}
        (law,) = said(single(call, **constants))

        assert isinstance(law, Sum) and law.holds_shift and [t.factor for t in law.terms] == [factor]

    @pytest.mark.parametrize(
        ("call", "constants", "reason"),
        [
            ("Div (k, x)", {"k": VECTOR}, "Div 'op' divides by a tensor"),
            ("Div (x, k)", {"k": VECTOR * 0}, "the constant of Div 'op' is not finite, or divides by zero"),
            ("Mul (x, k)", {"k": VECTOR * np.inf}, "the constant of Mul 'op' is not finite, or divides by zero"),
            ("Mul (k, k)", {"k": VECTOR}, "Mul 'op' has no constant operand, or only constant ones"),
        ],
    )
    def test_refused(self, call, constants, reason):
        assert said(single(call, **constants)) == Refusal(reason)

    @pytest.mark.parametrize(("size", "grows"), [(128, True), (256, False)])
    def test_a_constant_grows_to_a_limit(self, size, grows):
        """A number a pixel under a gauge of four channels has four times as many: 2^16 at most."""
        graph = single("Add (x, k)", x=f"1,4,{size},{size}", k=np.zeros((size, size)))
        found = said(graph)

        if grows:
            assert isinstance(found, tuple)
        else:
            assert found == Refusal(f"the constant of Add 'op' [1, 1, {size}, {size}] would have to grow")

    def test_a_constant_that_enlarges_the_tensor_is_no_map(self):
        graph = build("m (double[1,3] x) => (double[2,3] y) { [op] y = Add (x, k) }", k=np.ones((2, 3)))

        assert isinstance(operands_of(graph.graph[0], known_of(graph, 17)), Refusal)

    def test_batchnorm_maps_axis_1_and_no_other(self):
        graph = build(f"m (double[3,3,3] x) => (double[3,3,3] y) {{ {bn('n', 'x', 'y')} }}", **numbers("n"))

        assert said(graph, (2,)) == Refusal("BatchNormalization 'n' maps axis 1, 'y' is stored along axis (2,)")
        (law,) = said(graph)
        assert law.scale.tolist() == [1.5, 2, 0.5] and law.holds_scale and law.holds_shift


class TestSeeds:
    @pytest.mark.parametrize(
        ("call", "constants", "axes"),
        [
            ("Mul (x, k)", {"k": VECTOR}, (1,)),
            ("Mul (x, k)", {"k": np.ones(4)}, (3,)),
            ("Mul (x, k)", {"k": np.ones((3, 1, 4))}, None),  # a picture, not one number a channel
            ("Sub (k, x)", {"k": VECTOR}, None),
            ("Mul (x, k)", {"k": np.array(2.0)}, ()),  # along any; nobody next to it tells
            ("Relu (x)", {}, None),
        ],
    )
    def test_along_which_axes_a_node_is_a_map(self, call, constants, axes):
        graph = single(call, **constants)

        assert seeds(graph.graph[0], known_of(graph, 17)) == axes

    def test_one_number_is_a_map_along_the_axis_of_the_operator_next_to_it(self):
        graph = build(
            "m (double[2,3,4,4] x) => (double[2,3,4,4] y) { [op] p = Mul (x, k) y = Conv (p, w) }",
            k=np.array(2.0),
            w=np.ones((3, 3, 1, 1)),
        )

        assert seeds(graph.graph[0], known_of(graph, 17)) == (1,)

    def test_the_bias_of_a_matmul_is_none(self):
        graph = build(
            "m (double[2,4,3] x) => (double[2,4,3] y) { h = MatMul (x, w) [op] y = Add (h, k) }",
            w=np.ones((3, 3)),
            k=np.ones(3),
        )

        assert seeds(graph.graph[1], known_of(graph, 17)) is None


class TestResidue:
    """`y' = m x' + k`, against the definition on numbers."""

    def law(self, scale: list[float], shift: list[float]) -> Lift:
        node = single("Mul (x, k)", k=VECTOR).graph[0]
        x, y = Port(node.inputs[0], (1,)), Port(node.outputs[0], (1,))
        return Lift(x, y, np.array(scale), np.array(shift), node, holds_scale=True, holds_shift=True)

    def gauge(self, scale: list[float], shift: list[float]) -> Gauge:
        return Gauge((1,), (len(scale),), np.array(scale), np.array(shift))

    @pytest.mark.parametrize("a", [None, ([2.0, -1.0, 0.5], [1.0, 0.0, -3.0])])
    @pytest.mark.parametrize("c", [None, ([-3.0, 1.0, 4.0], [0.0, 5.0, 2.0])])
    def test_it_maps_the_stored_input_to_the_stored_output(self, a, c):
        law = self.law([1.5, -2.0, 0.25], [0.5, 1.0, -1.0])
        before, after = (None if g is None else self.gauge(*g) for g in (a, c))
        values = np.random.default_rng(0).normal(size=(7, 3))
        store = lambda v, g: v if g is None else g.scale * v + g.shift  # noqa: E731

        left = residue(law, before, after)

        expected = store(law.scale * values + law.shift, after)
        np.testing.assert_allclose(left.m * store(values, before) + left.k, expected, rtol=1e-14, atol=1e-14)

    def test_a_dead_channel_is_its_shift_whatever_comes(self):
        """x' = 0 x + 5 holds y = 0 x + 5 already."""
        left = residue(self.law([0.0], [5.0]), self.gauge([0.0], [5.0]), None)

        assert (left.m.tolist(), left.k.tolist()) == ([1.0], [0.0])

    def test_where_nobody_reads_the_output_nothing_is_left(self):
        after = Gauge((1,), (2,), np.array([np.inf, 4.0]), np.array([0.0, 1.0]), np.array([5.0, 0.0]))

        left = residue(self.law([0.0, 3.0], [5.0, 1.0]), self.gauge([2.0, 2.0], [9.0, 0.0]), after)

        assert (left.m.tolist(), left.k.tolist()) == ([1.0, 6.0], [0.0, 5.0])


class Between(dict):
    """Gauges by tensor name."""

    def of(self, value: ir.Value | None, reader: ir.Node | None = None) -> Gauge | None:
        return None if value is None or reader is not None else self.get(value.name)


AROUND = {"x": ([2.0, -0.5, 1.0], [1.0, 0.0, -3.0]), "y": ([-3.0, 1.0, 4.0], [0.0, 5.0, 2.0])}


class TestKeptBatchNorm:
    """It carries the statistics of what is stored now: mean A m + B and deviation |A| d."""

    STATS = numbers("n", [1.5, -2.0, 0.5], variance=[1.0, 4.0, 0.25])

    def kept(self, gauges: dict[str, Gauge], stats: dict[str, Array], epsilon: float = 1e-3, kind: str = "double"):
        norm = bn("n", "x", "y").replace("epsilon = 0.0", f"epsilon = {epsilon}")
        graph = build(f"m ({kind}[2,3,4,4] x) => ({kind}[2,3,4,4] y) {{ {norm} }}", **stats)
        known = known_of(graph, 17)
        (law,) = RULES["BatchNormalization"](graph.graph[0], Port(graph.graph[0].outputs[0], (1,)), known)
        assert isinstance(law, Lift)
        edits = keep(law, Between(gauges), known)
        assert not isinstance(edits, Refusal)
        written = {"gbmv"[edit.index - 1]: edit.array for edit in edits if isinstance(edit, SetOperand)}
        return {key: written.get(key, stats[f"n_{key}"]) for key in "gbmv"}, set(written)

    def gauge(self, scale: list[float], shift: list[float]) -> Gauge:
        return Gauge((1,), (3,), np.array(scale), np.array(shift))

    @pytest.mark.parametrize("ends", ["x", "y", "xy"])
    def test_it_maps_the_stored_input_to_the_stored_output_under_its_statistics(self, ends):
        gauges = {name: self.gauge(*AROUND[name]) for name in ends}
        (a, b), (c, d) = (AROUND[name] if name in ends else (np.ones(3), np.zeros(3)) for name in "xy")
        epsilon = float(np.float32(1e-3))

        now, _ = self.kept(gauges, self.STATS)

        slope, shift = affine_of({key: self.STATS[f"n_{key}"] for key in "gbmv"}, epsilon)
        values = np.random.default_rng(0).normal(size=(5, 3))
        found_slope, found_shift = affine_of(now, epsilon)
        expected = c * (slope * values + shift) + d
        np.testing.assert_allclose(found_slope * (a * values + b) + found_shift, expected, rtol=1e-13, atol=1e-13)
        np.testing.assert_allclose(now["m"], a * self.STATS["n_m"] + b, rtol=1e-15)
        deviation = np.sqrt(self.STATS["n_v"] + epsilon)
        np.testing.assert_allclose(np.sqrt(now["v"] + epsilon), np.abs(a) * deviation, rtol=1e-13)

    def test_what_does_not_change_is_not_written(self):
        assert self.kept({"x": self.gauge([1.0, -1.0, 1.0], [0.0] * 3)}, self.STATS)[1] == {"g", "m"}
        assert self.kept({"y": self.gauge([1.0, 1.0, 1.0], [0.0, 2.0, 0.0])}, self.STATS)[1] == {"b"}

    @pytest.mark.parametrize(
        ("scale", "variance", "kind", "epsilon"),
        [
            ([1e-3, 2.0, 2.0], [1e-9, 1.0, 1.0], np.float64, 1e-3),  # below epsilon: var' would be negative
            ([300.0, 2.0, 2.0], [1.0, 1.0, 1.0], np.float16, 1e-3),  # 9e4 is no half
            ([1e-4, 2.0, 2.0], [1e-2, 1.0, 1.0], np.float16, 0.0),  # nor is 1e-10, but for zero
        ],
    )
    def test_a_variance_that_its_type_cannot_hold_stays_and_gamma_has_the_scale(self, scale, variance, kind, epsilon):
        stats = numbers("n", variance=variance, dtype=kind)
        text = "double" if kind is np.float64 else "float16"

        now, _ = self.kept({"x": self.gauge(scale, [0.0] * 3)}, stats, epsilon, text)

        assert now["v"][0] == stats["n_v"][0] and now["v"].dtype == kind
        np.testing.assert_allclose(now["g"][0], 1.5 / scale[0], rtol=1e-3)
        np.testing.assert_allclose(now["v"][1:], 4.0 + 3 * epsilon, rtol=1e-3)

    def test_a_dead_channel_is_stored_as_one_number_and_puts_out_its_own(self):
        stats = numbers("n", [1.5, 0.0, 2.0])

        now, _ = self.kept({"x": self.gauge([1.0, 0.0, 1.0], [0.0, 7.0, 0.0])}, stats)

        assert now["g"][1] == 0 and now["b"][1] == stats["n_b"][1] and now["v"][1] == 1


class TestStays:
    """A map that cannot go is rewritten for the gauges around it."""

    def test_a_batchnorm_between_two_that_went(self):
        """n2 keeps both ends' maps: the Relus have readers that pin them, so something has to stay."""
        graph = build(
            f"""m (double[2,3,4,4] x) => (double[2,3,4,4] y, double[2,3,4,4] z) {{
                [c] h = Conv (x, w) {bn("n1", "h", "p")} [r] q = Relu (p) [t] z = Tanh (q) {bn("n2", "q", "s")}
                [u] y = Sigmoid (s) }}""",
            w=np.ones((3, 3, 1, 1)),
            **numbers("n1"),
            **numbers("n2"),
        )

        judged = judge(graph, Profile.GENERIC)

        assert [o.verdict for o in judged.report.batchnorms] == [Verdict.FOLDED, Verdict.KEPT]

    @pytest.mark.parametrize(("call", "gain"), [("Mul (h, k)", [2.0, 4.0, 0.5]), ("Div (h, k)", [2.0, 4.0, 0.5])])
    def test_a_mul_that_cannot_hold_a_shift_ties_the_shifts_around_it(self, call, gain):
        """A Mul that stays, with a BatchNormalization behind it: the shift goes through it, scaled, into the Conv."""
        graph = build(
            f"""m (double[2,3,4,4] x) => (double[2,3,4,4] y, double[2,3,4,4] z) {{
                [c] h = Conv (x, w) [op] i = {call} {bn("n", "i", "p")} [t] y = Tanh (p) [e] z = Conv (h, w) }}""",
            w=np.random.default_rng(0).normal(size=(3, 3, 1, 1)),
            k=np.array(gain).reshape(3, 1, 1),
            **numbers("n"),
        )

        judged = judge(graph, Profile.GENERIC)

        assert judged.report.batchnorms[0].verdict is Verdict.FOLDED

    def test_nor_can_it_where_the_shift_is_wanted_at_one_end_only(self):
        """The input is fixed and the Conv pads: a Mul without a shift stays, and the BatchNormalization too."""
        graph = build(
            f"""m (double[2,3,4,4] x) => (double[2,3,4,4] y) {{
                [op] i = Mul (x, k) {bn("n", "i", "p")} [c] y = Conv <pads = [1,1,1,1]> (p, w) }}""",
            w=np.random.default_rng(0).normal(size=(3, 3, 3, 3)),
            k=VECTOR,
            **numbers("n"),
        )

        judged = judge(graph, Profile.GENERIC)

        assert op_types(judged.folded) == ["Add", "Conv"]
        assert judged.report.batchnorms[0].verdict is Verdict.REDUCED

    @pytest.mark.parametrize("opset", [6, 7, 17])
    def test_what_is_left_of_a_batchnorm_is_an_add_in_every_opset(self, opset):
        norm = bn("n", "x", "p") if opset > 6 else bn("n", "x", "p").replace("<", "<is_test = 1, ")
        graph = build(
            f"""m (double[2,3,3,3] x) => (double[2,3,3,3] y) {{
                {norm} [c] y = Conv <pads = [1,1,1,1]> (p, w) }}""",
            opset=opset,
            w=np.random.default_rng(0).normal(size=(3, 3, 3, 3)),
            **numbers("n"),
        )

        folded = judge(graph, Profile.GENERIC).folded

        assert op_types(folded) == ["Add", "Conv"]
        assert constant(folded, "n_add").shape == ((3,) if opset == 6 else (3, 1, 1))


@dataclass(frozen=True)
class Written:
    """A BatchNormalization written out in other operators."""

    id: str
    nodes: str
    constants: dict[str, Array] = field(default_factory=dict)


def column(array: list[float]) -> Array:
    return np.array(array).reshape(-1, 1, 1)


GAMMA, BETA, MEAN, VARIANCE = [1.5, 2.0, -0.5], [0.5, -1.0, 2.0], [0.1, 0.2, -0.3], [1.0, 4.0, 0.25]
DEVIATION = np.sqrt(VARIANCE)
PARTS = dict(
    zip(("g", "b", "m", "v", "d"), map(column, (GAMMA, BETA, MEAN, VARIANCE, DEVIATION.tolist())), strict=True)
)
SLOPE = np.array(GAMMA) / DEVIATION
WRITTEN = [
    Written("Mul, Add", "i = Mul (X, s) Y = Add (i, t)", {"s": column(SLOPE), "t": column(BETA - SLOPE * MEAN)}),
    Written(
        "the constants first", "i = Mul (s, X) Y = Add (t, i)", {"s": column(SLOPE), "t": column(BETA - SLOPE * MEAN)}
    ),
    Written("Mul, Sub", "i = Mul (X, s) Y = Sub (i, t)", {"s": column(SLOPE), "t": column(-(BETA - SLOPE * MEAN))}),
    Written("Sub, Mul, Add", "i = Sub (X, m) j = Mul (i, s) Y = Add (j, b)", PARTS | {"s": column(SLOPE)}),
    Written("Sub, Div, Mul, Add", "i = Sub (X, m) j = Div (i, d) k = Mul (j, g) Y = Add (k, b)", PARTS),
    Written(
        "Div by a square root",
        "e = Sqrt (v) i = Sub (X, m) j = Div (i, e) k = Mul (j, g) Y = Add (k, b)",
        PARTS,
    ),
    Written(
        "FrozenBatchNorm",
        """a = Add (v, eps) c = Sqrt (a) r = Reciprocal (c) s = Mul (g, r) n = Mul (m, s) t = Sub (b, n)
           i = Mul (X, s) Y = Add (i, t)""",
        PARTS | {"eps": np.array(0.0)},
    ),
    Written(
        "vectors reshaped in the graph",
        """s = Reshape (sv, like) t = Reshape (tv, like) i = Mul (X, s) Y = Add (i, t)""",
        {"sv": SLOPE, "tv": BETA - SLOPE * MEAN, "like": np.array([1, -1, 1, 1])},
    ),
    Written(
        "vectors with new axes",
        """s = Unsqueeze (sv, last) t = Unsqueeze (tv, last) i = Mul (X, s) Y = Add (i, t)""",
        {"sv": SLOPE, "tv": BETA - SLOPE * MEAN, "last": np.array([1, 2])},
    ),
]
ENDS = {  # what is around it -> (nodes with NORM from a to b, what is left)
    "behind a Conv": ("a = Conv (x, w) NORM y = Tanh (b)", ["Conv", "Tanh"]),
    "before a Conv": ("a = Tanh (x) NORM y = Conv (b, w)", ["Tanh", "Conv"]),
    "behind a ReLU": ("h = Conv (x, w) a = Relu (h) NORM y = Tanh (b)", ["Conv", "Max", "Min", "Tanh"]),
    "before a ReLU and a Conv": ("h = Tanh (x) a = Identity (h) NORM r = Relu (b) y = Conv (r, w)", None),
    "behind a residual sum": (
        "u = Conv (x, w) r = Relu (u) h = Conv (r, w) a = Add (u, h) NORM y = Tanh (b)",
        ["Conv", "Max", "Min", "Conv", "Add", "Tanh"],
    ),
    "behind pooling": ("h = Conv (x, w) a = AveragePool <kernel_shape = [2, 2]> (h) NORM y = Tanh (b)", None),
    "behind a depthwise Conv": ("a = Conv <group = 3> (x, v1) NORM y = Tanh (b)", ["Conv", "Tanh"]),
}


class TestWrittenOut:
    """What folds as BatchNormalization folds written out in other operators, to the same graph."""

    def model(self, end: str, norm: str, constants: dict[str, Array]) -> ir.Model:
        rng = np.random.default_rng(0)
        weights = {"w": rng.normal(size=(3, 3, 1, 1)), "v1": rng.normal(size=(3, 1, 1, 1))}
        nodes = ENDS[end][0]
        used = {name: array for name, array in weights.items() if f", {name})" in nodes}
        size = 3 if "pooling" in end else 4
        text = f"m (double[2,3,4,4] x) => (double[2,3,{size},{size}] y) {{ {nodes.replace('NORM', norm)} }}"
        return build(text, **used, **constants)

    @pytest.mark.parametrize("written", WRITTEN, ids=lambda w: w.id)
    @pytest.mark.parametrize("end", ENDS)
    def test_the_same_is_left(self, end, written):
        whole = judge(self.model(end, bn("n", "a", "b"), numbers("n", GAMMA, BETA, MEAN, VARIANCE)), Profile.GENERIC)

        judged = judge(self.model(end, renamed(written), prefixed(written)), Profile.GENERIC)

        assert whole.report.count(Verdict.FOLDED) == 1
        assert op_types(judged.folded) == op_types(whole.folded)
        assert ENDS[end][1] in (None, op_types(judged.folded))
        assert all(outcome.verdict is Verdict.FOLDED for outcome in judged.report.affines)


def renamed(written: Written) -> str:
    """Its tensors under names of their own: `n_i` for `i`; between `a` and `b`."""
    text = re.sub(r"\b([a-z]+)\b(?=\s*[,)=])", r"n_\1", written.nodes)
    return re.sub(r"\bX\b", "a", re.sub(r"\bY\b", "b", text))


def prefixed(written: Written) -> dict[str, Array]:
    text = renamed(written)
    return {f"n_{name}": array for name, array in written.constants.items() if f"n_{name}" in text}
