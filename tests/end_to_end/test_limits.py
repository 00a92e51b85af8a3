"""Every limit on what a client may take up, over real sockets to the real command, each with its flag at a small value.

What the same limits do inside one connection is told in tests/service/test_connection.py; here, that the flags arrive,
that both doors keep them, and that a crowd of idle connections costs little and is forgotten when it has gone.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import resource
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.end_to_end.running import PATIENCE_S, Foldserve, foldserve, run_command
from tests.service.handmade import DOUBLE, save_model

PATH = "/v2/models/double/infer"
BODY = b'{"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":[1,2]}]}'
CROWD = 10_000
# One process holds the clients' ends, another the server's; each needs room for its own files.
DESCRIPTORS = CROWD + 600

FLAGS = (
    "--max-request-rows", "3", "--max-head-bytes", "2000", "--max-header-count", "20", "--max-connections", "8",
    "--head-timeout-s", "1", "--body-stall-s", "1", "--body-timeout-s", "2", "--keep-alive-s", "2",
)  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model") / "double.onnx", DOUBLE)


@pytest.fixture(scope="module")
def service(model: Path) -> Iterator[Foldserve]:
    with foldserve("--model", model, *FLAGS) as running:
        yield running


def connect(service: Foldserve) -> socket.socket:
    host, _, port = service.address.partition(":")
    return socket.create_connection((host, int(port)), timeout=PATIENCE_S)


def head(*lines: str, path: str = PATH, length: int = len(BODY)) -> bytes:
    return "\r\n".join([f"POST {path} HTTP/1.1", "Host: x", f"Content-Length: {length}", *lines, "", ""]).encode()


def read_answer(sock: socket.socket) -> tuple[int, str]:
    """Status and error of the next answer."""
    answer = http.client.HTTPResponse(sock)
    answer.begin()
    return answer.status, json.load(answer).get("error", "")


def exchange(service: Foldserve, sent: bytes) -> tuple[int, str]:
    with connect(service) as sock:
        sock.sendall(sent)
        return read_answer(sock)


# --- size ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body"),
    [
        pytest.param(PATH, {"inputs": [{"name": "x", "datatype": "FP32", "shape": [4, 2], "data": [0] * 8}]}, id="v2"),
        pytest.param("/v1/models/double:predict", {"instances": [[0, 0]] * 4}, id="v1"),
    ],
)
def test_a_request_has_no_more_rows_than_the_server_takes(path: str, body: object, service: Foldserve) -> None:
    """Though the model itself would take them."""
    answer = service.post(path, body)
    assert (answer.status, answer.json()["error"]) == (
        400,
        "the request has 4 rows, this server takes at most 3 in one request (--max-request-rows); split it",
    )


@pytest.mark.parametrize("path", [PATH, "/v1/models/double:predict"])
@pytest.mark.parametrize(
    ("lines", "told"),
    [
        pytest.param(["X: " + "x" * 3000], "take more than 2000 bytes", id="long"),
        pytest.param([f"X-{number}: 1" for number in range(30)], "more than 20 header lines", id="many"),
    ],
)
def test_a_head_has_its_limits_at_both_doors(path: str, lines: list[str], told: str, service: Foldserve) -> None:
    status, error = exchange(service, head(*lines, path=path) + BODY)
    assert status == 431
    assert told in error


def test_as_many_headers_as_are_allowed_are_taken(service: Foldserve) -> None:
    assert exchange(service, head(*[f"X-{number}: 1" for number in range(18)]) + BODY)[0] == 200


# --- time ---------------------------------------------------------------------------------------------------------


SLOW = {
    "head": (head()[:30], "the rest of a head did not come within 1 s"),
    "body": (head() + BODY[:20], "the rest of a body did not come within 1 s"),
    "large-body": (head(length=300_000) + b" " * 70_000, "the rest of a body did not come within 1 s"),
}


def test_slow_senders_are_told_and_hung_up_on(service: Foldserve) -> None:
    with contextlib.ExitStack() as opened:
        senders = {case: opened.enter_context(connect(service)) for case in SLOW}
        for case, sock in senders.items():
            sock.sendall(SLOW[case][0])
        for case, sock in senders.items():
            assert read_answer(sock) == (408, SLOW[case][1]), case
            assert sock.recv(1) == b"", case


def test_what_never_came_whole_is_counted_and_has_a_line(model: Path) -> None:
    """Or an operator would see nothing of clients that stall, or of those that do not speak HTTP."""
    sent = {
        "too_slow": (
            SLOW["large-body"][0],
            'model="double",version="1"',
            "the rest of a body did not come within 1 s model=double",
        ),
        "too_large": (head(*["A: b"] * 200), 'model="",version=""', "header lines"),
        "invalid_request": (b"NONSENSE\r\n\r\n", 'model="",version=""', "are not an HTTP/1.1 request"),
    }
    with foldserve("--model", model, "--body-stall-s", "1") as service:
        for reason, (data, labels, words) in sent.items():
            with connect(service) as sock:
                sock.sendall(data)
                assert sock.recv(100).startswith(b"HTTP/1.1 4")
            line = f'foldserve_refusals_total{{{labels},reason="{reason}"}} 1'
            assert line in service.get("/metrics").body.decode().splitlines()
            assert words in service.log()


def test_a_head_that_drips_has_the_same_time_as_one_that_stops(service: Foldserve) -> None:
    """Slowloris: a byte now and then keeps nothing open."""
    with connect(service) as sock:
        sock.settimeout(0.1)
        answer = b""
        for byte in b"GET / HTTP/1.1\r\nX: " + b"x" * 1000:
            sock.sendall(bytes([byte]))
            with contextlib.suppress(TimeoutError):
                answer = sock.recv(4096)
            if answer:
                break
        assert answer.startswith(b"HTTP/1.1 408 ")


DRIPPING = {
    "lane": (head(length=1000), b" "),
    "large": (head(length=300_000), b" "),
    "asgi": (head().replace(b"Content-Length: %d" % len(BODY), b"Transfer-Encoding: chunked"), b"1\r\n \r\n"),
}


def test_a_body_that_drips_has_its_time(service: Foldserve) -> None:
    with contextlib.ExitStack() as opened:
        senders = {case: opened.enter_context(connect(service)) for case in DRIPPING}
        for case, sock in senders.items():
            sock.sendall(DRIPPING[case][0])
            sock.settimeout(0.05)
        answers = dict.fromkeys(DRIPPING, b"")
        while not all(answers.values()):
            for case in [case for case in DRIPPING if not answers[case]]:
                senders[case].sendall(DRIPPING[case][1])
                with contextlib.suppress(TimeoutError):
                    answers[case] = senders[case].recv(4096)
        for case, answer in answers.items():
            assert answer.startswith(b"HTTP/1.1 408 "), case
            assert b"did not come within 2 s" in answer, case


def test_an_idle_connection_is_closed(service: Foldserve) -> None:
    with connect(service) as sock:
        sock.sendall(head() + BODY)
        assert read_answer(sock)[0] == 200
        assert sock.recv(1) == b""


# --- connections --------------------------------------------------------------------------------------------------


def test_who_comes_when_all_connections_are_taken_is_told_at_once(service: Foldserve) -> None:
    """And who has one is served on; when one has gone, the next is taken."""
    with contextlib.ExitStack() as opened:
        taken = [opened.enter_context(connect(service)) for _ in range(8)]
        taken[-1].sendall(head() + BODY)
        assert read_answer(taken[-1])[0] == 200
        with connect(service) as late:
            status, error = read_answer(late)
            assert (status, late.recv(1)) == (503, b"")
            assert error.startswith("this server has 8 connections")
        taken[-1].sendall(head() + BODY)
        assert read_answer(taken[-1])[0] == 200
    service.wait_until(lambda: exchange(service, head() + BODY)[0] == 200, "taking connections again")
    assert "connections refused: 1, for 8 are open (--max-connections)" in service.log()


def test_ten_thousand_idle_connections_hold_nobody_up_and_leave_nothing_behind(model: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < DESCRIPTORS:
        pytest.skip(f"{CROWD} connections need {DESCRIPTORS} open files, the hard limit here is {hard} (ulimit -Hn)")
    # Below what is needed: the server must raise it by itself.
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        with foldserve("--model", model) as service:
            resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS if hard == resource.RLIM_INFINITY else hard, hard))
            before = _resident_kib(service)
            with _crowd(service):
                during = _resident_kib(service)
                start = time.monotonic()
                answers = [exchange(service, head() + BODY)[0] for _ in range(20)]
                took_s = time.monotonic() - start
            assert answers == [200] * 20
            assert took_s < 5
            per_connection = (during - before) * 1024 / CROWD
            assert per_connection < 32 * 1024, f"{per_connection:.0f} bytes"
            service.wait_until(lambda: _open_files(service) < 100, "rid of the connections")
            service.wait_until(
                lambda: _resident_kib(service) - before < 0.5 * (during - before), "rid of what they took"
            )
            assert exchange(service, head() + BODY)[0] == 200
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextlib.contextmanager
def _crowd(service: Foldserve) -> Iterator[None]:
    """Connections that have come and say nothing; the server has seen them all."""
    with contextlib.ExitStack() as opened:
        for _ in range(CROWD):
            opened.enter_context(connect(service))
        service.wait_until(lambda: _open_files(service) >= CROWD, "connected to all of them")
        yield


def _resident_kib(service: Foldserve) -> int:
    found = re.search(r"^VmRSS:\s+(\d+) kB", Path(f"/proc/{service.process.pid}/status").read_text(), re.M)
    assert found
    return int(found[1])


def _open_files(service: Foldserve) -> int:
    return sum(1 for _ in Path(f"/proc/{service.process.pid}/fd").iterdir())


def test_connections_that_cannot_be_had_are_told_at_start(model: Path) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard == resource.RLIM_INFINITY:
        pytest.skip("this process may open any number of files")
    with foldserve("--model", model, "--max-connections", str(hard)) as service:
        assert f"--max-connections {hard} cannot be reached: this process may open {hard} files" in service.log()


@pytest.mark.parametrize(
    ("flag", "value"), [("--max-connections", "0"), ("--head-timeout-s", "0"), ("--max-header-count", "1")]
)
def test_a_limit_of_nothing_is_refused(flag: str, value: str) -> None:
    result = run_command("foldserve", flag, value)
    assert result.returncode == 2
    assert result.stderr.startswith(f"foldserve: error: argument {flag}: {value} is below the minimum")
