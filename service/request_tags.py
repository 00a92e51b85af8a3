"""What a request says of itself for those who look for it later: X-Request-Id, and W3C trace context.

They change nothing about its answer but that the id comes back in it, and they are new in every request. So a door that
remembers heads by their bytes cuts them out first (`cut`), with other headers that are new in every request and that
nobody here reads. Knows no connection, no log.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

REQUEST_ID = b"x-request-id"
TRACEPARENT = b"traceparent"

_NEW_IN_EACH = (
    REQUEST_ID, TRACEPARENT, b"tracestate", b"baggage", b"b3", b"x-b3-traceid", b"x-b3-spanid", b"x-b3-parentspanid",
    b"x-amzn-trace-id", b"x-cloud-trace-context", b"uber-trace-id", b"x-datadog-trace-id", b"x-datadog-parent-id",
    b"x-correlation-id", b"x-request-start", b"x-envoy-attempt-count",
)  # fmt: skip

# Whole lines of visible ASCII that no folded line follows: a parser of heads reads what is left as it would have. The
# look at the first letter halves what the search takes.
_CUT = re.compile(
    rb"\r\n(?=[%b])((?i:%b)):([\t\x20-\x7e]*)(?=\r\n[^\t\x20])"
    % (b"".join({name[:1] + name[:1].upper() for name in _NEW_IN_EACH}), b"|".join(_NEW_IN_EACH))
)

_ID = re.compile(rb"[\x21-\x7e]{1,128}")
_TRACE = re.compile(rb"([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")


@dataclass(frozen=True, slots=True)
class Trace:
    """The trace that a request belongs to, in hexadecimal, and the span that asks."""

    trace_id: str
    parent_id: str
    is_sampled: bool


class RequestTags:
    """Of one request; read when somebody asks. Headers as in ASGI: names in lower case."""

    def __init__(self, headers: Iterable[tuple[bytes, bytes]] = ()) -> None:
        self._headers = headers

    @cached_property
    def sent_id(self) -> bytes:
        """What the client calls it: 1 to 128 visible characters of ASCII, in one line; b"" otherwise."""
        value = self._only(REQUEST_ID)
        return value if _ID.fullmatch(value) else b""

    @cached_property
    def request_id(self) -> str:
        """What the client calls it, or what we do."""
        return self.sent_id.decode("ascii") or secrets.token_hex(8)

    @cached_property
    def trace(self) -> Trace | None:
        """The one it belongs to, where it says so."""
        return _read_traceparent(self._only(TRACEPARENT))

    def _only(self, wanted: bytes) -> bytes:
        values = [value for name, value in self._headers if name == wanted]
        return values[0].strip(b" \t") if len(values) == 1 else b""


def cut(head: bytes) -> tuple[bytes, Sequence[tuple[bytes, bytes]]]:
    """A request's head without the lines that are new in every request, and those; () where it has none."""
    parts = _CUT.split(head)
    if len(parts) == 1:
        return head, ()
    return b"".join(parts[::3]), [(name.lower(), value) for name, value in zip(parts[1::3], parts[2::3], strict=True)]


def _read_traceparent(value: bytes) -> Trace | None:
    """None where it is absent or broken: then it is to be ignored (W3C, Trace Context, 3.2.2)."""
    found = _TRACE.fullmatch(value)
    if found is None:
        return None
    version, trace_id, parent_id, flags, more = found.groups()
    if version == b"ff" or (version == b"00" and more):  # later versions may go on
        return None
    return Trace(trace_id.decode("ascii"), parent_id.decode("ascii"), bool(int(flags, 16) & 1))
