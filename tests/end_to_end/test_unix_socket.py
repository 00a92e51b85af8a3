"""A unix socket in place of host and port, with the real command: who may open it, and what is left where it was."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.end_to_end.processes import children
from tests.end_to_end.running import PATIENCE_S, Foldserve, foldserve, run_command
from tests.service.handmade import DOUBLE, save_model

PATH = "/v2/models/double/infer"
BODY = b'{"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":[1,2]}]}'


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_model(tmp_path / "double.onnx", DOUBLE)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "s"


class _Connection(http.client.HTTPConnection):
    """http.client over a unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=PATIENCE_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(PATIENCE_S)
        self.sock.connect(str(self._path))


def ask(connection: http.client.HTTPConnection, method: str, path: str, body: bytes = b"", **headers: str) -> Any:
    connection.request(method, path, body or None, headers)
    answer = connection.getresponse()
    content = answer.read()
    assert answer.status == 200, content
    return content


def is_ready(path: Path) -> bool:
    connection = _Connection(path)
    try:
        connection.request("GET", "/v2/health/ready")
        return connection.getresponse().status == 200
    finally:
        connection.close()


@pytest.fixture
def service(model: Path, path: Path) -> Iterator[Foldserve]:
    with foldserve("--model", model, "--unix-socket", path, wait="nothing") as running:
        running.wait_until(lambda: is_ready(path), "ready")
        yield running


def test_both_doors_answer_on_it_and_nobody_on_the_port(service: Foldserve, path: Path) -> None:
    connection = _Connection(path)
    assert json.loads(ask(connection, "POST", PATH, BODY))["outputs"][0]["data"] == [2, 4]
    large = json.dumps({"inputs": [{"name": "x", "shape": [50, 2], "datatype": "FP32", "data": [1.5] * 100}]}).ljust(
        300_000
    )
    (output,) = json.loads(ask(connection, "POST", PATH, large.encode()))["outputs"]
    assert np.array_equal(output["data"], [3.0] * 100)
    assert json.loads(ask(connection, "GET", "/v2"))["name"] == "foldserve"
    assert ask(connection, "POST", "/v2/repository/index"), "who reaches it is on this machine, and may control"
    connection.close()
    with pytest.raises(OSError, match="refused"):
        service.get("/v2")
    assert f"listens on http+unix://{path}" in service.log()


def test_its_file_is_for_user_and_group_and_goes_with_the_server(service: Foldserve, path: Path) -> None:
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    assert service.stop() == 0
    assert not path.exists()


def test_what_a_killed_server_left_is_replaced_with_the_permissions_asked_for(
    service: Foldserve, model: Path, path: Path
) -> None:
    service.stop(signal.SIGKILL)
    assert path.exists()
    arguments = ("--unix-socket", path, "--unix-socket-mode", "600")
    with foldserve("--model", model, *arguments, wait="nothing") as running:
        running.wait_until(lambda: is_ready(path), "ready")
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("occupied", ["server", "file", "no-folder", "long"])
def test_a_path_that_is_not_to_be_had_is_one_line_and_exit_code_2(occupied: str, model: Path, path: Path) -> None:
    told = {
        "server": "another server listens there",
        "file": "there is a file of that name that is not a socket",
        "no-folder": "No such file or directory",
        "long": "AF_UNIX path too long",
    }[occupied]
    with socket.socket(socket.AF_UNIX) as other:
        if occupied == "server":
            other.bind(str(path))
            other.listen()
        elif occupied == "file":
            path.write_text("precious")
        elif occupied == "no-folder":
            path = path / "s"
        else:
            path = path.with_name("s" * 200)
        result = run_command("foldserve", "--model", model, "--unix-socket", path)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line == f"foldserve: error: cannot listen on --unix-socket '{path}': {told}; choose another path"
    assert os.path.lexists(path) is (occupied in ("server", "file"))


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="children are found in /proc")
def test_workers_share_one_file_which_survives_their_restart_and_goes_with_the_server(model: Path, path: Path) -> None:
    with foldserve("--model", model, "--unix-socket", path, "--workers", "2", wait="nothing") as running:
        running.wait_until(lambda: is_ready(path), "ready")
        before = set(children(running.process.pid))
        running.process.send_signal(signal.SIGHUP)

        def all_are_new() -> bool:
            assert is_ready(path)
            return not before & set(children(running.process.pid))

        running.wait_until(all_are_new, "restarted")
        second = run_command("foldserve", "--model", model, "--unix-socket", path, "--workers", "2")
        assert (second.returncode, "another server listens there" in second.stderr) == (2, True)
        assert is_ready(path)
        assert running.stop() == 0
    assert not path.exists()
