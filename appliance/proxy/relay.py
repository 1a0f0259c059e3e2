"""Two sockets and the bytes between them: transports, back-pressure and partings, in bounded memory.

`Connection` builds on this and decides what is said; here nobody knows SMTP. Each side is read only as fast
as the other takes what was made of it, so that a slow peer costs a few hundred kilobytes whatever it is sent.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from typing import Final, cast

from appliance.proxy import splice

BACKLOG: Final = (
    65536  # bytes that may wait in a direction before its sender's socket is left alone; or buffer_size
)
_MUCH: Final = 16384  # bytes that are worth a write of their own
LINGER: Final = 5.0  # seconds in which a peer must take some of what it is still owed, or be cut off


class Turn:
    """What a worker's sessions hear and say in one turn of the loop: all is read, then judged, then written.

    One after the other, reading, thinking and writing for each session by itself, the same bytes cost half as
    much again: each step finds the processor's caches full of the one before, and each write wakes its
    reader, on a busy machine in the writer's place. What goes to one peer in that time is also sent as one.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._heard: list[tuple[Relay, bool, bytes]] = []
        self._said: dict[asyncio.Transport, list[bytes]] = {}
        self._due = False

    def hear(self, relay: "Relay", by_client: bool, data: bytes) -> None:
        """Hand bytes to a session when everybody who spoke has been read; much data at once."""
        self._heard.append((relay, by_client, data))
        if len(data) > _MUCH:
            self.judge()
        self._go_on()

    def judge(self) -> None:
        """Hand on now what was heard, since something else has happened that must come behind it."""
        if not self._heard:
            return
        heard, self._heard = self._heard, []
        for relay, by_client, data in heard:
            try:
                if by_client:
                    relay.client_heard(data)
                else:
                    relay.server_heard(data)
            except Exception as error:
                told = {"message": "a session broke down", "exception": error}
                self._loop.call_exception_handler(told)
                relay.end("server")

    def say(self, transport: asyncio.Transport, data: bytes) -> None:
        """Send before the loop waits again; much data at once, so that a slow peer is noticed in time."""
        pieces = self._said.get(transport)
        if len(data) > _MUCH:
            self.send(transport)
            transport.write(data)
            return
        if pieces:
            pieces.append(data)
            return
        self._said[transport] = [data]
        self._go_on()

    def send(self, transport: asyncio.Transport) -> None:
        """Send what waits for this one now, since it is about to be closed."""
        if (pieces := self._said.get(transport)) and not transport.is_closing():
            transport.writelines(pieces)
            pieces.clear()

    def _go_on(self) -> None:
        if not self._due:
            self._due = True
            self._loop.call_soon(self._finish)

    def _finish(self) -> None:
        self.judge()
        self._due = False
        said, self._said = self._said, {}
        for transport, pieces in said.items():
            if pieces and not transport.is_closing():
                transport.write(pieces[0] if len(pieces) == 1 else b"".join(pieces))


class ServerSide:
    """The transport's callbacks for the server's socket: an asyncio.Protocol in all but name."""

    data_received: Callable[[bytes], None]

    def __init__(self, relay: "Relay") -> None:
        self._relay = relay
        self.data_received = relay.server_received

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """There is a socket, though perhaps nobody at its other end yet."""
        self._relay.server_opened(cast("asyncio.Transport", transport))

    def eof_received(self) -> bool:
        """The server has said all it will."""
        return self._relay.server_ended()

    def connection_lost(self, error: Exception | None) -> None:
        """The server is gone, or was never there."""
        self._relay.server_lost(error)

    def pause_writing(self) -> None:
        """The server takes no more for now."""
        self._relay.regulate(server_full=True)

    def resume_writing(self) -> None:
        """The server takes bytes again."""
        self._relay.regulate(server_full=False)


class Relay(ABC):
    """The client's socket, for which it is an asyncio.Protocol in all but name, and the server's.

    The server's is there before it is connected; that it is shows when the server speaks, or fails to. What
    the client says before there is somebody to hear it is kept, one read of it, until `_listen`.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, turn: Turn, buffer_size: int) -> None:
        self._loop = loop
        self._turn = turn
        self._most = max(BACKLOG, buffer_size)
        self._client: asyncio.Transport
        self._server: asyncio.Transport | None = None
        self._direct = False
        self._silent = ""  # the one of the two that has said all it will, in direct mode
        self._by = ""
        self._ended = False
        self._listening = False
        self._unheard = b""
        self._unheard_end = False
        self._heard = loop.time()
        self._reading_client = self._reading_server = True
        self._client_full = self._server_full = False
        self.client_bytes = self.server_bytes = 0

    @abstractmethod
    def client_said(self, data: bytes) -> None:
        """Take bytes of the client; not called in direct mode."""

    @abstractmethod
    def server_said(self, data: bytes) -> None:
        """Take bytes of the server; not called in direct mode."""

    @abstractmethod
    def client_hung_up(self) -> None:
        """The client has said all it will; not called in direct mode."""

    @abstractmethod
    def server_hung_up(self) -> None:
        """The server has said all it will; not called in direct mode."""

    @abstractmethod
    def server_reached(self) -> None:
        """There is a server at the other end: listen to the client from now on."""

    @abstractmethod
    def server_missed(self, error: OSError) -> None:
        """There is none."""

    @abstractmethod
    def backlog(self) -> int:
        """Give the number of the client's bytes that wait to be dealt with."""

    @abstractmethod
    def end(self, by: str) -> None:
        """End it at once, without a word."""

    @abstractmethod
    def finish(self, by: str) -> None:
        """The end, for the account; may be called again."""

    def _listen(self) -> None:
        """Hear the client from now on, beginning with what it has said already."""
        self._listening = True
        said, self._unheard = self._unheard, b""
        if said:
            self.client_said(said)
        if self._unheard_end and not self._ended:
            self.client_hung_up()
        self.regulate()

    def data_received(self, data: bytes) -> None:
        """Bytes of the client."""
        if self._ended:
            return
        self.client_bytes += len(data)
        if not self._listening:
            self._unheard += data
            self._pause_client()
            return
        self._heard = self._loop.time()
        if self._direct:
            self.client_heard(data)
            if len(data) >= splice.MUCH and self._server:
                self._shorten(self._client, self._server, self._client_carried)
        else:
            self._turn.hear(self, True, data)

    def client_heard(self, data: bytes) -> None:
        """Deal with bytes of the client."""
        if self._direct:
            assert self._server
            self._turn.say(self._server, data)
        elif not self._ended:
            self.client_said(data)
            if self.backlog() > self._most:
                self.regulate()

    def eof_received(self) -> bool:
        """The client's side is closed; true when its socket is still needed."""
        self._turn.judge()
        if self._direct:
            self._half_close(self._server)
            self._end_if_silent("client")
        elif self._listening:
            self.client_hung_up()
        else:
            self._unheard_end = True
        return not self._ended

    def pause_writing(self) -> None:
        """The client takes no more for now."""
        self.regulate(client_full=True)

    def resume_writing(self) -> None:
        """The client takes bytes again."""
        self.regulate(client_full=False)

    def server_opened(self, transport: asyncio.Transport) -> None:
        """Take the server's socket."""
        self._server = transport
        self.widen(transport)

    def widen(self, transport: asyncio.Transport) -> None:
        """Let as much wait for a peer as buffer_size wants, if that is more than usual."""
        if self._most > BACKLOG:
            transport.set_write_buffer_limits(self._most)

    def server_received(self, data: bytes) -> None:
        """Bytes of the server."""
        self.server_bytes += len(data)
        self._heard = self._loop.time()
        if self._direct:
            self.server_heard(data)
            if len(data) >= splice.MUCH and self._server:
                self._shorten(self._server, self._client, self._server_carried)
        else:
            self._turn.hear(self, False, data)

    def server_heard(self, data: bytes) -> None:
        """Deal with bytes of the server."""
        if self._direct:
            self._turn.say(self._client, data)
        elif not self._ended:
            if not self._listening:
                self.server_reached()
            self.server_said(data)
            if not self._reading_client:
                self.regulate()

    def server_ended(self) -> bool:
        """The server's side is closed; true when its socket is still needed."""
        self._turn.judge()
        if self._direct:
            self._half_close(self._client)
            self._end_if_silent("server")
            return True
        if not self._ended:
            if not self._listening:
                self.server_reached()
            self.server_hung_up()
        return False

    def server_lost(self, error: Exception | None) -> None:
        """The server's socket is gone."""
        self._turn.judge()
        if self._direct:
            self._direct = False
            self.finish("server")
        elif not self._ended:
            if not self._listening:
                if isinstance(error, OSError) and not isinstance(error, ConnectionResetError):
                    self._server = None
                    self.server_missed(error)
                    return
                self.server_reached()
            self.server_hung_up()

    def to_client(self, data: bytes) -> None:
        """Send to the client."""
        self._turn.say(self._client, data)

    def to_server(self, data: bytes) -> None:
        """Send to the server."""
        if self._server:
            self._turn.say(self._server, data)

    def close_server(self) -> None:
        """Part from the server once it has what it was sent."""
        if self._server and not self._server.is_closing():
            self._turn.send(self._server)
            self._server.close()
            self._see_off(self._server)

    def hang_up(self, *, patiently: bool) -> None:
        """Part from the client once it has its last words, however much it goes on saying.

        Closing the socket over unread bytes would send a reset, which swallows words still under way; that is
        risked when there is no patience left.
        """
        if self._client.is_closing():
            return
        self._turn.send(self._client)
        if not patiently or not self.client_bytes:
            self._client.close()  # one that has said nothing leaves nothing unread
            self._see_off(self._client)
            return
        self._resume_client()
        self._client.write_eof()
        self._loop.call_later(LINGER, self._see_off, self._client, self._client.get_write_buffer_size())

    def _see_off(self, transport: asyncio.Transport, before: int = -1) -> None:
        """Cut a parting peer off when it has what it was owed, or has stopped taking it."""
        left = transport.get_write_buffer_size()
        if before >= 0 and (not left or left == before):
            transport.abort()
        elif left:
            self._loop.call_later(LINGER, self._see_off, transport, left)

    def regulate(self, *, client_full: bool | None = None, server_full: bool | None = None) -> None:
        """Read from each side only what the other side can take."""
        if client_full is not None:
            self._client_full = client_full
        if server_full is not None:
            self._server_full = server_full
        waiting = not self._direct and self.backlog() > self._most
        if not self._ended and (self._client_full or self._server_full or waiting):
            self._pause_client()
        else:
            self._resume_client()
        if self._server and self._client_full == self._reading_server and not self._server.is_closing():
            self._reading_server = not self._client_full
            (self._server.resume_reading if self._reading_server else self._server.pause_reading)()

    def _pause_client(self) -> None:
        if self._reading_client and not self._client.is_closing():
            self._client.pause_reading()
            self._reading_client = False

    def _resume_client(self) -> None:
        if not self._reading_client and not self._client.is_closing():
            self._reading_client = True
            self._client.resume_reading()

    def _shorten(
        self, source: asyncio.Transport, target: asyncio.Transport, carried: Callable[[int], None]
    ) -> None:
        """Let the rest of a direction's bytes pass by this process, if they can."""
        if splice.AVAILABLE and not (source.is_closing() or target.is_closing()):
            with suppress(OSError):
                splice.Splice(source, target, carried)

    def _client_carried(self, count: int) -> None:
        self.client_bytes += count
        self._heard = self._loop.time()

    def _server_carried(self, count: int) -> None:
        self.server_bytes += count
        self._heard = self._loop.time()

    def note_end(self, by: str) -> None:
        """Note who ended it, for the log; the first one counts."""
        self._by = self._by or by

    def _end_if_silent(self, by: str) -> None:
        """Part from both, in direct mode, when the second of them has said all it will.

        The loop tells of an end once more whenever reading goes on after a pause.
        """
        self.note_end(by)
        first, self._silent = self._silent or by, by
        if first != by:
            self._client.close()
            self._see_off(self._client)
            self.close_server()

    def _half_close(self, transport: asyncio.Transport | None) -> None:
        if transport and not transport.is_closing():
            self._turn.send(transport)
            transport.write_eof()
