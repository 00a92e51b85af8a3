"""The routes of shared memory, as Triton's clients use them: the unmodified client against the real command."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.utils.shared_memory as shm
from starlette.testclient import TestClient
from tritonclient.utils import InferenceServerException

from service.app import build_app
from service.registry import Registry
from service.settings import Settings
from service.shared_memory import SharedMemory
from tests.end_to_end.running import Foldserve, foldserve
from tests.service.fakes import EchoModel, fake_registry
from tests.service.handmade import DOUBLE, TEXT, save_version

WIDE = "g (float16[N,2] h, bool[N] b) => (float16[N,2] g, bool[N] n) { g = Add(h, h) n = Not(b) }"


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for name, graph in (("double", DOUBLE), ("text", TEXT), ("wide", WIDE)):
        save_version(folder, name, graph)
    return folder


@pytest.fixture(scope="module")
def service(repository: Path) -> Iterator[Foldserve]:
    with foldserve("--model-repository", repository, "--system-shared-memory") as service:
        yield service


@pytest.fixture
def client(service: Foldserve) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(service.address) as client:
        yield client
        client.unregister_system_shared_memory()


@pytest.fixture
def memory() -> Iterator[Any]:
    """A shared memory object of 4096 bytes, made by the client."""
    handle = shm.create_shared_memory_region("made", f"/foldserve-test-{uuid4().hex}", 4096, create_only=True)
    yield handle
    shm.destroy_shared_memory_region(handle)


def key_of(handle: Any) -> str:
    return str(handle._shm_key)


def shared_input(name: str, datatype: str, shape: list[int], size_bytes: int, offset: int = 0) -> triton.InferInput:
    return triton.InferInput(name, shape, datatype).set_shared_memory("r", size_bytes, offset)


def shared_output(name: str, size_bytes: int, offset: int = 0) -> triton.InferRequestedOutput:
    output = triton.InferRequestedOutput(name)
    output.set_shared_memory("r", size_bytes, offset)
    return output


# --- the client ---------------------------------------------------------------------------------------------------


def test_tensors_go_both_ways_without_passing_the_socket(client: triton.InferenceServerClient, memory: Any) -> None:
    client.register_system_shared_memory("r", key_of(memory), 4096)
    for x in (np.array([[1, 2], [3, 4]], np.float32), np.array([[-1, np.inf]], np.float32)):
        shm.set_shared_memory_region(memory, [x], offset=8)
        answer = client.infer(
            "double",
            [shared_input("x", "FP32", list(x.shape), x.nbytes, offset=8)],
            outputs=[shared_output("y", 100, offset=1024)],
        )
        assert answer.get_output("y") == {"name": "y", "datatype": "FP32", "shape": list(x.shape)}
        np.testing.assert_array_equal(shm.get_contents_as_numpy(memory, np.float32, x.shape, offset=1024), 2 * x)


def test_one_way_alone_works_too(client: triton.InferenceServerClient, memory: Any) -> None:
    client.register_system_shared_memory("r", key_of(memory), 64, offset=32)
    x = np.array([[1, 2]], np.float32)
    shm.set_shared_memory_region(memory, [x], offset=32)
    answer = client.infer("double", [shared_input("x", "FP32", [1, 2], 8)])
    np.testing.assert_array_equal(answer.as_numpy("y"), [[2, 4]])
    sent = triton.InferInput("x", [1, 2], "FP32").set_data_from_numpy(x)
    client.infer("double", [sent], outputs=[shared_output("y", 8, offset=8)])
    np.testing.assert_array_equal(shm.get_contents_as_numpy(memory, np.float32, (1, 2), offset=40), [[2, 4]])


def test_strings_halves_and_truths_travel(client: triton.InferenceServerClient, memory: Any) -> None:
    client.register_system_shared_memory("r", key_of(memory), 4096)
    shm.set_shared_memory_region(memory, [np.frombuffer(b"\2\0\0\0hi\3\0\0\0\xc3\xa9!", np.uint8)])
    client.infer("text", [shared_input("x", "BYTES", [1, 2], 13)], outputs=[shared_output("y", 13, offset=100)])
    assert shm.get_contents_as_numpy(memory, np.object_, (1, 2), offset=100).tolist() == [[b"hi", "é!".encode()]]

    shm.set_shared_memory_region(memory, [np.array([[0.5, 2]], np.float16), np.array([True])])
    client.infer(
        "wide",
        [shared_input("h", "FP16", [1, 2], 4), shared_input("b", "BOOL", [1], 1, offset=4)],
        outputs=[shared_output("g", 4, offset=100), shared_output("n", 1, offset=104)],
    )
    assert shm.get_contents_as_numpy(memory, np.float16, (1, 2), offset=100).tolist() == [[1, 4]]
    assert shm.get_contents_as_numpy(memory, np.bool_, (1,), offset=104).tolist() == [False]


def test_status_tells_what_is_registered_until_it_is_unregistered(
    client: triton.InferenceServerClient, memory: Any
) -> None:
    assert client.get_system_shared_memory_status() == []
    client.register_system_shared_memory("a b", key_of(memory), 64, offset=32)
    client.register_system_shared_memory("r", key_of(memory), 4096)
    ab = {"name": "a b", "key": key_of(memory), "offset": 32, "byte_size": 64}
    assert client.get_system_shared_memory_status("a b") == [ab]
    assert client.get_system_shared_memory_status() == [
        ab,
        {"name": "r", "key": key_of(memory), "offset": 0, "byte_size": 4096},
    ]
    client.unregister_system_shared_memory("a b")
    with pytest.raises(InferenceServerException, match=r"\[404\] Unable to find system shared memory region: 'a b'"):
        client.get_system_shared_memory_status("a b")
    client.unregister_system_shared_memory()
    assert client.get_system_shared_memory_status() == []


def test_refusals_reach_the_client_with_their_words(client: triton.InferenceServerClient, memory: Any) -> None:
    with pytest.raises(InferenceServerException, match=r"\[400\] input 'x': Unable to find shared memory region: 'r'"):
        client.infer("double", [shared_input("x", "FP32", [1, 2], 8)])
    client.register_system_shared_memory("r", key_of(memory), 4096)
    with pytest.raises(InferenceServerException, match=r"\[400\] shared memory region 'r' already in manager"):
        client.register_system_shared_memory("r", key_of(memory), 4096)
    with pytest.raises(
        InferenceServerException, match=r"\[400\] .* has 4096 bytes, offset and byte_size reach to 4097"
    ):
        client.register_system_shared_memory("s", key_of(memory), 4096, offset=1)
    with pytest.raises(InferenceServerException, match=r"\[400\] output 'y': .* is 7 bytes, should be at least 8"):
        client.infer("double", [shared_input("x", "FP32", [1, 2], 8)], outputs=[shared_output("y", 7)])
    with pytest.raises(InferenceServerException, match="CUDA shared memory region 'c' cannot be registered") as refusal:
        client.register_cuda_shared_memory("c", "AAAA", 0, 64)
    assert refusal.value.status() == "501"


def test_cuda_has_no_regions_and_unregistering_them_works(client: triton.InferenceServerClient) -> None:
    client.unregister_cuda_shared_memory()
    client.unregister_cuda_shared_memory("c")
    assert client.get_cuda_shared_memory_status() == []
    with pytest.raises(InferenceServerException, match=r"\[404\] Unable to find cuda shared memory region: 'c'"):
        client.get_cuda_shared_memory_status("c")


def test_metadata_lists_the_extension_when_it_works(client: triton.InferenceServerClient) -> None:
    extensions = client.get_server_metadata()["extensions"]
    assert "system_shared_memory" in extensions
    assert "cuda_shared_memory" not in extensions


# --- switched off -------------------------------------------------------------------------------------------------


@pytest.fixture
def off() -> TestClient:
    return TestClient(build_app(fake_registry(echo=EchoModel()), 1000))


def test_switched_off_only_registering_is_refused(off: TestClient) -> None:
    """perf_analyzer unregisters everything before it asks for anything."""
    assert off.get("/v2/systemsharedmemory/status").json() == []
    for path in ("unregister", "region/r/unregister"):
        assert off.post(f"/v2/systemsharedmemory/{path}").status_code == 200
    refusal = off.post("/v2/systemsharedmemory/region/r/register", json={"key": "/k", "byte_size": 1})
    assert refusal.status_code == 501
    assert refusal.json() == {
        "error": "system shared memory is off; start the server with --system-shared-memory to use it"
    }
    assert off.get("/v2/systemsharedmemory/region/r/status").status_code == 404
    assert "system_shared_memory" not in off.get("/v2").json()["extensions"]


# --- bodies -------------------------------------------------------------------------------------------------------


@pytest.fixture
def on(tmp_path: Path) -> TestClient:
    (tmp_path / "k").write_bytes(bytes(8))
    regions = SharedMemory(is_enabled=True, max_request_bytes=1000, folder=tmp_path)
    return TestClient(build_app(fake_registry(echo=EchoModel()), 1000, regions=regions))


def test_registration_needs_neither_offset_nor_content_type(on: TestClient) -> None:
    answer = on.post("/v2/systemsharedmemory/region/r/register", content=b'{"key":"k","byte_size":8}')
    assert (answer.status_code, answer.json()) == (200, {})
    assert on.get("/v2/systemsharedmemory/status").json() == [{"name": "r", "key": "k", "offset": 0, "byte_size": 8}]


@pytest.mark.parametrize(
    ("body", "status", "told"),
    [
        pytest.param(b"", 400, "the body is empty", id="empty"),
        pytest.param(b"[]", 400, "the request is an array, expected an object", id="array"),
        pytest.param(b'{"byte_size":8}', 400, "the request's 'key' is missing, expected a string", id="no-key"),
        pytest.param(b'{"key":1,"byte_size":8}', 400, "the request's 'key' is an integer", id="key"),
        pytest.param(b'{"key":"k"}', 400, "the request's 'byte_size' is missing", id="no-size"),
        pytest.param(b'{"key":"k","byte_size":8.5}', 400, "'byte_size' is a number, expected an integer", id="size"),
        pytest.param(b'{"key":"k","byte_size":true}', 400, "'byte_size' is a boolean", id="truth"),
        pytest.param(b'{"key":"k","byte_size":8,"offset":"0"}', 400, "'offset' is a string", id="offset"),
        pytest.param(b" " * 70_000, 413, "longer than the 65536 bytes that a registration takes", id="long"),
    ],
)
def test_bad_registration_is_told(body: bytes, status: int, told: str, on: TestClient) -> None:
    answer = on.post("/v2/systemsharedmemory/region/r/register", content=body)
    assert answer.status_code == status
    assert told in answer.json()["error"]
    assert list(json.loads(answer.text)) == ["error"]


# --- perf_analyzer ------------------------------------------------------------------------------------------------

FORM = {"Content-Type": "application/x-www-form-urlencoded"}
BINARY = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": "234"}
INFER = (
    b'{"id":"","inputs":[{"name":"x","datatype":"FP32","shape":[1,2],"parameters":'
    b'{"shared_memory_region":"x_0_0","shared_memory_byte_size":8}}],"outputs":[{"name":"y","parameters":'
    b'{"shared_memory_region":"y","shared_memory_byte_size":8}}]}'
)
SENT_BY_PERF_ANALYZER = (
    ("POST", "/v2/systemsharedmemory/unregister", FORM, b""),
    ("POST", "/v2/cudasharedmemory/unregister", FORM, b""),
    ("POST", "/v2/systemsharedmemory/region/y/register", FORM, b'{"key":"/y","offset":0,"byte_size":8}'),
    ("POST", "/v2/systemsharedmemory/region/x_0_0/register", FORM, b'{"key":"/x_0_0","offset":0,"byte_size":8}'),
    ("POST", "/v2/models/double/infer", BINARY, INFER),
    ("POST", "/v2/systemsharedmemory/unregister", FORM, b""),
)
"""By that of tritonclient 2.43.0, with `--shared-memory system`."""


def test_what_perf_analyzer_sends_works_and_every_answer_is_json(repository: Path, tmp_path: Path) -> None:
    x = np.array([[1, 2]], np.float32)
    (tmp_path / "x_0_0").write_bytes(x.tobytes())
    (tmp_path / "y").write_bytes(bytes(8))
    regions = SharedMemory(is_enabled=True, max_request_bytes=1000, folder=tmp_path)
    registry = Registry(Settings(model_repository=repository))
    with TestClient(build_app(registry, 1000, regions=regions)) as client:
        give_up = time.monotonic() + 60
        while client.get("/v2/health/ready").status_code != 200:
            assert time.monotonic() < give_up
            time.sleep(0.01)
        for method, path, headers, body in SENT_BY_PERF_ANALYZER:
            answer = client.request(method, path, content=body, headers=headers)
            assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json"), answer.text
            json.loads(answer.text)
    assert (tmp_path / "y").read_bytes() == (2 * x).tobytes()
    assert regions.status() == ()
