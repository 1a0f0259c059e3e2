"""A router's helper that does as a test wants, on loopback addresses that stand for routers.

Each test says what becomes of a query; the helper of the product itself is tested in tests/helper.
"""

import contextlib
import socket
import threading
from collections.abc import Callable
from ipaddress import ip_address
from typing import Self

from appliance.origin import Origin, Query, read_query, write_reply

ROUTER, OTHER = "127.0.0.2", "127.0.0.3"
UdpScript = Callable[["UdpHelper", bytes, tuple[str, int]], None]
TcpScript = Callable[[socket.socket, bytes], None]


def found(helper: "UdpHelper", data: bytes, gateway: tuple[str, int]) -> None:
    """Answer as a helper does that knows the connection."""
    helper.socket.sendto(helper.reply(data), gateway)


class UdpHelper:
    """Listens at a router's address; `heard` are the datagrams that came, in their order."""

    def __init__(self, origin: tuple[str, int], ident: str, address: str = ROUTER, port: int = 0) -> None:
        self.origin = Origin(ip_address(origin[0]), origin[1], ident)
        self.script: UdpScript = found
        self.heard: list[bytes] = []
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind((address, port))
        self.port: int = self.socket.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            data, gateway = self.socket.recvfrom(4096)
            if not data:
                return
            self.heard.append(data)
            self.script(self, data, gateway)

    def query(self, data: bytes) -> Query:
        """Read what the gateway sent."""
        query = read_query(data)
        assert query, data
        return query

    def reply(self, data: bytes) -> bytes:
        """Give the right answer to it."""
        return write_reply(self.query(data), self.origin)

    def close(self) -> None:
        """End; the port is nobody's any more."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as last:
            last.sendto(b"", self.socket.getsockname())
        self._thread.join(5)
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class TcpHelper:
    """Listens at a router's address over TCP; `script` gets each connection and the line that was sent."""

    def __init__(self, script: TcpScript) -> None:
        self._script = script
        self._listener = socket.create_server((ROUTER, 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._talk, args=(connection,), daemon=True).start()

    def _talk(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            self._script(connection, connection.recv(1000))

    def close(self) -> None:
        """Stop listening."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
