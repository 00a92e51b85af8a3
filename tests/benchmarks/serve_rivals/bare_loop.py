"""No server: a socket read until a request is whole, session.run, an answer written. `python bare_loop.py PORT`.

What is left when everything is taken away that makes a server: one connection at a time, one thread, no check of
anything, no other caller, nothing but binary. It is the floor under a lone caller's latency on this machine: what
session.run's own time leaves out is the kernel carrying the body across, which every server pays too.
"""

import socket
import sys

import numpy as np
from session import open_session, row_shape

_MOST_BYTES = 1 << 22


def serve(connection: socket.socket, session, shape: tuple[int, ...]) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    row_bytes = 4 * int(np.prod(shape))
    read = np.empty(_MOST_BYTES, dtype=np.uint8).data
    filled = whole = 0
    while size := connection.recv_into(read[filled:]):
        filled += size
        if not whole:
            # The first read brings the whole head, or the next will; what it says is not looked at.
            end = bytes(read[:filled]).find(b"\r\n\r\n")
            whole = end + 4 + row_bytes if end >= 0 else 0
        if not whole or filled < whole:
            continue
        x = np.frombuffer(read[whole - row_bytes : whole], dtype=np.float32)
        y = session.run(None, {"x": x.reshape(1, *shape)})[0].tobytes()
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(y) + y)
        filled = whole = 0


def main() -> None:
    session = open_session()
    with socket.create_server(("127.0.0.1", int(sys.argv[1]))) as listener:
        while True:
            connection, _ = listener.accept()
            with connection:
                serve(connection, session, row_shape(session))


if __name__ == "__main__":
    main()
