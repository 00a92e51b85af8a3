"""A running service talks to nobody of its own accord; above all, ONNX Runtime's telemetry is off."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.end_to_end import no_outbound
from tests.end_to_end.material import DIGITS, image_input
from tests.end_to_end.running import clean_environment, foldserve
from training.datasets.dataset import Examples

pytestmark = pytest.mark.skipif(not no_outbound.supported(), reason="seccomp is not to be had here")
LAUNCHER = (sys.executable, Path(no_outbound.__file__))


@pytest.mark.parametrize(
    "attempt",
    [
        pytest.param("socket.create_connection(('127.0.0.1', 9))", id="tcp"),
        pytest.param("socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)", id="udp"),
        pytest.param("socket.getaddrinfo('example.invalid', 80)", id="name-look-up"),
        pytest.param(
            "t = threading.Thread(target=socket.create_connection, args=[('127.0.0.1', 9)]); t.start(); t.join()",
            id="in-a-thread",
        ),
    ],
)
def test_the_guard_kills_whoever_opens_a_connection(attempt: str) -> None:
    """Without this the next test could pass because its guard does nothing."""
    guarded = subprocess.run([*LAUNCHER, sys.executable, "-c", f"import socket, threading; {attempt}"], check=False)
    assert guarded.returncode == -signal.SIGSYS


def test_the_guard_lets_a_server_listen() -> None:
    listen = "import socket; socket.create_server(('127.0.0.1', 0))"
    assert subprocess.run([*LAUNCHER, sys.executable, "-c", listen], check=False).returncode == 0


def test_service_opens_no_outbound_connection_from_start_to_end(checkout: Path, held_out: Examples) -> None:
    """Loading, answering, failing, and shutting down under the guard; ONNX Runtime sends its telemetry at import,
    at session creation and at exit, unless it is off. A killed service could not exit with code 0.
    """
    assert "CI" not in clean_environment(), "ONNX Runtime is silent there by itself"
    with foldserve("--model-repository", checkout / "models", launcher=LAUNCHER) as service:
        assert service.infer(DIGITS, image_input(held_out.only[:8])).status == 200
        assert service.infer(DIGITS, image_input(held_out.only[:8, :, :4])).status == 400
        assert service.get("/docs").status == 200
        assert service.stop() == 0, service.log()
