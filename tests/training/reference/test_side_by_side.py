"""Several samples evaluated side by side: each as if it were alone, and each constant read once."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from tests.training.fold.models import build, rng_of
from training.reference import Effort, evaluate, evaluate_all, widened

ROWS = "g (float[N,4] x) => (float[N,3] y) {{ {} }}"
GRAPHS = {
    "Gemm": ROWS.format("y = Gemm <alpha = 0.5, beta = 2.0> (x, w, b)"),
    "Gemm turned": ROWS.format("y = Gemm <transB = 1> (x, wt, b)"),
    "Gemm without bias": ROWS.format("y = Gemm (x, w)"),
    "Gemm with a number for each row": ROWS.format("y = Gemm (x, w, c)"),
    "Gemm of columns": "g (float[4,N] x) => (float[N,3] y) { y = Gemm <transA = 1> (x, w, b) }",
    "MatMul": ROWS.format("y = MatMul (x, w)"),
    "MatMul of two computed": ROWS.format("h = MatMul (x, w) t = Transpose (h) s = MatMul (h, t) y = MatMul (s, h)"),
    "MatMul of a stack": "g (float[N,4] x) => (float[N,1,3] y) { a = Unsqueeze (x, one) y = MatMul (a, w) }",
    "MatMul by a stack": "g (float[N,4] x) => (float[2,N,3] y) { y = MatMul (x, ww) }",
    "MatMul of a vector": "g (float[N,4] x) => (float[3] y) { a = ReduceSum <keepdims=0> (x, zero) y = MatMul (a, w) }",
    "Conv": "g (float[N,4] x) => (float[N,3,1] y) { a = Unsqueeze (x, two) y = Conv (a, k) }",
    "branches": """g (float[N,4] x) => (float[N,3] y) {
        m = ReduceMax <keepdims = 0> (x)
        up = Greater (m, half)
        y = If (up) <
            then_branch = t () => (float[N,3] p) { p = MatMul (x, w) },
            else_branch = e () => (float[N,3] q) { r = MatMul (x, w) q = Neg (r) }
        >
    }""",
}  # fmt: skip


def graph(name: str) -> ir.Model:
    rng = rng_of(3)
    constants = {
        "w": rng.normal(size=(4, 3)), "wt": rng.normal(size=(3, 4)), "ww": rng.normal(size=(2, 4, 3)),
        "b": rng.normal(size=3), "c": rng.normal(size=(2, 1)), "k": rng.normal(size=(3, 4, 1)), "half": np.array(0.5),
        "zero": np.array([0]), "one": np.array([1]), "two": np.array([2]),
    }  # fmt: skip
    used = {key for key in constants if any(mark + key + end in GRAPHS[name] for mark in "( " for end in ",)")}
    return build(
        GRAPHS[name],
        **{key: constants[key].astype(np.float32 if constants[key].dtype.kind == "f" else np.int64) for key in used},
    )


@pytest.mark.parametrize("name", GRAPHS)
def test_each_sample_gets_the_answer_that_it_gets_alone(name: str) -> None:
    model = graph(name)
    shape = (4, 2) if name == "Gemm of columns" else (2, 4)
    samples = [{"x": factor * rng_of(seed).normal(size=shape)} for seed, factor in enumerate((1.0, 0.0, -3.0, 100.0))]
    for alone, beside in zip((evaluate(model, each) for each in samples), evaluate_all(model, samples), strict=True):
        assert alone["y"].shape == beside["y"].shape
        np.testing.assert_allclose(beside["y"], alone["y"], rtol=1e-14, atol=1e-300)


def test_samples_of_different_numbers_of_rows_go_side_by_side() -> None:
    model = graph("MatMul")
    answers = evaluate_all(model, [{"x": np.ones((rows, 4))} for rows in (1, 5, 2)])
    assert [answer["y"].shape for answer in answers] == [(1, 3), (5, 3), (2, 3)]


def test_a_constant_is_read_once_for_all_samples_and_forgotten_after_its_last_use() -> None:
    model = build("g (float[N,4] x) => (float[N,4] y) { a = MatMul (x, w) b = Relu (a) y = Add (b, k) }",
                  w=np.eye(4, dtype=np.float32), k=np.ones(4, dtype=np.float32))  # fmt: skip
    names = []

    def read(tensor: ir.TensorProtocol) -> np.ndarray:
        names.append(tensor.name)
        return widened(tensor)

    evaluate_all(model, [{"x": np.ones((2, 4))}] * 5, read=read)
    assert names == ["w", "k"]


@pytest.mark.parametrize(
    ("nodes", "work"),
    [
        ("y = Conv <pads = [1, 1, 1, 1]> (x, w)", 2 * 6 * 5 * 5 * 4 * 9),
        ("y = Conv <pads = [1, 1, 1, 1], group = 2> (x, half)", 2 * 6 * 5 * 5 * 2 * 9),
        ("y = ConvTranspose (x, back)", 2 * 4 * 5 * 5 * 6 * 9),
        ("f = Flatten (x) y = MatMul (f, m)", 2 * 100 * 7),
        ("f = Flatten (x) y = Gemm <transB = 1> (f, t)", 2 * 100 * 7),
        ("f = Flatten <axis = 4> (x) y = Gemm <transA = 1> (f, f)", 200),
    ],
    ids=["Conv", "Conv in groups", "ConvTranspose", "MatMul", "Gemm", "Gemm of columns"],
)
def test_work_counts_multiply_adds_and_a_few_for_each_element(nodes: str, work: int) -> None:
    shapes = {"w": (6, 4, 3, 3), "half": (6, 2, 3, 3), "back": (4, 6, 3, 3), "m": (100, 7), "t": (7, 100)}
    used = {name: np.ones(shape, np.float32) for name, shape in shapes.items() if f" {name})" in nodes}
    model = build(f"g (float[2,4,5,5] x) => (float y) {{ {nodes} }}", **used)
    effort = Effort()
    answer = evaluate(model, {"x": np.ones((2, 4, 5, 5))}, effort=effort)["y"]
    elements = answer.size + (200 if "Flatten" in nodes else 0)
    assert effort.work == work + 16 * elements
    assert effort.live_bytes >= 8 * answer.size
