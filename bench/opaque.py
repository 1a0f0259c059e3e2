"""A server that agrees to STARTTLS and then throws away what it hears, and the clients that say it.

No TLS is spoken: to a relay it is bytes that it must not look at. `python -m bench.opaque ADDRESS PORT` is
the server; `bench.direct` runs it and the clients, whose work is not counted.
"""

import contextlib
import socket
import sys
import threading
from collections.abc import Callable

_PIECE = bytes(1 << 18)


def converse(connect: Callable[[], socket.socket], size: int) -> None:
    """Be a client that sends so many bytes after STARTTLS; see that all of them arrived."""
    with connect() as session, session.makefile("rb") as replies:
        _expect(replies.readline(), b"220 ")
        session.sendall(b"EHLO opaque.test\r\n")
        while (line := replies.readline()).startswith(b"250-"):
            pass
        _expect(line, b"250 STARTTLS")
        session.sendall(b"STARTTLS\r\n")
        _expect(replies.readline(), b"220 ")
        for sent in range(0, size, len(_PIECE)):
            session.sendall(_PIECE[: size - sent])
        session.shutdown(socket.SHUT_WR)
        _expect(replies.readline(), b"%d\r\n" % size)


def _expect(line: bytes, begin: bytes) -> None:
    if not line.startswith(begin):
        raise ConnectionError(f"{line!r} instead of {begin!r}")


def serve(session: socket.socket) -> None:
    """Be the server of one client: agree to STARTTLS, and tell in the end how many bytes came then."""
    room, size = bytearray(1 << 18), 0
    with session, contextlib.suppress(OSError):
        session.sendall(b"220 opaque.example.test ESMTP\r\n")
        session.recv(512)
        session.sendall(b"250-opaque.example.test\r\n250 STARTTLS\r\n")
        session.recv(512)
        session.sendall(b"220 go ahead\r\n")
        while count := session.recv_into(room):
            size += count
        session.sendall(b"%d\r\n" % size)


def main() -> None:
    """Serve, each client in a thread of its own."""
    address, port = sys.argv[1:]
    with socket.create_server((address, int(port)), backlog=1024) as listener:
        print("open", flush=True)
        while True:
            threading.Thread(target=serve, args=(listener.accept()[0],)).start()


if __name__ == "__main__":
    main()
