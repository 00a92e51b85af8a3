"""How events are told on stderr: `console`, one line for a person, or `json`, one object for a machine. Knows no event.

An event is one line, whatever is in its text: control characters are escaped, so nobody can forge another event by what
he sends. Only a traceback takes more lines in `console`, each of which begins with a bar where an event has its time.
An event may bring fields (`fields`): JSON has them as keys of the object, `console` behind the text as `key=value`.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Mapping
from typing import Any

import orjson

# C0, DEL, C1 and Unicode's own line ends: all that some terminal or reader of lines takes for more than text.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_PLAIN_VALUE = re.compile(r"[A-Za-z0-9._:/+-]+")
_KEY = "foldserve_fields"


def fields(**named: Any) -> dict[str, dict[str, Any]]:
    """For `extra` of a logging call: what else is known of the event. None is left out. exception: a traceback."""
    return {_KEY: {name: value for name, value in named.items() if value is not None}}


def configure_logging(level: str, log_format: str = "console", worker: int | None = None) -> None:
    """Events go to stderr, in UTC as in ISO 8601; Python's warnings as well. worker: which of several tells them."""
    handler = logging.StreamHandler()
    handler.setFormatter(_FORMATTERS[log_format](worker))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(capture=True)
    # uvicorn tells its own start and stop in four lines; we tell ours.
    logging.getLogger("uvicorn").setLevel(max(logging.WARNING, logging.getLogger().level))


class ConsoleFormatter(logging.Formatter):
    """TIME LEVEL [worker] text key=value ..."""

    def __init__(self, worker: int | None = None) -> None:
        super().__init__()
        self._who = "" if worker is None else f"[{worker}] "

    def format(self, record: logging.LogRecord) -> str:
        named = ((key, value) for key, value in _fields(record).items() if key != "exception")
        text = "".join([record.getMessage(), *(f" {key}={_shown(value)}" for key, value in named)])
        line = f"{_time(record)} {record.levelname} {self._who}{_escaped(text)}"
        return "\n".join([line, *(f"  | {_escaped(one)}" for one in _traceback(self, record).splitlines())])


class JsonFormatter(logging.Formatter):
    """An object a line: time, level, logger, message, worker where there are several, the event's own fields, and
    exception where there is one."""

    def __init__(self, worker: int | None = None) -> None:
        super().__init__()
        self._who = {} if worker is None else {"worker": worker}

    def format(self, record: logging.LogRecord) -> str:
        members: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **self._who,
        }
        members = members | {key: value for key, value in _fields(record).items() if key not in members}
        if traceback := _traceback(self, record):
            members["exception"] = traceback
        try:
            line = orjson.dumps(members, default=str).decode()
        except orjson.JSONEncodeError:  # half of a surrogate pair, as in the name of a file that is no UTF-8
            line = orjson.dumps({key: _utf8(value) for key, value in members.items()}).decode()
        # Those that JSON leaves as they are.
        return _CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", line)


_FORMATTERS = {"console": ConsoleFormatter, "json": JsonFormatter}


def _fields(record: logging.LogRecord) -> Mapping[str, Any]:
    found: Mapping[str, Any] = getattr(record, _KEY, {})
    return found


def _time(record: logging.LogRecord) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"


def _traceback(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    parts = []
    if record.exc_info:
        parts.append(formatter.formatException(record.exc_info))
    if record.stack_info:
        parts.append(formatter.formatStack(record.stack_info))
    if exception := _fields(record).get("exception"):
        parts.append(exception)
    return "\n".join(parts)


def _escaped(text: str) -> str:
    return _CONTROL.sub(lambda found: repr(found[0])[1:-1], text)


def _shown(value: object) -> str:
    text = str(value)
    return text if _PLAIN_VALUE.fullmatch(text) else '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _utf8(value: object) -> object:
    if value is None or isinstance(value, bool | int | float):
        return value
    return str(value).encode("utf-8", "backslashreplace").decode()
