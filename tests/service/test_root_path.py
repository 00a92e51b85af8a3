"""A server that a proxy publishes under a path: with the path and without it, for clients and pages alike."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tritonclient.http as triton
from starlette.testclient import TestClient

from service.app import build_app
from tests.end_to_end.running import Foldserve, foldserve
from tests.service.fakes import EchoModel, fake_registry
from tests.service.handmade import DOUBLE, save_version


@pytest.fixture
def client() -> TestClient:
    return TestClient(build_app(fake_registry(echo=EchoModel()), 1000, root_path="/models/eu"))


@pytest.mark.parametrize("path", ["/v2", "/v2/health/live", "/v2/models/echo", "/v1/models", "/", "/docs"])
def test_every_path_is_answered_with_and_without_the_root_path(path: str, client: TestClient) -> None:
    below, above = client.get(f"/models/eu{path}"), client.get(path)
    assert (below.status_code, below.content) == (above.status_code, above.content)
    assert below.status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        pytest.param("/models/eu/models/eu/v2", id="twice"),
        pytest.param("/models/europe/v2", id="longer-name"),
        pytest.param("/models/v2", id="a-part"),
        pytest.param("/eu/v2", id="its-end"),
        pytest.param("/models/eu", id="alone"),
        pytest.param("/models/eu/v2/", id="slash-at-the-end"),
    ],
)
def test_other_paths_are_not_there(path: str, client: TestClient) -> None:
    answer = client.get(path)
    assert (answer.status_code, list(answer.json())) == (404, ["error"])


def test_error_of_a_method_names_what_is_taken(client: TestClient) -> None:
    answer = client.post("/models/eu/v2/health/live")
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD")
    assert client.head("/models/eu/v2").status_code == 200


def test_docs_page_and_openapi_lead_through_the_proxy(client: TestClient) -> None:
    for prefix in ("", "/models/eu"):
        page = client.get(f"{prefix}/docs").text
        assert "'/models/eu/openapi.json'" in page
        links = re.findall(r"(?:src|href)=\"(/[^\"]+)\"", page)
        assert links
        for link in links:
            assert link.startswith("/models/eu/")
            assert client.get(link).status_code == 200  # a proxy that does not strip
            assert client.get(link.removeprefix("/models/eu")).status_code == 200  # a proxy that does
        assert client.get(f"{prefix}/openapi.json").json()["servers"] == [{"url": "/models/eu"}]


def test_without_a_root_path_there_is_none() -> None:
    plain = TestClient(build_app(fake_registry(echo=EchoModel()), 1000))
    assert plain.get("/models/eu/v2").status_code == 404
    assert "servers" not in plain.get("/openapi.json").json()
    assert "'/openapi.json'" in plain.get("/docs").text


# --- the real command ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Foldserve]:
    repository: Path = tmp_path_factory.mktemp("models")
    save_version(repository, "double", DOUBLE)
    with foldserve("--model-repository", repository, "--root-path", "/base") as service:
        yield service


@pytest.mark.parametrize("base", ["", "/base", "/base/"])
@pytest.mark.parametrize("binary", [False, True])
def test_tritons_client_takes_a_base_path(base: str, binary: bool, service: Foldserve) -> None:
    x = np.array([[1, 2]], np.float32)
    with triton.InferenceServerClient(service.address + base) as client:
        assert client.is_server_live()
        assert client.is_model_ready("double")
        assert client.get_model_metadata("double")["name"] == "double"
        sent = triton.InferInput("x", [1, 2], "FP32").set_data_from_numpy(x, binary_data=binary)
        answer = client.infer("double", [sent], outputs=[triton.InferRequestedOutput("y", binary_data=binary)])
        np.testing.assert_array_equal(answer.as_numpy("y"), 2 * x)
        client.unregister_system_shared_memory()
