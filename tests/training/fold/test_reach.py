"""Who is asked about which tensor, and what becomes of an answer."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from tests.training.fold.judge import judge
from tests.training.fold.maps import bn, numbers, reached_from
from tests.training.fold.models import build, serialized
from tests.training.fold.random_graphs import random_model
from training.fold import Profile, Verdict, driver, fold, lift, linear
from training.fold.driver import known_of
from training.fold.laws import Clamp, Equal, Free, Lift, Pinned, Port, Positive, Sum
from training.fold.operators import RULES
from training.fold.reach import Reach, Reached
from training.fold.refusal import Refusal

W = np.ones((3, 3, 1))


def model(nodes: str, results: str = "double[2,3,4] y", inputs: str = "double[2,3,4] x", **constants) -> ir.Model:
    used = {"w": W} if ", w)" in nodes else {}
    return build(f"m ({inputs}) => ({results}) {{ {nodes} }}", **used, **constants, **numbers("n"))


def pins(model: ir.Model, *starts: tuple[str, tuple[int, ...]]) -> dict[str, str]:
    reached, _ = reached_from(model, starts or [("n", (1,))])
    laws = [statement.law for statement in reached.statements]
    return {law.port.value.name or "": law.reason for law in laws if isinstance(law, Pinned)}


def kinds(reached: Reached) -> list[type]:
    return [type(statement.law) for statement in reached.statements]


class TestWalk:
    def test_it_goes_both_ways_and_stops_where_operators_hold_the_rest(self):
        graph = model(
            f"[a] s = Conv (x, w) [b] h = Conv (s, w) {bn('n', 'h', 'p')} [c] q = Conv (p, w) y = Conv (q, w)"
        )

        reached, _ = reached_from(graph, [("n", (1,))])

        assert {value.name for value, reader in reached.ports if reader is None} == {"h", "p"}

    @pytest.mark.parametrize(
        ("more", "expected"),
        [
            (
                lambda port: (Positive(port, "r"),),
                [("a", "p"), ("a", "x"), ("b", "p"), ("b", "q"), ("c", "q"), ("c", "y")],
            ),
            (lambda port: (), [("a", "p"), ("b", "q"), ("c", "q")]),  # each spoke of both its tensors
        ],
    )
    def test_a_node_is_asked_once_for_each_tensor_that_it_has_not_spoken_for(self, more, expected):
        asked = []

        def rule(node, port, known):
            asked.append((node.name, port.value.name))
            return (Equal(Port(node.inputs[0], (1,)), Port(node.outputs[0], (1,))), *more(port))

        graph = build(
            "m (double[2,3] x) => (double[2,3] y) { [a] p = Relu (x) [b] q = Relu (p) [c] y = Relu (q) }",
        )
        reached = Reached()
        walk = Reach({"Relu": rule}, known_of(graph, 17, reached), reached)
        walk.start(graph.graph[1], graph.graph[1].outputs[0], (1,))
        walk.run()

        assert sorted(asked) == expected

    def test_a_node_that_left_a_tensor_out_is_asked_about_that_one_too(self):
        asked = []

        def rule(node, port, known):
            asked.append(port.value.name)
            mine = node.inputs if port.value is node.outputs[0] else [port.value]
            return tuple(Equal(Port(operand, (1,)), Port(node.outputs[0], (1,))) for operand in mine)

        graph = build("m (double[2,3] x, double[2,3] z) => (double[2,3] y) { [a] y = Mean (x, z) }")
        reached = Reached()
        walk = Reach({"Mean": rule}, known_of(graph, 17, reached), reached)
        walk.start(graph.graph[0], graph.graph.inputs[0], (1,))
        walk.run()

        assert asked == ["x", "y"] and reached.axes_of(graph.graph.inputs[1]) == (1,)

    @pytest.mark.parametrize(("call", "kind"), [("Relu (h)", Clamp), ("Add (h, x)", Sum)])
    def test_what_a_node_says_from_each_side_is_stated_once(self, call, kind):
        graph = model(f"[c] h = Conv (x, w) [op] i = {call} {bn('n', 'i', 'p')} [t] y = Tanh (p)")

        reached, _ = reached_from(graph, [("n", (1,))])

        assert kinds(reached).count(kind) == 1 and kinds(reached).count(Lift) == 1

    def test_a_tensor_that_a_node_reads_twice_is_one_port(self):
        graph = model(f"[c] h = Conv (x, w) [add] i = Add (h, h) {bn('n', 'i', 'p')} [t] y = Tanh (p)")

        reached, _ = reached_from(graph, [("n", (1,))])

        assert [value.name for value, _ in reached.ports].count("h") == 1

    def test_a_constant_is_a_port_of_its_reader_and_nobody_is_asked_about_it(self):
        nodes = f"""[cat] i = Concat <axis = 2> (x, k) [z] z = Relu (k) {bn("n", "i", "p")} [t] y = Tanh (p)"""
        graph = model(nodes, "double[2,3,5] y, double[2,3,1] z", k=np.ones((2, 3, 1)))

        reached, _ = reached_from(graph, [("n", (1,))])

        readers = {value.name: reader.name for value, reader in reached.ports if reader is not None}
        assert readers == {"k": "cat"}
        assert all(s.node is None or s.node.name != "z" for s in reached.statements)

    def test_a_start_without_a_known_size_says_so(self):
        graph = build("m (double[N,C,4] x) => (double[N,C,4] y) { [r] y = Relu (x) }")
        reached = Reached()
        walk = Reach({}, known_of(graph, 17, reached), reached)

        refused = walk.start(graph.graph[0], graph.graph[0].outputs[0], (1,))

        assert refused == Refusal("the size of 'y' of Relu 'r' along axis (1,) is not known") and not reached.ports

    def test_demands_are_what_is_said_of_tensors_that_are_read(self):
        graph = model(f"[a] h = Conv (x, w) {bn('n', 'h', 'p')} [b] y = Conv (p, w)")

        reached, _ = reached_from(graph, [("n", (1,))])

        free = {s.node.name: s.is_demand for s in reached.statements if isinstance(s.law, Free) and s.node}
        assert free == {"a": False, "b": True}


class TestPlaces:
    """What holds by a tensor's place in the model, whatever operators say."""

    def test_inputs_and_outputs_of_the_graph_are_fixed(self):
        assert pins(model(bn("n", "x", "y"))) == {"x": "'x' is a graph input", "y": "'y' is a graph output"}

    def test_an_initializer_that_is_also_an_input_is_fixed(self):
        graph = build(
            f"m (double[2,3,4] x, double[2,3,4] k) => (double[2,3,4] y) {{ s = Add (x, k) {bn('n', 's', 'y')} }}",
            k=np.ones((2, 3, 4)),
            **numbers("n"),
        )

        assert pins(graph)["k"] == "'k' is a graph input"

    def test_what_a_subgraph_reads_is_fixed(self):
        nodes = f"""[c] h = Conv (x, w) {bn("n", "h", "y")}
            z = If (b) <then_branch = one () => (double[2,3,4] i) {{ [deep] i = Tanh (h) }},
                        else_branch = two () => (double[2,3,4] j) {{ j = Abs (y) }}>"""
        graph = model(nodes, "double[2,3,4] y, double[2,3,4] z", "double[2,3,4] x, bool b")

        assert pins(graph)["h"] == "'h' is read inside a subgraph, by Tanh 'deep'"

    def test_only_floating_point_tensors_move(self):
        graph = build("m (int32[2,3] x) => (int32[2,3] y) { [a] i = Abs (x) [b] y = Abs (i) }")

        assert pins(graph, ("a", (1,)))["i"] == "'i' is not a floating-point tensor"


class TestOperatorsWithoutARule:
    def test_they_take_it_as_it_is(self):
        assert pins(model(f"[t] h = Tanh (x) {bn('n', 'h', 'y')}"))["h"] == "Tanh 't' takes 'h' only as it is"

    def test_so_do_other_domains_whatever_their_operators_are_called(self):
        graph = model(f"[c] h = Conv (x, w) {bn('n', 'h', 'p')} [r] y = own.Relu (p)")

        assert pins(graph)["p"].endswith("Relu 'r' takes 'p' only as it is")

    def test_a_refusal_pins_with_its_reason(self):
        graph = model(
            f"[c] h = Conv (x, w) [clip] i = Clip (h, low) {bn('n', 'i', 'y')}",
            inputs="double[2,3,4] x, double low",
        )

        assert pins(graph)["i"] == "'low', a bound of Clip 'clip', is not one constant number"


class TestAxes:
    """A tensor is stored along one set of axes: who comes first, has it."""

    def test_the_other_refuses_and_both_tensors_are_fixed(self):
        graph = model(f"[c] h = Conv (x, w) {bn('n', 'h', 'p')} [d] y = Conv (p, w)")

        reasons = pins(graph, ("c", (2,)), ("n", (1,)))

        assert "axis (2,)" in reasons["h"]
        assert reasons["p"] == "'h' of BatchNormalization 'n' is stored along axis (2,), not (1,)"

    def test_of_two_maps_along_two_axes_each_has_its_side_or_stays(self):
        graph = build(
            f"""m (double[2,3,4] x) => (double[2,3,5] y) {{
                [c] h = Conv (x, k) {bn("n", "h", "p")} [mul] q = Mul (p, s) [mm] y = MatMul (q, w) }}""",
            k=np.random.default_rng(0).normal(size=(3, 3, 1)),
            w=np.random.default_rng(0).normal(size=(4, 5)),
            s=np.array([1.0, 2.0, -3.0, 0.5]),
            **numbers("n"),
        )

        report = judge(graph, Profile.GENERIC).report

        assert report.batchnorms[0].verdict is Verdict.FOLDED and report.batchnorms[0].into == ("c",)
        assert report.affines[0].verdict is Verdict.FOLDED  # in the next pass, when nobody stands on axis 1 any more

    def test_sizes_that_coincide_do_not_confuse_axes(self):
        graph = build(
            f"""m (double[3,3,3] x) => (double[3,3,3] y) {{
                [c] h = Conv (x, k) {bn("n", "h", "p")} [mm] y = MatMul (p, w) }}""",
            k=np.random.default_rng(0).normal(size=(3, 3, 1)),
            w=np.random.default_rng(1).normal(size=(3, 3)),
            **numbers("n"),
        )

        assert judge(graph, Profile.GENERIC).report.batchnorms[0].into == ("c",)

    def test_one_tensor_along_two_axes_in_one_node_is_refused_or_exact(self):
        graph = build(
            f"""m (double[3,3] x) => (double[3,3] y) {{ [g] h = Gemm (x, w) {bn("n", "h", "p")}
                [mm] q = MatMul (p, p) [t] y = Tanh (q) }}""",
            w=np.random.default_rng(0).normal(size=(3, 3)),
            **numbers("n"),
        )

        assert judge(graph, Profile.GENERIC).report.batchnorms[0].into == ("g",)


class TestRows:
    """Deleting one row of the tables changes only graphs that contain that operator: nothing else knows of it."""

    @pytest.mark.parametrize("seeds", [range(15), range(15, 30), range(30, 45)])
    def test_without_rows_that_a_graph_does_not_need_it_comes_out_the_same_to_the_byte(self, seeds, monkeypatch):
        """All at once, which is each of them: a rule that another's answer depended on would be missed."""
        for graph in map(random_model, seeds):
            folded, report = fold(graph, "generic")
            needed = {node.op_type for one in (graph, folded) for node in one.graph.all_nodes()}
            rows = {k: v for k, v in RULES.items() if k in needed | set(lift.RULES) | set(linear.RULES)}
            assert len(rows) < len(RULES)
            with monkeypatch.context() as patch:
                patch.setattr(driver, "RULES", rows)
                again, second = fold(graph, "generic")
            assert serialized(again) == serialized(folded) and second == report

    @pytest.mark.parametrize("op_type", ["Clip", "MaxPool", "Transpose", "Relu", "Neg"])
    def test_and_with_the_operator_it_pins_what_it_touches(self, op_type, monkeypatch):
        call = {
            "Clip": "Clip (h)",
            "MaxPool": "MaxPool <kernel_shape = [1]> (h)",
            "Transpose": "Transpose <perm = [0, 1, 2]> (h)",
        }.get(op_type, f"{op_type} (h)")
        graph = model(f"[c] h = Conv (x, w) [op] i = {call} {bn('n', 'i', 'p')} [t] y = Tanh (p)")
        assert fold(graph, "generic")[1].batchnorms[0].verdict is Verdict.FOLDED

        monkeypatch.setattr(driver, "RULES", {k: v for k, v in RULES.items() if k != op_type})

        reason = judge(graph, Profile.GENERIC).report.batchnorms[0].reason
        assert reason == (
            f"its scale can go neither way: {op_type} 'op' takes 'i' only as it is; Tanh 't' takes 'p' only as it is"
        )
