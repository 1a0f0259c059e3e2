"""Two sockets and the bytes between them: who is listened to, and how one parts, in bounded memory.

`Connection` builds on this and decides what is said; here nobody knows SMTP. Each side is read only as fast
as the other takes what was made of it, so that a slow peer costs a few hundred kilobytes whatever it is sent.
"""

import asyncio
import socket
from abc import abstractmethod
from typing import Final

from appliance.proxy import splice
from appliance.proxy.session import Effects
from appliance.proxy.streams import BACKLOG, Owner, Stream, Turn

LINGER: Final = 5.0  # seconds in which a peer must take some of what it is still owed, or be cut off


class Relay(Effects, Owner):
    """The client's socket and the server's, and with them what a session does to the world with bytes.

    The server's is there before it is connected; that it is shows when the server speaks, or fails to. What
    the client says before there is somebody to hear it is kept, one read of it, until `_listen`.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, turn: Turn, client: socket.socket, buffer_size: int
    ) -> None:
        self._loop = loop
        self._turn = turn
        self._most = max(BACKLOG, buffer_size)
        self._client = Stream(turn, client, self, self._most)
        self._server: Stream | None = None
        self._direct = False
        self._silent = False  # one of the two has said all it will, in direct mode
        self._client_done = False  # the client has, in whatever mode
        self._by = ""
        self._ended = False
        self._listening = False
        self._unheard = b""
        self._unheard_end = False
        self._heard = turn.now
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
    def client_left(self) -> None:
        """The client's socket is closed."""

    @abstractmethod
    def backlog(self) -> int:
        """Give the number of the client's bytes that wait to be dealt with."""

    @abstractmethod
    def end(self, by: str) -> None:
        """End it at once, without a word."""

    @abstractmethod
    def finish(self, by: str) -> None:
        """The end, for the account; may be called again."""

    def meet(self, server: socket.socket) -> None:
        """Take the server's socket, on which a connection has been begun."""
        self._server = Stream(self._turn, server, self, self._most)

    def heard(self, stream: Stream, data: bytes) -> None:
        """Hand on what somebody has said, or that it was all."""
        if stream is self._client:
            if self._ended:
                if not data:
                    stream.close()
            elif data:
                self._client_heard(data)
            else:
                self._client_ended()
        elif stream is self._server and not self._ended:
            if data:
                self._server_heard(data)
            else:
                self._server_ended()

    def parted(self, stream: Stream, error: OSError | None) -> None:
        """One of the sockets is gone."""
        if stream is self._client:
            self.client_left()
        elif stream is self._server:
            self._server_lost(error)

    def broken(self, error: Exception) -> None:
        """A defect costs this session, and no other."""
        self._loop.call_exception_handler({"message": "a session broke down", "exception": error})
        self.end("server")

    def _listen(self) -> None:
        """Hear the client from now on, beginning with what it has said already."""
        self._listening = True
        said, self._unheard = self._unheard, b""
        if said:
            self.client_said(said)
        if self._unheard_end and not self._ended:
            self.client_hung_up()
        self.regulate()

    def _client_heard(self, data: bytes) -> None:
        self.client_bytes += len(data)
        if not self._listening:
            self._unheard += data
            self._client.pause()
            return
        self._heard = self._turn.now
        if self._direct:
            assert self._server
            self._server.say(data)
            return
        self.client_said(data)
        if self.backlog() > self._most:
            self.regulate()

    def _client_ended(self) -> None:
        self._client_done = True
        if self._direct:
            self._half_close(self._server, "client")
        elif self._listening:
            self.client_hung_up()
        else:
            self._unheard_end = True

    def _server_heard(self, data: bytes) -> None:
        self.server_bytes += len(data)
        self._heard = self._turn.now
        if self._direct:
            self._client.say(data)
            return
        if not self._listening:
            self.server_reached()
        self.server_said(data)
        if self._client.paused:
            self.regulate()

    def _server_ended(self) -> None:
        if self._direct:
            self._half_close(self._client, "server")
            return
        if not self._listening:
            self.server_reached()
        self.server_hung_up()
        self.close_server()

    def _server_lost(self, error: OSError | None) -> None:
        if self._direct:
            self._direct = False
            self.finish("server")
        elif not self._ended:
            if not self._listening:
                if error and not isinstance(error, ConnectionResetError):
                    self._server = None
                    self.server_missed(error)
                    return
                self.server_reached()
            self.server_hung_up()

    def to_client(self, data: bytes) -> None:
        """Send to the client."""
        self._client.say(data)

    def to_server(self, data: bytes) -> None:
        """Send to the server."""
        if self._server:
            self._server.say(data)

    def relay_directly(self) -> None:
        """Let bytes pass both ways, in the kernel where it can do that."""
        self._direct = True
        if splice.AVAILABLE and self._server:
            self._client.carry_to(self._server)
            self._server.carry_to(self._client)
        self.regulate()
        if self._client_done:
            self._half_close(self._server, "client")

    def carried(self, stream: Stream, count: int) -> None:
        """So many bytes have passed by."""
        if stream is self._client:
            self.client_bytes += count
        else:
            self.server_bytes += count
        self._heard = self._turn.now

    def close_server(self) -> None:
        """Part from the server once it has what it was sent."""
        if self._server:
            self._server.close()
            if not self._ended:
                self.regulate()  # however slow the server is with what it still gets

    def hang_up(self, *, patiently: bool) -> None:
        """Part from the client once it has its last words, however much it goes on saying.

        Closing the socket over unread bytes would send a reset, which swallows words still under way; that is
        risked when there is no patience left.
        """
        if self._client.closing:
            return
        if not patiently or not self.client_bytes:
            self._client.close()  # of one from whom nothing was read little can be unread
            return
        self._client.resume()
        self._client.shut()
        self.lingers(self._client)

    def lingers(self, stream: Stream) -> None:
        """Give a parting peer its time."""
        self._loop.call_later(LINGER, self._see_off, stream, stream.waiting)

    def _see_off(self, stream: Stream, before: int) -> None:
        """Cut a parting peer off when it has what it was owed, or has stopped taking it."""
        left = stream.waiting
        if not left or left == before:
            stream.abort()
        else:
            self.lingers(stream)

    def filled(self, stream: Stream, full: bool) -> None:
        """One side does not take what it is sent, or does so again."""
        if stream is self._client:
            self._client_full = full
        else:
            self._server_full = full
        self.regulate()

    def regulate(self) -> None:
        """Read from each side only what the other side can take."""
        waiting = not self._direct and self.backlog() > self._most
        server_full = self._server_full and self._server and not self._server.closing
        if not self._ended and (self._client_full or server_full or waiting):
            self._client.pause()
        else:
            self._client.resume()
        if self._server:
            if self._client_full:
                self._server.pause()
            else:
                self._server.resume()

    def note_end(self, by: str) -> None:
        """Note who ended it, for the log; the first one counts."""
        self._by = self._by or by

    def _half_close(self, other: Stream | None, by: str) -> None:
        """One has said all it will, in direct mode: tell the other; part from both when it is the second."""
        self.note_end(by)
        if other:
            other.shut()
        if self._silent:
            self._client.close()
            self.close_server()
        self._silent = True
