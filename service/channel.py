"""Two processes that ask each other things over a socket pair: calls with answers, in both directions, as JSON lines.

    {"call": 7, "what": "prepare", "with": {"name": "digits", "parameters": null}}
    {"answer": 7, "value": ...}      or      {"answer": 7, "error": {"kind": "LoadFailed", "text": "..."}}

Errors of the service's tree arrive as what they were raised as; any other as `RemoteDefect`, its traceback in the log
of the process that it belongs to. When the other process ends, every open call ends with `ChannelClosed`. Knows nothing
of workers and models. Both ends are our own, so what arrives is trusted to have this form.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import socket
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any

from service.errors import Overloaded, ServiceError

log = logging.getLogger(__name__)

Handler = Callable[..., Awaitable[Any]]
"""Answers one kind of call; gets its members by keyword, returns what JSON can hold."""

# An index of thousands of models with their reasons.
_LONGEST_LINE_BYTES = 64 * 1024 * 1024


class ChannelClosed(Exception):
    """The other process has ended, or ended the conversation, before it answered."""


class RemoteDefect(Exception):
    """A handler in the other process failed in a way that nobody foresaw."""


class Channel:
    """One end."""

    def __init__(self, handlers: Mapping[str, Handler]) -> None:
        self._handlers = handlers
        self._numbers = itertools.count()
        self._open: dict[int, asyncio.Future[Any]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._writer: asyncio.StreamWriter | None = None

    async def serve(
        self, sock: socket.socket, *, begun: Callable[[], object] = lambda: None, first: bytes = b""
    ) -> None:
        """Answers calls until the other end closes. begun: called once `call` may be used. first: what the other end
        reads before it makes a channel."""
        reader, self._writer = await asyncio.open_connection(sock=sock, limit=_LONGEST_LINE_BYTES)
        self._writer.write(first)
        begun()
        try:
            # Half a line is what a process that was killed had not finished.
            while (line := await reader.readline()).endswith(b"\n"):
                self._take(json.loads(line))
        except ConnectionError:
            pass  # as if it had closed
        finally:
            self._end()

    async def call(self, what: str, /, **members: Any) -> Any:
        """The other end's answer. Raises what its handler raised, RemoteDefect and ChannelClosed."""
        number = next(self._numbers)
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._open[number] = answer
        try:
            self._send({"call": number, "what": what, "with": members})
            return await answer
        finally:
            self._open.pop(number, None)

    @property
    def is_open(self) -> bool:
        return self._writer is not None and not self._writer.is_closing()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def _take(self, message: dict[str, Any]) -> None:
        if "call" in message:
            task = asyncio.get_running_loop().create_task(self._answer(message))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            return
        answer = self._open.get(message["answer"])
        if answer is None or answer.done():
            return  # whoever asked has given up
        if "error" in message:
            answer.set_exception(_error_from(message["error"]))
        else:
            answer.set_result(message["value"])

    async def _answer(self, message: dict[str, Any]) -> None:
        answer: dict[str, Any] = {"answer": message["call"]}
        try:
            answer["value"] = await self._handlers[message["what"]](**message["with"])
        except Exception as error:
            if not isinstance(error, ServiceError):
                log.exception("%r failed unexpectedly", message["what"])
            answer["error"] = _error_to(error)
        with contextlib.suppress(ChannelClosed):  # then nobody waits for it any more
            self._send(answer)

    def _send(self, message: dict[str, Any]) -> None:
        if self._writer is None or self._writer.is_closing():
            raise ChannelClosed("the other process has ended")
        self._writer.write(json.dumps(message).encode() + b"\n")

    def _end(self) -> None:
        self.close()
        for answer in self._open.values():
            if not answer.done():
                answer.set_exception(ChannelClosed("the other process has ended"))


# --- errors -------------------------------------------------------------------------------------------------------


def _subclasses(kind: type[ServiceError]) -> Iterator[type[ServiceError]]:
    yield kind
    for below in kind.__subclasses__():
        yield from _subclasses(below)


_KINDS = {kind.__name__: kind for kind in _subclasses(ServiceError)}


def _error_to(error: Exception) -> dict[str, Any]:
    told = {"kind": type(error).__name__, "text": str(error)}
    return {**told, "retry_after_s": error.retry_after_s} if isinstance(error, Overloaded) else told


def _error_from(members: Mapping[str, Any]) -> Exception:
    kind = _KINDS.get(members["kind"])
    if kind is None:
        return RemoteDefect(f"{members['kind']}: {members['text']}")
    if issubclass(kind, Overloaded):
        return kind(members["text"], retry_after_s=members["retry_after_s"])
    return kind(members["text"])
