"""Each refusal is counted and told; of a flood, its beginning and its size."""

from __future__ import annotations

import json
import logging

import pytest

from service.answers import Answer, answer_error
from service.errors import MalformedRequest, NotFound, QueueFull
from service.logs import JsonFormatter
from service.refusal_lines import LINES_A_SECOND, RefusalLines
from service.request_tags import RequestTags

FULL = answer_error(QueueFull("the queue is full", retry_after_s=1))
BAD = answer_error(MalformedRequest("the JSON ends too early"))


class Told:
    """Refusals at a time that the test chooses, what was counted, and the lines as JSON."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO)
        self.now_s = 100.0
        self.counted: list[tuple[str, str | None, str]] = []
        self.refuse = RefusalLines(lambda *what: self.counted.append(what), lambda: self.now_s)
        self._caplog = caplog

    def lines(self) -> list[dict[str, object]]:
        made = [json.loads(JsonFormatter().format(record)) for record in self._caplog.records]
        self._caplog.clear()
        return made

    def flood(self, answer: Answer, times: int) -> None:
        for _ in range(times):
            self.refuse("m", None, answer, None)


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> Told:
    return Told(caplog)


def test_a_line_says_what_was_refused_why_and_to_whom(told: Told) -> None:
    trace = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    told.refuse("digits", "7", BAD, RequestTags([(b"x-request-id", b"a-1"), (b"traceparent", trace)]))
    (line,) = told.lines()
    assert line | {"time": "", "logger": ""} == {
        "time": "",
        "level": "info",
        "logger": "",
        "message": "the JSON ends too early",
        "model": "digits",
        "version": "7",
        "reason": "invalid_request",
        "status": 400,
        "request_id": "a-1",
        "trace_id": "0af7651916cd43dd8448eb211c80319c",
    }
    assert told.counted == [("digits", "7", "invalid_request")]


@pytest.mark.parametrize(
    ("error", "level", "reason"),
    [
        (NotFound("no model"), "info", "not_found"),
        (QueueFull("full", retry_after_s=1), "warning", "queue_full"),
        (ZeroDivisionError("a defect"), "error", "internal"),
    ],
)
def test_the_callers_fault_is_news_ours_a_warning_a_defect_an_error(
    told: Told, error: Exception, level: str, reason: str
) -> None:
    told.refuse("m", None, answer_error(error), None)
    (line,) = told.lines()
    assert (line["level"], line["reason"]) == (level, reason)


def test_a_defect_is_told_with_its_traceback_and_not_to_the_caller(told: Told) -> None:
    try:
        raise ZeroDivisionError("a secret")
    except ZeroDivisionError as error:
        answer = answer_error(error)
    told.refuse("m", None, answer, None)
    (line,) = told.lines()
    assert line["message"] == "inference failed unexpectedly: ZeroDivisionError: a secret"
    assert "test_refusal_lines.py" in str(line["exception"])
    assert b"secret" not in answer.body


def test_of_a_flood_the_first_lines_are_written_and_then_how_many_more(told: Told) -> None:
    told.flood(FULL, LINES_A_SECOND + 90)
    assert len(told.lines()) == LINES_A_SECOND
    told.now_s += 0.9
    told.refuse.end_seconds()
    assert told.lines() == []
    told.now_s += 0.1
    told.refuse.end_seconds()
    (line,) = told.lines()
    assert (line["level"], line["reason"], line["more"]) == ("warning", "queue_full", 90)
    assert str(line["message"]).startswith("90 more requests were refused for this reason")
    told.now_s += 1
    told.refuse.end_seconds()
    assert told.lines() == []
    assert len(told.counted) == LINES_A_SECOND + 90


def test_a_flood_that_goes_on_is_summed_up_each_second_without_a_timer(told: Told) -> None:
    told.flood(FULL, LINES_A_SECOND + 5)
    told.now_s += 1.0
    told.flood(FULL, LINES_A_SECOND + 1)
    lines = told.lines()
    assert [line.get("more") for line in lines] == [None] * LINES_A_SECOND + [5] + [None] * LINES_A_SECOND


def test_a_flood_of_one_reason_hides_no_other(told: Told) -> None:
    told.flood(FULL, LINES_A_SECOND + 5)
    told.flood(BAD, 1)
    assert told.lines()[-1]["reason"] == "invalid_request"


def test_a_name_that_a_client_made_up_is_cut_short(told: Told) -> None:
    told.refuse("x" * 10_000, "9" * 10_000, BAD, None)
    (line,) = told.lines()
    assert len(json.dumps(line)) < 600
