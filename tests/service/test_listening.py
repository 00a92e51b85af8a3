"""Where a server listens, at the level of sockets; that nobody is lost when it ends is in tests/end_to_end."""

from __future__ import annotations

import socket
import sys

import pytest

from service.listening import let_nobody_join, listen


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a filter for sockets")
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_who_waits_is_accepted_and_nobody_joins_them(host: str) -> None:
    try:
        (listener,) = listen(host, 0)
    except OSError:
        pytest.skip(f"this machine has no {host}")
    address = listener.getsockname()[:2]
    with listener, socket.create_connection(address) as waiting:
        let_nobody_join(listener)
        with pytest.raises(TimeoutError):
            socket.create_connection(address, timeout=0.2)
        waiting.sendall(b"asked before anybody took it")
        peer, _ = listener.accept()
        with peer:
            assert peer.recv(64) == b"asked before anybody took it"
            peer.sendall(b"answered")
            assert waiting.recv(64) == b"answered"
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()


def test_a_unix_socket_is_left_alone() -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        let_nobody_join(listener)
