"""What watchers are told of a request at the lane; the ASGI side and the lines are tested with the real command."""

from __future__ import annotations

import asyncio
import functools
import json
import logging

import pytest

from service.access_log import write_access
from service.busy_poll import BusyPoll
from service.http_lane import Lane
from service.infer import begin_infer, refuse_early
from service.lane_heads import HeadMemory
from service.logs import JsonFormatter
from service.refusal_lines import RefusalLines
from service.request_tags import RequestTags
from service.timers import RunningLoop
from service.watched_lane import WatchedLane
from service.watching import CLIENT_LEFT, Finished, client_name
from tests.service.test_http_lane import (
    CASES,
    GOOD,
    LAST,
    MAX_BODY_BYTES,
    REFERENCE,
    Door,
    _impatience,
    post,
    registry,
)  # fmt: skip

__all__ = ["_impatience"]  # a fixture that holds here as well


def watched(told: list[Finished]) -> Door:
    models = registry()
    heads = HeadMemory(MAX_BODY_BYTES, Lane.limits.head_bytes, always_tags=True)
    begin, early = functools.partial(begin_infer, models), functools.partial(refuse_early, models)
    refusals, poll = RefusalLines(models.count_refusal), BusyPoll(RunningLoop(), cores=2)
    return Door(functools.partial(WatchedLane, begin, early, refusals, heads, poll, watches=(told.append,)))


@pytest.mark.parametrize("name", ["json", "version", "request-id", "bad-json", "unknown-model", "request-id-and-close"])
def test_a_watched_lane_answers_as_others_do(name: str) -> None:
    assert asyncio.run(watched([]).exchange(*CASES[name])) == asyncio.run(REFERENCE.exchange(*CASES[name]))


def test_each_of_several_requests_is_told_of() -> None:
    told: list[Finished] = []
    unknown = post(GOOD, b"X-Request-Id: b", path=b"/v2/models/other/versions/9/infer")
    received = asyncio.run(watched(told).exchange(post(GOOD, b"X-Request-Id: a") + unknown))
    assert [(one.path, one.status, one.tags.request_id) for one in told] == [
        ("/v2/models/echo/infer", 200, "a"),
        ("/v2/models/other/versions/9/infer", 404, "b"),
    ]
    assert all(one.in_bytes == len(GOOD) and one.began_s <= one.ended_s for one in told)
    assert sum(one.out_bytes for one in told) < len(received)
    assert [one.asked and (one.asked.model, one.asked.version, one.asked.reason) for one in told] == [
        ("echo", None, ""),
        ("other", "9", "not_found"),
    ]
    assert all(one.asked is not None and one.asked.stages is not None for one in told)


def test_a_body_that_does_not_come_is_told_of_with_what_came() -> None:
    told: list[Finished] = []
    received = asyncio.run(watched(told).exchange(post(GOOD)[:-10]))
    assert received.startswith(b"HTTP/1.1 408 ")
    (one,) = told
    assert (one.status, one.in_bytes) == (408, len(GOOD) - 10)


def test_what_goes_to_the_application_is_not_told_of_here() -> None:
    told: list[Finished] = []
    asyncio.run(watched(told).exchange(post(GOOD, LAST)))
    assert told == []


@pytest.mark.parametrize(
    ("address", "name"), [(("10.0.0.1", 9), "10.0.0.1:9"), (("::1", 9), "[::1]:9"), (None, "unix")]
)
def test_a_client_is_named_by_its_address(address: tuple[str, int] | None, name: str) -> None:
    assert client_name(address) == name


def test_an_access_line_has_all_that_is_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    level = logging.getLogger("service.access").level
    tags = RequestTags([(b"x-request-id", b"a-1")])
    write_access(Finished("c:1", "POST", "/v2/models/m/infer", CLIENT_LEFT, 3, 0, 1.0, 1.0015, tags))
    logging.getLogger("service.access").setLevel(level)
    (record,) = caplog.records
    line = json.loads(JsonFormatter().format(record))
    assert line | {"time": ""} == {
        "time": "",
        "level": "info",
        "logger": "service.access",
        "message": "POST /v2/models/m/infer 499",
        "client": "c:1",
        "method": "POST",
        "path": "/v2/models/m/infer",
        "status": 499,
        "in_bytes": 3,
        "out_bytes": 0,
        "duration_ms": 1.5,
        "request_id": "a-1",
    }
