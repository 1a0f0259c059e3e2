"""A client's connection and, once there is one, its server's, from accept to the last byte.

The worker makes a `Connection` for each client it accepts. Who is let in stands in `admission.py`, what is
checked in `inspection.py`, what is said in `session/`, how bytes travel in `relay.py`; here they meet, within
bounded time, and the account of it is kept.
"""

import asyncio
import errno
import heapq
import math
import os
import socket
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from appliance.proxy import admission
from appliance.proxy.checks import Checks
from appliance.proxy.deadlines import Deadlines
from appliance.proxy.inspection import Inspection
from appliance.proxy.lookup import Endpoint, Route
from appliance.proxy.relay import Relay
from appliance.proxy.scoreboard import Counter
from appliance.proxy.session import Action, Gate, Phase, Session, Verdict
from appliance.proxy.session.reply import reply
from appliance.proxy.session.state import AUTH_ACCEPTED, AUTH_OFFERED
from appliance.proxy.session.xclient import ClientOrigin
from appliance.proxy.streams import Stream, current_turn
from appliance.proxy.visit import Visit

LOOK = 0.5  # seconds from one look to the next whether a server that does not speak is there
PARTING = 128  # clients of a worker that may take their time to part; more are cut off

_STATES = {
    Phase.BODY: "data",
    Phase.CHUNK: "bdat",
    Phase.DIRECT: "direct",
    Phase.TAKEN: "rset",
    Phase.CLOSED: "quit",
}


class Connections:
    """The open connections of a worker, each with a number.

    `last_left` is called when none is left. `parting` of them are over but for their last words. What all
    hear and say goes through `turn`, and `deadlines` knows when each has been silent for too long.
    """

    def __init__(self, last_left: Callable[[], None]) -> None:
        self._open: set[Connection] = set()
        self._free: list[int] = []
        self._numbers = 0
        self._last_left = last_left
        self.parting = 0
        self.turn = current_turn()
        self.deadlines = Deadlines()

    def __iter__(self) -> Iterator["Connection"]:
        return iter(tuple(self._open))

    def __len__(self) -> int:
        return len(self._open)

    def enter(self, connection: "Connection") -> int:
        """Take a connection in and give it the lowest free number."""
        self._open.add(connection)
        if self._free:
            return heapq.heappop(self._free)
        self._numbers += 1
        return self._numbers - 1

    def leave(self, connection: "Connection") -> None:
        """Let a connection go, and its number with it."""
        self._open.discard(connection)
        self.parting -= 1
        heapq.heappush(self._free, connection.slot)
        if not self._open:
            self._last_left()


class Connection(Relay):
    """One client."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        checks: Checks,
        connections: Connections,
        client: socket.socket,
        peer: tuple[Any, ...],
    ) -> None:
        """A client was accepted from `peer`: let it in, or tell it why not."""
        self._visit = Visit(checks.service, _endpoint(peer), _endpoint(client.getsockname()))
        super().__init__(loop, connections.turn, client, checks.service.config.buffer_size)
        self._checks = checks
        self._service = checks.service
        self._connections = connections
        self._inspection = Inspection(self._visit, checks, self.resume)
        self._session: Session | None = None
        self._admission: asyncio.Task[None] | None = None
        self._began = connections.turn.now  # by a clock that nobody sets
        self._deadline = 0  # its number among all, if there is one
        self._connecting = False
        self._connect_until = 0.0
        self._was_direct = False
        self._service.clients.opened(self._visit.client.address)
        self.slot = connections.enter(self)
        self._admit()

    def client_left(self) -> None:
        """The client is gone."""
        self.finish("client")
        self._connections.leave(self)

    def _admit(self) -> None:
        """Let the client in: at once, unless somebody has to be asked about it."""
        try:
            refusal = admission.refusal(self._visit)
            if refusal is not None:
                self._refuse(refusal)
                return
            self._visit.route = admission.known_route(self._visit, self._client.sock)
            answer = self._judge() if self._visit.route else self._find()
            if isinstance(answer, Verdict):
                self._admitted(answer)
            else:
                self._arm(self._service.config.timeout_idle)
                self._admission = self._loop.create_task(self._admit_later(answer))
        except Exception as error:
            self._not_admitted(error)

    async def _admit_later(self, answer: Awaitable[Verdict]) -> None:
        try:
            self._admitted(await answer)
        except Exception as error:
            self._not_admitted(error)

    async def _find(self) -> Verdict:
        self._visit.route = await admission.route(self._visit, self._client.sock)
        answer = self._judge()
        return answer if isinstance(answer, Verdict) else await answer

    def _judge(self) -> Verdict | Awaitable[Verdict]:
        """See what there is against a client whose destination is known."""
        refusal = admission.refusal_of_ident(self._visit)
        return Verdict(Action.HANGUP, 554, "", refusal) if refusal else self._inspection.admit()

    def _admitted(self, verdict: Verdict) -> None:
        route = self._visit.route
        assert route
        if verdict.action is not Action.PASS:
            self._refuse(verdict.text)
            return
        if self._service.log.enabled("info"):
            self._service.log.info("NEW", **self._visit.who(), dst=route.destination, on=self._visit.local)
        self._open_server(route)

    def _not_admitted(self, error: Exception) -> None:
        if isinstance(error, admission.Unreachable):
            self._play_server(str(error))
            return
        self._loop.call_exception_handler({"message": "a client was not let in", "exception": error})
        if self._session:
            self.end("server")
        else:
            self._play_server(self._service.config.msg_temp_unavail)

    def _play_server(self, reason: str) -> None:
        """There is no server: take its part."""
        self._begin_session(None).greet_and_take_over(reason)
        self._listen()

    def _open_server(self, route: Route) -> None:
        """Set out for the server, to arrive within timeout_connect; raises Unreachable.

        The socket is read from at once: what comes is the greeting, or the reason why there is none.
        """
        limit = self._service.config.timeout_connect or math.inf
        self._connect_until = self._loop.time() + limit
        self._arm(min(limit, LOOK))
        outgoing: socket.socket | None = None
        try:
            outgoing = admission.outgoing(self._visit, route)
            error = outgoing.connect_ex((route.destination.address, route.destination.port))
            if error not in (0, errno.EINPROGRESS):
                raise OSError(error, os.strerror(error))
            if self._service.config.spf == "outgoing":
                self._visit.source = outgoing.getsockname()[0]
        except OSError as failure:
            if outgoing:
                outgoing.close()
            raise admission.unreachable(self._visit, failure) from None
        self._connecting = True
        self.meet(outgoing)

    def _refuse(self, text: str) -> None:
        """Turn the client away with one line."""
        self._admission = None
        self._service.clients.talkers.of(self._visit.client.address).refusals += 1
        self.to_client(reply(554, "", f"{self._service.config.proxy_name} {text}"))
        self.close_client()

    def server_missed(self, error: OSError) -> None:
        """Tell the client why there is no server."""
        self._connecting = False
        self._play_server(str(admission.unreachable(self._visit, error)))

    def server_reached(self) -> None:
        """The session begins; what the client has said already, it said too early."""
        origin = None
        if self._checks.settings.mask_xclient:
            client, local = self._visit.client, self._visit.local
            origin = ClientOrigin(client.address, client.port, local.address, local.port)
        self._begin_session(origin)
        self._listen()

    def _begin_session(self, origin: ClientOrigin | None) -> Session:
        self._admission = None
        self._connecting = False
        self._arm(self._service.config.timeout_idle)
        self._session = self._visit.session = Session(self._checks.settings, self, origin)
        return self._session

    def client_said(self, data: bytes) -> None:
        """Hand the client's bytes to the session."""
        if self._session:
            self._session.client_data(data)

    def server_said(self, data: bytes) -> None:
        """Hand the server's bytes to the session."""
        if self._session:
            self._session.server_data(data)

    def client_hung_up(self) -> None:
        """Tell the session; it may still have answers for the client."""
        self.note_end("client")
        if self._session:
            self._session.client_eof()

    def server_hung_up(self) -> None:
        """Tell the session, unless it has parted from the server itself."""
        if self._session and self._session.phase is not Phase.TAKEN:
            self.note_end("server")
            self._session.server_eof()

    def backlog(self) -> int:
        """Give the number of bytes the session has not dealt with."""
        return self._session.backlog if self._session else 0

    def ask(self, gate: Gate, subject: bytes) -> Verdict | None:
        """Ask the checks of a gate."""
        return self._inspection.ask(gate, subject)

    def begin_message(self) -> bytes:
        """A message begins: give the header to insert."""
        self._client.expect_much()
        return self._inspection.message.begin()

    def spool(self, data: bytes) -> Verdict | None:
        """Copy a piece of the message."""
        return self._inspection.message.add(data)

    def drop_message(self) -> None:
        """The message will not be finished."""
        self._inspection.message.drop()

    def finish_message(self) -> None:
        """The message was released to the server."""
        self._inspection.message.finish()

    def direct(self) -> None:
        """Relay both ways without looking from here on."""
        self._was_direct = True
        self._service.board.add(Counter.DIRECT)
        self._arm(self._service.config.timeout_direct)
        self.relay_directly()

    def taken_over(self, reason: str) -> None:
        """The session plays server: it has timeout_session for that."""
        if self._session and self._session.pipeline_overflow:
            self._service.board.add(Counter.PIPELINE)
        self._service.log.notice("SESSION TAKEOVER", **self._visit.who(), reason=reason)
        self._arm(self._service.config.timeout_session)

    def close_client(self) -> None:
        """Part from the client, who may take its time to hear the last words if they are ours."""
        ours = not self._by
        self.finish("server")
        self.hang_up(patiently=ours and self._connections.parting < PARTING)

    def resume(self, verdict: Verdict) -> None:
        """Hand a late verdict to the session."""
        self._heard = self._loop.time()  # nobody was silent meanwhile but ourselves
        if self._session and not self._ended:
            self._session.resume(verdict)
            if self._client.paused:
                self.regulate()

    def end(self, by: str) -> None:
        """End the session from outside, without a word."""
        self.finish(by)
        self._client.abort()

    def finish(self, by: str) -> None:
        """Settle the account, once."""
        if self._ended:
            return
        self.note_end(by)
        self._ended = True
        self._listening = self._direct = False
        self._connections.parting += 1
        self._arm(0)
        if self._admission:
            self._admission.cancel()
        self._connecting = False
        self._inspection.cancel()
        if self._session:
            self._session.end()
        self.close_server()
        self._visit.release()
        self._service.clients.closed(self._visit.client.address)
        if self._visit.ident:
            self._service.clients.closed(self._visit.client.address, self._visit.ident)
        self._service.board.closed()
        if self._session:
            self._log_end(self._session)
        self._session = self._visit.session = None  # which know this connection: no knot is left to untie

    def _log_end(self, session: Session) -> None:
        if not self.client_bytes:
            self._service.board.add(Counter.EMPTY)
        if not self._service.log.enabled("info"):
            return
        self._service.log.info(
            "CLOSE:DIRECT" if self._was_direct else "CLOSE",
            by=self._by,
            rcv=f"{self.client_bytes}/{self.server_bytes}",
            trns=session.transactions,
            rcpts=session.recipients,
            auth=session.auth,
            time=f"{self._loop.time() - self._began:.0f}",
            **self._visit.who(),
        )

    def _arm(self, seconds: float) -> None:
        if self._deadline:
            self._connections.deadlines.clear(self, self._deadline)
        self._deadline = self._connections.deadlines.set(self, seconds) if seconds else 0

    def _look_for(self, server: Stream) -> None:
        """The server has not spoken so far: is it there?"""
        left = self._connect_until - self._loop.time()
        if _is_connected(server.sock):
            self.server_reached()
        elif left > 0:
            self._arm(min(left, LOOK))
        else:
            server.abort()
            self._server = None
            self.server_missed(TimeoutError())

    def ring(self) -> None:
        """Nothing is timed for each byte: the deadline looks back when it has come."""
        self._deadline = 0
        session, config = self._session, self._service.config
        if self._connecting:
            assert self._server
            self._look_for(self._server)
            return
        heard = max(self._heard, self._connections.deadlines.resumed)
        if session and session.phase is Phase.TAKEN:
            left = heard + config.timeout_session - self._loop.time()
            if left > 0 and session.swallowing:  # few look for the answer before all of a message has left
                self._arm(left)
                return
            self.note_end("timeout")
            session.expire()
            return
        limit = config.timeout_direct if self._direct else config.timeout_idle
        left = heard + limit - self._loop.time()
        if session and session.phase is Phase.ASKED:
            left = float(limit)  # the checks have timeouts of their own
        if left > 0:
            self._arm(left)
        elif session and session.introducing:
            self.note_end("timeout")
            session.server_eof()  # whatever keeps it from being introduced, the client is told
        else:
            self.end("timeout")

    @property
    def address(self) -> str:
        """The client's address."""
        return self._visit.client.address

    def row(self) -> list[object]:
        """This connection's row of the status file."""
        visit, session = self._visit, self._session
        state, flags, transactions = "connect" if visit.route else "ident", "", 0
        if session:
            begun = "helo" if session.commands else "pre"
            state = self._inspection.message.scanning or _STATES.get(session.phase, begun)
            flags = ("a" if session.auth & AUTH_OFFERED else "") + (
                "A" if session.auth & AUTH_ACCEPTED else ""
            )
            transactions = session.transactions
        state = self._inspection.waiting or state
        rate = (self.client_bytes + self.server_bytes) * 8 / 1000 / max(self._loop.time() - self._began, 1)
        return [
            *(self.slot, state, flags or "-", int(visit.since), str(visit.client), str(visit.target or "-")),
            *(transactions, self.client_bytes, self.server_bytes, round(rate), visit.ident or "-"),
        ]


def _is_connected(outgoing: socket.socket) -> bool:
    try:
        outgoing.getpeername()
    except OSError:
        return False
    return True


def _endpoint(name: tuple[Any, ...]) -> Endpoint:
    address: str = name[0]
    if ":" in address and "." in address and address.startswith("::ffff:"):
        address = address[7:]
    return tuple.__new__(Endpoint, (address, name[1]))  # what a NamedTuple does, less a call of Python
