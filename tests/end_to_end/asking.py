"""Clients that keep their connection alive and ask without pause, until they are told to end or nobody listens.

They do what HTTP/1.1 says and no more: a connection that was told `Connection: close` is closed and made anew, and
nothing is ever sent twice. So every request that is not answered, or not with 200, is one that the server has lost.
"""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

from tests.end_to_end.running import PATIENCE_S, Foldserve


class Client(threading.Thread):
    """One connection after the other. `answers` counts what was answered with 200, by the first output's data."""

    def __init__(
        self, service: Foldserve, model: str, tensor: dict[str, Any], tls: ssl.SSLContext | None = None
    ) -> None:
        super().__init__(daemon=True)
        self._tls = tls
        host, port = service.address.split(":")
        self._address = (host, int(port))
        body = json.dumps({"inputs": [tensor]}).encode()
        self._request = b"POST /v2/models/%b/infer HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n%b" % (
            model.encode(),
            len(body),
            body,
        )
        self._end = threading.Event()
        self.answers: Counter[tuple[float, ...]] = Counter()
        self.lost: list[str] = []
        self.told_to_close = 0

    def run(self) -> None:
        while not self._end.is_set():
            try:
                sock = self._connect()
            except ConnectionRefusedError:
                return
            except OSError as error:  # in the middle of a handshake
                self.lost.append(repr(error))
                continue
            with sock, sock.makefile("rb") as answers:
                self._ask(sock, answers)

    def _connect(self) -> socket.socket:
        sock = socket.create_connection(self._address, timeout=PATIENCE_S)
        return self._tls.wrap_socket(sock, server_hostname=self._address[0]) if self._tls else sock

    def _ask(self, sock: socket.socket, answers: Any) -> None:
        closes = False
        while not closes and not self._end.is_set():
            try:
                sock.sendall(self._request)
                status, closes, body = _read(answers)
            except (OSError, ValueError) as error:
                self.lost.append(repr(error))
                return
            if status == 200:
                self.answers[tuple(json.loads(body)["outputs"][0]["data"])] += 1
            else:
                self.lost.append(f"{status}: {body!r}")
        self.told_to_close += closes

    def end(self) -> None:
        self._end.set()
        self.join(PATIENCE_S)


def _read(answers: Any) -> tuple[int, bool, bytes]:
    """Status, whether the connection is to be closed, body. Raises OSError, and ValueError where there is no answer."""
    line = answers.readline()
    if not line.startswith(b"HTTP/1.1 "):
        raise ValueError(f"no answer but {line!r}")
    headers = {}
    while (header := answers.readline().strip()) != b"":
        name, _, value = header.partition(b": ")
        headers[name.lower()] = value
    return int(line[9:12]), headers.get(b"connection") == b"close", answers.read(int(headers[b"content-length"]))


@contextlib.contextmanager
def asking(
    service: Foldserve, model: str, tensor: dict[str, Any], count: int, tls: ssl.SSLContext | None = None
) -> Iterator[list[Client]]:
    """`count` clients at work, each of which has had its first answer; they have ended behind the block."""
    clients = [Client(service, model, tensor, tls) for _ in range(count)]
    for client in clients:
        client.start()
    try:
        service.wait_until(lambda: all(client.answers or client.lost for client in clients), "answering")
        yield clients
    finally:
        for client in clients:
            client.end()
