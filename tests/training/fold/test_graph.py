"""May this tensor's numbers change? Consumers, graph outputs, subgraphs; readers of the shape alone do not count."""

import pytest

from tests.training.fold.models import build
from training.fold.graph import describe, label, may_change
from training.fold.refusal import Refusal

IF = """o = If (c) <then_branch = then () => (float[2] t) { [inner] t = Neg (h) },
                    else_branch = other () => (float[2] e) { e = Identity (x) }>"""


def ask(nodes: str, outputs: str = "float[2] y"):
    model = build(f"m (float[2] x, bool c) => ({outputs}) {{ [op] h = Abs (x) {nodes} [bn] y = Relu (h) }}")
    reader = next(node for node in model.graph if node.name == "bn")
    return may_change(reader.inputs[0], reader)


def test_a_tensor_with_one_reader_may_change():
    assert ask("") is None


BLOCKED = {
    "two consumers": ("[b] z = Neg (h)", "output 'h' of Abs 'op' has 2 consumers: Relu 'bn', Neg 'b'"),
    "one consumer twice": (
        "[b] z = Add (h, h)", "output 'h' of Abs 'op' has 3 consumers: Relu 'bn', Add 'b', Add 'b'"),
    "many consumers": (
        "[b] z = Neg (h) [c] zz = Neg (h) zzz = Neg (h) zzzz = Neg (h)",
        "output 'h' of Abs 'op' has 5 consumers: Relu 'bn', Neg 'b', Neg 'c', Neg of 'zzz', ..."),
    "captured": (IF, "output 'h' of Abs 'op' is also read inside a subgraph, by Neg 'inner'"),
}  # fmt: skip


@pytest.mark.parametrize(("nodes", "reason"), BLOCKED.values(), ids=BLOCKED.keys())
def test_another_reader_is_named(nodes, reason):
    assert ask(nodes) == Refusal(reason)


def test_a_graph_output_may_not_change():
    assert ask("", "float[2] y, float[2] h") == Refusal("output 'h' of Abs 'op' is also a graph output")


@pytest.mark.parametrize("node", ["s = Shape (h)", "s = Size (h)", "s = CastLike (x, h)", "s = RandomNormalLike (h)"])
def test_readers_of_shape_and_type_do_not_count(node):
    assert ask(node) is None


@pytest.mark.parametrize("node", ["s = CastLike (h, x)", "s = own.Shape (h)"])
def test_but_the_same_operators_reading_numbers_do(node):
    assert "has 2 consumers" in ask(node).reason


def test_what_no_node_computes_may_not_change():
    model = build("m (float[2] x) => (float[2] y) { [bn] y = Relu (x) }")

    assert may_change(model.graph.inputs[0], model.graph[0]) == Refusal("'x' is a graph input, no node computes it")


def test_a_tensor_of_the_surrounding_graph_may_not_change_for_a_reader_inside():
    model = build(f"m (float[2] x, bool c) => (float[2] o) {{ [op] h = Abs (x) {IF} }}")
    inner = next(node for node in model.graph.all_nodes() if node.name == "inner")

    assert may_change(inner.inputs[0], inner) == Refusal(
        "'h' of Abs 'op' is computed outside the subgraph of Neg 'inner'"
    )


def test_a_nameless_node_goes_by_its_output():
    node = build("m (float x) => (float y) { y = Relu (x) }").graph[0]

    assert describe(node) == "Relu of 'y'"
    assert label(node) == "y"
