"""TLS over real sockets to the real command: both doors, bodies small and large, keep-alive, mutual TLS, bad files."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import tritonclient.http
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from tests.end_to_end.asking import asking
from tests.end_to_end.processes import children
from tests.end_to_end.running import PATIENCE_S, Foldserve, foldserve, run_command
from tests.service.handmade import DOUBLE, save_model

PATH = "/v2/models/double/infer"
BODY = b'{"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":[1,2]}]}'
ROWS = 300_000
LARGE_HEAD = json.dumps(
    {
        "inputs": [{"name": "x", "shape": [ROWS, 2], "datatype": "FP32", "parameters": {"binary_data_size": ROWS * 8}}],
        "parameters": {"binary_data_output": True},
    }
).encode()
TENSOR = np.arange(2 * ROWS, dtype=np.float32).reshape(ROWS, 2)


@dataclass(frozen=True, slots=True)
class Files:
    """Of one authority: the server's certificate, a client's, and what goes wrong with them."""

    authority: Path
    certificate: Path
    key: Path
    encrypted: Path
    other_key: Path
    client: Path


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return issue(trustme.CA(), tmp_path_factory.mktemp("tls"))


def issue(authority: trustme.CA, folder: Path) -> Files:
    """New certificates and keys, in place of those that are there."""
    server, client, other = (authority.issue_cert("127.0.0.1", "localhost") for _ in range(3))
    found = Files(*(folder / name for name in ("ca", "cert", "key", "encrypted", "other", "client")))
    authority.cert_pem.write_to_path(found.authority)
    server.cert_chain_pems[0].write_to_path(found.certificate)
    server.private_key_pem.write_to_path(found.key)
    other.private_key_pem.write_to_path(found.other_key)
    client.private_key_and_cert_chain_pem.write_to_path(found.client)
    key = serialization.load_pem_private_key(server.private_key_pem.bytes(), None)
    found.encrypted.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"open sesame"),
        )
    )
    return found


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "double"
    save_model(folder / "1" / "model.onnx", DOUBLE)
    (folder / "config.json").write_text(json.dumps({"name": "double", "max_batch_size": ROWS}))
    return folder


@pytest.fixture(scope="module")
def service(model: Path, files: Files) -> Iterator[Foldserve]:
    arguments = ("--tls-cert-file", files.certificate, "--tls-key-file", files.key, "--max-request-rows", str(ROWS))
    arguments = (*arguments, "--max-connections", "40", "--head-timeout-s", "1")
    with foldserve("--model", model, *arguments, wait="nothing") as running:
        running.wait_until(lambda: ask(running, files, "GET", "/v2/health/ready")[0] == 200, "ready")
        yield running


def context(files: Files, *, client: bool = False) -> ssl.SSLContext:
    trusted = ssl.create_default_context(cafile=files.authority)
    if client:
        trusted.load_cert_chain(files.client)
    return trusted


def connection(service: Foldserve, files: Files, *, client: bool = False) -> http.client.HTTPSConnection:
    return http.client.HTTPSConnection(service.address, timeout=PATIENCE_S, context=context(files, client=client))


def ask(
    service: Foldserve, files: Files, method: str, path: str, body: bytes | None = None, *, client: bool = False
) -> tuple[int, bytes]:
    opened = connection(service, files, client=client)
    try:
        opened.request(method, path, body)
        answer = opened.getresponse()
        return answer.status, answer.read()
    finally:
        opened.close()


def test_the_log_says_https(service: Foldserve) -> None:
    assert f"listens on https://{service.address}" in service.log()


@pytest.mark.parametrize("minimum", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_small_and_large_bodies_take_turns_on_one_connection(
    minimum: ssl.TLSVersion, service: Foldserve, files: Files
) -> None:
    """From the first large body on, the lane reads into its place: another protocol object, under the same TLS."""
    trusted = context(files)
    trusted.minimum_version = trusted.maximum_version = minimum
    opened = http.client.HTTPSConnection(service.address, timeout=PATIENCE_S, context=trusted)
    for _ in range(2):
        opened.request("POST", PATH, BODY)
        answer = opened.getresponse()
        assert (answer.status, json.load(answer)["outputs"][0]["data"]) == (200, [2, 4])
        opened.request(
            "POST", PATH, LARGE_HEAD + TENSOR.tobytes(), {"Inference-Header-Content-Length": str(len(LARGE_HEAD))}
        )
        answer = opened.getresponse()
        body = answer.read()
        assert answer.status == 200, body[:200]
        start = int(answer.headers["inference-header-content-length"])
        assert np.array_equal(np.frombuffer(body[start:], np.float32).reshape(ROWS, 2), 2 * TENSOR)
        opened.request("GET", "/v2/models/double")
        assert json.load(opened.getresponse())["name"] == "double"
    opened.close()


def test_requests_sent_before_the_answers_are_answered_in_order(service: Foldserve, files: Files) -> None:
    host, _, port = service.address.partition(":")
    plain = socket.create_connection((host, int(port)), timeout=PATIENCE_S)
    with plain, context(files).wrap_socket(plain, server_hostname=host) as sock:
        one = b"POST %b HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n%b" % (PATH.encode(), len(BODY), BODY)
        sock.sendall(one * 20)
        received = b""
        while received.count(b"[2.0,4.0]") < 20:
            received += sock.recv(65536)
        assert received.count(b"HTTP/1.1 200") == 20


def test_a_slow_head_is_refused_and_hung_up_on(service: Foldserve, files: Files) -> None:
    """TLS cannot close one half of a connection; the words come all the same."""
    host, _, port = service.address.partition(":")
    plain = socket.create_connection((host, int(port)), timeout=PATIENCE_S)
    with plain, context(files).wrap_socket(plain, server_hostname=host) as sock:
        sock.sendall(b"GET /v2 HT")
        answer = http.client.HTTPResponse(sock)
        answer.begin()
        assert (answer.status, answer.getheader("connection")) == (408, "close")
        answer.read()
        assert sock.recv(1) == b""


@pytest.mark.parametrize("sent", [b"", b"\x16\x03\x01"], ids=["nothing", "a-piece"])
def test_a_handshake_has_as_long_as_a_head(sent: bytes, service: Foldserve) -> None:
    host, _, port = service.address.partition(":")
    with socket.create_connection((host, int(port)), timeout=PATIENCE_S / 4) as sock:
        sock.sendall(sent)
        assert sock.recv(100) == b""


def test_too_many_connections_are_told_so(service: Foldserve, files: Files) -> None:
    opened = [connection(service, files) for _ in range(40)]
    for one in opened:
        one.connect()
    assert ask(service, files, "GET", "/v2")[0] == 503
    for one in opened:
        one.close()
    service.wait_until(lambda: ask(service, files, "GET", "/v2")[0] == 200, "taking connections again")


def test_plain_http_gets_no_answer_and_no_traceback(service: Foldserve, files: Files) -> None:
    with pytest.raises((http.client.HTTPException, OSError)):
        service.get("/v2")
    assert ask(service, files, "GET", "/v2")[0] == 200
    assert "Traceback" not in service.log()


def test_triton_s_client_speaks_it(service: Foldserve, files: Files) -> None:
    options = {"ssl": True, "ssl_context_factory": lambda: context(files)}
    with tritonclient.http.InferenceServerClient(service.address, **options) as client:
        image = tritonclient.http.InferInput("x", [1, 2], "FP32")
        image.set_data_from_numpy(np.ones([1, 2], np.float32))
        assert client.infer("double", [image]).as_numpy("y").tolist() == [[2, 2]]


def test_clients_must_show_a_certificate_where_one_is_asked_for(model: Path, files: Files, tmp_path: Path) -> None:
    """With an encrypted key, and certificate and key read from where they are."""
    (tmp_path / "password").write_text("open sesame\n")
    arguments = ("--tls-cert-file", files.certificate, "--tls-key-file", files.encrypted)
    arguments = (*arguments, "--tls-key-password-file", tmp_path / "password", "--tls-client-ca-file", files.authority)
    with foldserve("--model", model, *arguments, wait="nothing") as running:
        running.wait_until(lambda: ask(running, files, "GET", "/v2/health/ready", client=True)[0] == 200, "ready")
        assert ask(running, files, "POST", PATH, BODY, client=True)[0] == 200
        with pytest.raises((ssl.SSLError, OSError, http.client.HTTPException)):
            ask(running, files, "POST", PATH, BODY)
        assert "Traceback" not in running.log()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="children are found in /proc")
def test_a_rolling_restart_takes_a_renewed_certificate_and_loses_no_request(model: Path, tmp_path: Path) -> None:
    """Mutual TLS. With files that cannot be used no worker is replaced."""
    authority = trustme.CA()
    files = issue(authority, tmp_path)
    arguments = ("--tls-cert-file", files.certificate, "--tls-key-file", files.key)
    arguments = (*arguments, "--tls-client-ca-file", files.authority, "--workers", "2", "--drain-grace-s", "1")
    with foldserve("--model", model, *arguments, wait="nothing") as running:
        trusted = context(files, client=True)
        first, tensor = serial_number(files), json.loads(BODY)["inputs"][0]
        running.wait_until(lambda: ask(running, files, "GET", "/v2/health/ready", client=True)[0] == 200, "ready")
        assert {shown(running, trusted) for _ in range(20)} == {first}
        with asking(running, "double", tensor, 4, trusted) as clients:
            issue(authority, tmp_path)
            before = set(children(running.process.pid))
            running.process.send_signal(signal.SIGHUP)
            running.wait_until(lambda: not before & set(children(running.process.pid)), "restarted")
            assert serial_number(files) != first
            assert {shown(running, trusted) for _ in range(20)} == {serial_number(files)}

            now, renewed = children(running.process.pid), serial_number(files)
            files.certificate.write_text("nonsense\n")
            running.process.send_signal(signal.SIGHUP)
            running.wait_until(lambda: "the others stay as they are" in running.log(), "told")
            assert "[1] this worker cannot serve: " in running.log()
            assert children(running.process.pid) == now
            assert {shown(running, trusted) for _ in range(20)} == {renewed}
        assert [client.lost for client in clients] == [[]] * 4
        assert "Traceback" not in running.log()


def serial_number(files: Files) -> int:
    return x509.load_pem_x509_certificate(files.certificate.read_bytes()).serial_number


def shown(service: Foldserve, trusted: ssl.SSLContext) -> int:
    """The serial number of the certificate that a fresh connection is shown."""
    host, _, port = service.address.partition(":")
    plain = socket.create_connection((host, int(port)), timeout=PATIENCE_S)
    with plain, trusted.wrap_socket(plain, server_hostname=host) as sock:
        certificate = sock.getpeercert()
        assert certificate is not None
        return int(str(certificate["serialNumber"]), 16)


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        pytest.param({"cert": "missing"}, "--tls-cert-file: '{missing}' cannot be read: No such file", id="missing"),
        pytest.param({"cert": "nonsense"}, "certificate and key must be PEM", id="nonsense"),
        pytest.param({"cert": "empty"}, "--tls-cert-file: '{empty}' is empty", id="empty"),
        pytest.param({"cert": "certificate"}, "certificate and key must be PEM", id="no-key"),
        pytest.param(
            {"cert": "certificate", "key": "other_key"},
            "--tls-key-file: '{other_key}' is not the key of the certificate in '{certificate}'",
            id="another-s-key",
        ),
        pytest.param(
            {"cert": "certificate", "key": "encrypted"},
            "--tls-key-file: '{encrypted}' is encrypted; give its password with --tls-key-password-file",
            id="no-password",
        ),
        pytest.param(
            {"cert": "certificate", "key": "encrypted", "key-password": "nonsense"},
            "--tls-key-file: '{encrypted}' is not decrypted by the password",
            id="wrong-password",
        ),
        pytest.param(
            {"cert": "certificate", "key": "key", "client-ca": "nonsense"},
            "--tls-client-ca-file: '{nonsense}' holds no certificate in PEM",
            id="no-authority",
        ),
        pytest.param({"key": "key"}, "--tls-key-file needs --tls-cert-file", id="key-alone"),
    ],
)
def test_files_that_cannot_be_used_are_one_line_and_exit_code_2(
    flags: dict[str, str], told: str, model: Path, files: Files, tmp_path: Path
) -> None:
    (tmp_path / "nonsense").write_text("nonsense\n")
    (tmp_path / "empty").touch()
    paths = {name: getattr(files, name, tmp_path / name) for name in (*Files.__slots__, "nonsense", "empty", "missing")}
    arguments = [word for name, path in flags.items() for word in (f"--tls-{name}-file", paths[path])]
    result = run_command("foldserve", "--model", model, "--port", "0", *arguments)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("foldserve: error: ")
    assert told.format(**paths) in line
