"""Models that mix rows, each with little and with much to probe with, on the real runtime; and models that do not."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.errors import InferenceFailed, RequestMismatch
from service.load_version import DEFAULT_MAX_BATCH_SIZE
from service.row_independence import Rows, probe_rows
from service.session import Session
from tests.service.handmade import load_version, save_golden, save_model, save_version

MIXING: dict[str, str] = {
    "mean": "{ m = ReduceMean<axes=[0]>(x)  y = Sub(x, m) }",
    "max": "{ m = ReduceMax<axes=[0]>(x)  y = Sub(x, m) }",
    "softmax": "{ y = Softmax<axis=0>(x) }",
    "running-sum": "{ zero = Constant<value_int=0>()  y = CumSum(x, zero) }",
    "running-sum-from-the-end": "{ zero = Constant<value_int=0>()  y = CumSum<reverse=1>(x, zero) }",
    # What ONNX Runtime's dynamic quantisation makes of a MatMul: one scale for the whole batch.
    "dynamic-quantisation": """<int8[4,4] w = {90,-1,3,7, 2,80,-9,4, 5,1,99,-3, 6,-7,8,70}> {
        q, scale, zero = DynamicQuantizeLinear(x)
        i = MatMulInteger(q, w, zero)  f = Cast<to=1>(i)  y = Mul(scale, f) }""",
    "batch-statistics": """<float e = {1e-5}> {
        m = ReduceMean<axes=[0]>(x)  d = Sub(x, m)  s = Mul(d, d)  v = ReduceMean<axes=[0]>(s)
        r = Add(v, e)  q = Sqrt(r)  y = Div(d, q) }""",
    "threshold": "<float one = {1.0}> { m = ReduceMax<keepdims=0>(x)  o = Max(m, one)  y = Div(x, o) }",
    "lower-threshold": "<float one = {-1.0}> { m = ReduceMin<keepdims=0>(x)  o = Min(m, one)  y = Div(x, o) }",
    "global-mean": "{ m = ReduceMean<keepdims=0>(x)  r = Relu(m)  y = Sub(x, r) }",
    "tiny-numbers": "<float k = {1e-9}> { m = ReduceMean<axes=[0]>(x)  d = Sub(x, m)  y = Mul(d, k) }",
}
FLOATS = "g (float[N,4] x) => (float[N,4] y) "
ROWS = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)
KNOWN = {
    "none": None,
    "one": ROWS[:1],
    "two-equal": ROWS[[0, 0]],
    "first-two-equal": ROWS[[0, 0, 1, 2]],
    "many": ROWS,
    "zeros": np.zeros((1, 4), np.float32),
    "ones": np.ones((2, 4), np.float32),
}


@pytest.mark.parametrize("known", [pytest.param(rows, id=name) for name, rows in KNOWN.items()])
@pytest.mark.parametrize("body", [pytest.param(body, id=name) for name, body in MIXING.items()])
def test_a_model_that_mixes_rows_is_not_batchable_whatever_golden_samples_it_has(
    body: str, known: Any, tmp_path: Path
) -> None:
    folder = save_version(tmp_path, "m", FLOATS + body)
    if known is not None:
        session = Session(folder / "model.onnx", providers=("CPUExecutionProvider",), intra_op_threads=1)
        save_golden(folder, input_x=known, output_y=session.run({"x": known})["y"])
    model = load_version(folder)
    assert model.max_batch_size == 0
    assert "rows are not independent: output 'y'" in model.report.batching


TEXT_MIXING = """
g (string[N] x) => (string[N] y) {
    zero = Constant<value_ints=[0]>()  first = Gather(x, zero)  s = Shape(x)  y = Expand(first, s) }
"""
"""Every row answers the first row's text."""


@pytest.mark.parametrize(
    "known",
    [
        pytest.param(None, id="none"),
        pytest.param(np.array(["a"]), id="one"),
        pytest.param(np.array(["a", "a"]), id="two-equal"),
        pytest.param(np.array(["a", "b", "c"]), id="many"),
    ],
)
def test_mixing_of_text_is_noticed(known: Any, tmp_path: Path) -> None:
    folder = save_version(tmp_path, "m", TEXT_MIXING)
    if known is not None:
        save_golden(folder, input_x=known, output_y=known[[0] * len(known)])
    model = load_version(folder)
    assert (model.max_batch_size, "rows are not independent" in model.report.batching) == (0, True)


INDEPENDENT: dict[str, str] = {
    "neg": "{ y = Neg(x) }",
    "softmax-of-each-row": "{ y = Softmax<axis=1>(x) }",
    "square-root": "{ y = Sqrt(x) }",  # NaN for what is negative
    "logarithm": "{ y = Log(x) }",
    "exponential": "{ y = Exp(x) }",  # infinite for what is large
    "always-nan-in-one-place": "<float[4] z = {0,1,1,1}> { a = Mul(x, z)  b = Div(a, z)  y = Add(b, x) }",
    "saturating": "{ y = Sigmoid(x) }",
}


@pytest.mark.parametrize("known", [pytest.param(KNOWN[name], id=name) for name in ("none", "one", "two-equal", "many")])
@pytest.mark.parametrize("body", [pytest.param(body, id=name) for name, body in INDEPENDENT.items()])
def test_a_model_whose_rows_are_independent_is_batchable(body: str, known: Any, tmp_path: Path) -> None:
    folder = save_version(tmp_path, "m", FLOATS + body)
    if known is not None:
        session = Session(folder / "model.onnx", providers=("CPUExecutionProvider",), intra_op_threads=1)
        save_golden(folder, input_x=known, output_y=session.run({"x": known})["y"])
    assert load_version(folder).max_batch_size == DEFAULT_MAX_BATCH_SIZE


def test_half_precision_that_overflows_on_large_rows_is_batchable(tmp_path: Path) -> None:
    text = "g (float16[N,4] x) => (float16[N,4] y) { a = Mul(x, x)  y = Mul(a, x) }"
    assert load_version(save_version(tmp_path, "m", text)).max_batch_size == DEFAULT_MAX_BATCH_SIZE


def test_rounding_that_depends_on_the_batch_is_forgiven_and_a_small_rows_damage_is_not() -> None:
    """ONNX Runtime sums a matrix product in another order for another number of rows."""

    def rounding(inputs: Mapping[str, Any]) -> dict[str, Any]:
        return {"y": inputs["x"] * np.float32(1 + 1e-5 * len(inputs["x"]))}

    def leaking(inputs: Mapping[str, Any]) -> dict[str, Any]:
        """A hundred-thousandth of the other rows: nothing beside itself, much beside a small one."""
        x = inputs["x"]
        return {"y": x + np.float32(1e-5) * (x.sum(axis=0) - x)}

    assert probe_rows({"x": ROWS}, rounding).rows is Rows.INDEPENDENT
    assert probe_rows({"x": ROWS}, leaking).rows is Rows.INTERFERE


def test_bf16_is_compared_as_numbers_with_its_own_rounding() -> None:
    """One in the last place of 8 bits is rounding; as bit patterns, which whole numbers are, nothing would be."""

    def rounding(inputs: Mapping[str, Any]) -> dict[str, Any]:
        return {"y": (inputs["x"].view(np.uint32) >> 16).astype(np.uint16) + np.uint16(len(inputs["x"]) == 1)}

    def mixing(inputs: Mapping[str, Any]) -> dict[str, Any]:
        mixed = inputs["x"] - inputs["x"].mean(axis=0)
        return {"y": (mixed.view(np.uint32) >> 16).astype(np.uint16)}

    assert probe_rows({"x": ROWS}, rounding, bf16={"y"}).rows is Rows.INDEPENDENT
    assert probe_rows({"x": ROWS}, rounding).rows is Rows.INTERFERE
    assert probe_rows({"x": ROWS}, mixing, bf16={"y"}).rows is Rows.INTERFERE


def test_a_row_on_an_edge_is_not_mistaken_for_interference() -> None:
    """The class of a tie is decided by rounding, which depends on the batch."""

    def winner(inputs: Mapping[str, Any]) -> dict[str, Any]:
        x = inputs["x"] * np.float32([1 + (1e-7 if len(inputs["x"]) == 1 else -1e-7), 1, 1, 1])
        return {"label": x.argmax(axis=1)}

    ties = np.array([[1, 1, 0, 0], [0, 0, 0, 1]], np.float32)
    assert probe_rows({"x": ties}, winner).rows is Rows.INDEPENDENT


@pytest.mark.parametrize(
    ("model", "told"),
    [
        pytest.param(lambda x: x.sum(axis=0), "has shape [4] for two rows", id="rows-summed-away"),
        pytest.param(lambda x: np.repeat(x, 2, axis=0), "has shape [4, 4] for two rows", id="two-rows-from-one"),
        pytest.param(lambda x: x.sum(), "has shape [] for two rows", id="scalar"),
        pytest.param(lambda x: x[::-1], "differs from one by one", id="reversed-rows"),
        pytest.param(lambda x: x[:, : 1 + int(x.max() > 0.5) + len(x)], "has shape [2, 4] for two", id="row-lengths"),
    ],
)
def test_what_differs_is_told(model: Any, told: str) -> None:
    rows = np.full((1, 4), 0.9, np.float32)
    verdict = probe_rows({"x": rows}, lambda inputs: {"y": np.asarray(model(inputs["x"]))})
    assert verdict.rows is Rows.INTERFERE
    assert told in verdict.reason


def test_a_failure_of_rows_that_each_succeed_alone_is_interference() -> None:
    def one_row(inputs: Mapping[str, Any]) -> dict[str, Any]:
        if len(inputs["x"]) > 1:
            raise InferenceFailed("one at a time")
        return {"y": inputs["x"]}

    verdict = probe_rows({"x": ROWS}, one_row)
    assert verdict.rows is Rows.INTERFERE
    assert "two rows together fail, though each alone does not: one at a time" in verdict.reason


def test_rows_that_cannot_be_made_to_differ_prove_nothing() -> None:
    def only_zero(inputs: Mapping[str, Any]) -> dict[str, Any]:
        if inputs["i"].any():
            raise RequestMismatch("index out of range")
        return {"y": inputs["i"]}

    verdict = probe_rows({"i": np.zeros((2, 3), np.int64)}, only_zero)
    assert verdict.rows is Rows.UNKNOWN
    assert "no two rows that differ" in verdict.reason


def test_answers_that_never_differ_prove_nothing() -> None:
    """A vocabulary that knows none of the made-up words answers "unknown" to all; so do NaN and constants."""
    verdict = probe_rows({"x": ROWS}, lambda inputs: {"y": np.full((len(inputs["x"]), 1), np.nan, np.float32)})
    assert verdict.rows is Rows.UNKNOWN
    assert "answered alike" in verdict.reason


def test_interference_through_one_of_two_inputs_is_noticed_though_the_samples_vary_only_the_other() -> None:
    known = {"a": ROWS, "b": np.ones((5, 4), np.float32)}
    verdict = probe_rows(known, lambda inputs: {"y": inputs["a"] + inputs["b"] - inputs["b"].mean(axis=0)})
    assert verdict.rows is Rows.INTERFERE


def test_probing_costs_few_runs_of_at_most_three_rows(tmp_path: Path) -> None:
    """A large network takes a second for a few rows; readiness waits for this."""
    runs: list[int] = []
    session = Session(
        save_model(tmp_path / "m.onnx", FLOATS + "{ y = Neg(x) }"),
        providers=("CPUExecutionProvider",),
        intra_op_threads=1,
    )

    def counted(inputs: Mapping[str, Any]) -> dict[str, Any]:
        runs.append(len(inputs["x"]))
        return session.run(inputs)

    assert probe_rows({"x": np.tile(ROWS, (100, 1))}, counted).rows is Rows.INDEPENDENT
    assert sorted(runs) == [1, 1, 1, 1, 2, 3, 3]
    runs.clear()
    assert probe_rows({"x": ROWS}, counted, 2).rows is Rows.INDEPENDENT
    assert max(runs) == 2
