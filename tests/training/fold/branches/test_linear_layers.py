"""Parallel MatMul and Gemm of the same tensor: x W + x V = x (W + V), on matrices and on stacks of them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from tests.training.fold.branches.support import batchnorm, merge
from tests.training.fold.models import build, op_types, rng_of

MATRIX, STACK = "double[3,5]", "double[2,3,5]"

# Input, nodes, operators that are left. w, v: 5 to 5; down, up: rank 2; long, short: by way of 8.
LAYERS = {
    "two MatMul": (STACK, "a = MatMul (x, w)  c = MatMul (x, v)  y = Add (a, c)", "MatMul"),
    "a low rank update": (
        STACK,
        "a = MatMul (x, w)  d = MatMul (x, down)  u = MatMul (d, up)  m = Mul (u, two)  y = Add (a, m)",
        "MatMul",
    ),
    "a low rank update beside a bias": (
        STACK,
        "a = MatMul (x, w)  b = Add (a, k)  d = MatMul (x, down)  u = MatMul (d, up)  y = Add (b, u)",
        "Add MatMul",
    ),
    "the same on a matrix": (
        MATRIX, "a = MatMul (x, w)  b = Add (a, k)  d = MatMul (x, down)  u = MatMul (d, up)  y = Add (b, u)", "Gemm",
    ),
    "Gemm with factors": (
        MATRIX, "a = Gemm <alpha = 0.5, beta = 3.0, transB = 1> (x, w, k)  c = MatMul (x, v)  y = Sub (a, c)", "Gemm",
    ),
    "Gemm without bias": (MATRIX, "a = Gemm (x, w)  c = Gemm <transB = 1> (x, v)  y = Add (a, c)", "MatMul"),
    "a residual": (STACK, "a = MatMul (x, w)  y = Add (a, x)", "MatMul"),
    "BatchNormalization of a matrix": (
        MATRIX, "a = MatMul (x, w)  n = BatchNormalization (a, n_g, n_b, n_m, n_v)  y = Add (n, x)", "Gemm",
    ),
    "one after the other": (STACK, "a = MatMul (x, long)  b = Add (a, eight)  y = MatMul (b, short)", "Add MatMul"),
    "one after the other on a matrix": (MATRIX, "a = Gemm (x, long, eight)  y = Gemm (a, short, k)", "Gemm"),
    "beside a stranger": (
        STACK, "a = MatMul (x, w)  r = Relu (x)  s = Add (a, r)  c = MatMul (x, v)  y = Add (s, c)", "Add MatMul Relu",
    ),
}  # fmt: skip

REFUSED = {
    "a low rank layer alone": (STACK, "d = MatMul (x, down)  y = MatMul (d, up)"),
    "BatchNormalization of a stack, along its second axis": (
        "double[2,5,5]", "a = MatMul (x, w)  n = BatchNormalization (a, n_g, n_b, n_m, n_v)  y = Add (n, x)",
    ),
    "a vector along the rows": ("double[2,5,5]", "a = MatMul (x, w)  m = Mul (a, rows)  y = Add (m, x)"),
    "a weight on the left": ("double[2,5,5]", "a = MatMul (w, x)  c = MatMul (v, x)  y = Add (a, c)"),
    "a transposed input": ("double[5,5]", "a = Gemm <transA = 1> (x, w)  y = Add (a, x)"),
    "a bias of every row": ("double[5,5]", "a = Gemm (x, w, map)  y = Add (a, x)"),
    "an activation between": (STACK, "a = MatMul (x, long)  r = Relu (a)  y = MatMul (r, short)"),
    "a stack of weights": ("double[2,5,5]", "a = MatMul (x, stack)  y = Add (a, x)"),
}  # fmt: skip


def model_of(x: str, graph: str) -> ir.Model:
    rng = rng_of(8)
    shapes = {
        "w": (5, 5), "v": (5, 5), "down": (5, 2), "up": (2, 5), "long": (5, 8), "short": (8, 5), "eight": (8,),
        "k": (5,), "rows": (5, 1), "map": (5, 5), "stack": (2, 5, 5),
    }  # fmt: skip
    constants = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    nodes = "\n".join(line.strip() for line in graph.split("  "))
    return build(f"g ({x} x) => ({x} y) {{ {nodes} }}", **constants, two=np.array(2.0), **batchnorm(rng, "n", 5))


@pytest.mark.parametrize("name", LAYERS)
def test_layers_of_one_tensor_become_one(name: str) -> None:
    x, graph, left = LAYERS[name]
    model = model_of(x, graph)
    assert len(merge(model)) == 1
    assert sorted(op_types(model)) == left.split()


@pytest.mark.parametrize("reason", REFUSED)
def test_layers_that_stay(reason: str) -> None:
    assert merge(model_of(*REFUSED[reason])) == ()


@pytest.mark.parametrize("x", ["double[2,1]", "double[2,F]"])
def test_a_vector_that_stretches_one_feature_stays(x: str) -> None:
    graph = f"""g ({x} x) => (double[2,5] y) {{
        m = Mul (x, k)
        a = MatMul (m, w)
        n = Add (x, k)
        c = MatMul (n, w)
        y = Add (a, c)
    }}"""
    rng = rng_of(9)
    assert merge(build(graph, w=rng.normal(size=(5, 5)), k=rng.normal(size=5))) == ()


def test_a_constant_that_gives_the_sum_an_axis_stays() -> None:
    graph = """g (double[3,5] x) => (double[1,3,5] y) {
        a = MatMul (x, w)
        c = MatMul (x, v)
        y = Sum (a, c, k)
    }"""
    rng = rng_of(9)
    w, v = rng.normal(size=(2, 5, 5))
    model = build(graph, w=w, v=v, k=rng.normal(size=(1, 1, 5)))
    assert merge(model)
    assert op_types(model) == ["MatMul", "Sum"]
