from __future__ import annotations

import pytest

from service.infer import InferHead
from service.lane_heads import HeadMemory, LaneHead, read_lane_head


def head(*headers: bytes, path: bytes = b"/v2/models/echo/infer", length: int = 68) -> bytes:
    lines = [b"POST %b HTTP/1.1" % path, b"Host: h", *headers, b"Content-Length: %d" % length]
    return b"\r\n".join([*lines, b"", b""])


def test_a_plain_head_says_all_that_its_answer_depends_on() -> None:
    plain = head(b"Inference-Header-Content-Length: 91", path=b"/v2/models/m/versions/3/infer", length=95)
    assert read_lane_head(plain, 1000, 1000) == LaneHead(InferHead("m", "3", b"91"), 95, 91, 3)


@pytest.mark.parametrize("path", [b"/v2/models/a#b/infer", b"/v2/models/\xc3\xa9/infer", b"/v2/models/a%62/infer"])
def test_a_path_that_readers_of_urls_may_differ_about_is_not_for_the_lane(path: bytes) -> None:
    assert read_lane_head(head(path=path), 1000, 1000) is None


def test_a_head_is_read_once_and_known_by_all_its_bytes() -> None:
    heads = HeadMemory(1000, 1000, entries=2)
    first = heads.read(head())
    assert heads.read(head()) is first
    other = heads.read(head(path=b"/v2/models/other/infer"))
    assert other is not None
    assert other.infer.model_name == "other"


def test_a_head_of_too_many_lines_is_the_reference_door_s_to_refuse() -> None:
    lines = [b"X-%d: 1" % number for number in range(8)]
    assert read_lane_head(head(*lines), 1000, 1000, 10) is not None
    assert read_lane_head(head(*lines, b"X: 1"), 1000, 1000, 10) is None


def test_a_head_that_is_unusual_here_is_not_for_the_lane() -> None:
    page = head(b"Origin: https://a.example")
    assert HeadMemory(1000, 1000).read(page) is not None
    assert HeadMemory(1000, 1000, also_unusual=frozenset({b"origin"})).read(page) is None


def test_a_sender_is_judged_once_a_head_until_all_is_forgotten() -> None:
    """Keys cost a request nothing but its first head; and another set of keys is another judgement."""
    judged: list[bytes] = []
    opens = b"Bearer 1"

    def admits(headers: list[tuple[bytes, bytes]]) -> bool:
        judged.append(dict(headers)[b"authorization"])
        return judged[-1] == opens

    heads = HeadMemory(1000, 1000, admits=admits)
    first, second = (head(b"Authorization: Bearer %d" % number) for number in (1, 2))
    assert [heads.read(one) is not None for one in (first, second, first, second)] == [True, False, True, False]
    assert judged == [b"Bearer 1", b"Bearer 2"]
    opens = b"Bearer 2"
    heads.forget()
    assert [heads.read(one) is not None for one in (first, second)] == [False, True]


def test_memory_for_heads_is_bounded() -> None:
    heads = HeadMemory(1000, 10_000, entries=3, entry_bytes=200)
    for number in range(10):
        heads.read(head(b"X: %d" % number))
        heads.read(head(b"X: %d" % number + b"a" * 300))
    assert len(heads._known) <= 3
    assert all(len(known) <= 200 for known in heads._known)


def test_a_head_that_only_its_id_makes_new_is_known() -> None:
    heads = HeadMemory(1000, 1000)
    first, second = (heads.read(head(b"X-Request-Id: %d" % number)) for number in range(2))
    assert first is not None
    assert second is not None
    assert first.infer is second.infer
    assert first.tags is not None
    assert second.tags is not None
    assert (first.tags.sent_id, second.tags.sent_id) == (b"0", b"1")
    assert heads.read(head()) is heads.read(head())


def test_limits_count_what_is_cut_out() -> None:
    for limits in ((120, 100), (1000, 3)):
        heads = HeadMemory(1000, *limits)
        assert heads.read(head(b"X-Request-Id: 1")) is not None
        assert heads.read(head(b"X-Request-Id: 1", b"traceparent: " + b"a" * 30)) is None


def test_where_every_request_is_told_of_each_has_its_own_tags() -> None:
    heads = HeadMemory(1000, 1000, always_tags=True)
    first, second = heads.read(head()), heads.read(head())
    assert first is not None
    assert second is not None
    assert first.infer is second.infer
    assert first.tags is not second.tags
