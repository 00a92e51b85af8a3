"""What perf_analyzer sends, byte for byte, and what it reads of the answers.

Recorded from perf_analyzer 2.43.0 (the binary in the wheel tritonclient==2.43.0), with `-i http`, between it and this
service; only the port in `Host` was changed. Its order is that of the tests: metadata, configuration, server metadata,
statistics, requests, statistics. One that it cannot read ends its run, so the answers are compared whole.
"""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from service import __version__
from service.protocol import SERVER_EXTENSIONS
from tests.end_to_end.running import PATIENCE_S, Foldserve, foldserve
from tests.service.handmade import DOUBLE, FIXED, save_version

_AGENT = b"Host: 127.0.0.1:8000\r\nUser-Agent: libcurl-agent/1.0\r\nAccept: */*\r\n"


def get(path: bytes) -> bytes:
    return b"GET " + path + b" HTTP/1.1\r\n" + _AGENT + b"\r\n"


METADATA = get(b"/v2/models/double")
CONFIG = get(b"/v2/models/double/config")
SERVER = get(b"/v2")
STATISTICS = get(b"/v2/models/double/stats")
VERSION_STATISTICS = get(b"/v2/models/double/versions/1/stats")

INFER_BINARY = (
    b"POST /v2/models/double/infer HTTP/1.1\r\n" + _AGENT + b"Inference-Header-Content-Length: 160\r\n"
    b"Content-Type: application/octet-stream\r\nContent-Length: 168\r\n\r\n"
    b'{"id":"","inputs":[{"name":"x","datatype":"FP32","shape":[1,2],"parameters":{"binary_data_size":8}}],'
    b'"outputs":[{"name":"y","parameters":{"binary_data":true}}]}' + bytes.fromhex("67c6697351ff4aec")
)
INFER_BINARY_ANSWER = (
    b'{"model_name":"double","model_version":"1","id":"","outputs":[{"name":"y","datatype":"FP32","shape":[1,2],'
    b'"parameters":{"binary_data_size":8}}]}' + bytes.fromhex("67c6e97351ffcaec")
)
"""What was sent, doubled: an exponent one higher in each float. The reader looks for `binary_data_size`."""

INFER_JSON = (
    b"POST /v2/models/double/infer HTTP/1.1\r\n" + _AGENT + b"Inference-Header-Content-Length: 310\r\n"
    b"Content-Type: application/json\r\nContent-Length: 310\r\n\r\n"
    b'{"id":"","inputs":[{"name":"x","datatype":"FP32","shape":[4,2],"data":['
    b"1.8521564417127638e31,-9.816348528062273e26,1.8521564417127638e31,-9.816348528062273e26,"
    b"1.8521564417127638e31,-9.816348528062273e26,1.8521564417127638e31,-9.816348528062273e26]}],"
    b'"outputs":[{"name":"y","parameters":{"binary_data":false}}]}'
)
"""`-b 4 --input-tensor-format json --output-tensor-format json`: all JSON, with the header all the same."""


@dataclass(frozen=True, slots=True)
class Answer:
    status: bytes
    headers: Mapping[bytes, bytes]
    body: bytes

    def json(self) -> Any:
        assert self.status == b"HTTP/1.1 200 OK"
        assert self.headers[b"content-type"] == b"application/json"
        return json.loads(self.body)


def exchange(service: Foldserve, *requests: bytes) -> list[Answer]:
    """One connection, as perf_analyzer keeps one open; each request behind the answer to the one before."""
    host, _, port = service.address.partition(":")
    answers = []
    with socket.create_connection((host, int(port)), timeout=PATIENCE_S) as connection:
        stream = connection.makefile("rb")
        for request in requests:
            connection.sendall(request)
            status, *lines = iter(lambda: stream.readline().rstrip(b"\r\n"), b"")
            headers = {name.lower(): value for name, _, value in (line.partition(b": ") for line in lines)}
            answers.append(Answer(status, headers, stream.read(int(headers[b"content-length"]))))
    return answers


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Foldserve]:
    repository = tmp_path_factory.mktemp("models")
    save_version(repository, "double", DOUBLE)
    save_version(repository, "fixed", FIXED)
    with foldserve("--model-repository", repository) as running:
        yield running


def test_metadata_has_the_rows_as_a_first_dimension(service: Foldserve) -> None:
    (answer,) = exchange(service, METADATA)
    read = {
        "name": "double",
        "versions": ["1"],
        "platform": "onnx_onnxv1",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 2]}],
    }
    assert {name: value for name, value in answer.json().items() if name in read} == read, "others are passed over"


def test_configuration_leaves_the_rows_out_and_says_nothing_that_is_not_used(service: Foldserve) -> None:
    batched, fixed = exchange(service, CONFIG, CONFIG.replace(b"double", b"fixed"))
    told = batched.json()
    assert re.fullmatch(
        r"1 worker x 1 instance x \d+ intra-op threads?; cores of a worker: .*",
        told.pop("parameters")["cpu_plan"]["string_value"],
    )
    assert told == {
        "name": "double",
        "platform": "onnxruntime_onnx",
        "backend": "onnxruntime",
        "version_policy": {"latest": {"num_versions": 1}},
        "max_batch_size": 64,
        "input": [{"name": "x", "data_type": "TYPE_FP32", "dims": [2]}],
        "output": [{"name": "y", "data_type": "TYPE_FP32", "dims": [2]}],
        "instance_group": [{"name": "double_0", "kind": "KIND_CPU", "count": 1}],
        "default_model_filename": "model.onnx",
        "dynamic_batching": {"default_queue_policy": {"max_queue_size": 1024, "allow_timeout_override": True}},
    }
    assert fixed.json()["max_batch_size"] == 0
    assert fixed.json()["input"] == [{"name": "x", "data_type": "TYPE_FP32", "dims": [1, 2]}]
    assert "dynamic_batching" not in fixed.json()


def test_server_metadata_says_that_there_are_statistics(service: Foldserve) -> None:
    (answer,) = exchange(service, SERVER)
    assert answer.json() == {"name": "foldserve", "version": __version__, "extensions": list(SERVER_EXTENSIONS)}
    assert "statistics" in SERVER_EXTENSIONS


def test_binary_request_is_answered_in_binary(service: Foldserve) -> None:
    (answer,) = exchange(service, INFER_BINARY)
    assert answer.status == b"HTTP/1.1 200 OK"
    assert answer.headers[b"content-type"] == b"application/octet-stream"
    assert answer.headers[b"inference-header-content-length"] == b"144"
    assert answer.body == INFER_BINARY_ANSWER


def test_json_request_is_answered_in_flat_json_without_output_parameters(service: Foldserve) -> None:
    (answer,) = exchange(service, INFER_JSON)
    assert b"inference-header-content-length" not in answer.headers
    assert answer.json() == {
        "model_name": "double",
        "model_version": "1",
        "id": "",
        "outputs": [
            {"name": "y", "datatype": "FP32", "shape": [4, 2], "data": [3.704313e31, -1.9632697e27] * 4},
        ],
    }


ZERO = {"count": 0, "ns": 0}
DURATIONS = ("compute_input", "compute_infer", "compute_output")


def counters_of(answer: Answer) -> dict[str, Any]:
    (one,) = answer.json()["model_stats"]
    assert isinstance(one, dict)
    return one


def test_statistics_before_the_first_request_are_whole_and_zero(tmp_path: Path) -> None:
    save_version(tmp_path, "double", DOUBLE)
    with foldserve("--model-repository", tmp_path) as fresh:
        of_model, of_version, of_all = exchange(fresh, STATISTICS, VERSION_STATISTICS, get(b"/v2/models/stats"))
    members = ("success", "fail", "queue", *DURATIONS, "cache_hit", "cache_miss")
    assert of_model.json() == {
        "model_stats": [
            {
                "name": "double",
                "version": "1",
                "last_inference": 0,
                "inference_count": 0,
                "execution_count": 0,
                "inference_stats": dict.fromkeys(members, ZERO),
                "batch_stats": [],
            }
        ]
    }
    assert of_model.body == of_version.body == of_all.body


def test_a_window_is_the_difference_of_two_readings(service: Foldserve) -> None:
    began_ms = int(time.time() * 1000)
    before, *answers, after = exchange(service, STATISTICS, INFER_BINARY, INFER_JSON, INFER_BINARY, VERSION_STATISTICS)
    assert {answer.status for answer in answers} == {b"HTTP/1.1 200 OK"}
    old, new = counters_of(before), counters_of(after)
    assert new.keys() == old.keys()
    assert (new["name"], new["version"]) == ("double", "1"), "a string that holds a whole number"
    assert began_ms <= new["last_inference"] <= time.time() * 1000
    assert new["inference_count"] - old["inference_count"] == 6, "rows"
    assert new["execution_count"] - old["execution_count"] == 3
    for member, duration in new["inference_stats"].items():
        grown = {key: duration[key] - old["inference_stats"][member][key] for key in ("count", "ns")}
        assert all(type(value) is int for value in duration.values()), "GetUint64 aborts on anything else"
        if member in ("fail", "cache_hit", "cache_miss"):
            assert grown == ZERO
        else:
            assert grown["count"] == 3, member
            assert grown["ns"] > 0, member
    inside = sum(new["inference_stats"][member]["ns"] for member in ("queue", *DURATIONS))
    assert new["inference_stats"]["success"]["ns"] >= inside
    assert [one["batch_size"] for one in new["batch_stats"]] == [1, 4]
    assert all(one.keys() == {"batch_size", *DURATIONS} for one in new["batch_stats"])
    assert sum(one["compute_infer"]["count"] for one in new["batch_stats"]) == new["execution_count"]


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(b"/v2/models/none", id="metadata"),
        pytest.param(b"/v2/models/none/config", id="config"),
        pytest.param(b"/v2/models/none/stats", id="stats"),
        pytest.param(b"/v2/models/double/versions/2/config", id="version-config"),
        pytest.param(b"/v2/models/double/versions/2/stats", id="version-stats"),
        pytest.param(b"/v2/models/double/versions/latest/stats", id="version-is-no-number"),
    ],
)
def test_what_is_not_there_is_told_as_its_client_reads_it(path: bytes, service: Foldserve) -> None:
    (answer,) = exchange(service, get(path))
    assert answer.status == b"HTTP/1.1 404 Not Found"
    assert list(json.loads(answer.body)) == ["error"]
