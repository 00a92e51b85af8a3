"""Every error on every path is `{"error": "..."}` with its status, the framework's and the HTTP parser's included."""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.end_to_end.material import DIGITS
from tests.end_to_end.running import Foldserve, foldserve, run_command
from tests.training.damaged_files import REFUSED, SOURCE

INFER = f"/v2/models/{DIGITS}/infer"
MAX_BODY_BYTES = 100_000
HEADER_BYTES = "Inference-Header-Content-Length"


def tensor(**changes: object) -> dict[str, object]:
    good: dict[str, object] = {"name": "image", "datatype": "FP32", "shape": [1, 1, 8, 8], "data": [0.0] * 64}
    return good | changes


def body(*tensors: object, **more: object) -> bytes:
    return json.dumps({"inputs": list(tensors), **more}).encode()


@dataclass(frozen=True)
class Case:
    """A bad request; `told` are words that its error must contain."""

    name: str
    status: int
    told: tuple[str, ...]
    method: str = "POST"
    path: str = INFER
    body: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


CASES = (
    Case("no-such-route", 404, ("/v3/nothing",), method="GET", path="/v3/nothing"),
    Case("no-such-model", 404, ("unicorn",), path="/v2/models/unicorn/infer", body=body(tensor())),
    Case("no-such-model-metadata", 404, ("unicorn",), method="GET", path="/v2/models/unicorn"),
    Case("no-such-version", 404, ("99",), path=f"/v2/models/{DIGITS}/versions/99/infer", body=body(tensor())),
    Case(
        "version-is-no-number", 404, ("latest",), path=f"/v2/models/{DIGITS}/versions/latest/infer", body=body(tensor())
    ),
    Case("wrong-method", 405, ("GET",), method="GET", path=INFER),
    Case("wrong-method-on-metadata", 405, ("DELETE",), method="DELETE", path=f"/v2/models/{DIGITS}"),
    Case("empty-body", 400, ("empty",), body=b""),
    Case("not-json", 400, ("JSON",), body=b"pixels please"),
    Case("not-an-object", 400, (), body=b"[1, 2, 3]"),
    Case("not-utf-8", 400, (), body=b'{"inputs": [{"name": "\xff\xfe"}]}'),
    Case("deep-json", 400, (), body=b'{"inputs": ' + b"[" * 40_000 + b"]" * 40_000 + b"}"),
    Case("no-inputs", 400, ("inputs",), body=b"{}"),
    Case("missing-input", 400, ("image",), body=body()),
    Case("unknown-input", 400, ("picture",), body=body(tensor(name="picture"))),
    Case("input-twice", 400, ("image",), body=body(tensor(), tensor())),
    Case("unknown-output", 400, ("probabilities",), body=body(tensor(), outputs=[{"name": "probabilities"}])),
    Case("unknown-datatype", 400, ("FP31",), body=body(tensor(datatype="FP31"))),
    Case("another-datatype", 400, ("FP64", "FP32"), body=body(tensor(datatype="FP64"))),
    Case("wrong-shape", 400, ("[1, 1, 8, 9]", "[-1, 1, 8, 8]"), body=body(tensor(shape=[1, 1, 8, 9], data=[0] * 72))),
    Case("too-few-numbers", 400, ("63", "64"), body=body(tensor(data=[0.0] * 63))),
    Case("negative-dimension", 400, ("-1",), body=body(tensor(shape=[-1, 1, 8, 8]))),
    Case("huge-dimension", 400, (), body=body(tensor(shape=[2**62, 2**62, 8, 8]))),
    Case("words-as-numbers", 400, ("image",), body=body(tensor(data=["ink"] * 64))),
    Case("out-of-range", 400, ("1e+300", "FP32"), body=body(tensor(data=[1e300] + [0.0] * 63))),
    Case("header-length-is-no-number", 400, ("many",), body=body(tensor()), headers={HEADER_BYTES: "many"}),
    Case("header-length-past-the-body", 400, ("9999",), body=body(tensor()), headers={HEADER_BYTES: "9999"}),
    Case("header-length-negative", 400, ("-5",), body=body(tensor()), headers={HEADER_BYTES: "-5"}),
    Case("unknown-encoding", 415, ("br",), body=body(tensor()), headers={"Content-Encoding": "br"}),
    Case("too-large", 413, (str(MAX_BODY_BYTES),), body=b"0" * (MAX_BODY_BYTES + 1)),
    Case("percent-encoded-path", 404, (), method="GET", path="/v2/models/..%2F..%2Fetc%2Fpasswd"),
    Case("name-in-other-script", 404, (), method="GET", path="/v2/models/%E6%95%B0%E5%AD%97"),
)


@pytest.fixture(scope="module")
def service(checkout: Path) -> Iterator[Foldserve]:
    """The shipped models behind a small limit on the body."""
    with foldserve("--model-repository", checkout / "models", "--max-body-bytes", str(MAX_BODY_BYTES)) as running:
        yield running


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in CASES])
def test_error_is_json_that_says_what_is_wrong(case: Case, service: Foldserve) -> None:
    answer = service.request(case.method, case.path, case.body, case.headers)
    assert (answer.status, answer.headers["content-type"]) == (case.status, "application/json"), answer.body
    message = answer.json()
    assert list(message) == ["error"]
    for word in case.told:
        assert word in message["error"]


@pytest.mark.parametrize("tail_bytes", [0, 255, 257])
def test_binary_tail_of_another_length_is_refused_with_both_numbers(tail_bytes: int, service: Foldserve) -> None:
    declared = {key: value for key, value in tensor(parameters={"binary_data_size": 256}).items() if key != "data"}
    header = body(declared)
    answer = service.request("POST", INFER, header + bytes(tail_bytes), {HEADER_BYTES: str(len(header))})
    assert answer.status == 400
    assert {"256", str(tail_bytes)} <= set(re.findall(r"\d+", answer.json()["error"]))


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(b"HELLO\r\n\r\n", id="not-http"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", id="tls-hello"),
        pytest.param(f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: ten\r\n\r\n".encode(), id="content-length"),
        pytest.param(
            f"POST {INFER} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n".encode(), id="chunk"
        ),
    ],
)
def test_bytes_that_are_no_http_get_the_same_form(raw: bytes, service: Foldserve) -> None:
    """These never reach the application: the server's parser refuses them."""
    host, _, port = service.address.partition(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(raw)
        received = b"".join(iter(lambda: connection.recv(65536), b""))
    head, _, content = received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert b"\r\ncontent-type: application/json" in head.lower()
    assert list(json.loads(content)) == ["error"]


def test_service_is_well_after_all_of_it(service: Foldserve) -> None:
    for case in CASES:
        service.request(case.method, case.path, case.body, case.headers)
    assert service.request("POST", INFER, body(tensor())).status == 200
    assert "Traceback" not in service.log()


@pytest.mark.parametrize(
    ("command", "arguments", "told"),
    [
        pytest.param("foldserve", ("--model-repository", "nowhere"), "nowhere", id="no-repository"),
        pytest.param("foldserve", ("--model", "nothing.onnx"), "nothing.onnx", id="no-file"),
        pytest.param("foldserve", ("--port", "eighty"), "eighty", id="port"),
        pytest.param("foldserve", ("--prot", "8000"), "--prot", id="unknown-flag"),
        pytest.param("foldserve", ("--model", "a.onnx", "--model-repository", "b"), "--model-repository", id="both"),
        pytest.param("foldtrain", ("build", "unicorns"), "unicorns", id="recipe"),
        pytest.param("foldtrain", ("build", "digits", "--set", "epoch=3"), "epoch", id="setting"),
        pytest.param("foldtrain", ("build", "digits", "--repository", "file"), "file", id="repository-is-a-file"),
        pytest.param("foldtrain", ("fold", "nothing.onnx", "-o", "out.onnx"), "nothing.onnx", id="no-input"),
        pytest.param("foldtrain", ("fold", "file", "-o", "out.onnx"), "file", id="corrupt-input"),
        pytest.param("foldtrain", ("fold",), "-o", id="missing-argument"),
        pytest.param("foldtrain", ("dance",), "dance", id="unknown-command"),
    ],
)
def test_command_line_refuses_in_one_line_with_code_2(
    command: str, arguments: tuple[str, ...], told: str, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("neither ONNX nor a directory")
    ran = run_command(command, *arguments, cwd=tmp_path)
    assert ran.returncode == 2, ran.stderr
    assert ran.stderr.startswith(f"{command}: ")
    assert ran.stderr.count("\n") == 1
    assert told in ran.stderr
    assert ran.stdout == ""
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    "name", ["a cycle", "10,000 nested Ifs", "functions that stand for a billion nodes", "data above the folder"]
)
def test_a_hostile_model_is_refused_in_one_line_with_code_2(name: str, tmp_path: Path) -> None:
    """In a process of its own: what breaks the interpreter, or takes all memory, shows only here."""
    REFUSED[name].write(tmp_path)
    before = sorted(tmp_path.iterdir())
    ran = run_command("foldtrain", "fold", SOURCE, "-o", "out.onnx", "--report", "out.html", cwd=tmp_path)
    assert ran.returncode == 2, ran.stderr
    assert ran.stderr.startswith(f"foldtrain: error: {SOURCE}: ")
    assert ran.stderr.count("\n") == 1
    assert REFUSED[name].told in ran.stderr
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_a_model_that_is_no_file_is_refused_without_waiting_for_it(kind: str, tmp_path: Path) -> None:
    path = tmp_path / SOURCE
    os.mkfifo(path) if kind == "pipe" else path.symlink_to("/dev/zero")
    ran = run_command("foldtrain", "fold", SOURCE, "-o", "out.onnx", cwd=tmp_path)
    assert ran.returncode == 2, ran.stderr
    assert ran.stderr == f"foldtrain: error: {SOURCE}: cannot be read: it is a pipe or a device, expected a file\n"


def test_port_that_is_taken_is_refused_in_one_line(service: Foldserve, checkout: Path) -> None:
    port = service.address.rpartition(":")[2]
    ran = run_command("foldserve", "--port", port, cwd=checkout)
    assert ran.returncode == 2
    assert port in ran.stderr
    assert "Traceback" not in ran.stderr
