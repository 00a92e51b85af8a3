"""Loading a version with everything that must hold, and answering requests with it. Real files, the real runtime."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.errors import InferenceFailed, ModelNotReady, ModelRejected, QueueFull, RequestMismatch
from service.load_version import DEFAULT_MAX_BATCH_SIZE
from service.model import Model
from service.protocol import InferenceRequest, InferenceResponse, InputTensor, RequestedOutput
from tests.service.handmade import (
    DOUBLE,
    FIXED,
    LINEAR,
    MIXING,
    PICKY,
    TEXT,
    load_version,
    publish,
    save_golden,
    save_report,
    save_version,
)  # fmt: skip

load = load_version


BRANCHING = """
g (float[N,2] x) => (float[N,2] y) <float zero = {0.0}> {
  sum = ReduceSum<keepdims=0>(x)
  positive = Greater(sum, zero)
  y = If (positive) <
    then_branch = one () => (float[N,2] a) { a = Identity(x) },
    else_branch = other () => (float[N,2] b) { b = Neg(x) }
  >
}
"""
"""Its made-up rows are never negative, so no probe takes the other branch."""


def load_text(tmp_path: Path, text: str, config: Mapping[str, Any] | None = None) -> Model:
    return load(save_version(tmp_path, "m", text, config=config))


def request(*, outputs: tuple[RequestedOutput, ...] = (), binary: bool = False, **inputs: Any) -> InferenceRequest:
    names = {"float32": "FP32", "int64": "INT64", "object": "BYTES"}
    tensors = tuple(InputTensor(name, names[str(array.dtype)], array) for name, array in inputs.items())
    return InferenceRequest(tensors, outputs, id="7", binary_data_output=binary)


def floats(*rows: list[float]) -> Any:
    return np.array(rows, np.float32)


def answers(model: Model, *requests: InferenceRequest) -> list[Any]:
    """All requests at once on one loop; each result or its error. The model is closed afterwards."""

    async def scenario() -> list[Any]:
        results = await asyncio.gather(*(model.infer(one) for one in requests), return_exceptions=True)
        await model.close()
        return results

    return asyncio.run(asyncio.wait_for(scenario(), timeout=60))


# --- what a version's files lead to (the table in service/model.py) -----------------------------------------------


def test_a_bare_file_is_ready_without_golden(tmp_path: Path) -> None:
    model = load_text(tmp_path, LINEAR)
    assert model.report.golden == "none"
    assert model.report.warm_up == "done"
    assert model.report.providers == ("CPUExecutionProvider",)


def test_a_published_version_reproduces_its_golden_samples(tmp_path: Path) -> None:
    assert load(publish(tmp_path)).report.golden.startswith("3 samples")


def test_golden_samples_without_a_report_are_checked_as_well(tmp_path: Path) -> None:
    folder = publish(tmp_path)
    (folder / "report.json").unlink()
    assert load(folder).report.golden.startswith("3 samples")
    save_golden(folder, input_x=floats([1, 0]), output_y=floats([1, 2, 3.1]))
    with pytest.raises(ModelRejected, match=r"output 'y' differs from the golden answer by 0\.1"):
        load(folder)


def _swap_with_its_hash(folder: Path) -> None:
    """The hash agrees with the file, so only the golden samples can tell."""
    save_version(folder.parent.parent, folder.parent.name, LINEAR.replace("6.0", "6.01"))
    save_report(folder, golden={"samples": 3, "tolerance": {"y": 1e-5}})


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        pytest.param(_swap_with_its_hash, "golden check: output 'y'", id="weight-with-its-hash"),
        pytest.param(lambda f: save_version(f.parent.parent, "linear", DOUBLE), "model.onnx has", id="swapped-model"),
        pytest.param(lambda f: (f / "golden.npz").unlink(), "golden.npz is missing", id="golden-missing"),
        pytest.param(lambda f: (f / "report.json").write_text("{"), "report.json", id="report-damaged"),
        pytest.param(lambda f: (f / "model.onnx").unlink(), "model.onnx is missing", id="model-missing"),
    ],
)
def test_a_version_that_is_not_what_was_published_is_rejected(
    damage: Callable[[Path], Any], told: str, tmp_path: Path
) -> None:
    folder = publish(tmp_path)
    damage(folder)
    with pytest.raises(ModelRejected, match=told.replace(".", r"\.")):
        load(folder)


def test_golden_promised_by_a_report_that_does_not_list_it_is_rejected(tmp_path: Path) -> None:
    folder = save_version(tmp_path, "m", LINEAR)
    save_report(folder, golden={"samples": 3, "tolerance": {}})
    with pytest.raises(ModelRejected, match="promises 3 golden samples"):
        load(folder)


@pytest.mark.parametrize(
    ("report", "told"),
    [
        pytest.param({"files": {}}, "files lists nothing, but not model.onnx", id="nothing-listed"),
        pytest.param({}, "files lists nothing, but not model.onnx", id="no-files"),
        pytest.param({"fiels": {"model.onnx": "?"}}, "files lists nothing, but not model.onnx", id="misspelt"),
    ],
)
def test_a_report_that_vouches_for_nothing_is_rejected(report: Mapping[str, Any], told: str, tmp_path: Path) -> None:
    folder = save_version(tmp_path, "m", LINEAR)
    (folder / "report.json").write_text(json.dumps(report))
    with pytest.raises(ModelRejected, match=re.escape(told)):
        load(folder)


def test_golden_samples_that_the_model_cannot_take_are_a_reason_not_a_defect(tmp_path: Path) -> None:
    """Six samples for a model of exactly four rows: ONNX Runtime calls the last two an invalid argument."""
    folder = save_version(tmp_path, "m", FIXED.replace("[1,2]", "[4,2]"))
    x = np.arange(12, dtype=np.float32).reshape(6, 2)
    save_golden(folder, input_x=x, output_y=-x)
    with pytest.raises(ModelRejected, match=r"golden\.npz holds 6 samples, .* needs a multiple of 4"):
        load(folder)
    save_golden(folder, input_x=np.tile(x, (2, 1)), output_y=-np.tile(x, (2, 1)))
    assert load(folder).report.golden.startswith("12 samples")


# --- is it batchable? ---------------------------------------------------------------------------------------------

UNNAMED = "g (float[?,2] x) => (float[?,2] y) { y = Neg(x) }"
TWO_NAMES = "g (float[N,2] x) => (float[M,2] y) { y = Neg(x) }"
SCALAR_OUT = "g (float[N,2] x) => (float y) { y = ReduceSum<keepdims=0>(x) }"
SUMMED = "g (float[N,2] x) => (float[N,2] y) { s = ReduceSum<keepdims=1>(x) y = Add(x, s) }"
FREE_IMAGE = "g (float[N,3,H,W] x) => (float[N,3,H,W] y) { y = Neg(x) }"


@pytest.mark.parametrize(
    ("text", "configured", "rows", "why"),
    [
        pytest.param(DOUBLE, None, DEFAULT_MAX_BATCH_SIZE, "derived", id="derived"),
        pytest.param(DOUBLE, 8, 8, "as configured", id="configured"),
        pytest.param(DOUBLE, 1, 1, "as configured", id="configured-one"),
        pytest.param(DOUBLE, 0, 0, "config.json sets max_batch_size to 0", id="switched-off"),
        pytest.param(TEXT, None, DEFAULT_MAX_BATCH_SIZE, "derived", id="strings"),
        pytest.param(FREE_IMAGE, None, DEFAULT_MAX_BATCH_SIZE, "derived", id="free-height-and-width"),
        pytest.param(PICKY, None, DEFAULT_MAX_BATCH_SIZE, "derived", id="indices"),
        pytest.param(FIXED, None, 0, "first dimension of 'x' is fixed", id="fixed"),
        pytest.param(MIXING, None, 0, "rows are not independent", id="softmax-over-the-batch"),
        pytest.param(
            BRANCHING, None, 0, "If may do with all rows what one of them asks for", id="a-branch-for-all-rows"
        ),
        pytest.param(BRANCHING, 8, 8, "as configured", id="a-branch-and-the-operator-s-word"),
        pytest.param(SUMMED, None, 0, "rows are not independent", id="sum-over-the-batch"),
        pytest.param(UNNAMED, None, 0, "do not share one name", id="unnamed-dimension"),
        pytest.param(UNNAMED, 8, 8, "as configured", id="unnamed-but-configured"),
        pytest.param(TWO_NAMES, None, 0, "do not share one name", id="two-names"),
        pytest.param(SCALAR_OUT, None, 0, "first dimension of 'y' is fixed", id="scalar-output"),
    ],
)
def test_max_batch_size_is_configured_or_derived_and_then_probed(
    text: str, configured: int | None, rows: int, why: str, tmp_path: Path
) -> None:
    model = load_text(tmp_path, text, None if configured is None else {"max_batch_size": configured})
    assert model.max_batch_size == rows
    assert why in model.report.batching


@pytest.mark.parametrize(
    ("text", "told"),
    [
        pytest.param(
            FIXED, r"max_batch_size to 8, but the first dimension of 'x' is fixed, shape \[1, 2\]", id="fixed"
        ),
        pytest.param(MIXING, r"max_batch_size to 8, but rows are not independent: output 'y'", id="mixing"),
    ],
)
def test_batching_that_would_give_wrong_answers_is_rejected(text: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(ModelRejected, match=told):
        load_text(tmp_path, text, {"max_batch_size": 8})


def test_a_model_that_fails_on_inputs_of_its_own_declared_shape_is_rejected_with_a_way_out(tmp_path: Path) -> None:
    """It needs values that nobody can guess; golden samples show some."""
    text = """
    g (float[N,2] x, int64[N,1] i) => (float[N,1] y)
    <int64[1] off = {5}> { j = Add(i, off)  y = GatherElements<axis=1>(x, j) }
    """
    with pytest.raises(ModelRejected, match=r"warm-up: .*[oO]ut of range.*golden\.npz"):
        load_text(tmp_path, text)
    folder = tmp_path / "m" / "1"
    save_golden(folder, input_x=floats([1, 2], [3, 4]), input_i=np.array([[-4], [-5]]), output_y=floats([2], [3]))
    assert load(folder).max_batch_size == DEFAULT_MAX_BATCH_SIZE


def test_a_model_whose_free_shapes_cannot_be_guessed_is_served_without_warm_up(tmp_path: Path) -> None:
    """Only 5 works behind the first dimension, and nothing says so."""
    text = "g (float[N,K] x) => (float[N,1] y) <float[5,1] w = {1,1,1,1,1}> { y = MatMul(x, w) }"
    model = load_text(tmp_path, text)
    assert model.report.warm_up.startswith("skipped")
    assert model.max_batch_size == 0
    (answer,) = answers(model, request(x=np.ones((2, 5), np.float32)))
    np.testing.assert_array_equal(answer.outputs[0].data, [[5], [5]])


def test_golden_samples_of_a_model_with_a_fixed_first_dimension_run_piece_by_piece(tmp_path: Path) -> None:
    folder = save_version(tmp_path, "m", FIXED)
    save_golden(folder, input_x=floats([1, 2], [3, 4], [5, 6]), output_y=-floats([1, 2], [3, 4], [5, 6]))
    assert load(folder).report.golden.startswith("3 samples")


# --- infer --------------------------------------------------------------------------------------------------------


def test_an_answer_carries_names_version_id_and_values(tmp_path: Path) -> None:
    folder = save_version(tmp_path, "m", LINEAR, version=3)
    (answer,) = answers(load(folder), request(x=floats([1, 0], [1, 1])))
    assert isinstance(answer, InferenceResponse)
    assert (answer.model_name, answer.model_version, answer.id) == ("m", "3", "7")
    (output,) = answer.outputs
    assert (output.name, output.datatype, output.binary) == ("y", "FP32", False)
    np.testing.assert_array_equal(output.data, floats([1, 2, 3], [5, 7, 9]), strict=True)


TWO_OUTPUTS = "g (float[N] x) => (float[N] a, float[N] b) { a = Neg(x) b = Abs(x) }"


@pytest.mark.parametrize(
    ("outputs", "default", "expected"),
    [
        pytest.param((), False, [("a", False), ("b", False)], id="all-in-json"),
        pytest.param((), True, [("a", True), ("b", True)], id="all-in-binary"),
        pytest.param((RequestedOutput("b"), RequestedOutput("a")), True, [("b", True), ("a", True)], id="order-asked"),
        pytest.param((RequestedOutput("b", binary=False),), True, [("b", False)], id="output-beats-request"),
        pytest.param((RequestedOutput("a", binary=True),), False, [("a", True)], id="output-asks-for-binary"),
    ],
)
def test_requested_outputs_come_in_order_and_form(
    outputs: tuple[RequestedOutput, ...], default: bool, expected: list[tuple[str, bool]], tmp_path: Path
) -> None:
    model = load_text(tmp_path, TWO_OUTPUTS)
    (answer,) = answers(model, request(x=np.array([-1, 2], np.float32), outputs=outputs, binary=default))
    assert [(output.name, output.binary) for output in answer.outputs] == expected


def test_many_requests_at_once_each_get_their_own_rows(tmp_path: Path) -> None:
    """1,000 requests of one to three rows in two free widths, so that batches of both shapes form."""
    text = "g (float[N,K] x) => (float[N,K] y) { two = Constant<value_float=2.0>() y = Mul(x, two) }"
    model = load_text(tmp_path, text, {"scheduler": {"max_queue_size": 1000, "instances": 2}})
    feeds = [np.full((1 + n % 3, 2 + n % 2), n, np.float32) for n in range(1000)]
    for x, answer in zip(feeds, answers(model, *(request(x=x) for x in feeds)), strict=True):
        np.testing.assert_array_equal(answer.outputs[0].data, 2 * x, strict=True)


def test_one_bad_row_among_64_requests_fails_alone(tmp_path: Path) -> None:
    model = load_text(tmp_path, PICKY)
    requests = [request(x=floats([n, n + 1]), i=np.array([[9 if n == 40 else n % 2]])) for n in range(64)]
    results = answers(model, *requests)
    guilty = results.pop(40)
    assert isinstance(guilty, RequestMismatch)
    assert str(guilty).startswith("the model fails on this request's values, and on others it does not: ONNX Runtime: ")
    assert [result.outputs[0].data.item() for result in results] == [n + n % 2 for n in range(64) if n != 40]


def test_text_that_is_not_utf8_fails_alone_and_as_the_caller_s_fault(tmp_path: Path) -> None:
    model = load_text(tmp_path, TEXT)
    words = [np.array([[word, b"x"]], dtype=object) for word in (b"a", b"\xff", b"\xc3\xa9")]
    first, bad, last = answers(model, *(request(x=word) for word in words))
    assert first.outputs[0].data.tolist() == [[b"a", b"x"]]
    assert isinstance(bad, RequestMismatch)
    assert last.outputs[0].data.tolist() == [[b"\xc3\xa9", b"x"]]


def test_a_request_that_does_not_fit_never_reaches_the_queue(tmp_path: Path) -> None:
    model = load_text(tmp_path, LINEAR, {"max_batch_size": 2})
    wrong_shape, too_many = answers(model, request(x=floats([1, 2, 3])), request(x=np.ones((3, 2), np.float32)))
    assert isinstance(wrong_shape, RequestMismatch)
    assert isinstance(too_many, RequestMismatch)


def test_a_model_that_is_not_batchable_answers_one_request_at_a_time(tmp_path: Path) -> None:
    """Softmax over the batch: two requests together would spoil each other."""
    results = answers(load_text(tmp_path, MIXING), *(request(x=floats([n, n], [n, n])) for n in range(20)))
    for answer in results:
        np.testing.assert_array_equal(answer.outputs[0].data, [[0.5, 0.5], [0.5, 0.5]])


def test_a_full_queue_refuses_while_the_model_computes(tmp_path: Path) -> None:
    model = load_text(tmp_path, LINEAR, {"max_batch_size": 1, "scheduler": {"max_queue_size": 3}})
    results = answers(model, *(request(x=floats([n, n])) for n in range(10)))
    refused = [result for result in results if isinstance(result, QueueFull)]
    assert len(refused) == 6  # one ran at once, three waited
    assert all(error.retry_after_s > 0 for error in refused)
    assert "model 'm' version 1" in str(refused[0])


def test_a_closed_model_refuses_and_leaves_no_thread(tmp_path: Path) -> None:
    model = load_text(tmp_path, LINEAR)
    assert isinstance(answers(model, request(x=floats([1, 2])))[0], InferenceResponse)
    with pytest.raises(ModelNotReady, match="UNLOADING"):
        asyncio.run(model.infer(request(x=floats([1, 2]))))
    for thread in threading.enumerate():
        if thread.name.startswith("m/1"):
            thread.join(timeout=10)
            assert not thread.is_alive()


def test_config_and_file_are_joined_in_the_metadata(tmp_path: Path) -> None:
    model = load(save_version(tmp_path, "m", LINEAR))
    assert model.metadata.inputs[0].shape == (-1, 2)
    assert (model.name, model.version) == ("m", 1)


def test_a_model_that_fails_on_what_it_has_answered_before_is_the_server_s_fault(tmp_path: Path) -> None:
    """The session is broken behind the model's back, as a device that was lost would break it."""
    model = load_text(tmp_path, LINEAR)

    def lost(_: object) -> Any:
        raise InferenceFailed("ONNX Runtime: the device is gone")

    model._session.run = lost  # type: ignore[method-assign]
    (result,) = answers(model, request(x=floats([1, 2])))
    assert isinstance(result, InferenceFailed)
    assert str(result) == "ONNX Runtime: the device is gone"


# --- batch invariance ---------------------------------------------------------------------------------------------


def test_metadata_tells_how_far_an_answer_depends_on_its_company(tmp_path: Path) -> None:
    seen = load_text(tmp_path, DOUBLE).metadata.batch_invariance
    assert seen is not None
    assert (seen.largest_difference, seen.padded) == (0.0, False)
    assert seen.probed_rows == seen.identical_rows
    assert seen.probed_rows[:2] == (1, 2)


def test_a_model_that_is_not_batched_has_no_company(tmp_path: Path) -> None:
    assert load_text(tmp_path, FIXED).metadata.batch_invariance is None


def test_exact_batches_give_the_same_bits_whatever_stands_beside(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    rows = random.random((40, 300)).astype(np.float32)
    weights = ", ".join(f"{value:.7g}" for value in random.random(300 * 8))
    text = f"g (float[N,300] x) => (float[N,8] y) <float[300,8] w = {{{weights}}}> {{ y = MatMul(x, w) }}"
    exact = {"scheduler": {"exact_batches": True}}
    model = load_text(tmp_path, text, exact)
    seen = model.metadata.batch_invariance
    assert seen is not None
    assert seen.padded
    assert model.max_batch_size == seen.identical_rows[-1]
    together = answers(model, *(request(x=rows[n : n + 1]) for n in range(40)))
    for n in (0, 7, 39):
        (alone,) = answers(load_text(tmp_path, text, exact), request(x=rows[n : n + 1]))
        np.testing.assert_array_equal(alone.outputs[0].data, together[n].outputs[0].data, strict=True)


WORDS = "g (float[N,L] x) => (float[N,L] y) { y = Neg(x) }"


@pytest.mark.parametrize(
    ("text", "length", "runs_here"),
    [
        pytest.param(WORDS, 32, True, id="as-long-as-what-was-measured"),
        pytest.param(WORDS, 6000, False, id="far-longer"),
        pytest.param(BRANCHING, 2, False, id="whose-values-decide-how-much-is-done"),
        pytest.param(LINEAR, 2, True, id="of-fixed-shape"),
    ],
)
def test_only_requests_like_those_that_were_timed_run_on_the_event_loop(
    text: str, length: int, runs_here: bool, tmp_path: Path
) -> None:
    model = load_text(tmp_path, text)
    model.curve.observe(1, 1e-6)
    threads: list[int] = []

    async def ask() -> None:
        answered = asyncio.Event()

        def done(answer: InferenceResponse | Exception) -> None:
            assert isinstance(answer, InferenceResponse)
            threads.append(threading.active_count())
            answered.set()

        model.begin(request(x=floats([1.0] * length)), done)
        await answered.wait()
        await model.close()

    before = threading.active_count()
    asyncio.run(ask())
    assert (threads == [before]) is runs_here
