"""As much of an HTTP server as a page of metrics needs, on the supervisor's event loop.

It knows one page, at /metrics, and has no thread. Requests are bounded in size and time, answers in time,
clients in number; whoever is slow is cut off, and the event loop never waits for anybody.
"""

import asyncio
import socket
from collections.abc import Awaitable, Callable

from appliance.config import SocketAddress
from appliance.log import Log

_LONGEST_REQUEST = 8192  # bytes, with all headers
_ASKED_WITHIN = 5.0  # seconds
_ANSWERED_WITHIN = 10.0  # seconds to make the page, and once more for it to be taken
_CLIENTS = 16
_CONTENT = "text/plain; version=0.0.4; charset=utf-8"


class MetricsServer:
    """Serves what `page` gives at `address`, over TCP."""

    def __init__(self, address: SocketAddress, page: Callable[[], Awaitable[bytes]], log: Log) -> None:
        self._address = address
        self._page = page
        self._log = log
        self._clients = 0
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        """Listen. A port that cannot be had costs the metrics, not the mail: it is logged."""
        try:
            listening = self._listen()
        except OSError as error:
            why = error.strerror or error
            self._log.warning(
                f"metrics_listen {self._address}: {why}; there are no metrics: "
                "name an address of this host and a free port, and restart"
            )
            return
        self._server = await asyncio.start_server(self._serve, sock=listening, limit=_LONGEST_REQUEST)

    def close(self) -> None:
        """Listen no more."""
        if self._server:
            self._server.close()

    def _listen(self) -> socket.socket:
        if self._address.path:
            raise OSError("metrics are served over TCP alone")
        host, port = self._address.host, self._address.port
        # Not by the event loop, which looks names up in a thread: a process with threads starts no worker.
        family, _, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server((where[0], where[1]), family=family, backlog=_CLIENTS)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._clients += 1
        writer.transport.set_write_buffer_limits(0)  # so that drain() waits until all is taken
        try:
            if self._clients <= _CLIENTS:
                async with asyncio.timeout(_ASKED_WITHIN):
                    request = await reader.readuntil(b"\r\n\r\n")
                async with asyncio.timeout(_ANSWERED_WITHIN):
                    writer.write(await self._answer(request))
                async with asyncio.timeout(_ANSWERED_WITHIN):
                    await writer.drain()
                    writer.close()
                    await writer.wait_closed()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # it left, is too slow, or speaks something else
        finally:
            self._clients -= 1
            writer.transport.abort()

    async def _answer(self, request: bytes) -> bytes:
        method, target, *_ = [*request.split(b"\r\n", 1)[0].split(b" "), b"", b""]
        if method not in (b"GET", b"HEAD"):
            return _response("405 Method Not Allowed", b"GET /metrics\n")
        if target.partition(b"?")[0] != b"/metrics":
            return _response("404 Not Found", b"the metrics are at /metrics\n")
        body = await self._page()
        return _response("200 OK", body, head=method == b"HEAD")


def _response(status: str, body: bytes, *, head: bool = False) -> bytes:
    lines = (
        f"HTTP/1.1 {status}",
        f"Content-Type: {_CONTENT}",
        f"Content-Length: {len(body)}",
        "Connection: close",
        "",
        "",
    )
    return "\r\n".join(lines).encode() + (b"" if head else body)
