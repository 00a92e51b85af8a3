"""From the bytes of one infer request to the bytes of its answer: the one function behind both doors.

`begin_infer` waits nowhere. The answer goes to `reply`, once: at once for a refusal, otherwise when the request's batch
has run. What it returns cancels the request. The ASGI route (http_api.py) and the lane (http_lane.py) only bring bytes
and headers here, so they answer alike. Knows no framework, no connection.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from service.answers import Answer, answer_error, make_answer
from service.compression import MOST_EXPANDED_BYTES, compress, expand, takes_long
from service.decode import HEADER_LENGTH, LONG_JSON_BYTES, Preview, peek
from service.encode import EncodedResponse, encode_response, long_json_elements
from service.errors import ServiceError, quoted
from service.json_tensors import Pause
from service.model import Model
from service.off_loop import Cancel, Work, in_thread, pause
from service.protocol import InferenceRequest, InferenceResponse
from service.registry import Registry
from service.request_body import Body, read_request, reads_long
from service.shared_memory import SharedMemory
from service.stages import Stages, server_timing

log = logging.getLogger(__name__)

Headers = Iterable[tuple[bytes, bytes]]
"""As in ASGI: names in lower case."""

Encode = Callable[[InferenceResponse, Pause | None], EncodedResponse]

# Longer compressed bodies are expanded in a thread; a shorter one cannot grow to more than some four megabytes.
EXPANDED_AT_ONCE_BYTES = 4096

# Of JSON, and of its numbers: some 20 ms of work.
_VERY_LARGE_BYTES = 4 * 1024 * 1024
_VERY_LARGE_ELEMENTS = 512 * 1024


@dataclass(frozen=True, slots=True)
class InferHead:
    """What the head of an infer request says, as far as its answer depends on it. A pure function of the head's bytes,
    so a door may keep it for the next request with the same head."""

    model_name: str
    version: str | None = None
    header_length: bytes | None = None
    content_encoding: bytes = b""
    content_type: bytes = b""
    accept_encoding: bytes = b""


_HEADER_LENGTH = HEADER_LENGTH.lower().encode("ascii")
_READ = frozenset({_HEADER_LENGTH, b"content-encoding", b"content-type", b"accept-encoding"})


def read_head(model_name: str, version: str | None, headers: Headers) -> InferHead:
    known: dict[bytes, bytes] = {}
    for name, value in headers:
        if name in _READ:
            # Several lines of one name are one list (RFC 9110, 5.3); where no list belongs, that will be refused.
            known[name] = known[name] + b", " + value if name in known else value
    return InferHead(
        model_name,
        version,
        known.get(_HEADER_LENGTH),
        known.get(b"content-encoding", b""),
        known.get(b"content-type", b""),
        known.get(b"accept-encoding", b""),
    )


def begin_infer(
    registry: Registry,
    head: InferHead,
    body: Body,
    reply: Callable[[Answer], object],
    *,
    max_body_bytes: int = MOST_EXPANDED_BYTES,
    regions: SharedMemory | None = None,
    make_stages: Callable[[float], Stages] = Stages,
) -> Cancel | None:
    """Begins to answer `POST .../infer`. Calls `reply` once, unless what is returned is called before: it
    comes too late for an answer that is being written or packed, which is told all the same.

    max_body_bytes: what a compressed body may grow to. regions: of shared memory, which the request may name.
    make_stages: given when the request came; its kind says whether the caller is told of them.
    Never raises. Returns None when `reply` has been called already.
    """
    stages = make_stages(time.monotonic())
    if not head.content_encoding and len(body) < LONG_JSON_BYTES:
        return _begin(registry, head, body, reply, regions, stages)

    def begin(head: InferHead, body: Body) -> Cancel | None:
        if not reads_long(body, head.header_length, head.content_type):
            return _begin(registry, head, body, reply, regions, stages)

        def read(model: Model) -> tuple[InferenceRequest, Encode]:
            return _request_for(model, head, body, regions, pause), encode_response

        return begin_long(registry, head, body, reply, read, stages)

    return begin_expanded(begin, head, body, reply, max_body_bytes)


def refuse_early(registry: Registry, head: InferHead, json_text: bytes) -> Answer | None:
    """The refusal of a request whose body is still coming: no such model, a full queue, a timeout that cannot be kept.
    None when nothing is certain yet; errors in the request itself are told when it has come whole.

    json_text: the JSON in front of the binary tensors, b"" when there is none or it is not known yet.
    """
    try:
        model = registry.get(head.model_name, head.version)
        preview = peek(json_text) if json_text and not head.content_encoding else None
        if preview is None:
            preview = Preview(1, {})
        model.check_admission(preview.rows, preview.parameters, time.monotonic())
    except ServiceError as error:
        return answer_error(error)
    except Exception:
        # A defect of ours, told with the request's answer, when it has come whole.
        log.exception("a request to model %s could not be looked at early", quoted(head.model_name))
    return None


def begin_expanded(
    begin: Callable[[InferHead, Body], Cancel | None],
    head: InferHead,
    body: Body,
    reply: Callable[[Answer], object],
    max_body_bytes: int,
) -> Cancel | None:
    """Calls `begin` with the body expanded, if it is compressed, and a head that does not say so any more; behind a
    thread where that takes long: 64 KiB can become 64 MiB, which would hold up all others."""
    if not head.content_encoding:
        return begin(head, body)
    plain = dataclasses.replace(head, content_encoding=b"")
    expanded = functools.partial(expand, body, head.content_encoding, max_body_bytes)
    if len(body) > EXPANDED_AT_ONCE_BYTES:
        return in_thread(
            Work.EXPAND, expanded, functools.partial(begin, plain), lambda error: reply(answer_error(error))
        )
    try:
        body = expanded()
    except Exception as error:
        reply(answer_error(error))
        return None
    return begin(plain, body)


def _begin(
    registry: Registry,
    head: InferHead,
    body: Body,
    reply: Callable[[Answer], object],
    regions: SharedMemory | None,
    stages: Stages,
) -> Cancel | None:
    try:
        model = registry.get(head.model_name, head.version)
        request = _request_for(model, head, body, regions)
        return model.begin(
            request,
            lambda outcome: answer_with(encode_response, head, outcome, reply, stages),
            stages.arrived_s,
            stages,
        )
    except Exception as error:
        reply(answer_error(error))
        return None


def _request_for(
    model: Model, head: InferHead, body: Body, regions: SharedMemory | None, pause: Pause | None = None
) -> InferenceRequest:
    return read_request(
        body,
        model.metadata,
        is_batchable=model.max_batch_size > 0,
        regions=regions,
        header_length=head.header_length,
        content_type=head.content_type,
        pause=pause,
    )


def begin_long(
    registry: Registry,
    head: InferHead,
    body: Body,
    reply: Callable[[Answer], object],
    read: Callable[[Model], tuple[InferenceRequest, Encode]],
    stages: Stages,
) -> Cancel | None:
    """`read` makes, in a thread, a request of a body that holds much JSON; the second is how its answer is written."""

    def begin(model: Model, found: tuple[InferenceRequest, Encode]) -> Cancel | None:
        request, encode = found
        try:
            # By now another load may answer to this name: then it is read once more, as that one wants it.
            if registry.get(head.model_name, head.version) is not model:
                return begin_long(registry, head, body, reply, read, stages)
            return model.begin(
                request, lambda outcome: answer_with(encode, head, outcome, reply, stages), stages.arrived_s, stages
            )
        except Exception as error:
            reply(answer_error(error))
            return None

    try:
        model = registry.get(head.model_name, head.version)
        model.check_admission(1, {}, stages.arrived_s)  # of as little as it may be: what it is, reading tells
    except Exception as error:
        reply(answer_error(error))
        return None
    work = Work.READ if len(body) <= _VERY_LARGE_BYTES else Work.READ_VERY_LARGE
    return in_thread(
        work, lambda: read(model), functools.partial(begin, model), lambda error: reply(answer_error(error))
    )


def answer_with(
    encode: Encode,
    head: InferHead,
    outcome: InferenceResponse | Exception,
    reply: Callable[[Answer], object],
    stages: Stages,
) -> None:
    """Calls `reply` with the outcome as `encode` writes it, packed as `head` asks; later when either takes long."""
    if isinstance(outcome, Exception):
        reply(answer_error(outcome))
        return
    if elements := long_json_elements(outcome):
        in_thread(
            Work.WRITE if elements <= _VERY_LARGE_ELEMENTS else Work.WRITE_VERY_LARGE,
            lambda: encode(outcome, pause),
            lambda encoded: _answer_encoded(encoded, head, reply, stages),
            lambda error: reply(answer_error(error)),
        )
        return
    try:
        encoded = encode(outcome, None)
    except Exception as error:
        reply(answer_error(error))
        return
    _answer_encoded(encoded, head, reply, stages)


def _answer_encoded(
    encoded: EncodedResponse, head: InferHead, reply: Callable[[Answer], object], stages: Stages
) -> None:
    """Packed as the caller likes it."""
    if takes_long(encoded, head.accept_encoding):
        _answer_packed(encoded, head, reply, stages)
        return
    try:
        packed = compress(encoded, head.accept_encoding)
    except Exception as error:
        reply(answer_error(error))
        return
    _answer_written(packed, reply, stages)


def _answer_written(packed: EncodedResponse, reply: Callable[[Answer], object], stages: Stages) -> None:
    if stages.is_told:
        reply(make_answer(200, packed, server_timing(stages, time.monotonic())))
    else:
        reply(make_answer(200, packed))
    if stages.record is not None:
        stages.record(stages, time.monotonic())
        stages.record = None


def _answer_packed(
    encoded: EncodedResponse, head: InferHead, reply: Callable[[Answer], object], stages: Stages
) -> None:
    """From a thread: zlib lets go of the interpreter while it packs."""

    def finish(packed: EncodedResponse) -> None:
        _answer_written(packed, reply, stages)

    packing = functools.partial(compress, encoded, head.accept_encoding)
    in_thread(Work.PACK, packing, finish, lambda error: reply(answer_error(error)))
