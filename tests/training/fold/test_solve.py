"""Gauges that obey every law and make as many maps as possible the identity."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from tests.training.fold.judge import judge
from tests.training.fold.maps import bn, numbers, posed
from tests.training.fold.models import build, constant, op_types
from training.fold import Profile, Verdict, fold
from training.fold.laws import Clamp
from training.fold.solve import Fate, Policy, Solution, solve

RNG = np.random.default_rng(0)
WEIGHTS = {f"w{i}": RNG.normal(size=(3, 3, 1, 1)) for i in range(5)} | {"k": RNG.normal(size=(3, 3, 3, 3))}


def model(nodes: str, outputs: str = "y", **constants) -> ir.Model:
    results = ", ".join(f"double[2,3,4,4] {name}" for name in outputs.split())
    used = {name: array for name, array in WEIGHTS.items() if f", {name})" in nodes}
    return build(f"m (double[2,3,4,4] x) => ({results}) {{ {nodes} }}", **used, **constants)


def solved(graph: ir.Model, clamps: bool = True, **policy) -> dict[str, Fate]:
    solution = solution_of(graph, clamps, **policy)
    return {solution.problem.lift(tag).node.name or "": fate for tag, fate in solution.fate.items()}


def solution_of(graph: ir.Model, clamps: bool = True, without: str = "", **policy) -> Solution:
    problem, _ = posed(graph)
    barred = frozenset(tag for tag in problem.lifts if problem.lift(tag).node.name == without)
    return solve(problem, Policy(problem.lifts, clamps, without=barred, **policy))


def gauge(solution: Solution, name: str):
    port = next(p for (value, _), p in solution.problem.reached.ports.items() if value.name == name)
    return solution.gauge(port)


CHAIN = f"[c] h = Conv (x, w0) [r] i = Relu (h) {bn('n', 'i', 'p')} [t] y = Tanh (p)"


class TestPolicy:
    @pytest.mark.parametrize(
        ("gamma", "beta", "clamps", "fate"),
        [
            ([1.0, 2.0, 3.0], [0.0] * 3, False, Fate.FOLDED),
            ([1.0, -2.0, 3.0], [0.0] * 3, False, Fate.MUL),
            ([1.0, 2.0, 3.0], [0.0, 1.0, 0.0], False, Fate.ADD),
            ([1.0, -2.0, 3.0], [0.0, 1.0, 0.0], True, Fate.FOLDED),
        ],
    )
    def test_without_clamps_a_relu_lets_positive_scales_pass(self, gamma, beta, clamps, fate):
        graph = model(CHAIN, **numbers("n", gamma, beta, [0.0] * 3))

        assert solved(graph, clamps) == {"n": fate}

    def test_a_lift_that_must_stay_stays_and_leaves_others_alone(self):
        nodes = f"[c] h = Conv (x, w0) {bn('n1', 'h', 'p')} [r] q = Relu (p) {bn('n2', 'q', 's')} [t] y = Tanh (s)"
        graph = model(nodes, **numbers("n1"), **numbers("n2"))

        assert solved(graph, without="n1") == {"n1": Fate.KEPT, "n2": Fate.FOLDED}

    @pytest.mark.parametrize(("reduces", "fate"), [(True, Fate.MUL), (False, Fate.KEPT)])
    def test_a_scale_that_has_no_room_may_stay_as_a_mul(self, reduces, fate):
        """Where both ends are fixed no part of it can go; into a sum behind it the shift can, the scale cannot."""
        nodes = f"[t] h = Tanh (x) {bn('n', 'h', 'p')} [a] q = Abs (p) [s] y = Sigmoid (q)"
        free = f"[t] h = Tanh (x) {bn('n', 'h', 'p')} [e] q = Add (p, x) [c] y = Conv (q, w0)"

        assert solved(model(nodes, **numbers("n")), reduces_to_mul=reduces) == {"n": Fate.KEPT}
        assert solved(model(free, **numbers("n")), reduces_to_mul=reduces) == {"n": fate}

    def test_a_relu_that_need_not_move_does_not(self):
        """The Conv behind takes the whole map: h and i are stored as they were."""
        graph = model(
            f"[c] h = Conv (x, w0) [r] i = Relu (h) {bn('n', 'i', 'p')} [d] y = Conv (p, w1)",
            **numbers("n", [1.0, -2.0, 3.0]),
        )

        solution = solution_of(graph)

        assert not solution.moved and gauge(solution, "p") is not None
        assert solution.problem.tags(Clamp)


class TestDeadChannels:
    """gamma = 0: whatever comes in, beta comes out. The input may be killed where nobody else needs it."""

    DEAD = numbers("n", [1.0, 0.0, 2.0])

    def test_a_conv_of_its_own_gets_zeros_and_the_shift(self):
        judged = judge(model(f"[c] h = Conv (x, w0) {bn('n', 'h', 'y')}", **self.DEAD), Profile.GENERIC)

        assert op_types(judged.folded) == ["Conv"]
        assert not constant(judged.folded, "w0")[1].any() and constant(judged.folded, "w0_bias")[1] == -1.0

    def test_it_is_killed_through_what_passes_it_on(self):
        judged = judge(model(CHAIN, **self.DEAD), Profile.GENERIC)

        assert judged.report.count(Verdict.FOLDED) == 1

    @pytest.mark.parametrize(
        "reader", ["[d] z = Conv (h, w1)", "[d] z = Tanh (h)", "[r] q = Relu (h) [d] z = Conv (q, w1)"]
    )
    def test_not_where_another_reads_it_and_the_output_is_read_as_it_is(self, reader):
        graph = model(f"[c] h = Conv (x, w0) {bn('n', 'h', 'p')} [e] y = Tanh (p) {reader}", "y z", **self.DEAD)

        assert judge(graph, Profile.GENERIC).report.count(Verdict.FOLDED) == 0

    def test_not_where_another_batchnorm_reads_it_that_stays(self):
        nodes = (
            f"""[c] h = Conv (x, w0) {bn("n", "h", "p")} {bn("n2", "h", "q")} [t] y = Tanh (p) [s] z = Sigmoid (q)"""
        )
        graph = model(nodes, "y z", **self.DEAD, **numbers("n2", [1.0, 3.0, 2.0]))

        report = judge(graph, Profile.GENERIC).report

        assert {o.name: o.verdict for o in report.batchnorms} == {"n": Verdict.KEPT, "n2": Verdict.FOLDED}

    @pytest.mark.parametrize("order", ["forth", "back"])
    def test_two_that_want_nothing_of_a_channel_do_not_want_it_of_each_other(self, order):
        """The living channels of h are scaled alike by both."""
        maps = [bn("n", "h", "p"), bn("n2", "h", "q")][:: 1 if order == "forth" else -1]
        graph = model(
            f"[c] h = Conv (x, w0) {' '.join(maps)} [t] y = Tanh (p) [s] z = Sigmoid (q)",
            "y z",
            **self.DEAD,
            **numbers("n2", [1.0, 0.0, 2.0]),
        )

        judged = judge(graph, Profile.GENERIC)

        assert judged.report.count(Verdict.FOLDED) == 2 and not constant(judged.folded, "w0")[1].any()

    def test_one_that_folds_leaves_what_it_read_to_another(self):
        """n wants h dead in channel 1, which n2 reads; n2 goes after it, for n3 wants nothing of that channel."""
        nodes = f"[c] h = Conv (x, w0) {bn('n', 'h', 'p')} {bn('n2', 'h', 'q')} {bn('n3', 'q', 'o')}"
        graph = model(
            f"{nodes} [t] y = Tanh (p) [s] z = Sigmoid (o)",
            "y z",
            **numbers("n", [1.0, 0.0, 0.0], mean=[0.0] * 3),
            **numbers("n2", [1.0, 5.0, 0.0], [0.0] * 3, [0.0] * 3),
            **numbers("n3", [1.0, 0.0, 0.0], mean=[0.0] * 3),
        )

        assert solved(graph) == {"n": Fate.FOLDED, "n2": Fate.FOLDED, "n3": Fate.FOLDED}

    def test_what_stays_keeps_nothing_that_was_killed_from_it(self):
        """n2 stays for its living channels, and does not read the dead one."""
        nodes = f"[c] h = Conv (x, w0) {bn('n', 'h', 'p')} {bn('n2', 'h', 'q')} [t] y = Tanh (p) [s] z = Sigmoid (q)"
        graph = model(nodes, "y z", **self.DEAD, **numbers("n2", [4.0, 0.0, 9.0]))

        report = judge(graph, Profile.GENERIC).report

        assert [o.verdict for o in report.batchnorms] == [Verdict.FOLDED, Verdict.KEPT]

    def test_all_channels_may_be_dead(self):
        graph = model(f"[c] h = Conv (x, w0) {bn('n', 'h', 'y')}", **numbers("n", [0.0] * 3))

        assert judge(graph, Profile.GENERIC).report.count(Verdict.FOLDED) == 1


class TestUnread:
    """gamma = 0 behind what cannot be killed: its readers are told the constant, and ignore what is stored instead."""

    DEAD = numbers("n", [1.5, 0.0, 2.0], [0.5, 0.7, 2.0], [0.0] * 3)
    ZERO = numbers("n", [1.5, 0.0, 2.0], [0.0, 0.0, 0.0], [0.0] * 3)

    @pytest.mark.parametrize(
        ("nodes", "ops"),
        [
            ("[c] y = Conv (p, w0)", "Conv"),
            ("[r] q = Relu (p) [c] y = Conv (q, w0)", "Max Conv"),
            ("[l] q = Clip (p, zero, six) [c] y = Conv (q, w0)", "Max Min Conv"),
            ("[m] q = MaxPool <kernel_shape=[1,1]> (p) [c] y = Conv (q, w0)", "MaxPool Conv"),
            ("[a] q = Add (p, p) [c] y = Conv (q, w0)", "Add Conv"),
            ("[a] q = Sub (p, p) [c] y = Conv (q, w0)", "Sub Conv"),
            ("[a] q = Max (p, p) [c] y = Conv (q, w0)", "Max Conv"),
            ("[a] q = Neg (p) [c] y = Conv (q, w0)", "Neg Conv"),
            ("[c] y = Conv (p, w0) [d] z = Conv (p, w1) [t] o = Tanh (x)", "Conv Conv Tanh"),
            (f"{bn('n2', 'p', 'q')} [c] y = Conv (q, w0)", "Conv"),
            ("[s] a, b = Split <axis=1> (p, sizes) [j] q = Concat <axis=1> (b, a) [c] y = Conv (q, w0)",
             "Split Concat Conv"),
        ],
    )  # fmt: skip
    def test_a_graph_input_may_be_in_its_place(self, nodes, ops):
        outputs = " ".join(name for name in ("y", "z", "o") if f" {name} = " in nodes)
        more = {"zero": np.array(0.0), "six": np.array(6.0)} if "six" in nodes else {}
        more |= {"sizes": np.array([1, 2])} if "sizes" in nodes else {}
        more |= numbers("n2", [-2.0, 3.0, 1.0]) if "n2" in nodes else {}

        judged = judge(model(f"{bn('n', 'x', 'p')} {nodes}", outputs, **self.DEAD, **more), Profile.GENERIC)

        assert op_types(judged.folded) == ops.split()
        assert judged.report.count(Verdict.FOLDED) == len(judged.report.batchnorms)

    def test_the_reader_has_a_weight_of_zero_there_and_the_constant_in_its_bias(self):
        folded = judge(model(f"{bn('n', 'x', 'p')} [c] y = Conv (p, w0)", **self.DEAD), Profile.GENERIC).folded

        weight = WEIGHTS["w0"][:, :, 0, 0]
        assert not constant(folded, "w0")[:, 1].any()
        np.testing.assert_allclose(constant(folded, "w0_bias"), weight @ [0.5, 0.7, 2.0])

    def test_a_function_of_it_is_told_in_its_place(self):
        nodes = f"{bn('n', 'x', 'p')} [l] q = Clip (p, zero, small) [c] y = Conv (q, w0)"
        bounds = {"zero": np.array(0.0), "small": np.array(0.25)}

        folded = judge(model(nodes, **self.DEAD, **bounds), Profile.GENERIC).folded

        np.testing.assert_allclose(
            constant(folded, "w0_bias"), WEIGHTS["w0"][:, :, 0, 0] @ [0.5, 0.25, 2.0], rtol=1e-12
        )

    @pytest.mark.parametrize(
        ("nodes", "why"),
        [
            ("[t] y = Tanh (p) [c] z = Conv (p, w0)", "Tanh 't' takes 'p' only as it is"),
            ("[c] z = Conv (p, w0) [i] y = Identity (p)", "'y' is a graph output"),
            ("[c] y = Conv <pads = [1, 1, 1, 1]> (p, k)", "Conv 'c' pads 'p' with zeros"),
            ("[r] q = Relu (p) [c] y = Conv <pads = [1, 1, 1, 1]> (q, k)", "Conv 'c' pads 'q' with zeros"),
            ("[l] q = LeakyRelu (p) [c] y = Conv (q, w0)", "LeakyRelu 'l' lets no shift"),
            ("[s] a = Sigmoid (x) [j] q = Add (p, a) [c] y = Conv (q, w0)", "Add 'j' adds what is no constant"),
            ("[w] q = Where (mask, p, low) [c] y = Conv (q, w0)", "Where 'w' puts infinities into 'q'"),
        ],
    )
    def test_not_where_a_reader_needs_it_or_could_not_tell_it_from_what_is_stored(self, nodes, why):
        outputs = "y z" if " z = " in nodes else "y"
        more = {"mask": np.array([[True, False, True, True]]), "low": np.array(-np.inf)} if "mask" in nodes else {}
        alone = numbers("n", [1.0, 0.0, 1.0], [0.5, 0.7, 2.0], [0.0] * 3)  # the living channels would go
        graph = model(f"{bn('n', 'x', 'p')} {nodes}", outputs, **alone, **more)

        (found,) = solution_of(graph).fate.values()

        assert found is not Fate.FOLDED
        if not more:  # infinities times weights are no numbers to judge by
            assert why in judge(graph, Profile.GENERIC).report.batchnorms[0].reason

    @pytest.mark.parametrize(
        "nodes",
        [
            "[c] y = Conv <pads = [1, 1, 1, 1]> (p, k)",
            "[l] q = LeakyRelu (p) [c] y = Conv (q, w0)",
            "[a] q = AveragePool <kernel_shape=[3,3], pads=[1,1,1,1], count_include_pad=1> (p) [c] y = Conv (q, w0)",
            "[s] g = Sigmoid (x) [m] q = Mul (p, g) [c] y = Conv (q, w0)",
        ],
    )
    def test_a_constant_of_zero_passes_what_lets_no_shift_pass(self, nodes):
        judged = judge(model(f"{bn('n', 'x', 'p')} {nodes}", **self.ZERO), Profile.GENERIC)

        assert judged.report.count(Verdict.FOLDED) == 1

    def test_a_sum_of_two_such_is_one(self):
        """The living channels of both are stored as x is."""
        nodes = f"{bn('n', 'x', 'p')} {bn('n2', 'x', 'q')} [a] s = Sub (p, q) [c] y = Conv (s, w0)"

        judged = judge(model(nodes, **self.DEAD, **numbers("n2", [1.5, 0.0, 2.0])), Profile.GENERIC)

        assert op_types(judged.folded) == ["Sub", "Conv"]

    def test_but_a_sum_with_what_is_read_is_none(self):
        nodes = f"{bn('n', 'x', 'p')} {bn('n2', 'x', 'q')} [a] s = Sub (p, q) [c] y = Conv (s, w0)"

        judged = judge(model(nodes, **self.DEAD, **numbers("n2", [1.5, 1.0, 2.0])), Profile.GENERIC)

        assert judged.report.count(Verdict.FOLDED) == 1

    def test_a_map_of_it_that_stays_has_its_own_constant(self):
        """n2 stays, for its living channels; where n puts out a number, so does n2, and a Conv is told that."""
        nodes = f"{bn('n', 'x', 'p')} {bn('n2', 'p', 'q')} [c] y = Conv (p, w0) [d] z = Conv (q, w1)"
        graph = model(nodes, "y z", **self.DEAD, **numbers("n2", [3.0, 5.0, 4.0]))

        fates = solved(graph, without="n2")

        assert fates == {"n": Fate.FOLDED, "n2": Fate.KEPT}
        assert judge(graph, Profile.GENERIC).report.count(Verdict.FOLDED) == 2

    @pytest.mark.parametrize("profile", Profile)
    def test_a_graph_in_which_nothing_folds_is_left_alone(self, profile):
        """n stays for its living channels, so that the Conv goes on reading the dead one."""
        nodes = f"{bn('n', 'x', 'p')} [s] e = Softmax <axis = -1> (x) [m] q = Max (p, e) [c] y = Conv (p, w0)"
        graph = model(f"{nodes} [t] z = Tanh (q)", "y z", **numbers("n", [3.0, 0.0, 2.0]))

        assert not judge(graph, profile).report.changed

    def test_in_half_precision_a_constant_that_overflows_stays(self):
        constants = numbers("n", [1.0, 0.0, 1.0], [0.0, 6e4, 0.0], [0.0] * 3, dtype=np.float16)
        graph = build(
            f"m (float16[2,3,4,4] x) => (float16[2,3,4,4] y) {{ {bn('n', 'x', 'p')} [c] y = Conv (p, w) }}",
            w=np.full((3, 3, 1, 1), 4, np.float16),
            **constants,
        )

        report = fold(graph, Profile.GENERIC)[1]

        assert "not finite in float16" in report.batchnorms[0].reason


class TestResidualStreams:
    """Pre-activation: each block's BatchNormalization reads the stream; shifts go backwards into some summand."""

    def stream(self, blocks: int, stem: str = "[stem] s0 = Conv (x, w0)", end: str = "Tanh") -> ir.Model:
        nodes, stats = [stem], {}
        for i in range(blocks):
            nodes.append(
                f"""{bn(f"n{i}", f"s{i}", f"p{i}")} [r{i}] q{i} = Relu (p{i}) [c{i}] h{i} = Conv (q{i}, w{i + 1})
                    [a{i}] s{i + 1} = Add (s{i}, h{i})"""
            )
            stats |= numbers(f"n{i}", [1.0 + i, 2.0, 0.5], [0.5, -1.0, 2.0 + i])
        nodes.append(f"[end] y = {end} (s{blocks})" if end == "Tanh" else f"[end] y = Conv (s{blocks}, w4)")
        return model(" ".join(nodes), **stats)

    def test_every_block_but_those_that_contradict_folds_with_a_free_stem_and_end(self):
        judged = judge(self.stream(3, end="Conv"), Profile.GENERIC)

        assert judged.report.count(Verdict.KEPT) == 0 and "BatchNormalization" not in op_types(judged.folded)

    def test_a_stream_that_is_pinned_at_its_end_takes_shifts_all_the_same(self):
        judged = judge(self.stream(1), Profile.GENERIC)

        assert judged.report.batchnorms[0].verdict is Verdict.FOLDED

    def test_a_padded_branch_lets_the_shift_go_backwards_only(self):
        nodes = f"""[stem] s = Conv (x, w0) [t] r = Relu (s) [c] h = Conv (r, w1) [add] a = Add (s, h)
            {bn("n", "a", "p")} [d] y = Conv <pads = [1, 1, 1, 1]> (p, k)"""

        judged = judge(model(nodes, **numbers("n")), Profile.GENERIC)

        assert judged.report.batchnorms[0].verdict is Verdict.FOLDED
        assert op_types(judged.folded)[-1] == "Conv" and "BatchNormalization" not in op_types(judged.folded)


class TestMul:
    """A Mul that stays can hold no shift: `b_y = m b_x` ties the tensors around it."""

    SHARED = f"""[c] h = Conv (x, w0) [m] i = Mul (h, g) {bn("n", "i", "p")} [t] y = Tanh (p) [s] z = Sigmoid (h)"""

    def test_a_shift_that_would_have_to_stay_in_it_is_refused(self):
        graph = model(self.SHARED, "y z", g=np.array([2.0, 3.0, 4.0]).reshape(3, 1, 1), **numbers("n"))

        report = judge(graph, Profile.GENERIC).report

        assert report.batchnorms[0].verdict is not Verdict.FOLDED and report.batchnorms[0].reason


@pytest.mark.parametrize("seed", range(6))
def test_the_order_of_wishes_decides_only_which_of_those_that_exclude_each_other_fold(seed):
    """Scales are a matroid: as many lifts lose their scale in any order."""
    nodes = f"""[c] h = Conv (x, w0) {bn("n0", "h", "p")} {bn("n1", "h", "q")} {bn("n2", "h", "o")}
        [e0] a = Tanh (p) [e1] b = Sigmoid (q) [e2] d = Tanh (o) [add] y = Sum (a, b, d)"""
    stats = numbers("n0") | numbers("n1", [3.0, 4.0, 5.0]) | numbers("n2", [7.0, 6.0, -5.0])
    problem, _ = posed(model(nodes, **stats))
    order = np.random.default_rng(seed).permutation(problem.lifts).tolist()

    fates = solve(problem, Policy(tuple(order), clamps=True)).fate

    assert fates[order[0]] is Fate.FOLDED and [fates[tag] for tag in order[1:]] == [Fate.KEPT] * 2


def test_what_is_pinned_is_stored_exactly_as_it_was():
    """Not but for a rounding error: 3 * (1/3) is not always 1."""
    stats = numbers("n1", [1 / 3, 0.1, 7.3]) | numbers("n2", [0.7, 1 / 7, 3.3])
    nodes = f"[c] h = Conv (x, w0) {bn('n1', 'h', 'p')} [r] q = LeakyRelu (p) {bn('n2', 'q', 's')} [t] y = Tanh (s)"

    solution = solution_of(model(nodes, **stats))

    assert gauge(solution, "s") is None
