"""Sockets, signals and drain: the real command in a child process, the real kernel."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import uvicorn

from service.access import Guard
from service.app import build_app
from service.connection import Connection
from service.listening import CannotServe, listen
from service.off_loop import Work, in_thread
from service.server import Server, make_parts
from service.settings import Settings
from tests.end_to_end.asking import asking
from tests.end_to_end.running import Foldserve, foldserve, run_command
from tests.service.handmade import DOUBLE, publish, save_model, save_version

BODY = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 1]}]}).encode()
REQUEST = b"POST /v2/models/linear/infer HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n%b" % (len(BODY), BODY)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    publish(tmp_path / "models", "linear")
    return tmp_path / "models"


def connect(service: Foldserve) -> socket.socket:
    host, port = service.address.split(":")
    return socket.create_connection((host, int(port)), timeout=30)


def read_answer(sock: socket.socket) -> http.client.HTTPResponse:
    answer = http.client.HTTPResponse(sock)
    answer.begin()
    return answer


# --- listening ----------------------------------------------------------------------------------------------------


def test_port_0_is_a_free_port() -> None:
    (sock,) = listen("127.0.0.1", 0)
    with closing(sock):
        assert sock.getsockname()[1] > 0
        socket.create_connection(sock.getsockname()).close()


def test_every_address_of_a_name_gets_the_same_port() -> None:
    sockets = listen("localhost", 0)
    assert len({sock.getsockname()[1] for sock in sockets}) == 1
    for sock in sockets:
        sock.close()


@pytest.mark.parametrize(
    ("host", "told"),
    [
        pytest.param("no.such.host.invalid", "cannot listen on no.such.host.invalid:", id="unknown-name"),
        pytest.param("192.0.2.1", "Cannot assign requested address", id="somebody-else-s-address"),
        pytest.param("a" * 300, "cannot listen", id="name-too-long"),
    ],
)
def test_an_address_that_is_not_ours_is_refused_in_one_line(host: str, told: str) -> None:
    with pytest.raises(CannotServe, match=told) as caught:
        listen(host, 0)
    assert "\n" not in str(caught.value)


def test_a_port_in_use_is_one_line_and_exit_code_2(repository: Path) -> None:
    with closing(listen("127.0.0.1", 0)[0]) as taken:
        port = taken.getsockname()[1]
        result = run_command("foldserve", "--model-repository", repository, "--port", str(port))
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"foldserve: error: cannot listen on 127.0.0.1:{port}: Address already in use")


# --- serving ------------------------------------------------------------------------------------------------------


@pytest.fixture
def service(repository: Path) -> Iterator[Foldserve]:
    with foldserve("--model-repository", repository) as running:
        yield running


def test_the_log_tells_address_cores_and_what_was_loaded(service: Foldserve) -> None:
    log = service.log()
    assert f"listens on {service.url}" in log
    assert "cores: affinity of" in log or "cores: cgroup quota" in log
    assert "model linear version 1 READY" in log
    assert "CPUExecutionProvider" in log
    assert "golden 3 samples" in log


def test_answers_carry_no_server_header_and_access_is_not_logged(service: Foldserve) -> None:
    answer = service.request("POST", "/v2/models/linear/infer", BODY)
    assert answer.json()["outputs"][0]["data"] == [5.0, 7.0, 9.0]
    assert "server" not in answer.headers
    assert "infer" not in service.log()


def test_a_server_with_a_bad_model_is_live_though_not_ready_and_serves_the_good_one(tmp_path: Path) -> None:
    (save_version(tmp_path, "bad") / "model.onnx").write_bytes(b"")
    save_version(tmp_path, "good", DOUBLE)
    with foldserve("--model-repository", tmp_path, wait="settled") as running:
        assert running.get("/v2/health/live").status == 200
        assert running.get("/v2/health/ready").status == 503
        assert running.get("/v2/models/good/ready").status == 200


@pytest.mark.parametrize(
    "received",
    [
        pytest.param(b"HELLO\r\n\r\n", id="no-request-line"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", id="tls"),
        pytest.param(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", id="http-2-without-tls"),
        pytest.param(b"GET / HTTP/1.1\r\nno colon\r\n\r\n", id="header"),
        pytest.param(b"POST / HTTP/1.1\r\nContent-Length: ten\r\n\r\n", id="length"),
    ],
)
def test_bytes_that_are_no_http_are_refused_in_json(received: bytes, service: Foldserve) -> None:
    with connect(service) as sock:
        sock.sendall(received)
        answer = read_answer(sock)
        assert (answer.status, answer.getheader("content-type")) == (400, "application/json")
        assert "RFC 9112" in json.load(answer)["error"]
    assert service.get("/v2/health/live").status == 200


# --- stopping -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_server_well(number: signal.Signals, repository: Path) -> None:
    with foldserve("--model-repository", repository) as running:
        assert running.stop(number) == 0
        assert f"{number.name}: finishing requests in flight" in running.log()
        assert running.log().rstrip().endswith("stopped")


def test_one_process_takes_no_notice_of_sighup_but_says_so(repository: Path) -> None:
    with foldserve("--model-repository", repository) as running, asking(running, "linear", X, 2) as clients:
        running.process.send_signal(signal.SIGHUP)
        running.wait_until(lambda: "SIGHUP: a single process cannot be replaced" in running.log(), "told")
        answered = sum(client.answers.total() for client in clients)
        running.wait_until(lambda: sum(client.answers.total() for client in clients) > answered + 10, "asked on")
        assert running.is_ready()
    assert [client.lost for client in clients] == [[]] * 2


GRACE = {"FOLDSERVE_DRAIN_GRACE_S": "60"}
X = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 1]}


def test_sigterm_under_load_loses_no_request_of_any_client(repository: Path) -> None:
    """Readiness goes first. Eight clients keep their connections alive until they are told to close them, and ask on
    over new ones until nobody listens. A second signal ends the grace, when the test has seen enough of it."""
    seen: list[tuple[int, int, int]] = []
    with foldserve("--model-repository", repository, environment=GRACE) as running:
        with asking(running, "linear", X, 8) as clients:
            running.process.send_signal(signal.SIGTERM)
            while len(seen) < 5:
                live, ready, model = (
                    running.get(path).status
                    for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/linear/ready")
                )
                if ready == 503 or seen:
                    seen.append((live, ready, model))
            answer = running.request("POST", "/v2/models/linear/infer", BODY)
            assert (answer.status, answer.headers["connection"]) == (200, "close")
            assert "the server is stopping" in running.get("/v1/models/linear").json()["error"]
            assert running.stop() == 0
            for client in clients:
                client.join(30)
        assert set(seen) == {(200, 503, 503)}
        assert [client.lost for client in clients] == [[]] * 8
        assert all(client.told_to_close > 1 for client in clients)
        assert {answer for client in clients for answer in client.answers} == {(5.0, 7.0, 9.0)}
        assert "Traceback" not in running.log()


def test_grace_ends_by_itself(repository: Path) -> None:
    with foldserve("--model-repository", repository, environment={"FOLDSERVE_DRAIN_GRACE_S": "0.4"}) as running:
        began = time.monotonic()
        assert running.stop() == 0
        assert time.monotonic() - began > 0.4
        assert "SIGTERM: not ready from now on, but serving on for 0.4 s" in running.log()


@pytest.mark.parametrize("numbers", [(signal.SIGINT,), (signal.SIGTERM, signal.SIGTERM)], ids=["ctrl-c", "two-sigterm"])
def test_grace_is_skipped_by(numbers: tuple[signal.Signals, ...], repository: Path) -> None:
    with foldserve("--model-repository", repository, environment=GRACE) as running:
        for number in numbers:
            running.process.send_signal(number)
            running.wait_until(lambda number=number: number.name in running.log(), "told")  # type: ignore[misc]
        assert running.process.wait(30) == 0


def test_one_more_signal_ends_what_is_left(service: Foldserve) -> None:
    with connect(service) as sock:
        sock.sendall(REQUEST[:-20])
        assert service.get("/v2/health/live").status == 200
        service.process.send_signal(signal.SIGTERM)
        service.wait_until(lambda: "finishing requests" in service.log(), "told to stop")
        assert service.stop() == 0
    assert "there was another signal: requests refused: 0" in service.log()
    assert "Traceback" not in service.log()


def test_half_a_head_at_the_end_is_answered_when_the_rest_comes(service: Foldserve) -> None:
    with connect(service) as sock:
        sock.sendall(REQUEST[:30])
        assert service.get("/v2/health/live").status == 200
        service.process.send_signal(signal.SIGTERM)
        service.wait_until(lambda: "finishing requests" in service.log(), "told to stop")
        sock.sendall(REQUEST[30:])
        answer = read_answer(sock)
        assert (answer.status, answer.getheader("connection")) == (200, "close")
        assert json.load(answer)["outputs"][0]["data"] == [5.0, 7.0, 9.0]
    assert service.process.wait(30) == 0


def test_server_that_is_replaced_accepts_nobody_but_serves_on_and_is_ready(repository: Path) -> None:
    """As a worker among others, at the same port."""

    async def replace() -> None:
        settings = Settings(model_repository=repository, drain_limit_s=5)
        parts = make_parts(settings, Guard(), None)
        registry = parts.registry
        config = uvicorn.Config(build_app(registry, 1000), http=Connection, log_config=None, lifespan="on", ws="none")
        server = Server(config, parts, settings)
        sockets = listen("127.0.0.1", 0)
        address = sockets[0].getsockname()
        serving = asyncio.create_task(server.serve(sockets))
        while not registry.is_ready():
            await asyncio.sleep(0.01)
        reader, writer = await asyncio.open_connection(*address)
        server.begin_drain(0.3, is_replaced=True)
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(*address)
        writer.write(b"GET /v2/health/ready HTTP/1.1\r\nHost: h\r\n\r\n")
        received = await reader.read()
        assert received.startswith(b"HTTP/1.1 200 ")
        assert b"connection: close" in received
        writer.close()
        await serving

    asyncio.run(replace())


def test_a_request_in_flight_is_answered_after_sigterm(service: Foldserve) -> None:
    """Half of its body comes before the signal, half after it."""
    with connect(service) as sock:
        sock.sendall(REQUEST[:-20])
        # A second connection's answer proves that the first bytes have been read.
        assert service.get("/v2/health/live").status == 200
        service.process.send_signal(signal.SIGTERM)
        service.wait_until(lambda: "finishing requests" in service.log(), "told to stop")
        sock.sendall(REQUEST[-20:])
        answer = read_answer(sock)
        assert answer.status == 200
        assert json.load(answer)["outputs"][0]["data"] == [5.0, 7.0, 9.0]
    assert service.process.wait(30) == 0


def test_a_request_that_never_ends_is_cut_off_at_the_drain_limit(repository: Path) -> None:
    with foldserve("--model-repository", repository, "--drain-limit-s", "1") as running:
        with connect(running) as sock:
            sock.sendall(REQUEST[:-20])
            assert running.get("/v2/health/live").status == 200
            assert running.stop() == 0
        assert "the drain limit has passed: requests cut off: 1" in running.log()
        assert "Traceback" not in running.log()


def test_no_request_is_lost_when_the_server_stops_under_load(service: Foldserve) -> None:
    """Eight clients without pause: every request that was sent on a connection the server had accepted is answered."""
    answered: list[int] = []
    lost: list[str] = []

    def ask_until_refused() -> None:
        while True:
            try:
                sock = connect(service)
            except OSError:
                return  # nobody listens any more: the server has stopped accepting
            with sock:
                try:
                    sock.sendall(REQUEST.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1))
                    answered.append(read_answer(sock).status)
                except (OSError, http.client.HTTPException) as error:
                    lost.append(repr(error))
                    return

    clients = [threading.Thread(target=ask_until_refused) for _ in range(8)]
    for client in clients:
        client.start()
    service.wait_until(lambda: len(answered) > 200, "answering")
    assert service.stop() == 0
    for client in clients:
        client.join(timeout=30)
    assert set(answered) == {200}
    # Who connects between the last `accept` and the end of the listener is reset: some microseconds.
    assert len(lost) <= 1, lost


def test_stopping_does_not_wait_for_a_model_that_loads(repository: Path) -> None:
    """Reading a pipe that nobody writes to takes for ever, as a load of many gigabytes seems to."""
    (repository / "linear" / "1" / "report.json").unlink()
    os.mkfifo(repository / "linear" / "1" / "report.json")
    with foldserve("--model-repository", repository, wait="live") as running:
        running.wait_until(lambda: "LOADING" in running.get("/v2/health/ready").body.decode(), "loading")
        assert running.stop() == 0
        assert running.log().rstrip().endswith("stopped")


@pytest.mark.parametrize("delay_s", [0.1, 0.2, 0.3, 0.4])
def test_a_signal_during_start_up_ends_it_well(delay_s: float, repository: Path) -> None:
    """Wherever it strikes: before the port is bound, while modules are imported, while models load."""
    with foldserve("--model-repository", repository, wait="nothing") as running:
        time.sleep(delay_s)  # the point is to strike at some moment or other; nothing is awaited
        code = running.stop()
        # Python itself takes a few hundredths of a second before any handler can exist.
        assert code == 0 or (code == -signal.SIGTERM and not running.log())
        assert "Traceback" not in running.log()
        assert "Warning" not in running.log()


def test_a_single_file_that_cannot_be_served_ends_the_command(tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"nonsense")
    result = run_command("foldserve", "--model", tmp_path / "broken.onnx", "--port", "0")
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].startswith("foldserve: error: broken.onnx cannot be loaded by ONNX Runtime: ")
    assert "Traceback" not in result.stderr


def test_a_single_file_that_can_be_served_is(tmp_path: Path) -> None:
    path = save_model(tmp_path / "doubling.onnx", DOUBLE)
    with foldserve("--model", path) as running:
        answer = running.request("POST", "/v2/models/doubling/infer", BODY)
        assert answer.json()["outputs"][0]["data"] == [2.0, 2.0]


def test_the_drain_limit_refuses_what_threads_have_in_hand() -> None:
    held = threading.Event()
    told: list[Any] = []

    async def refuse() -> None:
        in_thread(Work.READ, lambda: held.wait(30), told.append, told.append)
        server: Any = SimpleNamespace(_registry=SimpleNamespace(give_up=lambda: 0))
        Server._refuse_what_is_left(server)
        held.set()

    asyncio.run(refuse())
    assert [str(error) for error in told] == ["the server is stopping"]
