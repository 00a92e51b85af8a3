"""One HTTP/1.1 connection: uvicorn's own protocol class, made stricter where a hostile or unlucky peer would hurt.

Heads and waiting are bounded, Host is required, offers to upgrade are ignored without losing the body, trailers are no
headers, and refusals have the form of every other error, behind the answers to the requests before them. A connection
that drains answers what has begun to come, tells its peer with the last answer, and ends. Depends on internals of
uvicorn's httptools protocol, whose minor version pyproject.toml pins. Knows no route and no model.
"""

from __future__ import annotations

import asyncio
import math
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from http import HTTPStatus
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from service.crowd import Crowd, Place
from service.encode import encode_error
from service.settings import Settings


@dataclass(frozen=True, slots=True)
class Limits:
    """What one connection may cost beyond the work of the application. A peer that takes its answer byte by byte, just
    often enough, is not stopped by them."""

    # As much as common proxies pass on, several times over. What one read brings may exceed it once.
    head_bytes: int = 64 * 1024
    # Browsers send some twenty, proxies add some ten.
    header_count: int = 100
    # Heads are small; this is many round trips even on a bad line.
    head_s: float = 20.0
    # Without a single byte; a line that recovers from a loss does so earlier.
    body_stall_s: float = 30.0
    # From its head to its end; the largest body of the default settings comes within it at 1 Mbit/s.
    body_s: float = 600.0
    # While an answer waits and the peer takes not a byte of it; a slow reader takes some.
    answer_stall_s: float = 60.0
    # Behind a refusal: a round trip on a bad line, and what the peer had sent before it could know.
    farewell_s: float = 2.0
    # When the server ends: since a connection was made, or its last answer written. The request of whoever connected
    # just now is on its way.
    last_call_s: float = 0.5

    @classmethod
    def of(cls, settings: Settings) -> Limits:
        """Those that an operator may choose, as chosen."""
        return cls(
            head_bytes=settings.max_head_bytes,
            header_count=settings.max_header_count,
            head_s=settings.head_timeout_s,
            body_stall_s=settings.body_stall_s,
            body_s=settings.body_timeout_s,
            answer_stall_s=settings.answer_stall_s,
        )


class Refused(Exception):
    """Raised inside the parser's callbacks, where it ends the parsing."""

    def __init__(self, status: HTTPStatus, text: str) -> None:
        super().__init__(text)
        self.status = status


_NOT_HTTP = (
    "the bytes received are not an HTTP/1.1 request (RFC 9112): check the request line, the header lines, "
    "Content-Length or chunk sizes, and that the client does not speak TLS or HTTP/2"
)


class Phase(Enum):
    """What is awaited from the peer."""

    REQUEST = "a request"
    HEAD = "the rest of a head"
    BODY = "the rest of a body"
    NOTHING = "nothing: it is our turn"
    CLOSE = "that it closes, having been refused"


class _LastAnswer:
    """A connection's transport, as the cycle of its last answer sees it: what closes behind it does so in order."""

    def __init__(self, transport: asyncio.Transport, end: Callable[[], None]) -> None:
        self.write = transport.write
        self.is_closing = transport.is_closing
        self.close = end


class Connection(HttpToolsProtocol):
    """uvicorn makes one for each accepted socket. `crowd`: all of them, where there is a limit to their number."""

    limits = Limits()

    def __init__(
        self, *from_uvicorn: Any, limits: Limits | None = None, crowd: Crowd | None = None, **named: Any
    ) -> None:
        super().__init__(*from_uvicorn, **named)
        self._crowd = crowd
        self._place: Place | None = None
        if limits is not None:
            self.limits = limits

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        _end_when_nothing_is_taken(transport, self.limits.answer_stall_s)
        self._timer: asyncio.TimerHandle | None = None
        self._due_s = self._body_end_s = math.inf
        self._limits_s = {
            Phase.REQUEST: float(self.timeout_keep_alive),
            Phase.HEAD: self.limits.head_s,
            Phase.BODY: self.limits.body_stall_s,
            Phase.CLOSE: self.limits.farewell_s,
        }
        self._phase = Phase.NOTHING
        self._reported_bytes = self._silent_bytes = self._unanswered = 0
        self._reported = self._refused = False
        self._last_words = b""
        self._running: RequestResponseCycle | None = None
        self._is_draining = False
        self._last: RequestResponseCycle | None = None
        """Whose answer is to say `Connection: close`, because of the drain and not because its request says so."""
        self._await(Phase.REQUEST)
        if getattr(self.server_state, "is_draining", False):
            self.drain()
        if getattr(self.server_state, "is_ending", False):
            self.shutdown()
        if self._crowd is not None:
            self._place = self._crowd.enter()
            if self._place is not Place.ADMITTED:
                self._turn_away(self._crowd.most)

    @property
    def is_busy(self) -> bool:
        """A request has begun to come, or waits for its answer."""
        return self._phase in (Phase.HEAD, Phase.BODY) or self._unanswered > 0

    def connection_lost(self, exc: Exception | None) -> None:
        if self._crowd is not None and self._place is not None:
            self._crowd.leave(self._place)
        self._await(Phase.NOTHING)
        if self._timer is not None:
            self._timer.cancel()
        # uvicorn tells only the request that came last, though the one that runs may be another.
        if self._running is not None and not self._running.response_complete:
            _tell_that_it_is_over(self._running)
        super().connection_lost(exc)

    def eof_received(self) -> None:
        """The peer sends no more: it is taken to have left, and None lets the transport close.

        It may only have closed its sending half and still read, but `close()` looks the same from here until something
        is written to it. An answer for those few would cost the work of every caller who hung up while queued.
        """

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        while data and not self._refused:
            data = self._parse(data)
        if self._phase is Phase.BODY:
            self._await(Phase.BODY)

    def _parse(self, data: bytes) -> bytes:
        """Feeds the parser; returns what it did not look at, because an offer to upgrade came before."""
        self._reported = False
        rest = b""
        try:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                # CONNECT, the other case, has been answered like any method that is not taken.
                if self._phase is Phase.HEAD:
                    rest = data[upgrade.args[0] :]
                    self._read_again_without_upgrade()
            # A header line without end is kept by the parser, which says nothing until it is complete.
            self._silent_bytes = 0 if self._reported else self._silent_bytes + len(data)
            self._refuse_a_long_head(self._silent_bytes)
        except Refused as refusal:
            self._refuse(refusal)
        except httptools.HttpParserError as error:
            cause = error.__context__
            self._refuse(cause if isinstance(cause, Refused) else Refused(HTTPStatus.BAD_REQUEST, _NOT_HTTP))
        return rest

    # --- what the parser reports ---

    def on_message_begin(self) -> None:
        self._unmark_last()
        super().on_message_begin()
        self._reported_bytes = 0
        self._await(Phase.HEAD)

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value) + 4)
        # Trailers of a chunked body come here as well; they are no header fields (RFC 9110, 6.5.1).
        if self._phase is not Phase.HEAD:
            return
        super().on_header(name, value)
        if len(self.headers) > self.limits.header_count:
            raise Refused(
                HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
                f"the request has more than {self.limits.header_count} header lines, the most that this server takes",
            )

    def on_headers_complete(self) -> None:
        hosts = sum(name == b"host" for name, _ in self.headers)
        if hosts > 1 or (hosts == 0 and self.parser.get_http_version() == "1.1"):
            raise Refused(
                HTTPStatus.BAD_REQUEST, f"an HTTP/1.1 request has one Host header (RFC 9112, 3.2), this one has {hosts}"
            )
        self._reported = True
        if self._offers_upgrade():
            return
        # Raises where the target has no path, such as http://host: then nothing has begun that would be answered.
        super().on_headers_complete()
        self._unanswered += 1
        self._await(Phase.BODY)
        if self._is_draining:
            self._mark_last()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def on_body(self, body: bytes) -> None:
        self._reported = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self._phase is Phase.BODY:  # and not a head that is about to be read again without its upgrade
            super().on_message_complete()
            self._await(Phase.NOTHING if self._unanswered else Phase.REQUEST)

    def on_response_complete(self) -> None:
        self._unanswered -= 1
        if not self._unanswered and self._phase is Phase.NOTHING:
            self._await(Phase.REQUEST)
        super().on_response_complete()
        if self._last_words and not self._unanswered:
            self._part(self._last_words)

    def _count(self, size_bytes: int) -> None:
        self._reported = True
        self._reported_bytes += size_bytes
        self._refuse_a_long_head(self._reported_bytes)

    def _refuse_a_long_head(self, size_bytes: int) -> None:
        if size_bytes > self.limits.head_bytes:
            raise Refused(
                HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
                f"the request line and the headers together take more than {self.limits.head_bytes} bytes",
            )

    # --- upgrades ---

    def _offers_upgrade(self) -> bool:
        return bool(self.parser.should_upgrade()) and self.parser.get_method() != b"CONNECT"

    def _read_again_without_upgrade(self) -> None:
        """An offer may be ignored (RFC 9110, 7.8), but the parser stops behind a head with one and skips the body. So
        the same head goes to a new parser, without the offer."""
        version = self.parser.get_http_version().encode("ascii")
        lines = [b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, version)]
        lines += [b"%b: %b" % pair for pair in self.headers if pair[0] not in (b"upgrade", b"http2-settings")]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
        self.parser.feed_data(b"\r\n".join([*lines, b"", b""]))

    # --- deadlines ---

    def _await(self, phase: Phase) -> None:
        """From now on `phase` is awaited. The timer is not set anew several times a request: the one that runs looks
        how much time is left when it is due."""
        before, self._phase = self._phase, phase
        limit_s = self._limits_s.get(phase)
        if limit_s is None:
            self._due_s = math.inf
            return
        now = self.loop.time()
        self._due_s = now + limit_s
        if phase is Phase.BODY:
            if before is not Phase.BODY:
                self._body_end_s = now + self.limits.body_s
            self._due_s = min(self._due_s, self._body_end_s)
        if self._timer is None or self._timer.when() > self._due_s:
            self._watch(self._due_s - now)

    def _watch(self, limit_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_later(limit_s, self._look)

    def _look(self) -> None:
        self._timer = None
        left_s = self._due_s - self.loop.time()
        if left_s == math.inf:
            return
        if left_s > 0:
            self._watch(left_s)
        elif self._phase is Phase.BODY and self._due_s == self._body_end_s:
            self._give_up(self._phase, self.limits.body_s)
        else:
            self._give_up(self._phase, self._limits_s[self._phase])

    def _give_up(self, phase: Phase, limit_s: float) -> None:
        if phase in (Phase.REQUEST, Phase.CLOSE):
            self.transport.close()
        elif self.flow.read_paused or (phase is Phase.HEAD and self._unanswered):
            # It is us who do not read, or the peer is waiting for answers: all clocks begin anew.
            self._await(Phase.NOTHING)
            self._await(phase)
        else:
            self._refuse(Refused(HTTPStatus.REQUEST_TIMEOUT, f"{phase.value} did not come within {limit_s:g} s"))

    # --- the drain ---

    def drain(self) -> None:
        """From now on the answer behind which no other request has begun to come says `Connection: close`, and the
        connection ends there. Idle connections stay: to close one could cost the request that is on its way."""
        self._is_draining = True
        if self._phase is not Phase.HEAD:
            self._mark_last()

    def shutdown(self) -> None:
        """As `drain`; and who has sent nothing for `last_call_s` is hung up on."""
        self.drain()
        kept_s, self._limits_s[Phase.REQUEST] = self._limits_s[Phase.REQUEST], self.limits.last_call_s
        if self._phase is Phase.REQUEST:
            self._due_s += self.limits.last_call_s - kept_s
            self._watch(max(0.0, self._due_s - self.loop.time()))

    def _mark_last(self) -> None:
        cycle = self.cycle
        if cycle is not None and cycle.keep_alive and not cycle.response_started:
            self._last = cycle
            cycle.keep_alive = False
            cycle.transport = _LastAnswer(self.transport, self._end_in_order)  # type: ignore[assignment]

    def _unmark_last(self) -> None:
        """It is not the last after all, if it has not said so yet."""
        if self._last is not None and not self._last.response_started:
            self._last.keep_alive, self._last.transport = True, self.transport
        self._last = None

    def _end_in_order(self) -> None:
        """Behind the last answer: what the peer has sent since then is not looked at."""
        self._refused = True
        self._last_words = b""
        self.pipeline.clear()
        self._part(b"")

    # --- refusals ---

    def _refuse(self, refusal: Refused) -> None:
        """Answers what came before, then refuses, then closes."""
        self._unmark_last()
        self._refused = True
        broken = self.cycle if self._phase is Phase.BODY else None
        self._await(Phase.NOTHING)
        words = refusal_bytes(refusal)
        if broken is not None and not broken.response_complete:
            if self.pipeline and self.pipeline[0][0] is broken:
                self.pipeline.popleft()  # uvicorn puts new ones on the left
                self._unanswered -= 1
            else:
                _tell_that_it_is_over(broken)  # nothing may be written behind the last words
                self._part(b"" if broken.response_started else words)
                return
        elif broken is not None:
            words = b""  # it has had its answer
        if self._unanswered:
            self._last_words = words
        else:
            self._part(words)

    def _turn_away(self, most: int) -> None:
        self._refused = True
        if self._place is Place.SHUT_OUT:
            self.transport.close()
            return
        text = f"this server has {most} connections, the most that it takes (--max-connections); try again later"
        self._part(refusal_bytes(Refused(HTTPStatus.SERVICE_UNAVAILABLE, text)))

    def _part(self, words: bytes) -> None:
        """Closes behind its last words, but only the sending half: what the peer still sends is read and thrown away,
        for closing would reset the connection, and the peer might never read this answer nor those before (RFC 9112,
        9.6)."""
        if self.transport.is_closing():
            return
        if words:
            self.transport.write(words)
        if self.transport.can_write_eof():  # TLS has no such thing
            self.transport.write_eof()
        self.flow.resume_reading()
        self._await(Phase.CLOSE)


def _tell_that_it_is_over(cycle: RequestResponseCycle) -> None:
    """To the application; what it still sends goes nowhere."""
    cycle.disconnected, cycle.waiting_for_100_continue = True, False
    cycle.message_event.set()


def _end_when_nothing_is_taken(transport: asyncio.BaseTransport, limit_s: float) -> None:
    """Lets the kernel end the connection when bytes wait and none can be sent or is acknowledged for `limit_s`.

    Otherwise a peer that never reads would keep its answer in memory for ever: closing waits until all is written. Only
    the kernel sees every byte that leaves, and its clock needs nothing of ours per request. Elsewhere than on Linux
    such a peer is not ended, nor on a unix socket, where it is a process of this machine.
    """
    sock = transport.get_extra_info("socket")
    if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6) and sys.platform == "linux":
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(limit_s * 1000))


def refusal_bytes(refusal: Refused) -> bytes:
    encoded = encode_error(str(refusal))
    return (b"HTTP/1.1 %d %b\r\ncontent-type: %b\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b") % (
        refusal.status,
        refusal.status.phrase.encode("ascii"),
        encoded.content_type.encode("ascii"),
        len(encoded.body),
        encoded.body,
    )
