"""The sockets that a server listens on, bound before anything heavy is imported: a port that is taken is told at once,
and connections that come early wait in the backlog instead of being refused.

Knows no protocol and no application.
"""

from __future__ import annotations

import contextlib
import ctypes
import socket
import struct
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from service.settings import Settings
from service.unix_socket import UnixSocket

# Connections that may wait to be accepted; the kernel caps it at net.core.somaxconn.
BACKLOG = 2048


# SO_ATTACH_FILTER and its program: the byte with the flags of the TCP header; if SYN is among them drop, else keep all
# (Linux: networking/filter.rst, include/uapi/linux/filter.h, asm-generic/socket.h; RFC 9293, 3.1).
_SO_ATTACH_FILTER = 26
_LOAD_BYTE, _JUMP_IF_SET, _RETURN = 0x30, 0x45, 0x06
_DROP_SYN = ((_LOAD_BYTE, 0, 0, 13), (_JUMP_IF_SET, 0, 1, 0x02), (_RETURN, 0, 0, 0), (_RETURN, 0, 0, 0xFFFFFFFF))


class CannotServe(Exception):
    """There is nothing to listen on, or nothing to serve. `str(error)` is one line."""


@dataclass(frozen=True, slots=True)
class Door:
    """`slots`: for each process that is to listen, the sockets of all addresses. `file`: of a unix socket."""

    slots: Sequence[Sequence[socket.socket]]
    file: UnixSocket | None = None

    def addresses(self, *, is_tls: bool) -> str:
        """For the log."""
        return ", ".join(_address(sock, "https" if is_tls else "http") for sock in self.slots[0])

    def remove(self) -> None:
        """What the file system has of it."""
        if self.file is not None:
            self.file.remove()


def open_door(settings: Settings) -> Door:
    """Listens where `settings` say, for as many processes as they say. Raises CannotServe."""
    if settings.unix_socket is not None:
        file = _listen_on_file(settings)
        return Door([[file.sock]] * max(1, settings.workers), file)
    if settings.workers <= 1:
        return Door([listen(settings.host, settings.port)])
    # Alone first: a socket that shares its port binds beside another server's, and neither would be told.
    with contextlib.ExitStack() as stack:
        probe = [stack.enter_context(sock) for sock in listen(settings.host, settings.port)]
        port = probe[0].getsockname()[1]
    return Door([listen(settings.host, port, shared=True) for _ in range(settings.workers)])


def listen(host: str, port: int, *, shared: bool = False) -> list[socket.socket]:
    """Listening sockets for every address of `host`, all with the same port. Raises CannotServe.

    shared: others of this user may listen there as well, and the kernel spreads connections over all of them.
    """
    sockets: list[socket.socket] = []
    try:
        # A name may have several addresses: localhost is both ::1 and 127.0.0.1.
        for family, kind, protocol, _, address in socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        ):
            sock = socket.socket(family, kind, protocol)
            sockets.append(sock)
            # Lets a restarted server listen at once; on Linux it does not let two servers share a port.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if shared:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            chosen = sockets[0].getsockname()[1] if len(sockets) > 1 else port
            sock.bind((address[0], chosen, *address[2:]))
            # Now rather than in uvicorn: two servers can bind one port, only one of them can listen on it.
            sock.listen(BACKLOG)
    except (OSError, UnicodeError) as error:
        for sock in sockets:
            sock.close()
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise CannotServe(f"cannot listen on {host}:{port}: {reason}; choose another --host or --port") from error
    return sockets


def let_nobody_join(listener: socket.socket) -> None:
    """Nobody connects any more, while those who wait can still be accepted: so that none is left when the last process
    closes it, which would reset them. Who comes meanwhile tries again after a second, as if the packet had been lost,
    and finds the socket closed. A handshake that is under way at this moment is still reset.

    Only TCP on Linux has such a thing. Elsewhere who comes between the last `accept` and `close` is reset as well.
    """
    if sys.platform != "linux" or listener.family not in (socket.AF_INET, socket.AF_INET6):
        return
    program = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in _DROP_SYN))
    with contextlib.suppress(OSError):  # not every Linux is one (gVisor, WSL 1)
        pointer = struct.pack("@HP", len(_DROP_SYN), ctypes.addressof(program))
        listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, pointer)


def _listen_on_file(settings: Settings) -> UnixSocket:
    """Raises CannotServe."""
    assert settings.unix_socket is not None
    try:
        return UnixSocket(settings.unix_socket, int(settings.unix_socket_mode, 8), BACKLOG)
    except OSError as error:
        reason = f"cannot listen on --unix-socket {str(settings.unix_socket)!r}: {error.strerror}"
        raise CannotServe(f"{reason}; choose another path") from error


def _address(sock: socket.socket, scheme: str) -> str:
    if sock.family == getattr(socket, "AF_UNIX", None):
        return f"{scheme}+unix://{sock.getsockname()}"
    host, port = sock.getsockname()[:2]
    return f"{scheme}://[{host}]:{port}" if sock.family == socket.AF_INET6 else f"{scheme}://{host}:{port}"
