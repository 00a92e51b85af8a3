"""Starting and stopping: a signal ends the service in order, with exit code 0, and costs no request under way."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.end_to_end.material import DIGITS, image_input
from tests.end_to_end.running import PATIENCE_S, Foldserve, foldserve
from training.datasets.dataset import Examples


@pytest.fixture
def running(checkout: Path) -> Iterator[Foldserve]:
    with foldserve("--model-repository", checkout / "models") as service:
        yield service


def connect(service: Foldserve) -> socket.socket:
    host, _, port = service.address.partition(":")
    return socket.create_connection((host, int(port)), timeout=PATIENCE_S)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_signal_ends_it_with_code_0_and_without_a_traceback(number: signal.Signals, running: Foldserve) -> None:
    assert running.stop(number) == 0
    assert "Traceback" not in running.log()


def test_idle_keep_alive_connection_does_not_hold_up_the_stop(running: Foldserve) -> None:
    with connect(running) as connection:
        connection.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n")
        received = b""
        while not received.endswith(b"}"):
            received += connection.recv(65536)
        assert running.stop() == 0
        assert connection.recv(65536) == b""


def test_request_under_way_at_sigterm_is_answered(running: Foldserve, held_out: Examples) -> None:
    """Half of its body has arrived when the signal comes, the rest only after the service has noticed."""
    content = json.dumps({"inputs": [image_input(held_out.only[:1])]}).encode()
    head = f"POST /v2/models/{DIGITS}/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n\r\n".encode()
    with connect(running) as connection:
        connection.sendall(head + content[:100])
        running.wait_until(lambda: running.get("/v2/health/live").status == 200, "past the first half")
        running.process.send_signal(signal.SIGTERM)
        running.wait_until(lambda: "SIGTERM" in running.log(), "told to stop")
        connection.sendall(content[100:])
        received = b"".join(iter(lambda: connection.recv(65536), b""))
    assert received.startswith(b"HTTP/1.1 200 ")
    assert json.loads(received.partition(b"\r\n\r\n")[2])["model_name"] == DIGITS
    assert running.process.wait(PATIENCE_S) == 0


def test_stop_while_models_load(repository: Path) -> None:
    """SIGTERM does not wait for a load that may take minutes: the model is not going to be used."""
    report = repository / DIGITS / "1" / "report.json"
    report.unlink()
    os.mkfifo(report)  # reading it blocks for ever
    with foldserve("--model-repository", repository, wait="live") as service:
        service.wait_until(lambda: "LOADING" in service.get("/v2/health/ready").body.decode(), "loading")
        assert service.stop() == 0


def test_stopped_service_can_be_started_on_the_same_port_at_once(checkout: Path, running: Foldserve) -> None:
    assert running.get("/v2/health/live").status == 200
    assert running.stop() == 0
    port = int(running.address.rpartition(":")[2])
    with foldserve("--model-repository", checkout / "models", port=port) as again:
        assert again.get("/v2/health/ready").status == 200
