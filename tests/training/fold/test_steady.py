"""Entries that hold one number whatever is fed: found where they are, and only there, by evaluating the graph."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from tests.training.fold.maps import bn, numbers, posed
from tests.training.fold.models import build
from tests.training.fold.oracle import feeds_for
from tests.training.fold.random_graphs import Graph, random_model
from training.fold.laws import Port
from training.fold.problem import Problem
from training.reference import evaluate

DEAD = numbers("n", [1.5, 0.0, 0.0], [0.5, 0.75, -2.0], [0.0] * 3)


def problem(nodes: str, **constants) -> Problem:
    """`p` is x, but for channels 1 and 2, which are 0.75 and -2; y has no shape of its own."""
    graph = build(f"m (double[2,3,4,4] x) => (double y) {{ {bn('n', 'x', 'p')} {nodes} }}", **DEAD, **constants)
    graph.graph.outputs[0].shape = None
    return posed(graph)[0]


def port_of(problem: Problem, name: str) -> Port:
    return next(port for (value, _), port in problem.reached.ports.items() if value.name == name)


def held(problem: Problem, name: str) -> list[float | None]:
    return [None if np.isnan(number) else float(number) for number in problem.numbers(port_of(problem, name))]


SIX = {"low": np.array(-1.0), "high": np.array(0.5)}
OTHERS = numbers("o", [0.0, 2.0, 0.0], [4.0, 1.0, -2.0], [0.0] * 3)


class TestNumbers:
    """What q holds."""

    @pytest.mark.parametrize(
        ("nodes", "expected", "constants"),
        [
            ("[r] q = Relu (p)", [None, 0.75, 0.0], {}),
            ("[r] q = Clip (p, low, high)", [None, 0.5, -1.0], SIX),
            ("[r] q = Max (p, k)", [None, 0.75, 3.0], {"k": np.array([1.0, 0.0, 3.0]).reshape(3, 1, 1)}),
            ("[r] q = Max (p, k)", [None, None, None], {"k": np.arange(4.0)}),  # another in every column
            ("[r] q = Neg (p)", [None, -0.75, 2.0], {}),
            ("[r] q = Add (p, p)", [None, 1.5, -4.0], {}),
            ("[r] q = Mean (p, x)", [None, None, None], {}),
            ("[r] q = Mul (p, k)", [None, 1.5, -2.0], {"k": np.array([0.5, 2.0, 1.0]).reshape(3, 1, 1)}),
            ("[r] q = Mul (p, k)", [None, 0.0, -2.0], {"k": np.array([0.5, 0.0, 1.0]).reshape(3, 1, 1)}),
            ("[r] q = Sub (p, k)", [None, -0.25, -3.0], {"k": np.array(1.0)}),
            (bn("o", "p", "q"), [4.0, 2.5, -2.0], OTHERS),
            ("[r] q = Slice (p, one, three, one)", [0.75, -2.0], {"one": np.array([1]), "three": np.array([3])}),
            ("[r] q = Gather <axis = 1> (p, at)", [-2.0, None, -2.0], {"at": np.array([2, 0, 2])}),
            (f"{bn('o', 'x', 'o')} [r] q = Concat <axis = 1> (p, o)", [None, 0.75, -2.0, 4.0, None, -2.0], OTHERS),
            (f"{bn('o', 'x', 'o')} [r] q = Concat <axis = 2> (p, o)", [None, None, -2.0], OTHERS),
            (f"{bn('o', 'x', 'o')} [r] q = Max (p, o)", [None, None, -2.0], OTHERS),
            ("[r] q = AveragePool <kernel_shape = [2, 2]> (p)", [None, 0.75, -2.0], {}),
            ("[r] q = AveragePool <kernel_shape = [2, 2], pads = [1, 1, 1, 1], count_include_pad = 1> (p)",
             [None, None, None], {}),
            ("[r] q = LeakyRelu (p)", [None, None, None], {}),
            ("[s] g = Sigmoid (x) [r] q = Mul (p, g)", [None, None, None], {}),
            (f"[s] g = Sigmoid (x) {bn('o', 'x', 'o')} [r] q = Mul (o, g)", [None, None, 0.0],
             numbers("o", [1.0, 2.0, 0.0], [4.0, 1.0, 0.0], [0.0] * 3)),
            ("[r] q = Pad (p, margins)", [None, None, None], {"margins": np.array([0, 0, 1, 1, 0, 0, 0, 0])}),
            ("[r] q = Pad (p, margins, low)", [None, None, None],
             {"margins": np.array([0, 0, 1, 1, 0, 0, 0, 0]), "low": np.array(-np.inf)}),
            ("[r] q = Pad (p, margins)", [None, None, 0.75, -2.0, None],
             {"margins": np.array([0, 1, 0, 0, 0, 1, 0, 0])}),
            ("[r] q = Pad (p, margins, low)", [0.75, -2.0, None],
             {"margins": np.array([0, -1, 0, 0, 0, 1, 0, 0]), "low": np.array(np.inf)}),
            (f"{bn('o', 'x', 'o')} [r] q = Pad (o, margins)", [None, 0.0, None, -2.0],
             {"margins": np.array([0, 1, 0, 0, 0, 0, 0, 0])} | numbers("o", [0, 1, 0], [0, 2, -2], [0.0] * 3)),
            (f"{bn('o', 'x', 'o')} [r] q = Pad (o, margins)", [None, 0.0, None, None],
             {"margins": np.array([0, 1, 1, 0, 0, 0, 0, 0])} | numbers("o", [0, 1, 0], [0, 2, -2], [0.0] * 3)),
            ('[r] q = Pad <mode = "edge"> (p, margins)', [None, 0.75, -2.0],
             {"margins": np.array([0, 0, 1, 1, 0, 0, 0, 0])}),
        ],
    )  # fmt: skip
    def test_of_operators(self, nodes, expected, constants):
        assert held(problem(f"{nodes} [end] y = Identity (q)", **constants), "q") == expected

    @pytest.mark.parametrize("first", range(0, 400, 40))
    def test_they_are_what_random_graphs_compute(self, first):
        found = 0
        for seed in range(first, first + 40):
            if Graph(seed).pruned:
                found += numbers_that_hold(random_model(seed), seed)
        assert found > 0


def numbers_that_hold(model: ir.Model, seed: int) -> int:
    """Assert of every number that the tensor has it throughout, on noise; return how many there were."""
    posed_, _ = posed(model)
    feeds = feeds_for(model, np.random.default_rng(seed))
    ports = [port for port in posed_.reached.ports.values() if port.reader is None]
    ports = [port for port in ports if not np.isnan(posed_.numbers(port)).all() and port.value.producer() is not None]
    outputs = list(model.graph.outputs)
    model.graph.outputs.extend(port.value for port in ports if port.value not in outputs)
    answer = evaluate(model, feeds)
    count = 0
    for port in ports:
        tensor = np.moveaxis(answer[port.value.name or ""], port.axes, range(len(port.axes)))
        tensor = tensor.reshape(len(posed_.numbers(port)), -1)
        for entry, number in zip(tensor, posed_.numbers(port), strict=True):
            if not np.isnan(number):
                np.testing.assert_allclose(entry, number, rtol=1e-9, atol=1e-300)
                count += 1
    return count


class TestUnread:
    """Which of them nobody has to read."""

    def unread(self, posed: Problem, name: str) -> list[bool]:
        return (posed.unread[posed.classes(port_of(posed, name))] >= 0).tolist()

    def test_where_those_who_read_it_can_be_told(self):
        found = problem("[r] q = Relu (p) [c] y = Conv (q, w)", w=np.ones((3, 3, 1, 1)))

        assert self.unread(found, "p") == self.unread(found, "q") == [False, True, True]
        assert self.unread(found, "x") == [False] * 3

    def test_a_number_of_zero_may_be_padded_with_zeros(self):
        found = problem("[r] q = Relu (p) [c] y = Conv <pads = [1, 1, 1, 1]> (q, w)", w=np.ones((3, 3, 3, 3)))

        assert self.unread(found, "p") == self.unread(found, "q") == [False, False, True]

    def test_what_is_asked_of_other_entries_does_not_matter(self):
        """Zeros, or a one that stays a one, in front of the channels."""
        for nodes in ("[r] q = Pad (p, ends)", "[r] q = Pad (p, ends, one)"):
            found = problem(f"{nodes} [c] y = Conv (q, w)", w=np.ones((3, 4, 1, 1)), one=np.array(1.0),
                            ends=np.array([0, 1, 0, 0, 0, 0, 0, 0]))  # fmt: skip

            assert self.unread(found, "p") == [False, True, True]
            assert self.unread(found, "q") == [False, False, True, True]

    def test_all_that_a_sum_or_a_living_map_ties_or_nothing_of_it(self):
        nodes = f"{bn('o', 'p', 'q')} [c] a = Conv (p, w) [s] b = Sigmoid (q) [j] y = Add (a, b)"
        found = problem(nodes, w=np.ones((3, 3, 1, 1)), **numbers("o", [0.0, 2.0, 0.0]))

        assert self.unread(found, "p") == self.unread(found, "q") == [False] * 3

    def test_not_where_a_weight_of_integers_would_have_to_be_zero(self):
        weights = {"w": np.ones((3, 3, 1, 1), np.int8), "d": np.full(3, 0.5)}
        found = problem("u = DequantizeLinear <axis = 0> (w, d) [c] y = Conv (p, u)", **weights)

        assert self.unread(found, "p") == [False] * 3

    def test_no_bundle_speaks_of_them(self):
        found = problem("[r] q = Relu (p) [c] y = Conv (q, w)", w=np.ones((3, 3, 1, 1)))

        spoken = np.concatenate([bundle.classes.ravel() for bundle in found.bundles])
        assert not (found.unread[spoken] >= 0).any()

    def test_without_a_dead_channel_there_are_none(self):
        graph = build(
            f"m (double[2,3,4,4] x) => (double[2,3,4,4] y) {{ {bn('n', 'x', 'p')} [r] y = Relu (p) }}", **numbers("n")
        )
        found = posed(graph)[0]

        assert np.isnan(found.steady).all() and (found.unread == -1).all()
