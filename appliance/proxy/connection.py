"""A client's connection and, once there is one, its server's: bytes between sockets and the session, in
bounded space and time.

The worker makes a `Connection` for each client it accepts. Who is let in stands in `admission.py`, what is
checked in `inspection.py`, what is said in `session/`; here are the transports, back-pressure, timers and the
account of it all.
"""

import asyncio
import socket
import time
from typing import TYPE_CHECKING, cast

from appliance.proxy import admission
from appliance.proxy.inspection import Inspection
from appliance.proxy.lookup import Endpoint, Route
from appliance.proxy.scoreboard import Counter
from appliance.proxy.session import Gate, Phase, Session, Verdict
from appliance.proxy.session.reply import reply
from appliance.proxy.session.xclient import ClientOrigin

if TYPE_CHECKING:
    from appliance.proxy.locks import Lock
    from appliance.proxy.worker import Worker

BACKLOG = 65536  # bytes of a client that may wait for a verdict or a reply before its socket is left alone
LINGER = 5.0  # seconds in which a closed peer may take its last bytes

_STATES = {
    Phase.BODY: "data",
    Phase.CHUNK: "bdat",
    Phase.DIRECT: "direct",
    Phase.TAKEN: "rset",
    Phase.CLOSED: "quit",
}


class ServerSide(asyncio.Protocol):
    """The transport's callbacks for the server's socket."""

    def __init__(self, connection: "Connection") -> None:
        self._connection = connection
        self.data_received = connection.server_received  # type: ignore[method-assign]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin the session."""
        self._connection.server_connected(cast("asyncio.Transport", transport))

    def eof_received(self) -> bool:
        """Keep the socket: what was heard is still to be told."""
        return self._connection.server_ended()

    def connection_lost(self, _error: Exception | None) -> None:
        """The server is gone."""
        self._connection.server_lost()

    def pause_writing(self) -> None:
        """The server takes no more for now."""
        self._connection.regulate(server_full=True)

    def resume_writing(self) -> None:
        """The server takes bytes again."""
        self._connection.regulate(server_full=False)


class Connection(asyncio.Protocol):
    """One client, from accept to the last byte. Implements the session's `Effects`."""

    def __init__(self, worker: "Worker") -> None:
        self._worker = worker
        self.service = worker.service
        self._loop = worker.loop
        self.slot = worker.next_slot()
        self.since = time.time()
        self.session: Session | None = None
        self.route: Route | None = None
        self._inspection = Inspection(self)
        self._client: asyncio.Transport
        self._server: asyncio.Transport | None = None
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._heard = self._loop.time()
        self._direct = self._was_direct = False
        self._admitted = False
        self._ended = False
        self._by = ""
        self._reading_client = self._reading_server = True
        self._client_full = self._server_full = False
        self.client_bytes = self.server_bytes = 0
        self.state = "start"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client was accepted: let it in, or tell it why not."""
        self._client = cast("asyncio.Transport", transport)
        self.client = _endpoint(transport.get_extra_info("peername"))
        self.local = _endpoint(transport.get_extra_info("sockname"))
        self._worker.connections.add(self)
        self.service.clients.opened(self.client.address)
        self._pause_client()
        refusal = admission.refusal(self)
        if refusal is None:
            self._admitted = True
            self._task = self._loop.create_task(admission.connect(self))
        else:
            self.refuse(refusal)

    def data_received(self, data: bytes) -> None:
        """Bytes of the client."""
        if self._ended:
            return
        self.client_bytes += len(data)
        self._heard = self._loop.time()
        if self._direct:
            if self._server:
                self._server.write(data)
            return
        assert self.session
        self.session.client_data(data)
        if self.session.backlog > BACKLOG:
            self.regulate()

    def eof_received(self) -> bool:
        """The client has said all it will."""
        if self._ended:
            return False
        if self._direct:
            if self._server and not self._server.is_closing():
                self._server.write_eof()
            return True
        if self.session:
            self.session.client_eof()
        return not self._ended

    def connection_lost(self, _error: Exception | None) -> None:
        """The client is gone."""
        self.finish("client")
        self._worker.connections.discard(self)
        self._worker.gone()

    def pause_writing(self) -> None:
        """The client takes no more for now."""
        self.regulate(client_full=True)

    def resume_writing(self) -> None:
        """The client takes bytes again."""
        self.regulate(client_full=False)

    def server_connected(self, transport: asyncio.Transport) -> None:
        """The server was reached: the session begins."""
        self._server = transport
        self.state = "pre"
        self._begin_session(introduce=self.service.settings.mask_xclient)
        # Before the greeting is read: a client that has spoken already spoke too early.
        self._resume_client()

    def server_received(self, data: bytes) -> None:
        """Bytes of the server."""
        self.server_bytes += len(data)
        self._heard = self._loop.time()
        if self._direct:
            self._client.write(data)
            return
        if self._ended:
            return
        assert self.session
        self.session.server_data(data)
        if not self._reading_client:
            self.regulate()

    def server_ended(self) -> bool:
        """The server has said all it will."""
        if self._direct:
            if not self._client.is_closing():
                self._client.write_eof()
            return True
        if self.session and not self._ended:
            self._end_by("server")
            self.session.server_eof()
        return False

    def server_lost(self) -> None:
        """The server's socket is closed."""
        if self._direct:
            self._direct = False
            self.finish("server")
            self._close(self._client)
        elif not self._ended:
            self.server_ended()

    def refuse(self, text: str) -> None:
        """Turn the client away with one line."""
        self._task = None
        self._client.write(reply(554, "", f"{self.service.config.proxy_name} {text}"))
        self.close_client()

    def unreachable(self, reason: str) -> None:
        """There is no server: greet in its place and play it."""
        self._begin_session(introduce=False)
        assert self.session
        self._resume_client()
        self.session.greet_and_take_over(reason)

    @property
    def accepted(self) -> socket.socket:
        """The client's socket, for options that only the kernel knows."""
        return cast("socket.socket", self._client.get_extra_info("socket"))

    async def open_server(self, outgoing: socket.socket, target: Endpoint) -> None:
        """Connect to the server; raises OSError."""
        try:
            outgoing.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await self._loop.sock_connect(outgoing, (target.address, target.port))
            await self._loop.create_connection(lambda: ServerSide(self), sock=outgoing)
        except BaseException:
            outgoing.close()
            raise

    def _begin_session(self, *, introduce: bool) -> None:
        self._task = None
        origin = None
        if introduce:
            origin = ClientOrigin(self.client.address, self.client.port, self.local.address, self.local.port)
        self.session = Session(self.service.settings, self, origin)
        self._heard = self._loop.time()
        self._arm(self.service.config.timeout_idle)

    def to_client(self, data: bytes) -> None:
        """Send to the client."""
        self._client.write(data)

    def to_server(self, data: bytes) -> None:
        """Send to the server."""
        if self._server:
            self._server.write(data)

    def ask(self, gate: Gate, subject: bytes) -> Verdict | None:
        """Ask the checks of a gate."""
        return self._inspection.ask(gate, subject)

    def begin_message(self) -> bytes:
        """A message begins."""
        return self._inspection.begin_message()

    def spool(self, data: bytes) -> Verdict | None:
        """Copy a piece of it."""
        return self._inspection.spool(data)

    def drop_message(self) -> None:
        """It will not be finished."""
        self._inspection.drop_message()

    def finish_message(self) -> None:
        """It was released to the server."""
        self._inspection.finish_message()

    def direct(self) -> None:
        """Relay both ways without looking from here on."""
        self._direct = self._was_direct = True
        self.service.board.add(Counter.DIRECT)
        self._arm(self.service.config.timeout_direct)
        self.regulate()

    def taken_over(self, reason: str) -> None:
        """The session plays server: it has timeout_session for that."""
        session = self.session
        if session and session.pipeline_overflow:
            self.service.board.add(Counter.PIPELINE)
        self.service.log.notice("SESSION TAKEOVER", **self.who(), reason=reason)
        self._arm(self.service.config.timeout_session)

    def close_server(self) -> None:
        """Part from the server."""
        if self._server:
            self._close(self._server)

    def close_client(self) -> None:
        """Part from the client, who may take its time to hear the last words."""
        self.finish("server")
        client = self._client
        if client.is_closing():
            return
        self._resume_client()  # unread bytes would make the end a reset, which swallows the last words
        client.write_eof()
        self._loop.call_later(LINGER, client.abort)

    def resume(self, verdict: Verdict) -> None:
        """Hand a late verdict to the session."""
        if self.session and not self._ended:
            self.session.resume(verdict)
            if not self._reading_client:
                self.regulate()

    def locked(self) -> "Lock | None":
        """The lock in force on this client."""
        return self.service.locks.find(self.client.address)

    def end(self, by: str) -> None:
        """End the session from outside, without a word."""
        self._end_by(by)
        if self._task:
            self._task.cancel()
        if self._direct:
            self._close(self._client)
            self.close_server()
        elif self.session:
            self.session.end()
        self.finish(by)
        self._client.abort()

    def _end_by(self, by: str) -> None:
        """Note who ended it, for the log; the first cause counts."""
        self._by = self._by or by

    def finish(self, by: str) -> None:
        """Settle the account, once."""
        if self._ended:
            return
        self._end_by(by)
        self._ended = True
        if self._timer:
            self._timer.cancel()
        if self._task:
            self._task.cancel()
        session = self.session
        if session and session.phase is not Phase.CLOSED:
            session.end()
        if self._server and not self._server.is_closing():
            self._close(self._server)
        self.service.clients.closed(self.client.address)
        self.service.board.closed()
        self._log_end()
        self._worker.free_slot(self.slot)

    def _log_end(self) -> None:
        if not self._admitted:
            return
        session = self.session
        if session and not session.commands and not self._direct:
            self.service.board.add(Counter.EMPTY)
        self.service.log.info(
            "CLOSE:DIRECT" if self._was_direct else "CLOSE",
            by=self._by,
            rcv=f"{self.client_bytes}/{self.server_bytes}",
            trns=session.transactions if session else 0,
            rcpts=session.recipients if session else 0,
            auth=self.auth,
            time=f"{time.time() - self.since:.0f}",
            **self.who(),
        )

    def _close(self, transport: asyncio.Transport) -> None:
        """Close a socket when what was sent has left, within bounds."""
        transport.close()
        if transport.get_write_buffer_size():
            self._loop.call_later(LINGER, transport.abort)

    def _arm(self, seconds: float) -> None:
        if self._timer:
            self._timer.cancel()
        self._timer = self._loop.call_later(seconds, self._tick) if seconds else None

    def _tick(self) -> None:
        """Nothing is timed for each byte: the timer looks back when it fires."""
        session, config = self.session, self.service.config
        if session and session.phase is Phase.TAKEN:
            self._end_by("timeout")
            session.expire()
            return
        limit = config.timeout_direct if self._direct else config.timeout_idle
        left = self._heard + limit - self._loop.time()
        if session and session.phase is Phase.ASKED:
            left = limit  # the checks have timeouts of their own
        if left > 0:
            self._arm(left)
        else:
            self.end("timeout")

    def regulate(self, *, client_full: bool | None = None, server_full: bool | None = None) -> None:
        """Read from each side only what the other side can take."""
        if client_full is not None:
            self._client_full = client_full
        if server_full is not None:
            self._server_full = server_full
        backlog = self.session.backlog if self.session and not self._direct else 0
        if self._client_full or self._server_full or backlog > BACKLOG:
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

    @property
    def auth(self) -> int:
        """The session's authentication bits."""
        return self.session.auth if self.session else 0

    @property
    def target(self) -> Endpoint | None:
        """The mail server, once it is known."""
        return self.route.destination if self.route else None

    @property
    def ident(self) -> str:
        """Who is behind the client's address, where the mode can tell."""
        return self.route.ident if self.route else ""

    def who(self) -> dict[str, object]:
        """The fields that every log line about this session carries."""
        return {"src": self.client, "ident": self.ident}

    def row(self) -> list[object]:
        """This session's row of the status file."""
        session = self.session
        state, flags, transactions = self.state, "-", 0
        if session:
            state = (
                self._inspection.scanning
                or _STATES.get(session.phase)
                or ("helo" if session.commands else "pre")
            )
            flags = ("a" if session.auth & 1 else "") + ("A" if session.auth & 2 else "") or "-"
            transactions = session.transactions
        seconds = max(time.time() - self.since, 1)
        rate = (self.client_bytes + self.server_bytes) * 8 / 1000 / seconds
        return [
            *(
                self.slot,
                state,
                flags,
                int(self.since),
                str(self.client),
                str(self.target or "-"),
                transactions,
            ),
            *(self.client_bytes, self.server_bytes, round(rate), self.ident or "-"),
        ]


def _endpoint(name: tuple[str, int]) -> Endpoint:
    address = name[0]
    return Endpoint(address.removeprefix("::ffff:"), name[1])
