"""The V1 protocol's routes on the real application: what KServe's client and TensorFlow Serving's users read there."""

from __future__ import annotations

import asyncio
import gzip
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from service.answers import Answer
from service.app import build_app, create_app
from service.compression import PACKED_AT_ONCE_BYTES
from service.errors import QueueFull
from service.http_api import InferRoute
from service.infer import EXPANDED_AT_ONCE_BYTES, InferHead
from service.model_states import ModelStatus
from service.protocol import (
    PLATFORM,
    InferenceRequest,
    InferenceResponse,
    ModelMetadata,
    OutputTensor,
    TensorMetadata,
)
from service.settings import Settings
from service.stages import Stages
from service.v1_api import PREDICT_PATHS, begin_predict, example_predict
from service.version_states import ModelState
from tests.service.handmade import DOUBLE, FIXED, PICKY, TEXT, save_version

PATIENCE_S = 60

TWO = "g (float[N,2] a, int64[N] i) => (float[N,2] s, int64[N] j) { s = Add(a, a) j = Add(i, i) }"
SUM = "g (float[2,3] x) => (float[3] y) <int64[1] axes = {0}> { y = ReduceSum<keepdims=0>(x, axes) }"
"""Not batchable, and its output has other rows than its input."""

LOG = "g (float[N,2] x) => (float[N,2] y) { y = Log(x) }"


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    repository = tmp_path_factory.mktemp("models")
    graphs = {"double": DOUBLE, "text": TEXT, "two": TWO, "log": LOG, "picky": PICKY, "fixed": FIXED, "sum": SUM}
    for name, graph in graphs.items():
        save_version(repository, name, graph)
    save_version(repository, "double", DOUBLE, version=2)
    (repository / "broken" / "1").mkdir(parents=True)
    (repository / "broken" / "1" / "model.onnx").write_bytes(b"no model")
    with TestClient(create_app(Settings(model_repository=repository, max_body_bytes=1000))) as opened:
        give_up = time.monotonic() + PATIENCE_S
        while "LOADING" in (told := opened.get("/v2/health/ready").text) or "no model" in told:
            assert time.monotonic() < give_up, told
            time.sleep(0.01)
        yield opened


# --- predictions --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "body", "answer"),
    [
        pytest.param("double", '{"instances":[[1,2],[3,4]]}', '{"predictions":[[2.0,4.0],[6.0,8.0]]}', id="rows"),
        pytest.param("double", '{"inputs":{"x":[[1,2]]}}', '{"outputs":[[2.0,4.0]]}', id="columns"),
        pytest.param("text", '{"instances":[["a","é"]]}', '{"predictions":[["a","é"]]}', id="text"),
        pytest.param("text", '{"instances":[[{"b64":"w6k="},"a"]]}', '{"predictions":[["é","a"]]}', id="base64"),
        pytest.param("two", '{"instances":[{"a":[1,2],"i":3},{"a":[4,5],"i":9007199254740993}]}',
                     '{"predictions":[{"s":[2.0,4.0],"j":6},{"s":[8.0,10.0],"j":18014398509481986}]}', id="two-inputs"),
        pytest.param("two", '{"inputs":{"a":[[1,2]],"i":[3]}}', '{"outputs":{"s":[[2.0,4.0]],"j":[6]}}',
                     id="two-columns"),
        pytest.param("log", '{"instances":[[-1,0],[1,Infinity]]}', '{"predictions":[[NaN,-Infinity],[0.0,Infinity]]}',
                     id="not-finite"),
        pytest.param("fixed", '{"instances":[[1,2]]}', '{"predictions":[[-1.0,-2.0]]}', id="not-batchable"),
        pytest.param("sum", '{"instances":[[[1,2,3],[4,5,6]]]}', '{"predictions":[[5.0,7.0,9.0]]}', id="one-whole"),
        pytest.param("sum", '{"instances":[{"x":[[1,2,3],[4,5,6]]}]}', '{"predictions":[[5.0,7.0,9.0]]}',
                     id="one-whole-by-name"),
        pytest.param("sum", '{"inputs":[[1,2,3],[4,5,6]]}', '{"outputs":[5.0,7.0,9.0]}', id="no-rows"),
    ],
)  # fmt: skip
def test_prediction_is_answered_byte_for_byte(model: str, body: str, answer: str, client: TestClient) -> None:
    got = client.post(f"/v1/models/{model}:predict", content=body.encode())
    assert (got.status_code, got.text) == (200, answer)
    assert got.headers["content-type"] == "application/json"


def test_version_in_the_path_chooses_the_version(client: TestClient) -> None:
    body = {"instances": [[1, 2]]}
    assert client.post("/v1/models/double/versions/2:predict", json=body).json() == {"predictions": [[2, 4]]}
    refusal = client.post("/v1/models/double/versions/1:predict", json=body)
    assert (refusal.status_code, list(refusal.json())) == (404, ["error"])


@pytest.mark.parametrize("coding", ["gzip", "identity"])
def test_body_may_be_compressed(coding: str, client: TestClient) -> None:
    body = b'{"instances":[[1,2]]}'
    packed = gzip.compress(body) if coding == "gzip" else body
    answer = client.post("/v1/models/double:predict", content=packed, headers={"Content-Encoding": coding})
    assert answer.json() == {"predictions": [[2, 4]]}


def test_answer_is_compressed_for_whom_that_is_the_only_way(client: TestClient) -> None:
    headers = {"Accept-Encoding": "gzip, identity;q=0"}
    answer = client.post("/v1/models/double:predict", json={"instances": [[1, 2]]}, headers=headers)
    assert answer.headers["content-encoding"] == "gzip"
    assert answer.json() == {"predictions": [[2, 4]]}


@pytest.mark.parametrize(
    ("model", "body", "status", "told"),
    [
        pytest.param("none", b"", 404, "model 'none' is not in the repository", id="unknown-model"),
        pytest.param("broken", b"", 503, "model 'broken' is not ready", id="not-ready"),
        pytest.param("double", b"", 400, "the body is empty", id="empty"),
        pytest.param("double", b'{"instances":[[1,2,3]]}', 400,
                     "input 'x': shape [1, 3] has 3 in dimension 1, model 'double' expects [-1, 2]", id="shape"),
        pytest.param("double", b'{"instances":[1,2]}', 400, "shape [2] has rank 1", id="flat"),
        pytest.param("double", b'{"instances":[[]]}', 400, "shape [1, 0] holds no element", id="nothing"),
        pytest.param("two", b'{"instances":[{"a":[1,2]}]}', 400, "input 'i' is missing; model 'two'", id="missing"),
        pytest.param("two", b'{"inputs":{"a":[[1,2]],"i":[1,2]}}', 400,
                     "input 'a' has 1 rows, input 'i' has 2", id="rows-differ"),
        pytest.param("double", b'{"instances":[' + b"[1,2]," * 64 + b"[1,2]]}", 400,
                     "the request has 65 rows, model 'double' takes at most 64 (max_batch_size); split it", id="rows"),
        pytest.param("sum", b'{"instances":[[1,2,3],[4,5,6]]}', 400,
                     "output 'y' has shape [3], which is not one value for each of 2 instances; send 'inputs' instead",
                     id="no-rows"),
        pytest.param("fixed", b'{"instances":[[1,2],[3,4]]}', 400,
                     "the request has 2 instances, model 'fixed' has no rows (max_batch_size 0) and takes one a "
                     "request; send each by itself, or whole tensors as 'inputs'", id="not-batchable"),
        pytest.param("double", b" " * 1001, 413, "the body has 1001 bytes, this server takes at most 1000", id="long"),
    ],
)  # fmt: skip
def test_refusal_has_v2s_status_and_form(model: str, body: bytes, status: int, told: str, client: TestClient) -> None:
    answer = client.post(f"/v1/models/{model}:predict", content=body)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/json"
    assert list(answer.json()) == ["error"]
    assert told in answer.json()["error"]


def test_failing_model_is_told_as_in_v2(client: TestClient) -> None:
    tensors = [
        {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]},
        {"name": "i", "datatype": "INT64", "shape": [1, 1], "data": [5]},
    ]
    v1 = client.post("/v1/models/picky:predict", json={"instances": [{"x": [1, 2], "i": [5]}]})
    v2 = client.post("/v2/models/picky/infer", json={"inputs": tensors})
    assert v1.status_code == v2.status_code >= 400
    assert v1.json() == v2.json()


def test_compressed_body_may_not_grow_beyond_the_limit(client: TestClient) -> None:
    packed = gzip.compress(b" " * 1001)
    answer = client.post("/v1/models/double:predict", content=packed, headers={"Content-Encoding": "gzip"})
    assert answer.status_code == 413


@pytest.mark.parametrize("path", ["/v1/models/double:predict", "/v1/models/double/versions/2:predict"])
def test_get_of_a_prediction_is_not_there(path: str, client: TestClient) -> None:
    answer = client.get(path)
    assert (answer.status_code, list(answer.json())) == (404, ["error"])


@pytest.mark.parametrize("path", ["/v1/models/double", "/v1/models/double/versions/2", "/v1/models/none"])
@pytest.mark.parametrize("verb", ["classify", "regress", "explain"])
def test_other_verbs_are_501_and_name_predict(verb: str, path: str, client: TestClient) -> None:
    answer = client.post(f"{path}:{verb}", json={"examples": [{"x": 1}]})
    told = f"models here take no ':{verb}'; POST {path}:predict answers all of a model's outputs"
    assert (answer.status_code, answer.json()) == (501, {"error": told})


@pytest.mark.parametrize("rest", ["/models/double", "/models/double/versions/2"])
def test_metadata_is_where_v2_has_it(rest: str, client: TestClient) -> None:
    answer = client.get(f"/v1{rest}/metadata")
    told = f"there is no metadata in V1 here; GET /v2{rest} tells a model's inputs and outputs"
    assert (answer.status_code, answer.json()) == (404, {"error": told})
    assert client.get(f"/v2{rest}").json()["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}]


class Queueing:
    """A model that never answers, or refuses."""

    metadata = ModelMetadata("m", ("1",), PLATFORM, (TensorMetadata("x", "FP32", (-1,)),), ())
    max_batch_size = 8
    repository_name = "models"

    def __init__(self, error: Exception | None = None) -> None:
        self.begun = asyncio.Event()
        self.cancelled = 0
        self._error = error

    def get(self, name: str, version: str | None) -> Queueing:
        return self

    def count_refusal(self, name: str, version: str | None, reason: str) -> None:
        pass

    def begin(
        self, request: InferenceRequest, done: Callable[[Any], object], arrived_s: float, stages: Stages
    ) -> Callable[[], object]:
        if self._error:
            raise self._error
        self.begun.set()
        return self._cancel

    def _cancel(self) -> None:
        self.cancelled += 1


def test_caller_who_goes_takes_the_request_out_of_the_queue() -> None:
    async def call() -> tuple[Queueing, list[Any]]:
        model = Queueing()
        sent: list[Any] = []
        messages = [{"type": "http.request", "body": b'{"instances":[1]}'}, {"type": "http.disconnect"}]

        async def receive() -> Any:
            if len(messages) == 1:
                await model.begun.wait()
            return messages.pop(0)

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {"type": "http", "headers": [], "path_params": {"model_name": "m"}}
        route = InferRoute(model, 1000, lambda *given: begin_predict(*given, max_body_bytes=1000))  # type: ignore[arg-type]
        await asyncio.wait_for(route(scope, receive, send), 30)
        return model, sent

    model, sent = asyncio.run(call())
    assert (model.cancelled, sent) == (1, [])


class Echoing(Queueing):
    """A model that answers with its input, soon."""

    def begin(
        self, request: InferenceRequest, done: Callable[[Any], object], arrived_s: float, stages: Stages
    ) -> Callable[[], object]:
        (x,) = request.inputs
        response = InferenceResponse("m", "1", (OutputTensor("y", x.datatype, x.data),))
        asyncio.get_running_loop().call_soon(done, response)
        return self._cancel


def test_long_packed_body_is_read_and_its_long_answer_packed() -> None:
    """Both beside the event loop: neither is done when `begin_predict` returns."""
    values = [number / 8 for number in range(10_000)]
    body = gzip.compress(json.dumps({"instances": values}).encode())
    assert len(body) > EXPANDED_AT_ONCE_BYTES

    async def call() -> Answer:
        answered: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        registry: Any = Echoing()
        head = InferHead("m", content_encoding=b"gzip", accept_encoding=b"gzip")
        begin_predict(registry, head, body, answered.set_result, max_body_bytes=10**6)
        return await asyncio.wait_for(answered, 30)

    answer = asyncio.run(call())
    unpacked = gzip.decompress(answer.body)
    assert (answer.status, dict(answer.headers)[b"content-encoding"]) == (200, b"gzip")
    assert len(unpacked) > PACKED_AT_ONCE_BYTES
    assert json.loads(unpacked) == {"predictions": values}


def test_full_queue_is_told_as_in_v2() -> None:
    answers: list[Any] = []
    registry: Any = Queueing(QueueFull("the queue is full", retry_after_s=1.5))
    begin_predict(registry, InferHead("m"), b'{"instances":[1]}', answers.append, max_body_bytes=1000)
    (answer,) = answers
    assert (answer.status, dict(answer.headers)[b"retry-after"]) == (503, b"2")
    assert json.loads(answer.body) == {"error": "the queue is full"}


# --- models -------------------------------------------------------------------------------------------------------

OK = {"error_code": "OK", "error_message": ""}


def test_liveness_and_list_are_what_kserves_client_reads(client: TestClient) -> None:
    assert client.get("/").json() == {"status": "alive"}
    names = ["broken", "double", "fixed", "log", "picky", "sum", "text", "two"]
    assert client.get("/v1/models").json() == {"models": names}


def test_status_of_a_model_that_is_ready(client: TestClient) -> None:
    expected = {
        "name": "double",
        "ready": True,
        "model_version_status": [{"version": "2", "state": "AVAILABLE", "status": OK}],
    }
    assert client.get("/v1/models/double").json() == expected
    assert client.get("/v1/models/double/versions/2").json() == expected


def test_status_of_a_model_that_failed_is_503_with_its_reason(client: TestClient) -> None:
    answer = client.get("/v1/models/broken")
    assert answer.status_code == 503
    (version,) = answer.json()["model_version_status"]
    assert (answer.json()["ready"], version["version"], version["state"]) == (False, "1", "END")
    assert version["status"]["error_code"] == "UNAVAILABLE"
    assert "model.onnx cannot be loaded" in version["status"]["error_message"]
    assert version["status"]["error_message"] in answer.json()["error"]


@pytest.mark.parametrize("path", ["/v1/models/none", "/v1/models/double/versions/7", "/v1/models/double/versions/x"])
def test_status_of_what_is_not_there_is_404(path: str, client: TestClient) -> None:
    answer = client.get(path)
    assert (answer.status_code, list(answer.json())) == (404, ["error"])


@pytest.mark.parametrize(
    ("state", "word"),
    [
        (ModelState.LOADING, "LOADING"),
        (ModelState.READY, "AVAILABLE"),
        (ModelState.UNLOADING, "UNLOADING"),
        (ModelState.UNAVAILABLE, "END"),
    ],
)
def test_each_state_has_a_word_of_tensorflow_serving(state: ModelState, word: str) -> None:
    class OneModel(Queueing):
        def require_ready(self, name: str, version: str | None) -> None:
            pass

        def states(self) -> tuple[ModelStatus, ...]:
            return (ModelStatus("m", 3, state), ModelStatus("m", None, state), ModelStatus("other", 3, state))

    registry: Any = OneModel()
    (version,) = TestClient(build_app(registry, 1000)).get("/v1/models/m").json()["model_version_status"]
    assert (version["version"], version["state"]) == ("3", word)


@pytest.mark.parametrize(
    ("inputs", "example"),
    [
        pytest.param((("x", "FP32", (-1, 1, 3)),), {"instances": [[[0, 1, 2]]]}, id="rows"),
        pytest.param((("x", "INT64", (2, 1)),), {"inputs": {"x": [[0], [0]]}}, id="no-rows"),
        pytest.param((("x", "BYTES", ()),), {"inputs": {"x": "text"}}, id="single-value"),
        pytest.param((("a", "BOOL", (-1,)), ("b", "BYTES", (-1, 2))),
                     {"inputs": {"a": [False], "b": [["text", "text"]]}}, id="several"),
        pytest.param((), {"inputs": {}}, id="none"),
    ],
)  # fmt: skip
def test_example_is_nested_like_the_inputs(inputs: Any, example: dict[str, Any]) -> None:
    tensors = tuple(TensorMetadata(*tensor) for tensor in inputs)
    assert example_predict(ModelMetadata("m", ("1",), PLATFORM, tensors, ())) == example


def test_every_example_works_when_pasted(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    for path in PREDICT_PATHS:
        operation = paths[path]["post"]
        examples = operation["requestBody"]["content"]["application/json"]["examples"]
        assert sorted(examples) == ["double", "fixed", "log", "picky", "sum", "text", "two"]
        prefilled = {one["name"]: one["example"] for one in operation["parameters"]}
        assert prefilled["model_name"] in examples
        for name, example in examples.items():
            target = {"model_name": name, "version": "2" if name == "double" else "1"}
            answer = client.post(path.format(**target), json=example["value"])
            assert answer.status_code == 200, answer.text
    assert {"/", "/v1/models", "/v1/models/{model_name}"} <= paths.keys()
