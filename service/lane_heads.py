"""What the head of a request means, where the lane takes the request: a pure function of the head's bytes.

The lane takes only heads with nothing unusual in them, and those are listed here by what they may be: HTTP/1.1, kept
alive, a Content-Length, a path without escapes. Clients repeat themselves: on a kept-alive connection the head of the
next request is usually the same bytes. So what a head means is remembered (`HeadMemory`), and the parser only sees new
ones. Lines that are new in every request are cut out before (request_tags.py), or nothing would be remembered. Knows no
connection.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

import httptools

from service.infer import InferHead, read_head
from service.request_tags import RequestTags, cut

# Names made of what a path segment may hold (RFC 3986, 3.3) but escapes: of these bytes every parser of URLs makes the
# same. Anything else, from a fragment to bytes beyond ASCII, is the reference door's to read or refuse.
_SEGMENT = rb"([A-Za-z0-9._~!$&'()*+,;=:@-]+)"
_INFER_PATH = re.compile(rb"/v2/models/%b(?:/versions/%b)?/infer" % (_SEGMENT, _SEGMENT))


class LaneHead(NamedTuple):
    """The head of a request that the lane takes. No dataclass: one is made for each request that has tags, and a frozen
    dataclass takes four times as long to make."""

    infer: InferHead
    body_bytes: int
    json_bytes: int
    """Bytes in front of the first binary tensor."""
    header_count: int
    tags: RequestTags | None = None
    """None where it has none."""


class _Reader:
    """Collects what httptools reports about one head."""

    def __init__(self) -> None:
        self.url = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.is_complete = False

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self.is_complete = True


# Each of them changes how the request is framed or how long its connection lives: the reference door's affair.
_UNUSUAL = frozenset({b"transfer-encoding", b"expect", b"upgrade", b"http2-settings", b"trailer", b"te"})


Admits = Callable[[list[tuple[bytes, bytes]]], bool]
"""Whether the sender of these headers may infer. Who may not is the reference door's to refuse."""


def read_lane_head(
    head: bytes,
    max_body_bytes: int,
    max_head_bytes: int,
    max_header_count: int = 100,
    unusual: frozenset[bytes] = _UNUSUAL,
    admits: Admits | None = None,
) -> LaneHead | None:
    """What `head` (request line and headers, with the empty line) asks for; None when it is not for the lane."""
    if len(head) > max_head_bytes:
        return None
    reader = _Reader()
    parser = httptools.HttpRequestParser(reader)
    try:
        parser.feed_data(head)
    except (httptools.HttpParserError, httptools.HttpParserUpgrade):
        return None
    path = _INFER_PATH.fullmatch(reader.url)
    if not reader.is_complete or path is None or parser.get_method() != b"POST":
        return None
    if parser.get_http_version() != "1.1" or not parser.should_keep_alive() or parser.should_upgrade():
        return None
    names = [name for name, _ in reader.headers]
    if len(names) > max_header_count:
        return None
    if names.count(b"host") != 1 or names.count(b"content-length") != 1 or not unusual.isdisjoint(names):
        return None
    if admits is not None and not admits(reader.headers):
        return None
    known = dict(reader.headers)
    length = known[b"content-length"]
    # An empty body is complete with its head, and then the parser has forgotten what the head said of the connection.
    if not length.isdigit() or len(length) > 18 or not 0 < int(length) <= max_body_bytes:
        return None
    model_name, version = path.groups()
    infer = read_head(model_name.decode("ascii"), None if version is None else version.decode("ascii"), reader.headers)
    declared = infer.header_length or b""
    json_bytes = int(declared) if declared.isdigit() and len(declared) <= 18 else 0
    return LaneHead(infer, int(length), json_bytes, len(names))


class HeadMemory:
    """Heads that were read, by their bytes. Bounded: a client whose heads never repeat costs their reading, no more."""

    def __init__(
        self,
        max_body_bytes: int,
        max_head_bytes: int,
        max_header_count: int = 100,
        *,
        also_unusual: frozenset[bytes] = frozenset(),
        admits: Admits | None = None,
        entries: int = 1024,
        entry_bytes: int = 2048,
        always_tags: bool = False,
    ) -> None:
        """also_unusual: names of more headers that are not for the lane. always_tags: each head gets its own tags."""
        self._terms = (max_body_bytes, max_head_bytes, max_header_count, _UNUSUAL | also_unusual, admits)
        self._entries = entries
        self._entry_bytes = entry_bytes
        self._known: dict[bytes, LaneHead | None] = {}
        self._always_tags = always_tags

    def read(self, head: bytes) -> LaneHead | None:
        if not self._always_tags:
            try:
                return self._known[head]  # without a tag, for with one nothing is remembered
            except KeyError:
                pass
        rest, tags = cut(head)
        meaning = self._read(rest)
        if meaning is None or not (tags or self._always_tags):
            return meaning
        _, max_head_bytes, max_header_count, *_ = self._terms
        if len(head) > max_head_bytes or meaning.header_count + len(tags) > max_header_count:
            return None
        return LaneHead(meaning.infer, meaning.body_bytes, meaning.json_bytes, meaning.header_count, RequestTags(tags))

    def _read(self, head: bytes) -> LaneHead | None:
        try:
            return self._known[head]
        except KeyError:
            meaning = read_lane_head(head, *self._terms)
        if len(head) <= self._entry_bytes:
            if len(self._known) >= self._entries:
                self._known.clear()
            self._known[head] = meaning
        return meaning

    def forget(self) -> None:
        """For when another key opens what it did not."""
        self._known.clear()
