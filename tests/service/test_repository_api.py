"""The repository routes over the real application: bodies, statuses, words. For loading see test_registry_loading."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from service.app import create_app
from service.settings import Settings
from tests.service.handmade import DOUBLE, save_model, save_version
from tests.service.waiting_for import wait_until_ready

INDEX = "/v2/repository/index"
LOAD = "/v2/repository/models/m/load"
UNLOAD = "/v2/repository/models/m/unload"
READY = {"name": "m", "state": "READY", "version": "1", "reason": ""}
UNLOADED = {"name": "m", "state": "UNAVAILABLE", "version": "1", "reason": "unloaded"}
LATE = {"name": "late", "state": "UNAVAILABLE", "reason": "not loaded"}


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    """A server of one model, `m`, and beside it one, `late`, that came when the server ran."""
    repository = tmp_path / "models"
    save_version(repository, "m", DOUBLE)
    save_version(tmp_path, "outside", DOUBLE)
    with TestClient(create_app(Settings(model_repository=repository))) as opened:
        wait_until_ready(opened)
        save_version(repository, "late", DOUBLE)
        yield opened


def post(client: TestClient, path: str, body: bytes = b"") -> tuple[int, Any]:
    answer = client.post(path, content=body)
    assert answer.headers["content-type"] == "application/json"
    return answer.status_code, answer.json()


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        pytest.param(b"", [LATE, READY], id="empty"),
        pytest.param(b" \n", [LATE, READY], id="blank"),
        pytest.param(b"{}", [LATE, READY], id="nothing-said"),
        pytest.param(b'{"ready": false}', [LATE, READY], id="all"),
        pytest.param(b'{"ready": null}', [LATE, READY], id="null"),
        pytest.param(b'{"ready": true}', [READY], id="ready"),
        pytest.param(b'{"unknown": 1}', [LATE, READY], id="unknown-member"),
    ],
)
def test_index_may_be_asked_for_what_is_ready(body: bytes, expected: list[Any], client: TestClient) -> None:
    assert post(client, INDEX, body) == (200, expected)


@pytest.mark.parametrize("body", [b"", b"{}", b'{"parameters": {}}', b'{"parameters": null}'])
def test_models_come_and_go_by_name(body: bytes, client: TestClient) -> None:
    assert post(client, UNLOAD, body) == (200, {})
    assert post(client, INDEX) == (200, [LATE, UNLOADED])
    for path in ("/v2/models/m", "/v2/models/m/config", "/v2/models/m/stats", "/v2/models/m/versions/1/ready"):
        answer = client.get(path)
        assert answer.status_code == 503
        assert "version 1 is UNAVAILABLE: unloaded" in answer.json()["error"]
    assert client.get("/v2/models/stats").json() == {"model_stats": []}
    assert post(client, LOAD, body) == (200, {})
    assert post(client, "/v2/repository/models/late/load", body) == (200, {})
    assert client.get("/v2/models/late/ready").status_code == 200
    assert [one["name"] for one in client.get("/v2/models/stats").json()["model_stats"]] == ["m", "late"]


@pytest.mark.parametrize("value", [b"true", b"false", b"null"])
def test_unload_takes_what_dependents_would_need(value: bytes, client: TestClient) -> None:
    """tritonclient sends it with every unload."""
    assert post(client, UNLOAD, b'{"parameters": {"unload_dependents": ' + value + b"}}") == (200, {})
    assert post(client, INDEX) == (200, [LATE, UNLOADED])


@pytest.mark.parametrize("path", [INDEX, LOAD, UNLOAD])
def test_the_one_repository_may_be_named(path: str, client: TestClient) -> None:
    assert post(client, path.replace("repository/", "repository/models/", 1))[0] == 200
    status, answer = post(client, path.replace("repository/", "repository/other/", 1))
    assert status == 404
    assert answer["error"] == ("there is no model repository 'other' here; there is one only, so leave its name out")


@pytest.mark.parametrize(
    ("path", "body", "status", "text"),
    [
        pytest.param(INDEX, b"{", 400, "the body is not JSON", id="not-json"),
        pytest.param(INDEX, b"[]", 400, "the request is an array, expected an object or no body at all", id="array"),
        pytest.param(INDEX, b'{"ready": 1}', 400, "the request: 'ready' is an integer", id="ready-is-no-boolean"),
        pytest.param(LOAD, b'{"parameters": []}', 400, "the request: 'parameters' is an array", id="parameters"),
        pytest.param(
            LOAD, b'{"parameters": {"x": 1}}', 400,
            "parameter 'x' is unknown to load; it takes 'config', 'version_policy', 'traffic'", id="unknown-to-load",
        ),
        pytest.param(
            LOAD, b'{"parameters": {"traffic": "{}"}}', 400,
            "the request's parameters: 'traffic' is a string, expected an object", id="traffic-as-a-string",
        ),
        pytest.param(
            LOAD, b'{"parameters": {"traffic": {"canary": {"version": 1, "weight": 90}}}}', 400,
            "the request's parameters: traffic.canary.weight is 90; expected 1.0 or less", id="percent",
        ),
        pytest.param(
            LOAD, b'{"parameters": {"traffic": {"canary": {"version": 1, "weight": 0.5}}}}', 400,
            "model 'm' cannot be loaded: the request's parameters: traffic puts version 1 on trial beside another, but "
            "version_policy does not load both", id="trial-without-the-versions",
        ),
        pytest.param(
            LOAD,
            b'{"parameters": {"version_policy": {"all": true}, "traffic": {"canary": {"version": 2, "weight": 0.5}}}}',
            400, "model 'm' cannot be loaded: traffic puts version 2 on trial, which is not among those to be loaded",
            id="version-that-is-not-there",
        ),
        pytest.param(
            LOAD, b'{"parameters": {"file:1/model.onnx": "aGk="}}', 501,
            "parameter 'file:1/model.onnx': files are not taken over the network", id="file",
        ),
        pytest.param(
            LOAD, b'{"parameters": {"file:../../x": "aGk="}}', 501,
            "parameter 'file:../../x': files are not taken", id="file-outside",
        ),
        pytest.param(
            UNLOAD, b'{"parameters": {"unload_dependents": "yes"}}', 400,
            "the request's parameters: 'unload_dependents' is a string, expected a boolean", id="no-boolean",
        ),
        pytest.param(
            UNLOAD, b'{"parameters": {"x": 1}}', 400, "parameter 'x' is unknown to unload", id="unknown-to-unload"
        ),
        pytest.param(
            LOAD, b'{"parameters": "' + b"x" * 2**20 + b'"}', 413, "the body is longer than the 1048576", id="long"
        ),
        pytest.param("/v2/repository/models/none/load", b"", 404, "there is no model 'none'", id="no-such-model"),
        pytest.param("/v2/repository/models/%2e%2e/load", b"", 404, "there is no", id="parent"),
        pytest.param("/v2/repository/models/..%2Foutside/load", b"", 404, "there is no", id="beside"),
        pytest.param("/v2/repository/models/%252e%252e/load", b"", 404, "there is no", id="encoded-twice"),
        pytest.param("/v2/repository/models/.staging/load", b"", 404, "there is no", id="invisible"),
        pytest.param("/v2/repository/models/m%00/load", b"", 404, "there is no", id="nul"),
        pytest.param("/v2/repository/models/load", b"", 404, "there is no POST", id="no-name"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused_with_words(
    path: str, body: bytes, status: int, text: str, client: TestClient, tmp_path: Path
) -> None:
    found, answer = post(client, path, body)
    assert (found, list(answer)) == (status, ["error"])
    assert text in answer["error"]
    assert str(tmp_path) not in answer["error"]
    assert post(client, INDEX) == (200, [LATE, READY]), "nothing has changed"


def test_the_configuration_that_is_told_can_be_given_back_and_changed(client: TestClient, tmp_path: Path) -> None:
    """Model Analyzer and Triton's users do so. The model's rows are single numbers: dims are []."""
    save_model(tmp_path / "models" / "m" / "1" / "model.onnx", "g (float[N] x) => (float[N] y) { y = Neg(x) }")
    assert post(client, LOAD) == (200, {})
    told = client.get("/v2/models/m/config").json()
    assert told["input"] == [{"name": "x", "data_type": "TYPE_FP32", "dims": []}]
    changed = {**told, "output": [{**told["output"][0], "dims": [1], "reshape": {"shape": []}}]}
    body = json.dumps({"parameters": {"config": json.dumps(changed)}}).encode()
    assert post(client, LOAD, body) == (200, {})
    assert client.get("/v2/models/m/config").json() == changed
    request = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [2], "data": [3, 4]}]}
    (output,) = client.post("/v2/models/m/infer", json=request).json()["outputs"]
    assert (output["shape"], output["data"]) == ([2, 1], [-3.0, -4.0])


def canary(version: int, weight: float) -> dict[str, Any]:
    return {"canary": {"version": version, "weight": weight}}


@pytest.mark.parametrize(
    "parameters",
    [
        {"version_policy": {"latest": 2}, "traffic": canary(2, 0.5)},
        {"config": json.dumps({"version_policy": {"latest": 2}, "traffic": canary(2, 0.5)})},
        {"config": '{"version_policy": {"all": {}}}', "traffic": canary(2, 0.5), "version_policy": None},
    ],
    ids=["parts", "config", "both"],
)
def test_a_load_may_put_a_version_on_trial_until_the_next_one(
    parameters: dict[str, Any], client: TestClient, tmp_path: Path
) -> None:
    save_version(tmp_path / "models", "m", DOUBLE, version=2)
    assert post(client, LOAD, json.dumps({"parameters": parameters}).encode()) == (200, {})
    told = client.get("/v2/models/m").json()
    assert told["versions"] == ["1", "2"]
    assert told["traffic"] == {
        "version": "1", "version_on_trial": "2", "requests": 0, "weight": 0.5, "on_trial": 0,
    }  # fmt: skip
    assert post(client, LOAD) == (200, {})
    told = client.get("/v2/models/m").json()
    assert (told["versions"], "traffic" in told) == (["2"], False)


def test_the_description_says_what_a_load_may_bring(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    body = document["paths"]["/v2/repository/models/{model_name}/load"]["post"]["requestBody"]
    schema = body["content"]["application/json"]["schema"]["properties"]["parameters"]["properties"]
    assert list(schema) == ["config", "version_policy", "traffic"]
    assert "$ref" not in json.dumps(schema)
    assert {"canary", "shadow"} == schema["traffic"]["anyOf"][0]["properties"].keys()
    assert {"latest", "all", "specific"} == schema["version_policy"]["anyOf"][0]["properties"].keys()


def test_a_load_that_fails_is_400_with_the_reason(client: TestClient, tmp_path: Path) -> None:
    (tmp_path / "models" / "m" / "1" / "model.onnx").write_bytes(b"nonsense")
    status, answer = post(client, LOAD)
    assert status == 400
    assert answer["error"].startswith(
        "model 'm' cannot be loaded: version 1: model.onnx cannot be loaded by ONNX Runtime"
    )
    assert str(tmp_path) not in answer["error"]
    _, (_, row) = post(client, INDEX)
    assert row["state"] == "READY"
    assert row["reason"].startswith("serves on; as it is on disk now: model.onnx cannot be loaded")


@pytest.mark.parametrize("path", [INDEX, LOAD, UNLOAD])
@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS"])
def test_only_post_changes_anything(path: str, method: str, client: TestClient) -> None:
    answer = client.request(method, path)
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")


def test_a_model_called_stats_or_config_is_reached_as_far_as_in_triton(tmp_path: Path) -> None:
    """Only the metadata of `stats`, without a version, is hidden: behind the statistics of all models."""
    for name in ("stats", "config"):
        save_version(tmp_path, name, DOUBLE)
    with TestClient(create_app(Settings(model_repository=tmp_path))) as client:
        wait_until_ready(client)
        assert list(client.get("/v2/models/stats").json()) == ["model_stats"]
        assert client.get("/v2/models/config").json()["name"] == "config"
        for name in ("stats", "config"):
            assert client.get(f"/v2/models/{name}/versions/1").json()["name"] == name
            assert client.get(f"/v2/models/{name}/config").json()["name"] == name
            assert client.get(f"/v2/models/{name}/stats").json()["model_stats"][0]["name"] == name
            assert client.get(f"/v2/models/{name}/ready").json()["name"] == name
