"""Which branches of a sum join, and what is left of the sum around them."""

from __future__ import annotations

import numpy as np
import pytest

from tests.training.fold.branches.support import batchnorm, merge
from tests.training.fold.models import Array, build, op_types, rng_of

X = "double[2,4,5,6] x"
Y = "double[2,4,5,6] y"
Z = "double[2,4,5,6] z"


def constants() -> dict[str, Array]:
    rng = rng_of(1)
    return {
        "w3": rng.normal(size=(4, 4, 3, 3)),
        "v3": rng.normal(size=(4, 4, 3, 3)),
        "w1": rng.normal(size=(4, 4, 1, 1)),
        "one": rng.normal(size=(1, 4, 1, 1)),
        "uno": rng.normal(size=(1, 4, 1, 1)),
        "d3": rng.normal(size=(4, 1, 3, 3)),
        "b": rng.normal(size=4),
        "k": rng.normal(size=(4, 1, 1)),
        "two": np.array(2.0),
        "map": rng.normal(size=(1, 4, 5, 6)),
        **batchnorm(rng, "n", 4),
    }


C3 = "Conv <pads = [1, 1, 1, 1]>"
D3 = "Conv <pads = [1, 1, 1, 1], group = 4>"
BN = "BatchNormalization (s, n_g, n_b, n_m, n_v)"

# The graph between x, z and y, and the operators that are left of it.
SUMS = {
    "subtraction": (f"a = {C3} (x, w3, b)  c = Conv (x, w1, b)  y = Sub (a, c)", "Conv"),
    "a difference from the input": (f"a = {C3} (x, w3)  y = Sub (x, a)", "Conv"),
    "negation": (f"a = {C3} (x, w3)  n = Neg (a)  y = Add (n, x)", "Conv"),
    "one number": (f"a = {C3} (x, w3, b)  m = Mul (two, a)  d = Div (x, two)  y = Add (m, d)", "Conv"),
    "constant minus a branch": (f"a = {C3} (x, w3)  c = Sub (k, a)  y = Add (c, x)", "Conv"),
    "Sum of many": (f"a = {C3} (x, w3)  c = Conv (x, w1)  y = Sum (a, x, c, k, x)", "Conv"),
    "the input twice": (f"a = {C3} (x, w3)  s = Add (x, x)  y = Add (s, a)", "Conv"),
    "a stranger in the middle": (f"a = {C3} (x, w3)  c = Conv (x, w1)  s = Add (a, z)  y = Add (s, c)", "Conv Add"),
    "a stranger first": (f"a = {C3} (x, w3)  c = Conv (x, w1)  s = Add (z, a)  y = Add (s, c)", "Conv Add"),
    "a stranger subtracted": (f"a = {C3} (x, w3)  c = Conv (x, w1)  s = Sub (a, z)  y = Add (s, c)", "Conv Neg Add"),
    "a stranger that is subtracted from": (
        f"a = {C3} (x, w3)  c = Conv (x, w1)  s = Sub (z, a)  y = Sub (s, c)",
        "Conv Add",
    ),
    "two strangers": (
        f"a = {C3} (x, w3)  c = Conv (x, w1)  r = Relu (z)  s = Add (a, z)  t = Add (c, r)  y = Add (s, t)",
        "Relu Conv Add Add",
    ),
    "strangers under a map": (f"a = {C3} (x, w3, b)  s = Add (a, z)  m = Mul (s, k)  y = Add (m, x)", "Mul Conv Add"),
    "a map over branches alone": (
        f"a = {C3} (x, w3, b)  c = Add (a, x)  m = Mul (c, k)  y = Add (m, z)",
        "Conv Add",
    ),
    "one channel beside a map of four": (
        "a = Conv (x, one)  c = Conv (x, uno)  s = Add (a, c)  t = Add (x, z)  m = Mul (t, k)  y = Add (s, m)",
        "Conv Add Mul Add",
    ),
    "one channel beside a constant under a map of four": (
        "a = Conv (x, one)  c = Conv (x, uno)  s = Add (a, c)  t = Sum (x, z, two)  m = Mul (t, k)  y = Add (s, m)",
        "Conv Sum Mul Add",
    ),
    "two tensors": (
        f"a = {C3} (x, w3)  c = Conv (x, w1)  d = {C3} (z, v3)  s = Add (a, z)  t = Add (c, d)  y = Add (s, t)",
        "Conv Conv Add",
    ),
    "a constant of every pixel": (f"a = {C3} (x, w3)  c = Conv (x, w1)  s = Add (a, map)  y = Add (s, c)", "Conv Add"),
    "BatchNormalization after the sum": (f"a = {C3} (x, w3)  s = Add (a, x)  y = {BN}", "Conv BatchNormalization"),
    "BatchNormalization inside the sum": (f"a = {C3} (x, w3)  s = Add (a, x)  n = {BN}  y = Add (n, x)", "Conv"),
    "a branch of a merged sum": (f"a = {C3} (x, w3)  s = Add (a, x)  c = Conv (s, w1)  y = Add (c, x)", "Conv"),
    "one branch is read elsewhere": (
        f"a = {C3} (x, w3)  c = Conv (x, w1)  r = Relu (a)  s = Add (a, c)  t = Add (s, x)  y = Mul (t, r)",
        "Conv Relu Conv Add Mul",
    ),
    "depthwise and identity beside dense": (
        f"a = {D3} (x, d3)  c = Conv (x, w1)  s = Add (a, c)  y = Add (s, x)",
        "Conv Conv Add",
    ),
    "Identity and Dropout on the way": (
        f"i = Identity (x)  a = {C3} (i, w3)  j = Identity (a)  o = Dropout (x)  y = Add (j, o)",
        "Conv",
    ),
    "a 1x1 after a 1x1": ("h = Conv (x, w1, b)  s = Mul (h, k)  y = Conv (s, w1)", "Conv"),
    "depthwise before depthwise": (f"h = Conv <group = 4> (x, d1)  y = {D3} (h, d3)", "Conv"),
}  # fmt: skip


@pytest.mark.parametrize("name", SUMS)
def test_what_is_left_of_a_sum(name: str) -> None:
    graph, left = SUMS[name]
    nodes = "\n".join(line.strip() for line in graph.split("  "))
    model = build(f"g ({X}, {Z}) => ({Y}) {{ {nodes} }}", **constants(), d1=rng_of(2).normal(size=(4, 1, 1, 1)))
    assert merge(model)
    assert sorted(op_types(model)) == sorted(left.split())
    assert model.graph.outputs[0].name == "y"


def test_a_result_that_is_merged_again_has_one_record() -> None:
    graph = f"[ca] a = {C3} (x, w3)\n[ad] s = Add (a, x)\n[cb] c = Conv (s, w1)\n[ae] y = Add (c, x)"
    (record,) = merge(build(f"g ({X}) => ({Y}) {{ {graph} }}", **constants()))
    assert record.node == "ca"
    assert set(record.replaced) == {"ca", "ad", "cb", "ae"}
    assert record.branches == 3


def test_a_smaller_survivor_keeps_a_declared_shape_from_being_merged_away() -> None:
    """Without its convolution the inner sum would be one pixel, where the graph declares thirty."""
    graph = f"""g ({X}, double[2,4,1,1] z) => ({Y}) <double[2,4,5,6] s, double[2,4,5,6] m> {{
        a = {C3} (x, w3)
        s = Add (a, z)
        m = Mul (s, k)
        y = Add (m, x)
    }}"""
    assert merge(build(graph, **constants())) == ()
