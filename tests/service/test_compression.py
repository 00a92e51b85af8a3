from __future__ import annotations

import gzip
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.compression import PACKED_AT_ONCE_BYTES, Choice, choose, compress, expand, takes_long
from service.encode import EncodedResponse
from service.errors import MalformedRequest, PayloadTooLarge, UnsupportedEncoding

LIMIT = 1000
TEXT = b'{"inputs":[]}'


def bare_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(data) + packer.flush()


PACKED = {
    "gzip": (b"gzip", gzip.compress(TEXT)),
    "gzip-in-upper-case": (b" GZip ", gzip.compress(TEXT)),
    "x-gzip": (b"x-gzip", gzip.compress(TEXT)),
    "gzip-of-several-members": (b"gzip", gzip.compress(TEXT[:5]) + gzip.compress(b"") + gzip.compress(TEXT[5:])),
    "deflate-is-zlib": (b"deflate", zlib.compress(TEXT)),
    "deflate-without-its-wrapper": (b"deflate", bare_deflate(TEXT)),
    "identity": (b"identity", TEXT),
    "nothing": (b"", TEXT),
}


@pytest.mark.parametrize(("coding", "body"), [pytest.param(*row, id=name) for name, row in PACKED.items()])
def test_body_is_unpacked(coding: bytes, body: bytes) -> None:
    for held in (body, bytearray(body), memoryview(b"." + body)[1:]):
        assert expand(held, coding, LIMIT) == TEXT


def test_gzip_from_the_shell_with_a_name_in_it_is_unpacked() -> None:
    """Header with the flag FNAME: RFC 1952, 2.3."""
    named = b"\x1f\x8b\x08\x08\x00\x00\x00\x00\x00\x03body.json\x00" + gzip.compress(TEXT)[10:]
    assert expand(named, b"gzip", LIMIT) == TEXT


@pytest.mark.parametrize("coding", [b"gzip", b"deflate"])
@pytest.mark.parametrize("beyond", [0, 1])
def test_the_limit_counts_what_is_inside_and_is_itself_allowed(coding: bytes, beyond: int) -> None:
    data = b"0" * (LIMIT + beyond)
    packed = gzip.compress(data) if coding == b"gzip" else zlib.compress(data)
    if not beyond:
        assert expand(packed, coding, LIMIT) == data
        return
    with pytest.raises(PayloadTooLarge, match=f"body of {len(packed)} bytes grows to more than 1000"):
        expand(packed, coding, LIMIT)


@pytest.mark.parametrize("members", [1, 50])
def test_a_bomb_takes_no_more_memory_than_the_limit(members: int) -> None:
    bomb = gzip.compress(b"0" * 20_000_000) * members
    tracemalloc.start()
    try:
        with pytest.raises(PayloadTooLarge):
            expand(bomb, b"gzip", 100_000)
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("coding", "body", "message"),
    [
        pytest.param(b"gzip", b"", "the gzip body is cut off: its 0 bytes do not reach the stream's end", id="empty"),
        pytest.param(
            b"gzip", TEXT, "the body is not valid gzip: Error -3 while decompressing data: incorrect header check",
            id="not-packed",
        ),
        pytest.param(
            b"deflate", b"\x78\x9c" + b"\xff" * 9,
            "the body is not valid deflate: Error -3 while decompressing data: invalid block type", id="damaged",
        ),
        pytest.param(
            b"gzip", gzip.compress(TEXT)[:-8] + b"\0" * 8,
            "the body is not valid gzip: Error -3 while decompressing data: incorrect data check", id="wrong-sum",
        ),
        pytest.param(
            b"deflate", zlib.compress(TEXT) + b"!", "the body goes on behind the end of its deflate stream", id="more",
        ),
        pytest.param(
            b"gzip", gzip.compress(TEXT) + b"!" * 20,
            "the body is not valid gzip: Error -3 while decompressing data: incorrect header check", id="gzip-and-more",
        ),
        pytest.param(
            b"gzip", gzip.compress(b"") * 1025, "the body goes on behind the end of its gzip stream", id="members",
        ),
    ],
)  # fmt: skip
def test_damaged_body_is_refused_with_one_exact_line(coding: bytes, body: bytes, message: str) -> None:
    with pytest.raises(MalformedRequest) as refusal:
        expand(body, coding, 10**6)
    assert str(refusal.value) == message


@pytest.mark.parametrize("length", range(len(gzip.compress(TEXT))))
def test_body_that_is_cut_off_anywhere_is_refused(length: int) -> None:
    with pytest.raises(MalformedRequest, match="cut off"):
        expand(gzip.compress(TEXT)[:length], b"gzip", LIMIT)


@pytest.mark.parametrize("coding", [b"br", b"zstd", b"gzip, deflate", b"gzip;q=1", b"\xff", b"gzip\x00"])
def test_other_codings_and_several_are_refused(coding: bytes) -> None:
    with pytest.raises(UnsupportedEncoding, match="known are gzip, deflate, identity, one at a time"):
        expand(b"", coding, LIMIT)


@given(st.binary(max_size=200), st.sampled_from([b"gzip", b"deflate"]), st.integers(0, 100))
def test_any_bytes_are_unpacked_within_the_limit_or_refused(body: bytes, coding: bytes, limit: int) -> None:
    for damaged in (body, gzip.compress(body)[:-1] + body[:1], zlib.compress(body) + body[:1]):
        try:
            assert len(expand(damaged, coding, limit)) <= limit
        except (MalformedRequest, PayloadTooLarge) as refusal:
            assert "\n" not in str(refusal)


@given(st.binary(max_size=3000))
def test_what_is_packed_is_unpacked_again(data: bytes) -> None:
    for coding, packed in (
        (b"gzip", gzip.compress(data)),
        (b"deflate", zlib.compress(data)),
        (b"deflate", bare_deflate(data)),
    ):
        assert expand(packed, coding, len(data)) == data


# --- answers ------------------------------------------------------------------------------------------------------

GZIP, DEFLATE, IDENTITY = Choice(b"gzip"), Choice(b"deflate"), Choice()


@pytest.mark.parametrize(
    ("header", "choice"),
    [
        pytest.param(b"gzip", GZIP, id="gzip"),
        pytest.param(b"deflate", DEFLATE, id="deflate"),
        pytest.param(b"gzip, deflate, br, zstd", GZIP, id="requests-and-browsers"),
        pytest.param(b"deflate, gzip", GZIP, id="gzip-among-equals"),
        pytest.param(b"gzip;q=0.5, deflate;q=0.6", DEFLATE, id="larger-weight"),
        pytest.param(b"GZIP ; Q=0.7", GZIP, id="upper-case"),
        pytest.param(b"x-gzip", GZIP, id="old-name"),
        pytest.param(b"*", GZIP, id="anything"),
        pytest.param(b"*;q=0.1, gzip;q=0", DEFLATE, id="anything-but-gzip"),
        pytest.param(b"br", IDENTITY, id="unknown"),
        pytest.param(b"", IDENTITY, id="empty"),
        pytest.param(b"gzip;q=0", IDENTITY, id="weight-0"),
        pytest.param(b"gzip;q=0.000", IDENTITY, id="weight-0.000"),
        pytest.param(b"gzip;q=-1, deflate;q=x", IDENTITY, id="weights-that-are-none"),
        pytest.param(b"gzip;q=inf", IDENTITY, id="weight-inf"),
        pytest.param(b"identity, gzip;q=0.5", IDENTITY, id="identity-first"),
        pytest.param(b"identity;q=0.5, gzip", GZIP, id="identity-second"),
        pytest.param(b"gzip, identity;q=0", Choice(b"gzip", is_demanded=True), id="no-identity"),
        pytest.param(b"gzip, *;q=0", Choice(b"gzip", is_demanded=True), id="nothing-else"),
        pytest.param(b"identity;q=0", IDENTITY, id="nothing-is-acceptable"),
        pytest.param(b"gzip," * 1000, IDENTITY, id="endless"),
        pytest.param(b",;,=;q", IDENTITY, id="no-list"),
    ],
)
def test_coding_of_the_largest_weight_is_chosen(header: bytes, choice: Choice) -> None:
    assert choose(header) == choice


@given(
    st.binary(max_size=60)
    | st.lists(st.sampled_from([b"gzip", b"*", b";", b"q", b"=", b"1", b",", b"."])).map(b"".join)
)
def test_any_header_leads_to_a_choice(header: bytes) -> None:
    assert choose(header).coding in (b"", b"gzip", b"deflate")


LONG = b"[" + b"0.25," * 1000 + b"1]"


def unpacked(encoded: EncodedResponse) -> bytes:
    return bytes(expand(encoded.body, encoded.content_encoding, 10**7))


@pytest.mark.parametrize("coding", [b"gzip", b"deflate"])
def test_answer_is_packed_for_those_who_ask(coding: bytes) -> None:
    packed = compress(EncodedResponse(LONG, "application/octet-stream", 17), coding)
    assert packed.content_encoding == coding
    assert unpacked(packed) == LONG
    assert len(packed.body) < len(LONG) / 10
    # The length of the JSON inside stays what it is.
    assert (packed.header_bytes, packed.content_type) == (17, "application/octet-stream")
    assert packed.depends_on_accept_encoding


def test_the_same_answer_is_packed_to_the_same_bytes() -> None:
    """No time of day in it."""
    assert compress(EncodedResponse(LONG), b"gzip").body[4:8] == b"\x00\x00\x00\x00"


@pytest.mark.parametrize("header", [b"", b"identity", b"br", b"gzip;q=0"])
def test_answer_is_not_packed_for_others_but_says_that_it_could_be(header: bytes) -> None:
    assert compress(EncodedResponse(LONG), header) == EncodedResponse(LONG, depends_on_accept_encoding=True)


def test_short_answer_is_packed_only_when_nothing_else_is_acceptable() -> None:
    short = EncodedResponse(b"[1]")
    assert compress(short, b"gzip") is short
    assert unpacked(compress(short, b"gzip, identity;q=0")) == b"[1]"


def test_answer_that_would_hold_up_everybody_is_packed_only_when_nothing_else_is_acceptable() -> None:
    most = EncodedResponse(b"0" * 2**20)
    assert compress(most, b"gzip").content_encoding == b"gzip"
    more = EncodedResponse(b"0" * (2**20 + 1))
    assert compress(more, b"gzip") == more._replace(depends_on_accept_encoding=True)
    assert compress(more, b"gzip, identity;q=0").content_encoding == b"gzip"


@pytest.mark.parametrize(
    ("size_bytes", "header", "expected"),
    [
        pytest.param(PACKED_AT_ONCE_BYTES, b"gzip", False, id="short"),
        pytest.param(PACKED_AT_ONCE_BYTES, b"gzip, identity;q=0", False, id="short-and-demanded"),
        pytest.param(PACKED_AT_ONCE_BYTES + 1, b"gzip", True, id="long"),
        pytest.param(PACKED_AT_ONCE_BYTES + 1, b"deflate", True, id="long-deflate"),
        pytest.param(PACKED_AT_ONCE_BYTES + 1, b"", False, id="not-asked-for"),
        pytest.param(PACKED_AT_ONCE_BYTES + 1, b"br", False, id="another-coding"),
        pytest.param(2**20 + 1, b"gzip", False, id="so-long-that-it-is-not-packed"),
        pytest.param(2**20 + 1, b"gzip, identity;q=0", True, id="demanded"),
    ],
)
def test_packing_takes_long_only_where_there_is_much_to_pack(size_bytes: int, header: bytes, expected: bool) -> None:
    assert takes_long(EncodedResponse(bytes(size_bytes)), header) is expected


@pytest.mark.parametrize("size", [4_000, 400_000])
def test_answer_that_would_not_shrink_is_sent_as_it_is(size: int) -> None:
    noise = np.random.default_rng(0).bytes(size)
    assert compress(EncodedResponse(noise), b"gzip").body == noise
    assert compress(EncodedResponse(b"0" * size), b"gzip").content_encoding == b"gzip"
