"""One event, one line, in both formats; and a text that was sent to forge another stays a text."""

from __future__ import annotations

import json
import logging
import time
import warnings
from collections.abc import Iterator
from typing import Any

import pytest

from service.logs import ConsoleFormatter, JsonFormatter, configure_logging, fields

FORGED = "no model 'x'\n2026-01-01T00:00:00.000Z INFO all is well\r\x1b[2J\u2028\x85end"


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    root, shown = logging.getLogger(), warnings.showwarning
    before = (root.level, root.handlers[:], logging.getLogger("uvicorn").level)
    yield
    root.setLevel(before[0])
    root.handlers[:] = before[1]
    logging.getLogger("uvicorn").setLevel(before[2])
    logging.captureWarnings(capture=False)
    warnings.showwarning = shown


def record(text: str, *args: object, level: int = logging.WARNING, **more: Any) -> logging.LogRecord:
    made = logging.LogRecord("service.x", level, "x.py", 1, text, args, more.pop("exc_info", None))
    made.created, made.msecs = 1_792_000_000.25, 250.0
    vars(made).update(fields(**more))
    return made


def json_of(made: logging.LogRecord, worker: int | None = None) -> Any:
    line = JsonFormatter(worker).format(made)
    assert len(line.splitlines()) == 1
    return json.loads(line)


def test_console_has_time_level_text_and_fields() -> None:
    line = ConsoleFormatter().format(record("disk %s", "full", model="digits", status=503, request_id=None))
    assert line == "2026-10-14T17:46:40.250Z WARNING disk full model=digits status=503"
    assert ConsoleFormatter(2).format(record("x")).endswith(" WARNING [2] x")


def test_a_value_that_is_no_plain_word_stands_in_quotes() -> None:
    line = ConsoleFormatter().format(record("refused", model='a b="c" reason=ok', path="/v2/models"))
    assert line.endswith(r' refused model="a b=\"c\" reason=ok" path=/v2/models')


def test_json_has_stable_keys_in_one_order() -> None:
    line = JsonFormatter(1).format(record("disk %s", "full", model="digits", status=503, version=None))
    assert list(json.loads(line).items()) == [
        ("time", "2026-10-14T17:46:40.250Z"),
        ("level", "warning"),
        ("logger", "service.x"),
        ("message", "disk full"),
        ("worker", 1),
        ("model", "digits"),
        ("status", 503),
    ]


def test_a_field_cannot_take_the_place_of_a_key_of_the_line() -> None:
    assert json_of(record("text", message="another", level_name="x"))["message"] == "text"


@pytest.mark.parametrize("where", ["text", "field"])
def test_what_was_sent_forges_no_line(where: str) -> None:
    made = record(FORGED) if where == "text" else record("refused", model=FORGED)
    line = ConsoleFormatter().format(made)
    assert len(line.splitlines()) == 1
    assert r"\n2026-01-01T00:00:00.000Z" in line
    assert "\x1b" not in line
    assert json_of(made)["message" if where == "text" else "model"] == FORGED


def test_a_traceback_is_behind_bars_in_console_and_one_text_in_json() -> None:
    try:
        raise ValueError("first\n2026-01-01T00:00:00.000Z INFO second")
    except ValueError as error:
        made = record("it failed", exc_info=(ValueError, error, error.__traceback__))
    first, *others = ConsoleFormatter().format(made).splitlines()
    assert first.endswith("it failed")
    assert others
    assert all(line.startswith("  | ") for line in others)
    assert json_of(made)["exception"].endswith("INFO second")


def test_the_name_of_a_file_that_is_no_utf8_can_be_told() -> None:
    assert json_of(record("cannot read %s", "a\udcff", path="b\udcfe", status=3)) | {"time": ""} == {
        "time": "",
        "level": "warning",
        "logger": "service.x",
        "message": r"cannot read a\udcff",
        "path": r"b\udcfe",
        "status": 3,
    }


@pytest.mark.parametrize("log_format", ["console", "json"])
def test_an_event_is_one_line_from_its_level_on(log_format: str, capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("warning", log_format)
    logging.getLogger("service.x").warning("disk %s", "full")
    logging.getLogger("service.x").info("not told")
    (line,) = capsys.readouterr().err.splitlines()
    if log_format == "json":
        assert json.loads(line)["message"] == "disk full"
        return
    stamp, rest = line.split(" ", 1)
    assert time.strptime(stamp.split(".")[0], "%Y-%m-%dT%H:%M:%S")
    assert stamp.endswith("Z")
    assert rest == "WARNING disk full"


def test_warnings_of_python_and_lines_of_uvicorn_have_the_same_form(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("info", "json")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(capture=True)
        warnings.warn("old\nways", DeprecationWarning, stacklevel=1)
    logging.getLogger("uvicorn.error").warning("Invalid HTTP request received.")
    logging.getLogger("uvicorn.error").info("Started server process")
    told = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [one["logger"] for one in told] == ["py.warnings", "uvicorn.error"]
    assert "old\nways" in told[0]["message"]
