from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
from fastapi import FastAPI
from starlette.testclient import TestClient

from service import __version__
from service.app import build_app, create_app
from service.http_api import INFER_PATHS, READS
from service.protocol import SERVER_EXTENSIONS
from service.settings import Settings
from tests.service.fakes import EchoModel, FakeRegistry, fake_registry
from tests.service.handmade import DOUBLE, TEXT, save_model, save_version
from tests.service.waiting_for import wait_until_ready

HALF = "g (float16[N,2] x) => (float16[N,2] y) { y = Add(x, x) }"
WIDE = "g (bool[N] b, int64[N] i) => (bool[N] nb, int64[N] j) { nb = Not(b) j = Add(i, i) }"


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """The real application with the real registry, ONNX Runtime and a few small models."""
    repository = tmp_path_factory.mktemp("models")
    for name, graph in (("double", DOUBLE), ("text", TEXT), ("half", HALF), ("wide", WIDE)):
        save_version(repository, name, graph)
    save_version(repository, "double", DOUBLE, version=2)
    with TestClient(create_app(Settings(model_repository=repository))) as opened:
        wait_until_ready(opened)
        yield opened


def fake_client(**models: EchoModel | str) -> TestClient:
    return TestClient(build_app(fake_registry(**models), 1000), raise_server_exceptions=False)


def image(data: list[Any], shape: list[int]) -> dict[str, Any]:
    return {"inputs": [{"name": "x", "shape": shape, "datatype": "FP32", "data": data}]}


# --- what the protocol's clients ask ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        pytest.param(
            "/v2",
            {"name": "foldserve", "version": __version__, "extensions": list(SERVER_EXTENSIONS)},
            id="server",
        ),
        pytest.param("/v2/health/live", {"live": True}, id="live"),
        pytest.param("/v2/health/ready", {"ready": True, "live": True}, id="ready"),
        pytest.param("/v2/models/double/ready", {"name": "double", "ready": True}, id="model-ready"),
        pytest.param("/v2/models/double/versions/2/ready", {"name": "double", "ready": True}, id="version-ready"),
        pytest.param(
            "/v2/models/wide",
            {
                "name": "wide",
                "versions": ["1"],
                "platform": "onnx_onnxv1",
                "inputs": [
                    {"name": "b", "datatype": "BOOL", "shape": [-1]},
                    {"name": "i", "datatype": "INT64", "shape": [-1]},
                ],
                "outputs": [
                    {"name": "nb", "datatype": "BOOL", "shape": [-1]},
                    {"name": "j", "datatype": "INT64", "shape": [-1]},
                ],
                "batch_invariance": {
                    "largest_difference": 0.0,
                    "probed_rows": [1, 2, 4, 8, 16, 32, 64],
                    "identical_rows": [1, 2, 4, 8, 16, 32, 64],
                    "padded": False,
                },
            },
            id="metadata",
        ),
    ],
)
def test_get_is_answered_as_the_protocol_says(path: str, expected: dict[str, Any], client: TestClient) -> None:
    answer = client.get(path)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    assert answer.json() == expected


def test_version_in_the_path_chooses_the_version(client: TestClient) -> None:
    # Only the latest is loaded by default.
    body = image([1, 2], [1, 2])
    for path in ("/v2/models/double/infer", "/v2/models/double/versions/2/infer"):
        answer = client.post(path, json=body)
        assert answer.json() == {
            "model_name": "double",
            "model_version": "2",
            "outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 2], "data": [2.0, 4.0]}],
        }
    assert client.post("/v2/models/double/versions/1/infer", json=body).status_code == 404


@pytest.mark.parametrize(
    "content_type",
    [pytest.param(None, id="none"), "text/plain", "application/x-www-form-urlencoded", "application/json; charset=x"],
)
def test_content_type_of_a_request_does_not_matter(content_type: str | None, client: TestClient) -> None:
    headers = {} if content_type is None else {"Content-Type": content_type}
    body = json.dumps(image([1, 2], [1, 2])).encode()
    assert client.post("/v2/models/double/infer", content=body, headers=headers).status_code == 200


def test_percent_encoded_name_is_the_name(client: TestClient) -> None:
    assert client.get("/v2/models/%64oubl%65/ready").json()["name"] == "double"


def test_numbers_that_json_lacks_travel_bare(client: TestClient) -> None:
    body = b'{"inputs":[{"name":"x","shape":[2,2],"datatype":"FP32","data":[NaN,Infinity,-Infinity,1e38]}]}'
    answer = client.post("/v2/models/double/infer", content=body)
    assert b'"data":[NaN,Infinity,-Infinity,2e+38]' in answer.content


def test_text_goes_through_the_model(client: TestClient) -> None:
    data = ["", "\u00e9\u6570", "a\u0000b", "\U0001f600"]
    body = {"inputs": [{"name": "x", "shape": [2, 2], "datatype": "BYTES", "data": data}]}
    assert client.post("/v2/models/text/infer", json=body).json()["outputs"][0]["data"] == data


def post_by_triton(client: TestClient, model: str, inputs: list[Any], **options: Any) -> triton.InferResult:
    """What an unmodified client makes of us, without a socket: its own bytes out, its own reader in."""
    body, header_bytes = triton.InferenceServerClient.generate_request_body(inputs, **options)
    headers = {} if header_bytes is None else {"Inference-Header-Content-Length": str(header_bytes)}
    answer = client.post(f"/v2/models/{model}/infer", content=body, headers=headers)
    assert answer.status_code == 200, answer.text
    length = answer.headers.get("Inference-Header-Content-Length")
    return triton.InferenceServerClient.parse_response_body(
        answer.content, header_length=None if length is None else int(length)
    )


@pytest.mark.parametrize("padding", range(8), ids=lambda padding: f"identifier-of-{padding}")
def test_binary_tensors_at_any_address_are_computed_rightly(padding: int, client: TestClient) -> None:
    """The JSON's length decides where a tensor lies in memory; ONNX Runtime gets it as it lies there."""
    flags = triton.InferInput("b", [3], "BOOL")
    flags.set_data_from_numpy(np.array([True, False, True]))
    numbers = triton.InferInput("i", [3], "INT64")
    numbers.set_data_from_numpy(np.array([1, -2, 2**40]))
    result = post_by_triton(client, "wide", [flags, numbers], request_id="i" * padding)
    assert result.as_numpy("nb").tolist() == [False, True, False]
    assert result.as_numpy("j").tolist() == [2, -4, 2**41]


def test_fp16_travels_in_binary_and_is_refused_as_json_before_the_model_runs(client: TestClient) -> None:
    half = triton.InferInput("x", [1, 2], "FP16")
    half.set_data_from_numpy(np.array([[1.5, -2]], np.float16))
    assert post_by_triton(client, "half", [half]).as_numpy("y").tolist() == [[3.0, -4.0]]
    asked = [triton.InferRequestedOutput("y", binary_data=False)]
    body, header_bytes = triton.InferenceServerClient.generate_request_body([half], outputs=asked)
    headers = {"Inference-Header-Content-Length": str(header_bytes)}
    answer = client.post("/v2/models/half/infer", content=body, headers=headers)
    assert answer.status_code == 400
    assert answer.json()["error"].startswith("output 'y': FP16 does not travel as JSON; request it in binary")


@pytest.mark.parametrize("path", ["/v2", "/v2/health/live", "/v2/models/double", "/docs", "/openapi.json"])
def test_head_is_get_without_the_body(path: str, client: TestClient) -> None:
    got, head = client.get(path), client.head(path)
    assert (head.status_code, head.content) == (got.status_code, b"")
    assert head.headers["content-length"] == got.headers["content-length"]


def test_root_path_stands_before_every_route(tmp_path: Path) -> None:
    """What uvicorn's --root-path does; tritonclient accepts an address with a base path."""
    path = save_model(tmp_path / "double.onnx", DOUBLE)
    with TestClient(create_app(Settings(model=path)), root_path="/base") as client:
        wait_until_ready(client, "/base/v2/health/ready")
        answer = client.post("/base/v2/models/double/infer", json=image([1, 2], [1, 2]))
        assert answer.json()["outputs"][0]["data"] == [2, 4]
        assert client.get("/base/v2/models/other").json()["error"].startswith("model 'other' is not in the repository")
        assert "'/base/openapi.json'" in client.get("/base/docs").text
        assert client.get("/base/openapi.json").json()["servers"] == [{"url": "/base"}]
        assert client.get("/base/static-offline-docs/swagger-ui.css").status_code == 200


# --- states -------------------------------------------------------------------------------------------------------


def test_liveness_answers_while_models_load_and_stopping_does_not_wait_for_them() -> None:
    registry = FakeRegistry({"slow": "still LOADING"}, loads=False)
    with TestClient(build_app(registry, 1000)) as client:
        assert client.get("/v2/health/live").json() == {"live": True}
        assert client.get("/v2/health/ready").status_code == 503
    assert registry.is_closed


def test_server_that_is_not_ready_says_which_models_and_why() -> None:
    answer = fake_client(good=EchoModel(), bad="weights are damaged").get("/v2/health/ready")
    assert answer.status_code == 503
    assert answer.json() == {
        "ready": False,
        "live": True,
        "error": "the server is not ready: bad version 1 is UNAVAILABLE: weights are damaged",
    }


def test_reasons_of_many_models_are_cut() -> None:
    text = fake_client(**{f"m{number}": "x" for number in range(13)}).get("/v2/health/ready").json()["error"]
    assert text.count("UNAVAILABLE") == 10
    assert text.endswith("; and 3 more")


def test_server_without_models_is_not_ready() -> None:
    answer = fake_client().get("/v2/health/ready")
    assert answer.status_code == 503
    assert answer.json()["error"] == "the server is not ready: no model has been found"


def test_server_that_does_not_know_its_models_yet_is_loading() -> None:
    client = TestClient(build_app(fake_registry(loads=False), 1024))
    error = client.get("/v2/health/ready").json()["error"]
    assert error == "the server is not ready: it is LOADING, the first scan of the model repository is not finished"


def test_model_that_is_not_ready_says_why_on_each_route() -> None:
    client = fake_client(bad="weights are damaged")
    reason = "model 'bad' is not ready: weights are damaged"
    answer = client.get("/v2/models/bad/ready")
    assert (answer.status_code, answer.json()) == (503, {"name": "bad", "ready": False, "error": reason})
    for answer in (client.get("/v2/models/bad"), client.post("/v2/models/bad/infer", content=b"{}")):
        assert (answer.status_code, answer.json()) == (503, {"error": reason})


def test_failure_to_load_at_all_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(FakeRegistry):
        async def load_all(self, assignment: object = None) -> None:
            raise ZeroDivisionError("a defect of ours")

    with caplog.at_level(logging.ERROR), TestClient(build_app(Broken({}), 1000)) as client:
        assert client.get("/v2/health/live").status_code == 200
    assert "loading the models failed unexpectedly" in caplog.text
    assert "a defect of ours" in caplog.text


# --- errors -------------------------------------------------------------------------------------------------------


def assert_is_error(answer: Any, status: int, text: str) -> None:
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/json")
    assert answer.json() == {"error": text}


STATIC = "/static-offline-docs"
"""Where FastAPIOffline mounts the files of the page: another application inside ours, with errors of its own."""


@pytest.mark.parametrize(
    ("method", "path", "shown"),
    [
        pytest.param("GET", "/v3", "/v3", id="get"),
        pytest.param("POST", "/v3/models", "/v3/models", id="post"),
        pytest.param("GET", "/v2/", "/v2/", id="slash"),
        pytest.param("GET", "/v2/models/a%2Fb", "/v2/models/a/b", id="slash-in-name"),
        pytest.param("GET", f"{STATIC}/no.js", f"{STATIC}/no.js", id="mounted"),
        pytest.param("GET", f"{STATIC}/..%2f..%2fcore.py", f"{STATIC}/../../core.py", id="mounted-elsewhere"),
    ],
)
def test_missing_route_is_named(method: str, path: str, shown: str) -> None:
    answer = fake_client(echo=EchoModel()).request(method, path)
    assert_is_error(answer, 404, f"there is no {method} {shown} here; /docs lists every route")


@pytest.mark.parametrize(
    ("method", "path", "text"),
    [
        pytest.param("GET", "/v2/models/no", "no model 'no' of version None", id="metadata"),
        pytest.param("GET", "/v2/models/no/ready", "no model 'no' of version None", id="ready"),
        pytest.param("GET", "/v2/models/echo/versions/x", "no model 'echo' of version x", id="version"),
        pytest.param("GET", "/v2/models/echo/versions/x/ready", "no model 'echo' of version x", id="version-ready"),
        pytest.param("POST", "/v2/models/no/infer", "no model 'no' of version None", id="infer"),
        pytest.param("POST", "/v2/models/echo/versions/7/infer", "no model 'echo' of version 7", id="version-infer"),
    ],
)
def test_missing_model_is_named(method: str, path: str, text: str) -> None:
    assert_is_error(fake_client(echo=EchoModel()).request(method, path), 404, text)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        pytest.param("POST", "/v2", "GET, HEAD", id="read"),
        pytest.param("OPTIONS", "/v2/health/live", "GET, HEAD", id="options"),
        pytest.param("DELETE", "/docs", "GET, HEAD", id="docs"),
        pytest.param("POST", f"{STATIC}/favicon.png", "GET, HEAD", id="mounted"),
        pytest.param("GET", "/v2/models/echo/infer", "POST", id="infer"),
        pytest.param("PUT", "/v2/models/echo/versions/1/infer", "POST", id="version-infer"),
    ],
)
def test_wrong_method_is_told_the_right_ones(method: str, path: str, allowed: str) -> None:
    answer = fake_client(echo=EchoModel()).request(method, path)
    assert_is_error(answer, 405, f"{path} does not take {method}, only {allowed}")
    assert answer.headers["allow"] == allowed


def test_head_where_there_is_no_get_is_refused() -> None:
    assert fake_client(echo=EchoModel()).head("/v2/models/echo/infer").status_code == 405


@pytest.fixture
def routes_of_a_later_issue() -> TestClient:
    """What FastAPI itself answers when a route validates or fails."""
    app: FastAPI = build_app(fake_registry(), 1000)

    @app.get("/typed")
    async def typed(number: int) -> int:
        return number

    @app.get("/broken")
    async def broken() -> int:
        raise ZeroDivisionError("secret")

    return TestClient(app, raise_server_exceptions=False)


def test_failed_validation_names_the_member(routes_of_a_later_issue: TestClient) -> None:
    answer = routes_of_a_later_issue.get("/typed?number=ten")
    assert (answer.status_code, answer.headers["content-type"]) == (422, "application/json")
    assert answer.json()["error"].startswith("GET /typed: query.number: Input should be a valid integer")


def test_defect_of_ours_is_500_without_its_text(routes_of_a_later_issue: TestClient) -> None:
    answer = routes_of_a_later_issue.get("/broken")
    assert_is_error(answer, 500, "internal error; the server's log has the details")


def test_defect_of_ours_reaches_the_http_servers_log() -> None:
    """Starlette raises it again behind the answer; uvicorn logs what is raised."""
    app = build_app(fake_registry(), 1000)
    app.add_api_route("/broken", lambda: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        TestClient(app).get("/broken")


# --- documentation ------------------------------------------------------------------------------------------------


def test_docs_page_loads_nothing_from_elsewhere(client: TestClient) -> None:
    page = client.get("/docs").text
    assert re.findall(r"https?://", page) == []
    sources = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert len(sources) == 3
    for source in sources:
        assert client.get(source).status_code == 200
    # Swagger's page asks validator.swagger.io unless told not to.
    assert '"validatorUrl": null' in page


def test_there_is_no_redoc_because_its_script_loads_a_picture_from_a_cdn(client: TestClient) -> None:
    assert client.get("/redoc").status_code == 404


def test_every_route_is_described_and_every_reference_resolves(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    # What the pages themselves are made of is not an interface, and neither are V1's routes that only refuse.
    shown = [route for route in client.app.routes if getattr(route, "include_in_schema", False)]  # type: ignore[attr-defined]
    assert set(document["paths"]) == {route.path for route in shown}
    assert set(document["paths"]) >= {read.path for read in READS} | set(INFER_PATHS)
    identifiers = [operation["operationId"] for item in document["paths"].values() for operation in item.values()]
    assert len(identifiers) == len(set(identifiers))
    for reference in re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(document)):
        assert reference in document["components"]["schemas"]
    assert "HTTPValidationError" not in json.dumps(document)


def test_every_example_works_when_pasted(client: TestClient) -> None:
    for path in INFER_PATHS:
        operation = client.get("/openapi.json").json()["paths"][path]["post"]
        prefilled = {one["name"]: one["example"] for one in operation["parameters"] if "example" in one}
        # FP16 has no JSON form, so `half` is not among them.
        examples = operation["requestBody"]["content"]["application/json"]["examples"]
        assert sorted(examples) == ["double", "text", "wide"]
        assert prefilled["model_name"] == "double"
        for name, example in examples.items():
            target = {"model_name": name, "version": "2" if name == "double" else "1"}
            answer = client.post(path.format(**target), json=example["value"])
            assert answer.status_code == 200, answer.text


def test_description_of_answers_matches_the_answers(client: TestClient) -> None:
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    # Traffic is told of only where it is shared between two versions.
    for path, schema, absent in (("/v2", "ServerMetadata", set()), ("/v2/models/double", "ModelMetadata", {"traffic"})):
        assert client.get(path).json().keys() | absent == schemas[schema]["properties"].keys()
    answer = client.post("/v2/models/double/infer", json=image([1, 2], [1, 2])).json()
    assert answer.keys() <= schemas["InferenceResponse"]["properties"].keys()
    assert answer.keys() >= set(schemas["InferenceResponse"]["required"])


@pytest.mark.parametrize(
    ("path", "schema"),
    [("/v2/models/double/config", "ModelConfiguration"), ("/v2/models/stats", "Statistics")],
)
def test_configuration_and_statistics_have_the_described_members(path: str, schema: str, client: TestClient) -> None:
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    described, answer = schemas[schema], client.get(path).json()
    assert set(described["required"]) <= answer.keys() <= described["properties"].keys()


# --- lightness ----------------------------------------------------------------------------------------------------


def test_importing_the_application_loads_neither_training_libraries_nor_onnx_runtime() -> None:
    heavy = ("torch", "onnx", "onnx_ir", "onnxscript", "sympy", "pandas", "onnxruntime", "training")
    script = f"import sys, service.app; print(*[name for name in {heavy!r} if name in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == []
