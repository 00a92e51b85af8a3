"""HTTP answers that any door can write: status, headers, body; and what a caller is told about an error.

Knows no framework and no connection.
"""

from __future__ import annotations

import dataclasses
import math
import traceback
from collections.abc import Iterator
from dataclasses import dataclass

from service.compression import ACCEPTED
from service.decode import HEADER_LENGTH
from service.encode import EncodedResponse, encode_error
from service.errors import (
    Overloaded,
    PayloadTooLarge,
    ServiceError,
    Unauthenticated,
    UnsupportedEncoding,
    reason_of,
    status_of,
)


@dataclass(frozen=True, slots=True)
class Answer:
    """Header names in lower case, as in ASGI. `reason`: one word for why it is a refusal, for those who count.
    `traceback`: of an error that nobody foresaw, for the log."""

    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes
    reason: str = ""
    traceback: str = ""


_HEADER_LENGTH = HEADER_LENGTH.lower().encode("ascii")


def make_answer(status: int, encoded: EncodedResponse, *more_headers: tuple[bytes, bytes]) -> Answer:
    headers = [
        (b"content-type", encoded.content_type.encode("ascii")),
        (b"content-length", b"%d" % len(encoded.body)),
    ]
    if encoded.header_bytes is not None:
        headers.append((_HEADER_LENGTH, b"%d" % encoded.header_bytes))
    if encoded.content_encoding:
        headers.append((b"content-encoding", encoded.content_encoding))
    if encoded.depends_on_accept_encoding:
        headers.append((b"vary", b"accept-encoding"))
    return Answer(status, (*headers, *more_headers), encoded.body)


def answer_error(error: Exception) -> Answer:
    """What a caller is told about `error`; the text of an unexpected one stays in the log."""
    if not isinstance(error, ServiceError):
        answer = make_answer(500, encode_error("internal error; the server's log has the details"))
        # Not the error: its frames lead to the request, and perhaps back to this answer.
        told = "".join(traceback.format_exception(error))
        return dataclasses.replace(answer, reason=reason_of(error), traceback=told)
    answer = make_answer(status_of(error).http, encode_error(str(error)), *_headers_of(error))
    return dataclasses.replace(answer, reason=reason_of(error))


def _headers_of(error: ServiceError) -> Iterator[tuple[bytes, bytes]]:
    match error:
        case Overloaded():
            # Whole seconds (RFC 9110, 10.2.3), and never "at once".
            yield b"retry-after", b"%d" % max(1, math.ceil(error.retry_after_s))
        case UnsupportedEncoding():
            # RFC 9110, 15.5.16: says that it was the coding, not the media type, and which would do.
            yield b"accept-encoding", ACCEPTED.encode("ascii")
        case Unauthenticated():
            # RFC 9110, 15.5.2: how one would authenticate.
            yield b"www-authenticate", b"Bearer"
        case PayloadTooLarge():
            # The rest of the body is not wanted, so the connection cannot carry another request.
            yield b"connection", b"close"
