"""Each refusal or failure of an infer request, and of what never came whole: counted, and one line in the log, at both
doors.

A flood must not cost those who are admitted: of each reason the first lines of a second are written, and then one that
says how many more there were. Knows no door.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import orjson

from service.answers import Answer
from service.errors import excerpt
from service.logs import fields
from service.request_tags import RequestTags

log = logging.getLogger(__name__)

LINES_A_SECOND = 10
"""Of one reason."""


class _Second:
    """What has been told of one reason since a second began."""

    __slots__ = ("began_s", "left_out", "level", "lines")

    def __init__(self) -> None:
        self.began_s = -1.0
        self.lines = self.left_out = 0
        self.level = logging.INFO


class RefusalLines:
    """count: told of each refusal as well: the model and version that were asked for, and the reason."""

    def __init__(
        self, count: Callable[[str, str | None, str], object], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._count = count
        self._clock = clock
        self._seconds: dict[str, _Second] = {}

    def __call__(self, model: str, version: str | None, answer: Answer, tags: RequestTags | None) -> None:
        """An infer request to that model got `answer`; without a name, something that never became one."""
        self._count(model, version, answer.reason)
        self.tell(model or None, version, answer, tags)

    def tell(
        self, model: str | None, version: str | None, answer: Answer, tags: RequestTags | None, path: str | None = None
    ) -> None:
        """As above, and counts nothing: of a request of which nobody has looked for whom it is."""
        now = self._clock()
        try:
            second = self._seconds[answer.reason]
        except KeyError:
            second = self._seconds[answer.reason] = _Second()
            second.began_s = now
        if now - second.began_s >= 1.0:
            self._end(answer.reason, second)
            second.began_s = now
        if second.lines >= LINES_A_SECOND:
            second.left_out += 1
            return
        second.lines += 1
        second.level = _level(answer)
        if log.isEnabledFor(second.level):
            _write(second.level, model, version, answer, tags or RequestTags(), path)

    def end_seconds(self) -> None:
        """To be called about once a second: tells what was left out of seconds that are over."""
        now = self._clock()
        for reason, second in self._seconds.items():
            if now - second.began_s >= 1.0:
                self._end(reason, second)

    def _end(self, reason: str, second: _Second) -> None:
        if second.left_out:
            text = "%d more requests were refused for this reason: after %d in a second they get no lines of their own"
            log.log(
                second.level, text, second.left_out, LINES_A_SECOND, extra=fields(reason=reason, more=second.left_out)
            )
        second.lines = second.left_out = 0


def _level(answer: Answer) -> int:
    if answer.traceback:
        return logging.ERROR
    return logging.WARNING if answer.status >= 500 else logging.INFO


def _write(
    level: int, model: str | None, version: str | None, answer: Answer, tags: RequestTags, path: str | None
) -> None:
    if answer.traceback:
        text = f"inference failed unexpectedly: {answer.traceback.rstrip().rpartition(chr(10))[2]}"
    else:
        text = orjson.loads(answer.body)["error"]
    log.log(
        level,
        "%s",
        text,
        extra=fields(
            model=None if model is None else excerpt(model),
            version=None if version is None else excerpt(version),
            path=None if path is None else excerpt(path),
            reason=answer.reason,
            status=answer.status,
            request_id=tags.request_id,
            trace_id=tags.trace.trace_id if tags.trace else None,
            exception=answer.traceback or None,
        ),
    )
