"""A client's connection and, once there is one, its server's, from accept to the last byte.

The worker makes a `Connection` for each client it accepts. Who is let in stands in `admission.py`, what is
checked in `inspection.py`, what is said in `session/`, how bytes travel in `relay.py`; here they meet, within
bounded time, and the account of it is kept.
"""

import asyncio
import socket
import time
from typing import TYPE_CHECKING, cast

from appliance.proxy import admission
from appliance.proxy.inspection import Inspection
from appliance.proxy.lookup import Endpoint, Route
from appliance.proxy.relay import Relay, ServerSide
from appliance.proxy.scoreboard import Counter
from appliance.proxy.session import Gate, Phase, Session, Verdict
from appliance.proxy.session.reply import reply
from appliance.proxy.session.state import AUTH_ACCEPTED, AUTH_OFFERED
from appliance.proxy.session.xclient import ClientOrigin

if TYPE_CHECKING:
    from appliance.proxy.locks import Lock
    from appliance.proxy.worker import Worker

_STATES = {
    Phase.BODY: "data",
    Phase.CHUNK: "bdat",
    Phase.DIRECT: "direct",
    Phase.TAKEN: "rset",
    Phase.CLOSED: "quit",
}


class Connection(Relay):
    """One client. Implements the session's `Effects`."""

    def __init__(self, worker: "Worker") -> None:
        super().__init__(worker.loop)
        self._worker = worker
        self.service = worker.service
        self.slot = worker.next_slot()
        self.since = time.time()
        self.session: Session | None = None
        self.route: Route | None = None
        self.state = "start"  # the status file's word for where it stands, until there is a session
        self._inspection = Inspection(self)
        self._admission: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._admitted = False
        self._was_direct = False
        self._by = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client was accepted: let it in, or tell it why not."""
        self.client_accepted(transport)
        self.client = _endpoint(transport.get_extra_info("peername"))
        self.local = _endpoint(transport.get_extra_info("sockname"))
        self._worker.connections.add(self)
        self.service.clients.opened(self.client.address)
        refusal = admission.refusal(self)
        if refusal is None:
            self._admitted = True
            self._admission = self._loop.create_task(admission.connect(self))
        else:
            self.refuse(refusal)

    def connection_lost(self, _error: Exception | None) -> None:
        """The client is gone."""
        self.finish("client")
        self._worker.left(self)

    def refuse(self, text: str) -> None:
        """Turn the client away with one line."""
        self._admission = None
        self.to_client(reply(554, "", f"{self.service.config.proxy_name} {text}"))
        self.close_client()

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

    def server_reached(self) -> None:
        """The session begins."""
        origin = None
        if self.service.settings.mask_xclient:
            origin = ClientOrigin(self.client.address, self.client.port, self.local.address, self.local.port)
        self._begin_session(origin)

    def unreachable(self, reason: str) -> None:
        """There is no server: greet in its place and play it."""
        session = self._begin_session(None)
        self._resume_client()
        session.greet_and_take_over(reason)

    def _begin_session(self, origin: ClientOrigin | None) -> Session:
        self._admission = None
        self.session = Session(self.service.settings, self, origin)
        self._arm(self.service.config.timeout_idle)
        return self.session

    def client_said(self, data: bytes) -> None:
        """Hand the client's bytes to the session."""
        assert self.session
        self.session.client_data(data)

    def server_said(self, data: bytes) -> None:
        """Hand the server's bytes to the session."""
        assert self.session
        self.session.server_data(data)

    def client_hung_up(self) -> None:
        """Tell the session; it may still have answers for the client."""
        self._note_end("client")
        if self.session:
            self.session.client_eof()

    def server_hung_up(self) -> None:
        """Tell the session, unless it has parted from the server itself."""
        if self.session and self.session.phase is not Phase.TAKEN:
            self._note_end("server")
            self.session.server_eof()

    def backlog(self) -> int:
        """Give the number of bytes the session has not dealt with."""
        return self.session.backlog if self.session else 0

    def ask(self, gate: Gate, subject: bytes) -> Verdict | None:
        """Ask the checks of a gate."""
        return self._inspection.ask(gate, subject)

    def begin_message(self) -> bytes:
        """A message begins: give the header to insert."""
        return self._inspection.begin_message()

    def spool(self, data: bytes) -> Verdict | None:
        """Copy a piece of the message."""
        return self._inspection.spool(data)

    def drop_message(self) -> None:
        """The message will not be finished."""
        self._inspection.drop_message()

    def finish_message(self) -> None:
        """The message was released to the server."""
        self._inspection.finish_message()

    def direct(self) -> None:
        """Relay both ways without looking from here on."""
        self._direct = self._was_direct = True
        self.service.board.add(Counter.DIRECT)
        self._arm(self.service.config.timeout_direct)
        self.regulate()

    def taken_over(self, reason: str) -> None:
        """The session plays server: it has timeout_session for that."""
        if self.session and self.session.pipeline_overflow:
            self.service.board.add(Counter.PIPELINE)
        self.service.log.notice("SESSION TAKEOVER", **self.who(), reason=reason)
        self._arm(self.service.config.timeout_session)

    def close_client(self) -> None:
        """Part from the client, who may take its time to hear the last words."""
        self.finish("server")
        self.hang_up()

    def resume(self, verdict: Verdict) -> None:
        """Hand a late verdict to the session."""
        if self.session and not self._ended:
            self.session.resume(verdict)
            if not self._reading_client:
                self.regulate()

    def end(self, by: str) -> None:
        """End the session from outside, without a word."""
        self.finish(by)
        self._client.abort()

    def finish(self, by: str) -> None:
        """Settle the account, once."""
        if self._ended:
            return
        self._note_end(by)
        self._ended = True
        self._direct = False
        for running in (self._timer, self._admission):
            if running:
                running.cancel()
        if self.session:
            self.session.end()
        self.close_server()
        self.service.clients.closed(self.client.address)
        self.service.board.closed()
        self._worker.free_slot(self.slot)
        if self._admitted:
            self._log_end()

    def _note_end(self, by: str) -> None:
        """Note who ended it, for the log; the first one counts."""
        self._by = self._by or by

    def _log_end(self) -> None:
        session = self.session
        if session and not session.commands and not self._was_direct:
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

    def _arm(self, seconds: float) -> None:
        if self._timer:
            self._timer.cancel()
        self._timer = self._loop.call_later(seconds, self._tick) if seconds else None

    def _tick(self) -> None:
        """Nothing is timed for each byte: the timer looks back when it fires."""
        session, config = self.session, self.service.config
        if session and session.phase is Phase.TAKEN:
            self._note_end("timeout")
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

    def locked(self) -> "Lock | None":
        """The lock in force on this client."""
        return self.service.locks.find(self.client.address)

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
        session, auth = self.session, self.auth
        state = self.state
        if session:
            begun = "helo" if session.commands else "pre"
            state = self._inspection.scanning or _STATES.get(session.phase, begun)
        flags = ("a" if auth & AUTH_OFFERED else "") + ("A" if auth & AUTH_ACCEPTED else "")
        rate = (self.client_bytes + self.server_bytes) * 8 / 1000 / max(time.time() - self.since, 1)
        return [
            *(self.slot, state, flags or "-", int(self.since), str(self.client), str(self.target or "-")),
            *(session.transactions if session else 0, self.client_bytes, self.server_bytes),
            *(round(rate), self.ident or "-"),
        ]


def _endpoint(name: tuple[str, int]) -> Endpoint:
    return Endpoint(name[0].removeprefix("::ffff:"), name[1])
