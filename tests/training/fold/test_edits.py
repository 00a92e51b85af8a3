"""Edits alone: what shares a constant, who inherits a name, what the sweep takes along."""

import numpy as np
import pytest

from tests.training.fold.models import build, constant
from training.fold.edits import Become, BecomeGemm, SetOperand, apply, bypass, bypass_identities, sweep


def test_operands_of_the_same_origin_role_and_content_share_one_constant():
    model = build(
        "m (double[1] x) => (y) { a = Add (x, k) b = Add (a, k) c = Add (b, k) y = Add (c, k) }", k=np.ones(1)
    )
    first, second, third, last = model.graph
    k = model.graph.initializers["k"]
    two, three = np.array([2.0]), np.array([3.0])

    apply(
        model,
        [
            SetOperand(first, 1, two, k, "bias"),
            SetOperand(second, 1, two.copy(), k, "bias"),
            SetOperand(third, 1, three, k, "bias"),
        ],
    )

    assert first.inputs[1] is second.inputs[1] is not third.inputs[1]
    assert [constant(model, name).tolist() for name in ("k", "k_1", "k_2")] == [[1.0], [2.0], [3.0]]
    assert last.inputs[1] is k


def test_equal_bytes_of_another_shape_are_another_constant():
    model = build("m (double[1,1] x) => (y) { a = Add (x, k) y = Add (a, k) }", k=np.ones(1))
    first, second = model.graph
    k = model.graph.initializers["k"]

    apply(
        model,
        [SetOperand(first, 1, np.ones((1, 1)), k, "bias"), SetOperand(second, 1, np.ones(1), k, "bias")],
    )

    assert first.inputs[1] is not second.inputs[1]


def test_a_matmul_becomes_a_gemm_in_its_place():
    model = build("m (double[2,3] x) => (double[2,4] y) { [mm] y = MatMul (x, w) }", w=np.ones((3, 4)))
    node = model.graph[0]

    apply(model, [BecomeGemm(node), SetOperand(node, 2, np.zeros(4), model.graph.initializers["w"], "bias")])

    assert (node.op_type, node.name, [v.name for v in node.inputs]) == ("Gemm", "mm", ["x", "w", "w_bias"])


def test_a_node_becomes_another_and_a_second_one_comes_behind_it_under_its_name():
    model = build("m (double[1,3] x) => (double[1,3] y) { [act] y = Clip (x, low) }", low=np.zeros(()))
    node = model.graph[0]

    apply(model, [Become(node, "Max", 0, np.ones(3)), Become(node, "Min", 0, np.full(3, 2.0))])

    assert [(n.name, n.op_type, [v.name for v in n.inputs]) for n in model.graph] == [
        ("act", "Max", ["x", "act_max"]),
        ("act_min", "Min", ["y_before_min", "act_min_1"]),
    ]
    assert model.graph.outputs[0].name == "y" and "low" not in model.graph.initializers


def test_what_stands_before_a_node_that_becomes_another_may_have_changed_first():
    """The operand is named by its place: by then another node may have come between."""
    model = build("m (double[1,3] x) => (double[1,3] y) { [a] h = Relu (x) [b] y = Relu (h) }")
    a, b = model.graph

    apply(model, [Become(a, "Max", 0, np.ones(3)), Become(a, "Min", 0, np.ones(3)), Become(b, "Add", 0, np.ones(3))])

    assert b.inputs[0].producer().op_type == "Min"


def test_identities_go_but_for_those_between_an_input_and_an_output():
    model = build(
        """m (double[1] x) => (double[1] y, double[1] z) {
            a = Identity (x) h = Neg (a) b = Identity (h) y = Identity (b) z = Identity (x) }"""
    )

    bypass_identities(model)

    assert [(n.op_type, n.inputs[0].name, n.outputs[0].name) for n in model.graph] == [
        ("Neg", "x", "y"), ("Identity", "x", "z"),
    ]  # fmt: skip


SUBGRAPH = """m (bool c, double[1] x) => (double[1] y, double[1] z) {{
    h = Neg (x)
    y = If (c) <then_branch = then () => (double[1] t) {{ {then} }},
                else_branch = other () => (double[1] e) {{ e = Abs (h) }}>
    z = Abs (h)
}}"""


@pytest.mark.parametrize(
    ("then", "left"),
    {
        "its output has to be computed there": ("t = Identity (h)", [("Identity", "h", "t")]),
        "what reads it reads the tensor itself": ("i = Identity (h) t = Neg (i)", [("Neg", "h", "t")]),
        "two in a row are one": ("i = Identity (h) t = Identity (i)", [("Identity", "h", "t")]),
    }.values(),
)
def test_an_identity_of_a_tensor_from_further_out_leaves_that_its_name(then: str, left: list[tuple[str, ...]]):
    model = build(SUBGRAPH.format(then=then))

    bypass_identities(model)

    body = model.graph[1].attributes["then_branch"].as_graph()
    assert [(n.op_type, n.inputs[0].name, n.outputs[0].name) for n in body] == left
    assert [v.name for v in body.outputs] == ["t"]
    assert [n.outputs[0].name for n in model.graph] == ["h", "y", "z"]


def test_what_became_the_identity_of_a_tensor_from_further_out_leaves_that_its_name():
    model = build(SUBGRAPH.format(then="i = Mul (h, k) t = Neg (i)"), k=np.ones(1))
    body = model.graph[1].attributes["then_branch"].as_graph()

    bypass(body[0], 0)

    assert [(n.op_type, n.inputs[0].name) for n in body] == [("Neg", "h")]
    assert model.graph[2].inputs[0].name == "h"


def test_a_new_constant_gets_the_bias_name_of_its_weight():
    model = build("m (double[1] x) => (y) { y = own.Op (x, conv_weight) }", conv_weight=np.ones(1))
    node = model.graph[0]

    apply(model, [SetOperand(node, 3, np.zeros(1), model.graph.initializers["conv_weight"], "bias")])

    assert [None if v is None else v.name for v in node.inputs] == ["x", "conv_weight", None, "conv_bias"]


def test_an_identity_leaves_with_its_input_taking_its_name():
    model = build("m (double[1] x) => (double[1] y) { h = Neg (x) y = own.Same (h, k) }", k=np.ones(1))
    same = model.graph[1]

    left_over = bypass(same, 0)

    assert [v.name for v in left_over] == ["k"]
    assert model.graph.outputs[0] is model.graph[0].outputs[0] and model.graph.outputs[0].name == "y"


def test_the_sweep_takes_only_what_is_unread():
    model = build(
        "m (double[1] x) => (double[1] y) { a = Neg (k) b = Neg (a) c = Neg (a) y = Add (x, c) }", k=np.ones(1)
    )
    _, b, *_ = model.graph

    sweep([b.outputs[0], model.graph.inputs[0], model.graph.outputs[0]])

    assert [node.outputs[0].name for node in model.graph] == ["a", "c", "y"]
    assert list(model.graph.initializers) == ["k"]
