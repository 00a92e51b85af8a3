"""X-Request-Id and traceparent: what is taken, what is ignored, and that cutting them out leaves the same head."""

from __future__ import annotations

import pytest

from service.request_tags import RequestTags, Trace, cut

TRACE, SPAN = b"0af7651916cd43dd8448eb211c80319c", b"b7ad6b7169203331"


def tags(*headers: tuple[bytes, bytes]) -> RequestTags:
    return RequestTags(headers)


@pytest.mark.parametrize("value", [b"a", b"!~", b"7f3a-{x}", b"a" * 128, b" a\t"])
def test_an_id_of_visible_ascii_is_taken(value: bytes) -> None:
    assert tags((b"x-request-id", value)).sent_id == value.strip()
    assert tags((b"x-request-id", value)).request_id == value.strip().decode()


@pytest.mark.parametrize("value", [b"", b"a b", b"a" * 129, b"\xc3\xa9", b"a\x1b[2J", b"a\x00"])
def test_another_is_not_and_the_request_gets_one_of_ours(value: bytes) -> None:
    asked = tags((b"x-request-id", value))
    assert asked.sent_id == b""
    assert len(asked.request_id) == 16
    assert asked.request_id == asked.request_id


def test_of_two_ids_neither_is_taken() -> None:
    assert tags((b"x-request-id", b"a"), (b"x-request-id", b"a")).sent_id == b""


def test_two_requests_without_an_id_get_two() -> None:
    assert tags().request_id != tags().request_id


@pytest.mark.parametrize(
    ("value", "is_sampled"),
    [
        (b"00-%b-%b-01" % (TRACE, SPAN), True),
        (b"00-%b-%b-00" % (TRACE, SPAN), False),
        (b"00-%b-%b-03" % (TRACE, SPAN), True),
        (b"cc-%b-%b-01-what-comes-later" % (TRACE, SPAN), True),
    ],
)
def test_a_trace_is_read(value: bytes, is_sampled: bool) -> None:
    assert tags((b"traceparent", value)).trace == Trace(TRACE.decode(), SPAN.decode(), is_sampled)


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"ff-%b-%b-01" % (TRACE, SPAN),
        b"00-%b-%b-01-more" % (TRACE, SPAN),
        b"cc-%b-%b-01more" % (TRACE, SPAN),
        b"00-%b-%b-01" % (b"0" * 32, SPAN),
        b"00-%b-%b-01" % (TRACE, b"0" * 16),
        b"00-%b-%b-01" % (TRACE.upper(), SPAN),
        b"00-%b-%b-1" % (TRACE, SPAN),
        b"00-%b-%b" % (TRACE, SPAN),
    ],
)
def test_a_broken_one_is_ignored(value: bytes) -> None:
    assert tags((b"traceparent", value)).trace is None


HEAD = b"POST /v2/models/m/infer HTTP/1.1\r\nHost: h\r\n%bContent-Length: 1\r\n%b\r\n"


@pytest.mark.parametrize(
    ("line", "found"),
    [
        (b"X-Request-Id: a\r\n", [(b"x-request-id", b" a")]),
        (b"TRACEPARENT:b \r\n", [(b"traceparent", b"b ")]),
        (b"x-request-id: a\r\ntraceparent: b\r\n", [(b"x-request-id", b" a"), (b"traceparent", b" b")]),
    ],
)
def test_lines_that_are_new_in_each_request_are_cut_out(line: bytes, found: list[tuple[bytes, bytes]]) -> None:
    assert cut(HEAD % (line, b"")) == (HEAD % (b"", b""), found)
    assert cut(HEAD % (b"", line)) == (HEAD % (b"", b""), found)


@pytest.mark.parametrize(
    "line",
    [
        b"X-Request-Id: a\r\n folded\r\n",
        b"X-Request-Id : a\r\n",
        b"X-Request-Ids: a\r\n",
        b" X-Request-Id: a\r\n",
        b"X-Request-Id: a\nHost: b\r\n",
        b"X-Request-Id: \x00\r\n",
        b"X-Request-Id: \xc3\xa9\r\n",
        b"Y: X-Request-Id: a\r\n",
    ],
)
def test_what_parsers_may_read_otherwise_stays_for_them(line: bytes) -> None:
    assert cut(HEAD % (line, b"")) == (HEAD % (line, b""), ())
