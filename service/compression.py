"""Content codings, both ways: compressed request bodies, and compressed answers for those who ask for them.

Pure functions of bytes. gzip is RFC 1952; deflate is the zlib format around it (RFC 9110, 8.4.1.2), and also the bare
stream, which some clients send under that name. What a body may grow to is bounded while it grows, not afterwards.
Knows no request, no tensor, no connection.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import lru_cache

from service.encode import EncodedResponse
from service.errors import MalformedRequest, PayloadTooLarge, UnsupportedEncoding, quoted

ACCEPTED = "gzip, deflate, identity"
"""What a request may be packed in, as a header says it."""

# zlib's own numbers: window of 32 KiB, and which wrapper is around the stream.
_GZIP = 31
_ZLIB = 15
_BARE = -15
_WINDOWS = {b"gzip": _GZIP, b"x-gzip": _GZIP, b"deflate": _ZLIB}


MOST_EXPANDED_BYTES = 64 * 1024 * 1024
"""What a body may grow to where no setting says it."""


# --- requests -----------------------------------------------------------------------------------------------------

# A gzip body may be several members, one behind the other (RFC 1952, 2.2). Each costs microseconds however short it is,
# and what is behind its end is copied: hence few of them, and input in pieces.
_MOST_MEMBERS = 1024
_PIECE_BYTES = 64 * 1024


def expand(body: bytes | bytearray | memoryview, content_encoding: bytes, max_bytes: int) -> bytes | memoryview:
    """`body` without its content coding; at most `max_bytes` are made of it.

    Raises UnsupportedEncoding, PayloadTooLarge, and MalformedRequest when the stream is damaged, cut off, or followed
    by something else.
    """
    coding = content_encoding.strip().lower()
    view = memoryview(body)
    if coding in (b"", b"identity"):
        return view
    window = _WINDOWS.get(coding)
    if window is None:
        name = quoted(content_encoding.decode("latin-1"))
        raise UnsupportedEncoding(f"Content-Encoding {name} is not supported; known are {ACCEPTED}, one at a time")
    if window == _ZLIB and not _begins_like_zlib(view):
        window = _BARE
    return _inflate(view, window, coding.decode("ascii"), max_bytes)


def _begins_like_zlib(view: memoryview) -> bool:
    """The method is 8 (deflate), and the two bytes of the header are a multiple of 31 (RFC 1950, 2.2)."""
    return len(view) >= 2 and view[0] & 0x0F == 8 and (view[0] << 8 | view[1]) % 31 == 0


def _inflate(view: memoryview, window: int, coding: str, max_bytes: int) -> bytes:
    inflater = zlib.decompressobj(window)
    members = 1
    pieces: list[bytes] = []
    room_bytes = max_bytes
    for start in range(0, len(view), _PIECE_BYTES):
        rest: bytes | memoryview = view[start : start + _PIECE_BYTES]
        while rest:
            if inflater.eof:
                if window != _GZIP or members == _MOST_MEMBERS:
                    raise MalformedRequest(f"the body goes on behind the end of its {coding} stream")
                inflater = zlib.decompressobj(window)
                members += 1
            try:
                # One byte more than there is room for: what fills it was too much, what does not was all of it.
                piece = inflater.decompress(rest, room_bytes + 1)
            except zlib.error as error:
                raise MalformedRequest(f"the body is not valid {coding}: {error}") from error
            room_bytes -= len(piece)
            if room_bytes < 0:
                raise PayloadTooLarge(
                    f"the {coding} body of {len(view)} bytes grows to more than {max_bytes}, the most this server "
                    f"takes; send fewer rows at a time, or start it with a larger --max-body-bytes"
                )
            pieces.append(piece)
            rest = inflater.unused_data
    if not inflater.eof:
        raise MalformedRequest(f"the {coding} body is cut off: its {len(view)} bytes do not reach the stream's end")
    return b"".join(pieces)


# --- answers ------------------------------------------------------------------------------------------------------

# Below the first an answer fits one packet anyway; above the second, packing takes a core for a hundredth of a second
# and more. Nobody is owed a packed answer, unless nothing else is acceptable.
_SMALLEST_BYTES = 1024
_LARGEST_BYTES = 1024 * 1024

PACKED_AT_ONCE_BYTES = 32 * 1024
"""Longer answers are better packed in a thread: of floats in JSON 32 KiB took 0.2 ms, 64 KiB 0.5 ms, 1 MiB 9.6 ms."""

_FASTEST = 1
# Of a large answer this much of its middle is tried first: random-looking floats hardly shrink, and take longest.
_SAMPLED_ABOVE_BYTES = 128 * 1024
_SAMPLE_BYTES = 16 * 1024
_MUST_SHRINK_TO = 0.9

_LONGEST_HEADER_BYTES = 1024
"""Longer Accept-Encodings are not read."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What an Accept-Encoding asks for. `coding` empty: identity. `is_demanded`: identity is not acceptable."""

    coding: bytes = b""
    is_demanded: bool = False


def takes_long(encoded: EncodedResponse, accept_encoding: bytes) -> bool:
    """Whether `compress` would hold up an event loop."""
    if len(encoded.body) <= PACKED_AT_ONCE_BYTES:
        return False
    choice = choose(accept_encoding)
    return bool(choice.coding) and (len(encoded.body) <= _LARGEST_BYTES or choice.is_demanded)


def compress(encoded: EncodedResponse, accept_encoding: bytes) -> EncodedResponse:
    """`encoded`, packed as the caller prefers where that pays. `header_bytes` goes on counting what is inside."""
    is_small = len(encoded.body) < _SMALLEST_BYTES
    if is_small and not accept_encoding:
        return encoded
    choice = choose(accept_encoding)
    if is_small and not choice.is_demanded:
        return encoded
    if choice.coding and (len(encoded.body) <= _LARGEST_BYTES or choice.is_demanded):
        packed = _deflate(encoded.body, _WINDOWS[choice.coding], must_shrink=not choice.is_demanded)
        if packed is not None:
            return encoded._replace(body=packed, content_encoding=choice.coding, depends_on_accept_encoding=True)
    return encoded._replace(depends_on_accept_encoding=True)


def _deflate(body: bytes, window: int, *, must_shrink: bool) -> bytes | None:
    """None when it would not shrink."""
    if must_shrink and len(body) > _SAMPLED_ABOVE_BYTES:
        middle = len(body) // 2
        sample = zlib.compress(body[middle : middle + _SAMPLE_BYTES], _FASTEST)
        if len(sample) > _MUST_SHRINK_TO * _SAMPLE_BYTES:
            return None
    packed = zlib.compress(body, _FASTEST, window)
    return None if must_shrink and len(packed) > _MUST_SHRINK_TO * len(body) else packed


@lru_cache(maxsize=256)
def choose(accept_encoding: bytes) -> Choice:
    """The coding with the largest weight (RFC 9110, 12.5.3); identity where nothing else is acceptable, or where it is
    named with a larger weight. A header that is no such list asks for nothing."""
    if len(accept_encoding) > _LONGEST_HEADER_BYTES:
        return Choice()
    weights = dict(_weighted(element) for element in accept_encoding.lower().split(b","))
    others = weights.get(b"*", 0.0)
    offered = {
        b"gzip": weights.get(b"gzip", weights.get(b"x-gzip", others)),
        b"deflate": weights.get(b"deflate", others),
    }
    coding = max(offered, key=lambda name: offered[name])
    identity = weights.get(b"identity", 0.0 if weights.get(b"*") == 0.0 else None)
    if offered[coding] == 0.0 or (identity is not None and identity > offered[coding]):
        return Choice()
    return Choice(coding, is_demanded=identity == 0.0)


def _weighted(element: bytes) -> tuple[bytes, float]:
    """Name and weight of one element of the list; a weight that is none counts as 0."""
    name, *parameters = (part.strip() for part in element.split(b";"))
    weight = 1.0
    for parameter in parameters:
        key, _, value = parameter.partition(b"=")
        if key.strip() == b"q":
            digits = value.strip()
            # float() would take "inf", "1_0" and "nan" too.
            is_weight = digits.replace(b".", b"", 1).isdigit() and len(digits) <= 5
            weight = min(float(digits), 1.0) if is_weight else 0.0
    return name, weight
