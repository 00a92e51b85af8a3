"""The fast door for `POST .../infer`: from the socket to the scheduler and back, without a task or a framework.

It takes a request only when nothing about its head is unusual (lane_heads.py), the head came whole in one read, and
nothing before it on the connection is unanswered. Then the body is collected here, and the answer is written straight
from the completion of its batch. Every other request goes on to uvicorn's own path and the ASGI route, which decides
the unusual cases for both: chunked bodies, HTTP/1.0, `Connection: close`, `Expect`, upgrades, bodies over the limit,
slow heads. Both doors answer through `begin_infer`, and byte for byte alike.

Requests on one connection are answered in order because the next is not looked at before the last is answered: what
comes early waits as bytes, and beyond `_HELD_BYTES` the socket is not read. Depends on uvicorn's internals, as its base
class does (uvicorn_fit.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

import numpy as np
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from service.answers import Answer
from service.busy_poll import BusyPoll
from service.connection import Connection, Phase, Refused, refusal_bytes
from service.encode import encode_error
from service.infer import InferHead
from service.lane_heads import HeadMemory, LaneHead
from service.off_loop import Cancel
from service.request_tags import REQUEST_ID, RequestTags

_HEAD_END = b"\r\n\r\n"
# Requests that a client sends ahead (pipelining) wait as bytes up to here; then its socket is not read.
_HELD_BYTES = 64 * 1024
# Bodies start where their first tensor lies on a cache line: ONNX Runtime then computes on them in place.
_ALIGNMENT = 64
# Where at least so much of a body is still to come, it is read into its place.
_READ_IN_PLACE_BYTES = 64 * 1024
# Where bytes go that have no place of their own: those of a body that nobody wants, and those that are looked at
# before the next read. One for all connections, which are read one after the other.
_SCRATCH = memoryview(bytearray(256 * 1024))
# A read that may bring a head brings little more: what it brings of a body is copied once more.
_SCRATCH_FOR_A_HEAD = _SCRATCH[: 16 * 1024]
# One write call instead of two costs a copy of the body; below this the copy is cheaper.
_ONE_WRITE_BYTES = 64 * 1024


# --- large bodies -------------------------------------------------------------------------------------------------


class _Reader(asyncio.BufferedProtocol):
    """Stands in for a lane from its first large body on: the event loop reads right into the body's memory. Through
    `data_received` every byte would be copied twice more, which for an image costs as long as the socket does."""

    def __init__(self, lane: Lane) -> None:
        self._lane = lane

    def get_buffer(self, _: int) -> memoryview:
        return self._lane.buffer()

    def buffer_updated(self, nbytes: int) -> None:
        self._lane.filled(nbytes)

    def eof_received(self) -> None:
        self._lane.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._lane.connection_lost(exc)

    def pause_writing(self) -> None:
        self._lane.pause_writing()

    def resume_writing(self) -> None:
        self._lane.resume_writing()


# --- the connection -----------------------------------------------------------------------------------------------

BeginInfer = Callable[[InferHead, Any, Callable[[Answer], object]], Cancel | None]
"""`begin_infer` with its registry."""
RefuseEarly = Callable[[InferHead, bytes], Answer | None]
"""`refuse_early` with its registry."""
TellRefusal = Callable[[str, str | None, Answer, RequestTags | None], object]
"""Told of each refusal: the model and version that were asked for, where that is known, and the answer."""
_REASONS = {
    HTTPStatus.BAD_REQUEST: "invalid_request",
    HTTPStatus.REQUEST_TIMEOUT: "too_slow",
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE: "too_large",
}
"""Why a connection refuses what it reads, in words of `errors.REASONS`; what is too slow is known to it alone."""


class Lane(Connection):
    """One connection. uvicorn makes it for each accepted socket, through a partial that gives the first arguments."""

    def __init__(
        self,
        begin: BeginInfer,
        refuse_early: RefuseEarly,
        tell_refusal: TellRefusal,
        heads: HeadMemory,
        poll: BusyPoll,
        **from_uvicorn: Any,
    ) -> None:
        super().__init__(**from_uvicorn)
        self._begin = begin
        self._refuse_early = refuse_early
        self._tell_refusal = tell_refusal
        self._heads = heads
        self._poll = poll
        self._lane_head: LaneHead | None = None
        """Of the request that the lane has taken and not answered yet."""
        self._body: memoryview | None = None
        self._body_filled = 0
        self._reads_in_place = False
        self._unwanted_bytes = 0
        """Of a body whose request has been refused before it came whole."""
        self._cancel: Cancel | None = None
        self._held = bytearray()
        self._is_going_on = False

    @property
    def is_busy(self) -> bool:
        return self._lane_head is not None or super().is_busy

    # --- bytes in ---

    def data_received(self, data: bytes) -> None:
        if self._unwanted_bytes:
            data = self._throw_away(data)
        if not data:
            return
        if self._body is not None:
            self._collect(data)
        elif self._lane_head is not None or self._held:
            self._hold(data)
        elif self._phase is not Phase.REQUEST or not self._take(data):
            super().data_received(data)

    def _take(self, data: bytes) -> bool:
        """Whether the lane takes the request at the beginning of `data`, and with it all of `data`."""
        if not data.startswith(b"POST "):
            return False
        end = data.find(_HEAD_END)
        if end < 0:
            return False
        start = end + len(_HEAD_END)
        head = self._heads.read(data[:start])
        if head is None:
            return False
        self._unset_keepalive_if_required()
        self._poll.received(self)
        self._lane_head = head
        stop = start + head.body_bytes
        if len(data) >= stop:
            if len(data) > stop:
                self._hold(data[stop:])
            self._await(Phase.NOTHING)
            self._infer(memoryview(data)[start:stop])
        elif stop - len(data) < _READ_IN_PLACE_BYTES:
            self._body, self._body_filled = _aligned_buffer(head), 0
            self._collect(memoryview(data)[start:])
        else:
            self._begin_large(head, data, start)
        return True

    def _begin_large(self, head: LaneHead, data: bytes, start: int) -> None:
        """A body of which much is still to come; unless its request will be refused: then it need not be kept."""
        come_bytes = len(data) - start
        json_text = data[start : start + head.json_bytes] if head.json_bytes <= come_bytes else b""
        if (refusal := self._refuse_early(head.infer, json_text)) is not None:
            self._unwanted_bytes = head.body_bytes - come_bytes
            self._answer(refusal)
        else:
            self._body, self._body_filled = _aligned_buffer(head), 0
            self._collect(memoryview(data)[start:])
        if not self._reads_in_place and not self.transport.is_closing():
            # For good: to change costs more than small requests lose by it. Event loops choose how to read when they
            # begin to.
            self._reads_in_place = True
            self.transport.set_protocol(_Reader(self))
            self.transport.pause_reading()
            self.transport.resume_reading()

    def _throw_away(self, data: bytes) -> bytes:
        """Returns what belongs to the next request."""
        rest = data[self._unwanted_bytes :]
        self._unwanted_bytes -= len(data) - len(rest)
        self._await(Phase.BODY if self._unwanted_bytes else Phase.REQUEST)
        return rest

    def buffer(self) -> memoryview:
        """Where the next bytes are to be put; never empty."""
        if self._unwanted_bytes:
            return _SCRATCH[: self._unwanted_bytes]
        if self._body is not None:
            return self._body[self._body_filled :]
        return _SCRATCH_FOR_A_HEAD if self._phase is Phase.REQUEST else _SCRATCH

    def filled(self, size_bytes: int) -> None:
        """The next `size_bytes` have been put where `buffer` said."""
        if self._unwanted_bytes:
            self._unwanted_bytes -= size_bytes
            self._await(Phase.BODY if self._unwanted_bytes else Phase.REQUEST)
        elif self._body is None:
            self.data_received(bytes(_SCRATCH[:size_bytes]))
        else:
            self._body_filled += size_bytes
            if self._body_filled < len(self._body):
                self._await(Phase.BODY)
            else:
                self._infer_collected()

    def _collect(self, data: bytes | memoryview) -> None:
        """Puts `data` where the body wants it; what is left over belongs to the next request."""
        assert self._body is not None
        wanted = len(self._body) - self._body_filled
        part = data if len(data) <= wanted else memoryview(data)[:wanted]
        self._body[self._body_filled : self._body_filled + len(part)] = part
        self._body_filled += len(part)
        if self._body_filled < len(self._body):
            self._await(Phase.BODY)
            return
        if len(data) > wanted:
            self._hold(data[wanted:])
        self._infer_collected()

    def _infer_collected(self) -> None:
        body, self._body = self._body, None
        assert body is not None
        self._await(Phase.NOTHING)
        self._infer(body)

    def _infer(self, body: memoryview) -> None:
        assert self._lane_head is not None
        self._cancel = None
        cancel = self._begin(self._lane_head.infer, body, self._answer)
        if self._lane_head is not None:
            self._cancel = cancel

    def _hold(self, data: bytes | memoryview) -> None:
        self._held += data
        if len(self._held) > _HELD_BYTES:
            self.flow.pause_reading()

    # --- bytes out ---

    def _answer(self, answer: Answer) -> None:
        head = self._lane_head
        tags = None if head is None else head.tags
        if answer.reason and head is not None:
            self._tell_refusal(head.infer.model_name, head.infer.version, answer, tags)
        self._lane_head = self._cancel = None
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        # What has begun to come behind it is answered as well (RFC 9112, 9.6).
        is_last = self._is_draining and not self._held
        closes = False
        pieces = [STATUS_LINE[answer.status]]
        for name, value in self.server_state.default_headers:
            pieces += (name, b": ", value, b"\r\n")
        for name, value in answer.headers:
            pieces += (name, b": ", value, b"\r\n")
            closes = closes or name == b"connection"
        if tags is not None and tags.sent_id:
            pieces += (REQUEST_ID, b": ", tags.sent_id, b"\r\n")
        if is_last:
            pieces.append(b"connection: close\r\n")
        pieces.append(b"\r\n")
        if len(answer.body) < _ONE_WRITE_BYTES:
            pieces.append(answer.body)
            self.transport.write(b"".join(pieces))
        else:
            self.transport.writelines([b"".join(pieces), answer.body])
        if is_last:
            self._end_in_order()
            return
        if closes:
            self.transport.close()
            return
        # While requests that came early wait for this answer to be read, it is not the peer's turn.
        self._await(Phase.BODY if self._unwanted_bytes else Phase.NOTHING if self._held else Phase.REQUEST)
        if self._held:
            self._go_on_soon()
        elif answer.status == HTTPStatus.OK:  # a flood of refusals must not take the cores from what runs
            self._poll.answered(self)

    def _go_on_soon(self) -> None:
        """With what came early; not at once, or a thousand refusals would be a thousand calls deep."""
        if not self._is_going_on:
            self._is_going_on = True
            self.loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        self._is_going_on = False
        # A peer that does not read its answers gets no more of them made.
        if self.transport.is_closing() or self._lane_head is not None or self.flow.write_paused:
            return
        held, self._held = bytes(self._held), bytearray()
        self.flow.resume_reading()
        self._await(Phase.REQUEST)
        if held:
            self.data_received(held)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._held and self._lane_head is None:
            self._go_on_soon()

    # --- ends ---

    def connection_lost(self, exc: Exception | None) -> None:
        if self._cancel is not None:
            self._cancel()
        self._lane_head = self._cancel = self._body = None
        self._unwanted_bytes = 0
        self._held.clear()
        super().connection_lost(exc)

    def _give_up(self, phase: Phase, limit_s: float) -> None:
        if self._unwanted_bytes:
            self.transport.close()  # it has had its answer
        else:
            super()._give_up(phase, limit_s)

    def _refuse(self, refusal: Refused) -> None:
        self._tell(refusal)
        if self._body is None:
            super()._refuse(refusal)
            return
        # A body of the lane's own: uvicorn's cycle, if there is one, is that of an earlier request.
        self._lane_head = self._body = None
        self._refused = True
        self._part(refusal_bytes(refusal))

    def _tell(self, refusal: Refused) -> None:
        """Of what never came whole it may not be known for whom it was."""
        head = self._lane_head if self._body is not None else None
        name, version = (head.infer.model_name, head.infer.version) if head else ("", None)
        body, reason = encode_error(str(refusal)).body, _REASONS[refusal.status]
        self._tell_refusal(name, version, Answer(refusal.status, (), body, reason), head.tags if head else None)

    def _end_in_order(self) -> None:
        self._unwanted_bytes = 0
        self._held.clear()
        super()._end_in_order()


def _aligned_buffer(head: LaneHead) -> memoryview:
    """Uninitialised memory for the body, placed so that the first tensor behind the JSON is aligned. The kernel gives
    the memory only as it is written, so a length that is declared and never sent costs nothing."""
    raw = np.empty(head.body_bytes + _ALIGNMENT, dtype=np.uint8)
    offset = -(raw.ctypes.data + head.json_bytes) % _ALIGNMENT
    return raw.data[offset : offset + head.body_bytes]
