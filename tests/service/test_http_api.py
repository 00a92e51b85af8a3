from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterable
from typing import Any

import pytest

from service import http_api
from service.answers import Answer
from service.errors import InferenceFailed, PayloadTooLarge, QueueFull
from service.http_api import InferRoute, read_body
from service.infer import begin_infer, read_head
from service.logs import ConsoleFormatter
from tests.service.bad_bodies import BAD_BINARY, BAD_JSON
from tests.service.fakes import EchoModel, fake_registry

GOOD = b'{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":[0.5]}]}'
ECHO = (
    b'{"model_name":"echo","model_version":"1",'
    b'"outputs":[{"name":"x","datatype":"FP32","shape":[1],"data":[0.5]}]}'
)  # fmt: skip


def ask(body: bytes, *headers: tuple[bytes, bytes], model: EchoModel | str | None = None, name: str = "echo") -> Answer:
    async def answer() -> Answer:
        answered: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        begin_infer(fake_registry(echo=model or EchoModel()), read_head(name, None, headers), body, answered.set_result)
        return await answered

    return asyncio.run(asyncio.wait_for(answer(), timeout=30))


def error_of(answer: Answer) -> str:
    assert dict(answer.headers)[b"content-type"] == b"application/json"
    content = json.loads(answer.body)
    assert list(content) == ["error"]
    return str(content["error"])


# --- infer --------------------------------------------------------------------------------------------------------


def test_answer_is_bytes_and_headers() -> None:
    answer = ask(GOOD)
    assert answer == Answer(200, ((b"content-type", b"application/json"), (b"content-length", b"%d" % len(ECHO))), ECHO)


def test_binary_answer_says_how_long_its_json_is() -> None:
    body = GOOD[:-1] + b',"parameters":{"binary_data_output":true}}'
    answer = ask(body)
    headers = dict(answer.headers)
    head_bytes = int(headers[b"inference-header-content-length"])
    assert headers[b"content-type"] == b"application/octet-stream"
    assert json.loads(answer.body[:head_bytes])["outputs"][0]["parameters"] == {"binary_data_size": 4}
    assert answer.body[head_bytes:] == b"\x00\x00\x00\x3f"


def test_header_says_where_binary_inputs_begin() -> None:
    head = b'{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","parameters":{"binary_data_size":4}}]}'
    answer = ask(head + b"\x00\x00\x00\x3f", (b"inference-header-content-length", b"%d" % len(head)))
    assert answer.body == ECHO


@pytest.mark.parametrize("coding", [b"identity", b"IDENTITY", b" identity ", b""])
def test_identity_is_no_content_encoding(coding: bytes) -> None:
    assert ask(GOOD, (b"content-encoding", coding)).status == 200


@pytest.mark.parametrize("coding", [b"br", b"zstd", b"identity, gzip", b"gzip, gzip", b"\xff"])
def test_content_encoding_is_refused_with_those_that_would_do(coding: bytes) -> None:
    answer = ask(GOOD, (b"content-encoding", coding))
    assert answer.status == 415
    assert dict(answer.headers)[b"accept-encoding"] == b"gzip, deflate, identity"
    assert "known are gzip, deflate, identity" in error_of(answer)


@pytest.mark.parametrize(("body", "message"), [pytest.param(*row, id=name) for name, row in BAD_JSON.items()])
def test_bad_json_is_answered_400_with_the_line_of_decode(body: bytes, message: str) -> None:
    answer = ask(body)
    assert (answer.status, error_of(answer)) == (400, message)


@pytest.mark.parametrize(("held", "message"), [pytest.param(*row, id=name) for name, row in BAD_BINARY.items()])
def test_bad_binary_is_answered_400(held: tuple[bytes, int], message: str) -> None:
    body, header_bytes = held
    answer = ask(body, (b"inference-header-content-length", b"%d" % header_bytes))
    expected = message if header_bytes >= 0 else (
        "Inference-Header-Content-Length is '-1', expected a number of bytes in decimal digits"
    )  # fmt: skip
    # Here the length that would have been right follows (request_body.py).
    told, _, _ = error_of(answer).partition("; the JSON ends behind ")
    assert (answer.status, told) == (400, expected)


def test_unknown_model_is_told_before_its_body_is_looked_at() -> None:
    answer = ask(b"not JSON", name="other")
    assert (answer.status, error_of(answer)) == (404, "no model 'other' of version None")


def test_model_that_is_not_ready_is_told_with_its_reason() -> None:
    answer = ask(GOOD, model="weights are damaged")
    assert (answer.status, error_of(answer)) == (503, "model 'echo' is not ready: weights are damaged")


@pytest.mark.parametrize(
    ("retry_after_s", "header"),
    [
        pytest.param(0.0, b"1", id="at-once"),
        pytest.param(0.2, b"1", id="fraction"),
        pytest.param(1.0, b"1", id="whole"),
        pytest.param(1.01, b"2", id="rounded-up"),
        pytest.param(90, b"90", id="long"),
    ],
)
def test_full_queue_says_when_to_come_back_in_whole_seconds(retry_after_s: float, header: bytes) -> None:
    answer = ask(GOOD, model=EchoModel(QueueFull("the queue is full", retry_after_s=retry_after_s)))
    assert (answer.status, dict(answer.headers)[b"retry-after"]) == (503, header)
    assert error_of(answer) == "the queue is full"


def test_failed_inference_is_500_with_the_runtimes_words() -> None:
    answer = ask(GOOD, model=EchoModel(InferenceFailed("ONNX Runtime: indices out of range")))
    assert (answer.status, error_of(answer)) == (500, "ONNX Runtime: indices out of range")


def test_defect_of_ours_is_for_the_log_and_not_told() -> None:
    answer = ask(GOOD, model=EchoModel(ZeroDivisionError("secret")))
    assert (answer.status, error_of(answer)) == (500, "internal error; the server's log has the details")
    assert "ZeroDivisionError: secret" in answer.traceback


def test_a_refusal_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    call(Sender(GOOD), (b"x-request-id", b"a-1"), model=EchoModel(ZeroDivisionError("secret")))
    (record,) = caplog.records
    line = ConsoleFormatter().format(record)
    assert " ERROR inference failed unexpectedly: ZeroDivisionError: secret model=echo reason=internal" in line
    assert "request_id=a-1" in line
    assert "  | " in line


# --- bodies -------------------------------------------------------------------------------------------------------


class Sender:
    """The client's side of an ASGI connection: chunks to receive, then nothing for ever; and what was sent back."""

    def __init__(self, *chunks: bytes, disconnects: bool = False) -> None:
        more = [True] * len(chunks)
        if chunks and not disconnects:
            more[-1] = False
        self.messages: list[dict[str, Any]] = [
            {"type": "http.request", "body": chunk, "more_body": flag} for chunk, flag in zip(chunks, more, strict=True)
        ]
        if disconnects:
            self.messages.append({"type": "http.disconnect"})
        self.sent: list[Any] = []

    async def receive(self) -> Any:
        if not self.messages:
            await asyncio.Event().wait()
        return self.messages.pop(0)

    async def send(self, message: Any) -> None:
        self.sent.append(message)


def read(sender: Sender, *headers: tuple[bytes, bytes], limit: int = 10) -> bytes | bytearray:
    return asyncio.run(read_body(headers, sender.receive, limit))


@pytest.mark.parametrize(
    "chunks",
    [
        pytest.param([b""], id="empty"),
        pytest.param([b"0123456789"], id="whole"),
        pytest.param([b"01234", b"56789"], id="halves"),
        pytest.param([b"%d" % digit for digit in range(10)], id="byte-by-byte"),
        pytest.param([b"0123456789", b""], id="empty-end"),
        pytest.param([b"", b"0123456789"], id="empty-start"),
    ],
)
def test_body_is_collected_whole_up_to_the_limit(chunks: Iterable[bytes]) -> None:
    assert read(Sender(*chunks)) == b"".join(chunks)


def test_message_may_leave_out_what_has_a_default() -> None:
    sender = Sender()
    sender.messages = [{"type": "http.request"}]
    assert read(sender) == b""


@pytest.mark.parametrize(
    ("sender", "declared", "found"),
    [
        pytest.param(Sender(), b"11", "11 bytes", id="declared"),
        pytest.param(Sender(), b"9" * 5000, "9" * 18 + " bytes", id="declared-endless"),
        pytest.param(Sender(b"01234567890"), b"", "more than 10 bytes", id="whole"),
        pytest.param(Sender(b"0123456789", b"0"), b"", "more than 10 bytes", id="chunked"),
        pytest.param(Sender(b"0123456789", b"0"), b"5", "more than 10 bytes", id="declared-too-short"),
    ],
)
def test_body_beyond_the_limit_is_refused_as_soon_as_that_is_known(sender: Sender, declared: bytes, found: str) -> None:
    headers = [(b"content-length", declared)] if declared else []
    with pytest.raises(PayloadTooLarge) as refusal:
        read(sender, *headers)
    assert str(refusal.value) == (
        f"the body has {found}, this server takes at most 10; send fewer rows at a time, "
        f"or start it with a larger --max-body-bytes"
    )
    assert sender.messages == []


def call(sender: Sender, *headers: tuple[bytes, bytes], model: EchoModel | None = None, limit: int = 1000) -> None:
    route = InferRoute(fake_registry(echo=model or EchoModel()), limit)
    scope = {"type": "http", "headers": list(headers), "path_params": {"model_name": "echo"}}
    asyncio.run(route(scope, sender.receive, sender.send))


def test_route_answers_what_infer_answers() -> None:
    sender = Sender(GOOD[:20], GOOD[20:])
    call(sender)
    assert sender.sent == [
        {"type": "http.response.start", "status": 200, "headers": list(ask(GOOD).headers)},
        {"type": "http.response.body", "body": ECHO},
    ]


def test_trailers_that_come_behind_the_body_are_no_headers() -> None:
    """Servers append them to the very list that the route was given."""
    sender = Sender(GOOD[:20], GOOD[20:])
    headers: list[tuple[bytes, bytes]] = []

    async def receive() -> Any:
        headers.append((b"content-encoding", b"gzip"))
        return await sender.receive()

    route = InferRoute(fake_registry(echo=EchoModel()), 1000)
    scope = {"type": "http", "headers": headers, "path_params": {"model_name": "echo"}}
    asyncio.run(route(scope, receive, sender.send))
    assert sender.sent[0]["status"] == 200


def test_nobody_is_answered_when_the_client_has_gone() -> None:
    model = EchoModel()
    sender = Sender(GOOD[:20], disconnects=True)
    call(sender, model=model)
    assert (sender.sent, model.requests) == ([], [])


def test_request_is_given_up_when_its_caller_disconnects_while_it_waits() -> None:
    class Waiting(EchoModel):
        """Never answers; remembers that it was given up."""

        given_up = 0

        def begin(self, *_: Any) -> Any:
            def give_up() -> None:
                self.given_up += 1

            return give_up

    model = Waiting()
    sender = Sender(GOOD)
    sender.messages.append({"type": "http.disconnect"})
    call(sender, model=model)
    assert (sender.sent, model.given_up) == ([], 1)


def test_refused_body_is_read_on_so_that_the_refusal_arrives() -> None:
    sender = Sender(b"." * 8, b"." * 8, b"." * 8)
    call(sender, limit=10)
    start, answer, end = sender.sent
    assert start["status"] == 413
    assert (b"connection", b"close") in start["headers"]
    assert json.loads(answer["body"])["error"].startswith("the body has more than 10 bytes")
    assert (answer["more_body"], end) == (True, {"type": "http.response.body", "body": b""})
    assert sender.messages == []


@pytest.mark.parametrize(
    "sender",
    [
        pytest.param(Sender(b"." * 8, b"." * 8, disconnects=True), id="leaves"),
        pytest.param(Sender(), id="sends-nothing"),
    ],
)
def test_refused_body_is_not_waited_for_for_ever(sender: Sender, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_api, "_DISCARD_S", 0.0)
    call(sender, (b"content-length", b"999999"), limit=10)
    assert [message["type"] for message in sender.sent] == ["http.response.start", *["http.response.body"] * 2]
