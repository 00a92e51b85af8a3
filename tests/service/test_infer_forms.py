"""Every form of a body and of an answer, through a real model and ONNX Runtime."""

from __future__ import annotations

import asyncio
import gzip
import json
import threading
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import ml_dtypes
import numpy as np
import pytest
import tritonclient.http as triton

from service import json_tensors
from service.answers import Answer
from service.compression import PACKED_AT_ONCE_BYTES
from service.errors import QueueFull
from service.infer import begin_infer, read_head
from service.json_tensors import LONG_ELEMENTS
from service.model import Model
from service.registry import Registry
from service.v1_api import begin_predict
from tests.service.handmade import DOUBLE, FIXED, TEXT, load_version, save_version
from tests.service.test_npy import saved

Header = tuple[bytes, bytes]
BF16 = ml_dtypes.bfloat16


def header_of(answer: Answer, name: bytes) -> bytes | None:
    return dict(answer.headers).get(name)


def ask_all(model: Model, *requests: tuple[bytes, list[Header]]) -> list[Answer]:
    """The answers to requests that come one after the other; the model is closed behind them."""
    registry = cast("Registry", SimpleNamespace(get=lambda name, version: model))

    async def answers() -> list[Answer]:
        collected = []
        for body, headers in requests:
            answered: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
            begin_infer(registry, read_head(model.name, None, headers), body, answered.set_result, max_body_bytes=10**6)
            collected.append(await answered)
        await model.close()
        return collected

    return asyncio.run(asyncio.wait_for(answers(), timeout=60))


def ask(model: Model, body: bytes, *headers: Header) -> Answer:
    return ask_all(model, (body, list(headers)))[0]


def load(tmp_path: Path, text: str, config: dict[str, Any] | None = None, **files: str) -> Model:
    folder = save_version(tmp_path, "m", text, config=config)
    for name, content in files.items():
        (folder / f"{name}.txt").write_text(content)
    return load_version(folder)


def request_of(tensors: list[triton.InferInput], outputs: list[triton.InferRequestedOutput] | None = None) -> Any:
    """What tritonclient sends: body, and its headers."""
    body, json_bytes = triton.InferenceServerClient.generate_request_body(tensors, outputs=outputs)
    return body, [] if json_bytes is None else [(b"inference-header-content-length", b"%d" % json_bytes)]


def input_of(array: Any, datatype: str) -> triton.InferInput:
    tensor = triton.InferInput("x", list(array.shape), datatype)
    tensor.set_data_from_numpy(array)
    return tensor


def read(answer: Answer, name: str = "y") -> Any:
    assert answer.status == 200, answer.body
    length = header_of(answer, b"inference-header-content-length")
    result = triton.InferResult.from_response_body(answer.body, header_length=None if length is None else int(length))
    return result.as_numpy(name)


# --- half precision -----------------------------------------------------------------------------------------------


def test_fp16_goes_both_ways_in_binary(tmp_path: Path) -> None:
    model = load(tmp_path, "g (float16[N,3] x) => (float16[N,3] y) { y = Neg(x) }")
    sent = np.array([[1.0, -65504.0, 6e-8]], np.float16)
    np.testing.assert_array_equal(read(ask(model, *flat(request_of([input_of(sent, "FP16")])))), -sent, strict=True)


def test_bf16_goes_both_ways_in_binary(tmp_path: Path) -> None:
    """The runtime computes: y = 2 x by way of float32."""
    model = load(
        tmp_path, "g (bfloat16[N,3] x) => (bfloat16[N,3] y) { f = Cast<to=1>(x) d = Add(f, f) y = Cast<to=16>(d) }"
    )
    body, headers = request_of([input_of(np.array([[1.0, -0.5, 3e38]], BF16), "BF16")])
    assert body.endswith(b"\x80\x3f\x00\xbf\x62\x7f")
    answer = ask(model, body, *headers)
    assert b'"datatype":"BF16"' in answer.body
    assert answer.body.endswith(b"\x00\x40\x80\xbf\x80\x7f")
    np.testing.assert_array_equal(read(answer).astype(np.float32), [[2.0, -1.0, np.inf]])


@pytest.mark.parametrize("kind", ["FP16", "BF16"])
def test_half_precision_in_json_is_400(kind: str, tmp_path: Path) -> None:
    name = {"FP16": "float16", "BF16": "bfloat16"}[kind]
    model = load(tmp_path, f"g ({name}[N,1] x) => ({name}[N,1] y) {{ y = Identity(x) }}")
    values = json.dumps({"inputs": [{"name": "x", "shape": [1, 1], "datatype": kind, "data": [1.0]}]}).encode()
    body, headers = request_of([input_of(np.ones((1, 1), np.float16 if kind == "FP16" else BF16), kind)])
    as_json = body.replace(b'"binary_data_output":true', b'"binary_data_output":null')
    into, out_of = ask_all(model, (values, []), (as_json, headers))
    assert into.status == out_of.status == 400
    assert into.body.startswith(b'{"error": "input \'x\': %s does not travel as JSON' % kind.encode())
    assert out_of.body.startswith(b'{"error": "output \'y\': %s does not travel as JSON' % kind.encode())


def flat(request: tuple[bytes, list[Header]]) -> tuple[Any, ...]:
    return request[0], *request[1]


# --- classification -----------------------------------------------------------------------------------------------

PAIR = np.array([[0.5, 0.25], [-1.0, 2.0]], np.float32)
LABELLED = {
    "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}],
    "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 2], "labels": "labels.txt"}],
}


def classified(classes: int, *, binary: bool) -> list[triton.InferRequestedOutput]:
    return [triton.InferRequestedOutput("y", binary_data=binary, class_count=classes)]


@pytest.mark.parametrize("binary", [True, False])
def test_classes_have_labels_as_far_as_the_file_goes(binary: bool, tmp_path: Path) -> None:
    model = load(tmp_path, DOUBLE, LABELLED, labels="cat\n")
    answer = ask(model, *flat(request_of([input_of(PAIR, "FP32")], classified(2, binary=binary))))
    assert b'"datatype":"BYTES","shape":[2,2]' in answer.body
    texts = [text if isinstance(text, str) else text.decode() for text in read(answer).reshape(-1)]
    assert texts == ["1.0:0:cat", "0.5:1", "4.0:1", "-2.0:0:cat"]


def test_classes_of_a_model_that_is_not_batchable_have_no_rows(tmp_path: Path) -> None:
    model = load(tmp_path, FIXED)
    answer = ask(model, *flat(request_of([input_of(PAIR[:1], "FP32")], classified(1, binary=False))))
    assert answer.body.endswith(b'[{"name":"y","datatype":"BYTES","shape":[1],"data":["-0.25:1"]}]}')


def test_classes_of_strings_are_400_before_the_model_runs(tmp_path: Path) -> None:
    model = load(tmp_path, TEXT)
    body, headers = request_of([input_of(np.array([[b"a", b"b"]], object), "BYTES")], classified(1, binary=True))
    answer = ask(model, body, *headers)
    assert (answer.status, model.statistics.read("m", 1).execution_count) == (400, 0)
    assert b"needs numbers to rank, the output is BYTES" in answer.body


def test_classification_that_is_too_large_is_400(tmp_path: Path) -> None:
    model = load(tmp_path, "g (float[N,1] x) => (float[N,50001] y) <int64[2] s = {1, 50001}> { y = Tile(x, s) }")
    body = json.dumps(
        {
            "inputs": [{"name": "x", "shape": [2, 1], "datatype": "FP32", "data": [1, 2]}],
            "outputs": [{"name": "y", "parameters": {"classification": 50001}}],
        }
    ).encode()
    answer = ask(model, body)
    assert answer.status == 400
    assert b"makes 100002 strings, at most 100000 are written" in answer.body


# --- raw bodies and .npy ------------------------------------------------------------------------------------------


def test_raw_row_is_answered_in_binary(tmp_path: Path) -> None:
    answer = ask(load(tmp_path, DOUBLE), PAIR[:1].tobytes(), (b"inference-header-content-length", b"0"))
    assert header_of(answer, b"content-type") == b"application/octet-stream"
    assert answer.body.endswith(b'"parameters":{"binary_data_size":8}}]}' + (2 * PAIR[:1]).tobytes())
    np.testing.assert_array_equal(read(answer), 2 * PAIR[:1], strict=True)


def test_raw_body_of_two_rows_is_400(tmp_path: Path) -> None:
    answer = ask(load(tmp_path, DOUBLE), PAIR.tobytes(), (b"inference-header-content-length", b"0"))
    assert answer.status == 400
    assert b"it has 16 bytes; input 'x' of FP32 and shape [-1, 2] takes 8 for one row" in answer.body


@pytest.mark.parametrize(
    ("sent", "shape"), [pytest.param(PAIR, "[2,2]", id="rows"), pytest.param(PAIR[0], "[1,2]", id="a-row")]
)
def test_npy_is_answered_as_json(sent: Any, shape: str, tmp_path: Path) -> None:
    answer = ask(load(tmp_path, DOUBLE), saved(sent), (b"content-type", b"application/x-npy"))
    data = json.dumps((2 * sent).reshape(-1).tolist(), separators=(",", ":"))
    assert answer.status == 200
    assert answer.body.endswith(f'[{{"name":"y","datatype":"FP32","shape":{shape},"data":{data}}}]}}'.encode())


# --- content codings ----------------------------------------------------------------------------------------------

MANY = np.arange(1000, dtype=np.float32).reshape(500, 2)
WIDE = {"max_batch_size": 500}


@pytest.mark.parametrize(("coding", "unpack"), [(b"gzip", gzip.decompress), (b"deflate", zlib.decompress)])
def test_codings_go_both_ways_as_tritonclient_speaks_them(coding: bytes, unpack: Any, tmp_path: Path) -> None:
    body, headers = request_of([input_of(MANY, "FP32")])
    packed = gzip.compress(body) if coding == b"gzip" else zlib.compress(body)
    coded, plain = ask_all(
        load(tmp_path, DOUBLE, WIDE),
        (packed, [*headers, (b"content-encoding", coding), (b"accept-encoding", coding)]),
        (body, headers),
    )
    assert header_of(coded, b"content-encoding") == coding
    assert header_of(coded, b"vary") == header_of(plain, b"vary") == b"accept-encoding"
    assert header_of(coded, b"content-length") == b"%d" % len(coded.body)
    length = b"inference-header-content-length"
    assert header_of(coded, length) == header_of(plain, length)
    assert len(coded.body) < len(plain.body)
    assert unpack(coded.body) == plain.body
    np.testing.assert_array_equal(read(plain), 2 * MANY)


def test_long_answer_is_packed_beside_the_event_loop_to_the_same_bytes(tmp_path: Path) -> None:
    many = np.random.default_rng(0).normal(size=(4000, 2)).astype(np.float32)
    values = {"name": "x", "shape": [4000, 2], "datatype": "FP32", "data": many.tolist()}
    body = json.dumps({"inputs": [values]}).encode()
    binary, headers = request_of([input_of(many, "FP32")])
    gzipped = (b"accept-encoding", b"gzip")
    plain, packed, incompressible = ask_all(
        load(tmp_path, DOUBLE, {"max_batch_size": 4000}),
        (body, []), (body, [gzipped]), (binary, [*headers, gzipped]),
    )  # fmt: skip
    assert len(plain.body) > PACKED_AT_ONCE_BYTES
    assert (packed.status, header_of(packed, b"content-encoding")) == (200, b"gzip")
    assert header_of(packed, b"content-length") == b"%d" % len(packed.body)
    assert gzip.decompress(packed.body) == plain.body
    np.testing.assert_array_equal(read(incompressible), 2 * many)


def test_several_lines_of_accept_encoding_are_one_list(tmp_path: Path) -> None:
    answer = ask(
        load(tmp_path, DOUBLE, WIDE),
        *flat(request_of([input_of(MANY, "FP32")])),
        (b"accept-encoding", b"gzip;q=0"),
        (b"accept-encoding", b"deflate"),
    )
    assert header_of(answer, b"content-encoding") == b"deflate"


def test_several_lines_of_header_length_are_refused(tmp_path: Path) -> None:
    body, headers = request_of([input_of(PAIR, "FP32")])
    answer = ask(load(tmp_path, DOUBLE), body, *headers, *headers)
    assert answer.status == 400
    assert b"expected a number of bytes in decimal digits" in answer.body


def test_refusals_are_never_packed(tmp_path: Path) -> None:
    answer = ask(load(tmp_path, DOUBLE), b"{}", (b"accept-encoding", b"gzip, identity;q=0"))
    assert (answer.status, header_of(answer, b"content-encoding")) == (400, None)


# --- no rows ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("binary", [True, False])
def test_no_rows_are_answered_without_running(binary: bool, tmp_path: Path) -> None:
    model = load(tmp_path, DOUBLE)
    outputs = [triton.InferRequestedOutput("y", binary_data=binary)]
    answer = ask(model, *flat(request_of([input_of(np.zeros((0, 2), np.float32), "FP32")], outputs)))
    assert read(answer).shape == (0, 2)
    assert model.statistics.read("m", 1).execution_count == 0


def test_no_rows_never_reach_a_recurrent_kernel(tmp_path: Path) -> None:
    """Whose LSTM of ONNX Runtime 1.31 ends the process when it is run on nothing."""
    recurrent = """
    g (float[N,1] x) => (float[N,1] y)
    <float[1,4,1] w = {1.0,1.0,1.0,1.0}, float[1,4,1] r = {1.0,1.0,1.0,1.0}, int64[1] a = {0}, int64[2] s = {-1, 1}>
    { t = Unsqueeze(x, a) h = LSTM<hidden_size=1>(t, w, r) y = Reshape(h, s) }
    """
    model = load(tmp_path, recurrent)
    assert model.max_batch_size > 0
    body = b'{"inputs":[{"name":"x","shape":[0,1],"datatype":"FP32","data":[]}]}'
    answer = ask(model, body)
    assert answer.body.endswith(b'{"name":"y","datatype":"FP32","shape":[0,1],"data":[]}]}')


def test_no_rows_of_a_model_whose_answer_has_any_size_are_400(tmp_path: Path) -> None:
    model = load(tmp_path, "g (float[N,K] x) => (float[N,K] y) { y = Neg(x) }")
    body = b'{"inputs":[{"name":"x","shape":[0,2],"datatype":"FP32","data":[]}]}'
    answer = ask(model, body)
    assert answer.status == 400
    assert b"cannot be told without one" in answer.body


# --- much JSON ----------------------------------------------------------------------------------------------------


def much_json(rows: int = 50_000) -> tuple[bytes, Any]:
    values = np.random.default_rng(0).normal(size=(rows, 2)).astype("<f4")
    tensor = {"name": "x", "datatype": "FP32", "shape": list(values.shape), "data": values.tolist()}
    return json.dumps({"inputs": [tensor]}).encode(), values


def test_nobody_waits_for_a_request_of_much_json(tmp_path: Path) -> None:
    model = load(tmp_path, DOUBLE, {"max_batch_size": 100_000})
    registry = cast("Registry", SimpleNamespace(get=lambda name, version: model))
    long_body, values = much_json()
    short_body = b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,2],"data":[1,2]}]}'
    answers: list[Answer] = []

    async def ask_both() -> None:
        head = read_head(model.name, None, [])
        assert begin_infer(registry, head, long_body, answers.append) is not None
        begin_infer(registry, head, short_body, answers.append)
        while len(answers) < 2:
            await asyncio.sleep(0.001)
        await model.close()

    asyncio.run(asyncio.wait_for(ask_both(), timeout=60))
    assert [read(answer).tolist() for answer in answers] == [[[2.0, 4.0]], (values * 2).tolist()]


def test_a_request_of_much_json_can_be_given_up(tmp_path: Path) -> None:
    model = load(tmp_path, DOUBLE, {"max_batch_size": 100_000})
    registry = cast("Registry", SimpleNamespace(get=lambda name, version: model))
    long_body, _ = much_json()
    answers: list[Answer] = []

    async def ask_and_leave() -> None:
        head = read_head(model.name, None, [])
        cancel = begin_infer(registry, head, long_body, answers.append)
        assert cancel is not None
        cancel()
        # Behind it in the same thread: once this is answered, the first would have been.
        begin_infer(registry, head, long_body, answers.append)
        while not answers:
            await asyncio.sleep(0.001)
        await model.close()

    asyncio.run(asyncio.wait_for(ask_and_leave(), timeout=60))
    assert len(answers) == 1
    assert model.statistics.read("m", 1).inference_stats.success.count == 1


def test_much_json_that_a_full_queue_would_refuse_is_not_read() -> None:
    def refuse(*_: Any) -> None:
        raise QueueFull("no room", retry_after_s=1.0)

    registry = cast("Registry", SimpleNamespace(get=lambda name, version: SimpleNamespace(check_admission=refuse)))
    answers: list[Answer] = []
    assert begin_infer(registry, read_head("m", None, []), much_json()[0], answers.append) is None
    assert [answer.status for answer in answers] == [503]


def test_a_load_while_much_json_is_read_costs_nobody_an_answer(tmp_path: Path) -> None:
    before = load(tmp_path / "before", DOUBLE, {"max_batch_size": 100_000})
    after = load(tmp_path / "after", DOUBLE.replace("2.0", "3.0"), {"max_batch_size": 100_000})
    serving = [before]
    registry = cast("Registry", SimpleNamespace(get=lambda name, version: serving[-1]))
    long_body, values = much_json()

    async def ask_and_load() -> Answer:
        answered: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        begin_infer(registry, read_head("m", None, []), long_body, answered.set_result)
        serving.append(after)
        await before.close()
        await asyncio.wait([answered])
        await after.close()
        return answered.result()

    answer = asyncio.run(asyncio.wait_for(ask_and_load(), timeout=60))
    assert read(answer).tolist() == (values * 3).tolist()


@pytest.mark.parametrize("packed", [False, True])
def test_much_json_is_read_and_refused_like_little(tmp_path: Path, packed: bool) -> None:
    model = load(tmp_path, DOUBLE, {"max_batch_size": 100_000})
    body, values = much_json(20_000)
    wrong = body.replace(b"[20000, 2]", b"[20000, 3]")
    damaged = body[:-1]
    headers = [(b"content-encoding", b"gzip")] if packed else []
    bodies = [gzip.compress(text) if packed else text for text in (body, wrong, damaged)]
    # Its answer is long as well, and is written by another thread than it was read by.
    good, refused, broken = ask_all(model, *[(text, headers) for text in bodies])
    assert read(good).tolist() == (values * 2).tolist()
    assert json.loads(refused.body)["error"].startswith("input 'x': data is nested as [20000, 2], shape is [20000, 3]")
    assert (broken.status, b"not JSON" in broken.body) == (400, True)


@pytest.mark.parametrize("path", ["infer", "predict"])
def test_nobody_waits_for_an_answer_of_much_json(tmp_path: Path, path: str) -> None:
    model = load(tmp_path, DOUBLE, {"max_batch_size": 100_000})
    registry = cast("Registry", SimpleNamespace(get=lambda name, version: model))
    values = np.arange(2 * LONG_ELEMENTS, dtype="<f4").reshape(-1, 2)
    tensor = input_of(values, "FP32")
    body, headers = request_of([tensor], [triton.InferRequestedOutput("y", binary_data=False)])
    begin = begin_infer
    if path == "predict":
        body, headers, begin = json.dumps({"instances": values.tolist()}).encode(), [], begin_predict
    threads: list[str] = []
    write = json_tensors.numbers_to_text

    def watched(*arguments: Any) -> bytes:
        threads.append(threading.current_thread().name)
        return write(*arguments)

    async def answer() -> Answer:
        answered: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        head = read_head(model.name, None, headers)
        begin(registry, head, body, answered.set_result, max_body_bytes=10**7)
        await asyncio.wait([answered])
        await model.close()
        return answered.result()

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(json_tensors, "numbers_to_text", watched)
        told = json.loads(asyncio.run(asyncio.wait_for(answer(), timeout=60)).body)
    found = told["predictions"] if path == "predict" else told["outputs"][0]["data"]
    assert np.array_equal(np.reshape(found, values.shape), values * 2)
    assert set(threads) == {"write_0"}
