"""What has to stay as it is, byte for byte, and why."""

from __future__ import annotations

import numpy as np
import pytest

from tests.training.fold.branches.support import batchnorm, facts, merge
from tests.training.fold.models import Array, build, rng_of, serialized
from training.fold.branches import merge_branches

C3 = "Conv <pads = [1, 1, 1, 1]>"
D3 = "Conv <pads = [1, 1, 1, 1], group = 4>"


def constants() -> dict[str, Array]:
    rng = rng_of(3)
    return {
        "w3": rng.normal(size=(4, 4, 3, 3)),
        "w1": rng.normal(size=(4, 4, 1, 1)),
        "w1_one": rng.normal(size=(1, 4, 1, 1)),
        "w2": rng.normal(size=(4, 4, 2, 2)),
        "w13": rng.normal(size=(4, 4, 1, 3)),
        "w31": rng.normal(size=(4, 4, 3, 1)),
        "d3": rng.normal(size=(4, 1, 3, 3)),
        "wide": rng.normal(size=(4, 1, 1, 1)),
        "narrow": rng.normal(size=(1, 4, 1, 1)),
        "infinite": np.full((4, 1, 1), np.inf),
        "columns": rng.normal(size=6),
        "b": rng.normal(size=4),
        "huge": np.array(1e200),
        "yes": np.array(True),
        "half": np.array(0.5),
        **batchnorm(rng, "n", 4),
    }


# Reason: the graph between x [2, 4, 6, 6] and y.
REFUSED = {
    "a padded convolution sees the border of what had a bias": f"h = Conv (x, w1, b)  a = {C3} (h, w3)  y = Add (a, x)",
    "a padded convolution sees the border of a BatchNormalization's shift": (
        f"h = BatchNormalization (x, n_g, n_b, n_m, n_v)  a = {C3} (h, w3)  y = Add (a, x)"
    ),
    "two padded convolutions: the first sees beyond the border": f"h = {C3} (x, w3)  a = {C3} (h, w3)  y = Add (a, x)",
    "an activation between": f"h = {C3} (x, w3)  r = Relu (h)  a = {C3} (r, w3)  y = Add (a, x)",
    "a convolution and its BatchNormalization, without a branch": (
        f"h = {C3} (x, w3)  y = BatchNormalization (h, n_g, n_b, n_m, n_v)"
    ),
    "maps without a convolution": "m = BatchNormalization (x, n_g, n_b, n_m, n_v)  y = Add (m, x)",
    "means without a convolution": (
        "a = AveragePool <kernel_shape = [3, 3], pads = [1, 1, 1, 1], count_include_pad = 1> (x)  y = Sub (a, x)"
    ),
    "a mean whose padding does not count": (
        f"c = {D3} (x, d3)  a = AveragePool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x)  y = Add (a, c)"
    ),
    "a dense expansion of a depthwise convolution": f"a = {D3} (x, d3)  c = Conv (x, w1)  y = Add (a, c)",
    "a dense expansion of a depthwise and a pointwise one": f"a = {D3} (x, d3)  y = Conv (a, w1)",
    "a cross that fills its square": (
        "a = Conv <pads = [0, 1, 0, 1]> (x, w13)  c = Conv <pads = [1, 0, 1, 0]> (x, w31)  y = Add (a, c)"
    ),
    "two dilations that fill a larger window": (
        f"a = {C3} (x, w3)  c = Conv <pads = [2, 2, 2, 2], dilations = [2, 2]> (x, w3)  y = Add (a, c)"
    ),
    "a bottleneck that is cheaper in two": "h = Conv (x, narrow)  y = Conv (h, wide)",
    "a branch that the sum reads through an activation too": f"a = {C3} (x, w3)  r = Relu (a)  y = Sum (a, r, x)",
    "a branch that the sum reads twice": f"a = {C3} (x, w3)  y = Sum (a, a, x)",
    "different tensors": f"r = Relu (x)  a = {C3} (x, w3)  c = Conv (r, w1)  y = Add (a, c)",
    "a weight that is computed": "s = ReduceMean (x)  q = Mul (w1, s)  a = Conv (x, q)  y = Add (a, x)",
    "a BatchNormalization in training mode": (
        f"a = {C3} (x, w3)  m, c, d = BatchNormalization <training_mode = 1> (x, n_g, n_b, n_m, n_v)  y = Add (a, m)"
    ),
    "a Dropout that drops": f"a = {C3} (x, w3)  o = Dropout (x, half, yes)  y = Add (a, o)",
    "an infinite scale": f"a = {C3} (x, w3)  m = Mul (a, infinite)  y = Add (m, x)",
    "a vector along the columns": f"a = {C3} (x, w3)  m = Mul (a, columns)  y = Add (m, x)",
    "scales that overflow together": f"a = {C3} (x, w3)  m = Mul (a, huge)  n = Mul (m, huge)  y = Add (n, x)",
    "a vector over a sum that stretches one channel": (
        "a = Conv (x, w1_one)  r = Relu (x)  s = Add (a, r)  m = Mul (s, b1)  c = Conv (x, w1_one)  y = Add (m, c)"
    ),
    "a division by the branch": f"a = {C3} (x, w3)  m = Div (b1, a)  y = Add (m, x)",
    "one channel that is stretched": "a = Conv (x, w1_one)  y = Add (a, x)",
    "another domain's Conv": "a = own.Conv (x, w1)  y = Add (a, x)",
}  # fmt: skip


@pytest.mark.parametrize("reason", REFUSED)
def test_left_as_it_is(reason: str) -> None:
    nodes = "\n".join(line.strip() for line in REFUSED[reason].split("  "))
    model = build(f"g (double[2,4,6,6] x) => (double[2,4,6,6] y) {{ {nodes} }}", **constants(), b1=np.ones((4, 1, 1)))
    before = serialized(model)
    assert merge_branches(model, facts(model)) == ()
    assert serialized(model) == before


# Strides and sizes: head, nodes.
MISMATCHED = {
    "different strides, where one output pixel makes the sizes equal": (
        "double[2,4,1,1] x",
        "double[2,4,1,1] y",
        "a = Conv <strides = [2, 2]> (x, w1)  c = Conv (x, w1)  y = Add (a, c)",
    ),
    "sizes that agree for even images only, of unknown size": (
        "double[2,4,H,W] x",
        "double[2,4,P,Q] y",
        "a = Conv <strides = [2, 2]> (x, w2)  c = Conv <strides = [2, 2]> (x, w1)  y = Add (a, c)",
    ),
    "auto_pad on an image of unknown size": (
        "double[2,4,H,W] x",
        "double[2,4,P,Q] y",
        'a = Conv <auto_pad = "SAME_UPPER"> (x, w3)  y = Add (a, x)',
    ),
    "a vector that stretches the one channel of what both branches read": (
        "double[2,1,6,6] x",
        "double[2,4,6,6] y",
        f"m = Mul (x, b1)  a = {C3} (m, w3)  n = Add (x, b1)  c = Conv (n, w1)  y = Add (a, c)",
    ),
    "a vector that may stretch it": (
        "double[2,C,6,6] x",
        "double[2,4,6,6] y",
        "m = Sub (x, b1)  a = Conv (m, w1)  n = Div (x, b1)  c = Conv (n, w1)  y = Add (a, c)",
    ),
    "a window larger than its image, on the way to another": (
        "double[2,4,1,1] x",
        "double[2,4,1,1] y",
        "a = Conv (x, w1)  m = AveragePool <kernel_shape = [2, 2], strides = [2, 2]> (a)  y = Conv (m, w1)",
    ),
    "another width": (
        "double[2,4,6,6] x",
        "double[2,4,6,6] y",
        "a = Conv (x, w1_one)  c = Conv (x, w1)  y = Add (a, c)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("reason", MISMATCHED)
def test_branches_that_do_not_line_up_stay(reason: str) -> None:
    x, y, graph = MISMATCHED[reason]
    nodes = "\n".join(line.strip() for line in graph.split("  "))
    model = build(f"g ({x}) => ({y}) {{ {nodes} }}", **constants(), b1=np.ones((4, 1, 1)))
    before = serialized(model)
    assert merge_branches(model, facts(model)) == ()
    assert serialized(model) == before


def test_a_vector_on_the_batch_of_a_branch_is_no_vector_on_its_channels() -> None:
    """The sum has one axis more than its branches, so that axis 1 of the one is axis 0 of the others; both have 4."""
    graph = """g (double[4,4,6] x, double[2,4,4,6] z) => (double[2,4,4,6] y) {
        a = Conv (x, v)
        s = Add (a, z)
        m = Mul (s, k)
        c = Conv (x, u)
        y = Add (m, c)
    }"""
    rng = rng_of(4)
    v, u = rng.normal(size=(2, 4, 4, 1))
    assert merge(build(graph, v=v, u=u, k=rng.normal(size=(4, 1, 1)))) == ()


def test_overflow_in_the_storage_type_is_refused() -> None:
    large = np.full((4, 4, 1, 1), 60000, np.float16)
    graph = "g (float16[1,4,2,2] x) => (float16[1,4,2,2] y) { a = Conv (x, w) c = Conv (x, v) y = Add (a, c) }"
    model = build(graph, w=large, v=large.copy())
    before = serialized(model)
    assert merge_branches(model, facts(model)) == ()
    assert serialized(model) == before


def test_a_weight_that_a_caller_may_override_is_not_merged() -> None:
    graph = "g (double[1,4,2,2] x, double[4,4,1,1] w) => (double[1,4,2,2] y) { a = Conv (x, w) y = Add (a, x) }"
    assert merge(build(graph, w=constants()["w1"])) == ()


def test_quantised_weights_stay_quantised() -> None:
    graph = """g (float[1,4,2,2] x) => (float[1,4,2,2] y) {
        w = DequantizeLinear (q, scale)
        a = Conv (x, w)
        y = Add (a, x)
    }"""
    model = build(graph, q=np.ones((4, 4, 1, 1), np.int8), scale=np.array(0.5, np.float32))
    assert merge_branches(model, facts(model)) == ()
