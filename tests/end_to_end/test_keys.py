"""Keys, scopes and other people's web pages, over real sockets to the real command, at both doors."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http
from tritonclient.utils import InferenceServerException

from tests.end_to_end.running import PATIENCE_S, Foldserve, foldserve, run_command
from tests.service.handmade import DOUBLE, save_version

INFER = "infer-key-0123456789"
CONTROL = "control-key-0123456789"
PATH = "/v2/models/double/infer"
# The lane does not take chunked bodies: the same request, through the other door.
DOORS = [pytest.param({}, id="lane"), pytest.param({"Transfer-Encoding": "chunked"}, id="asgi")]
BODY = b'{"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":[1,2]}]}'


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    repository = tmp_path_factory.mktemp("models")
    save_version(repository, "double", DOUBLE)
    return repository


@pytest.fixture(scope="module")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keys") / "keys"
    path.write_text(f"infer: {INFER}\ncontrol: {CONTROL}\n")
    path.chmod(0o600)
    return path


@pytest.fixture(scope="module")
def service(repository: Path, key_file: Path) -> Iterator[Foldserve]:
    with foldserve("--model-repository", repository, "--api-key-file", key_file, "--host", "0.0.0.0") as running:
        yield running
        assert INFER not in running.log()
        assert CONTROL not in running.log()


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def infer(service: Foldserve, headers: Mapping[str, str]) -> tuple[int, Any, Any]:
    """Status, body and the header that says how to do it better."""
    connection = http.client.HTTPConnection(service.address, timeout=PATIENCE_S)
    chunked = "Transfer-Encoding" in headers
    body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY) if chunked else BODY
    connection.request("POST", PATH, body, dict(headers))
    answer = connection.getresponse()
    result = (answer.status, json.load(answer), answer.getheader("www-authenticate"))
    connection.close()
    return result


@pytest.mark.parametrize("door", DOORS)
def test_each_door_asks_for_the_key(door: dict[str, str], service: Foldserve) -> None:
    assert infer(service, {**door, **bearer(INFER)})[0] == 200
    assert infer(service, {**door, "X-API-Key": INFER})[0] == 200
    for wrong in ({}, bearer(INFER + "0"), bearer("")):
        status, body, challenge = infer(service, {**door, **wrong})
        assert (status, list(body), challenge) == (401, ["error"], "Bearer")
    status, body, _ = infer(service, {**door, **bearer(CONTROL)})
    assert status == 403
    assert "needs a key for infer" in body["error"]


def test_a_key_opens_the_next_request_of_the_connection_and_not_every_one(service: Foldserve) -> None:
    """What is remembered of a head is remembered with its key."""
    connection = http.client.HTTPConnection(service.address, timeout=PATIENCE_S)
    for key, expected in ((INFER, 200), ("", 401), (INFER, 200), (CONTROL, 403), (INFER, 200), ("x" * 20, 401)):
        connection.request("POST", PATH, BODY, bearer(key) if key else {})
        answer = connection.getresponse()
        answer.read()
        assert answer.status == expected
    connection.close()


@pytest.mark.parametrize(
    ("method", "path", "key", "status"),
    [
        pytest.param("GET", "/v2/health/ready", "", 200, id="probe"),
        pytest.param("GET", "/v2/models/double", "", 401, id="metadata-without"),
        pytest.param("GET", "/v2/models/double", INFER, 200, id="metadata"),
        pytest.param("GET", "/v2/models/stats", CONTROL, 200, id="statistics"),
        pytest.param("GET", "/docs", "", 401, id="docs-without"),
        pytest.param("GET", "/openapi.json", INFER, 200, id="openapi"),
        pytest.param("POST", "/v2/repository/index", INFER, 200, id="index"),
        pytest.param("POST", "/v2/repository/models/double/load", "", 401, id="load-without"),
        pytest.param("POST", "/v2/repository/models/double/load", INFER, 403, id="load-with-the-wrong-one"),
        pytest.param("POST", "/v2/repository/models/double/load", CONTROL, 200, id="load"),
        pytest.param("POST", "/v2/systemsharedmemory/unregister", INFER, 403, id="shared-memory-with-the-wrong-one"),
        pytest.param("POST", "/v2/systemsharedmemory/unregister", CONTROL, 200, id="shared-memory"),
        pytest.param("POST", "/v1/models/double:predict", "", 401, id="v1-without"),
        pytest.param("GET", "/v2/%6dodels/double", "", 401, id="escaped"),
        pytest.param("GET", "//v2/health/live", "", 401, id="not-quite-the-probe"),
        pytest.param("GET", "/v2/health/live/", "", 401, id="nor-this"),
        pytest.param("GET", "/nowhere", "", 401, id="nowhere"),
    ],
)
def test_every_route_has_its_scope(method: str, path: str, key: str, status: int, service: Foldserve) -> None:
    answer = service.request(method, path, b"" if method == "POST" else None, bearer(key) if key else {})
    assert answer.status == status


@pytest.mark.parametrize("framing", ["Content-Length: 60000000", "Transfer-Encoding: chunked"])
def test_a_large_body_without_a_key_is_refused_before_it_comes(framing: str, service: Foldserve) -> None:
    host, _, port = service.address.partition(":")
    with socket.create_connection((host, int(port)), timeout=PATIENCE_S) as sock:
        sock.sendall(f"POST {PATH} HTTP/1.1\r\nHost: x\r\n{framing}\r\n\r\n".encode())
        answer = http.client.HTTPResponse(sock)
        answer.begin()
        assert (answer.status, answer.getheader("connection")) == (401, "close")


def test_triton_s_client_shows_its_key(service: Foldserve) -> None:
    with tritonclient.http.InferenceServerClient(service.address) as client:
        image = tritonclient.http.InferInput("x", [1, 2], "FP32")
        image.set_data_from_numpy(np.ones([1, 2], np.float32))
        answer = client.infer("double", [image], headers=bearer(INFER))
        assert answer.as_numpy("y").tolist() == [[2, 2]]
        with pytest.raises(InferenceServerException, match="needs a key for control"):
            client.load_model("double", headers=bearer(INFER))
        client.load_model("double", headers=bearer(CONTROL))


def test_keys_are_exchanged_while_the_server_runs(repository: Path, tmp_path: Path) -> None:
    """And what was remembered of requests with the old one is forgotten."""
    path = tmp_path / "keys"
    path.write_text(f"infer: {INFER}\n")
    with foldserve("--model-repository", repository, "--api-key-file", path) as running:
        assert "chmod o-r it" in running.log()
        assert infer(running, bearer(INFER))[0] == 200
        path.write_text(f"infer: {CONTROL}\n")
        running.wait_until(lambda: infer(running, bearer(CONTROL))[0] == 200, "taking the new key")
        assert infer(running, bearer(INFER))[0] == 401


@pytest.mark.parametrize("content", [None, "infer: short\n", "a-key-without-scope-0123456789\n"])
def test_a_file_of_keys_that_cannot_be_used_is_one_line_and_exit_code_2(
    content: str | None, repository: Path, tmp_path: Path
) -> None:
    path = tmp_path / "keys"
    if content is not None:
        path.write_text(content)
    result = run_command("foldserve", "--model-repository", repository, "--api-key-file", path, "--port", "0")
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"foldserve: error: --api-key-file: '{path}': ")
    assert "0123456789" not in line


# --- without keys -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def open_service(repository: Path) -> Iterator[Foldserve]:
    with foldserve("--model-repository", repository, "--host", "0.0.0.0") as running:
        yield running


def test_without_keys_strangers_may_ask_but_change_nothing(open_service: Foldserve) -> None:
    assert infer(open_service, {})[0] == 200
    for path in ("/v2/repository/models/double/unload", "/v2/systemsharedmemory/region/r/register"):
        answer = open_service.request("POST", path, b"{}")
        assert answer.status == 403
        assert "--api-key-file" in answer.json()["error"]
    assert infer(open_service, {})[0] == 200
    assert "whoever reaches this server can ask it" in open_service.log()


# --- web pages ----------------------------------------------------------------------------------------------------

PAGE = {"Origin": "https://a.example"}
PREFLIGHT = {
    **PAGE,
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,content-type",
}


def test_pages_of_other_origins_read_nothing_unless_they_are_named(open_service: Foldserve) -> None:
    assert "access-control-allow-origin" not in open_service.request("POST", PATH, BODY, PAGE).headers
    assert open_service.request("OPTIONS", PATH, None, PREFLIGHT).status == 405


def test_pages_that_are_named_may_ask_and_read(repository: Path, key_file: Path) -> None:
    arguments = ("--cors-origins", "https://a.example,https://b.example", "--api-key-file", key_file)
    with foldserve("--model-repository", repository, *arguments) as running:
        for path in (PATH, "/v1/models/double:predict"):
            asked = running.request("OPTIONS", path, None, PREFLIGHT)
            assert asked.status == 200
            assert asked.headers["access-control-allow-origin"] == "https://a.example"
            assert "authorization" in asked.headers["access-control-allow-headers"].lower()
            for key, status in ((INFER, {200, 400}), ("", {401})):
                answer = running.request("POST", path, BODY, {**PAGE, **(bearer(key) if key else {})})
                assert answer.status in status
                assert answer.headers["access-control-allow-origin"] == "https://a.example"
                assert "inference-header-content-length" in answer.headers["access-control-expose-headers"].lower()
            stranger = running.request("POST", path, BODY, {"Origin": "https://c.example", **bearer(INFER)})
            assert "access-control-allow-origin" not in stranger.headers
            assert "access-control-allow-origin" not in running.request("POST", path, BODY, bearer(INFER)).headers
