"""The helper at work: questions over UDP and TCP, each answered once, or not at all.

UDP cannot tell who asks: what is not a question of an allowed gateway, with the right secret, about a
connection of its own, gets no answer, and no answer is longer than its question. Over TCP the gateway's
address is sure, and there is no secret. Everything is bounded: a question that finds no room is dropped, and
the gateway asks again.
"""

import asyncio
import contextlib
import socket
import struct
from collections.abc import Sequence
from ipaddress import ip_address

from appliance.config.network import SocketAddress, unmapped
from appliance.helper.conntrack import Conntrack
from appliance.helper.gateways import Complaints, Gateways
from appliance.helper.idents import Idents
from appliance.log import Log
from appliance.origin import (
    DATAGRAM_MAX,
    LINE_MAX,
    Address,
    Flow,
    Origin,
    Query,
    read_query,
    read_query_line,
    write_reply,
    write_reply_line,
)

QUESTIONS = 256  # datagrams that are being answered; more are dropped
CONNECTIONS = 64  # over TCP at once; more are closed
CONNECTION_TIME = 5.0  # seconds for a connection over TCP
_BATCH = 64  # datagrams that are read at a stretch
_IP_PKTINFO = 8
_INFO4 = struct.Struct("=I4s4s")  # interface, source for the answer, destination of the question
_INFO6 = struct.Struct("=16sI")  # destination of the question or source for the answer, interface

Ancillary = list[tuple[int, int, bytes]]


class Service:
    """Answers questions that come in at sockets, until the event loop ends."""

    def __init__(self, gateways: Gateways, secret: int, idents: Idents, log: Log) -> None:
        self._gateways, self._secret, self._idents, self._log = gateways, secret, idents, log
        self._conntrack = Conntrack()
        self._complaints = Complaints(log)
        self._questions: set[asyncio.Task[None]] = set()
        self._connections = 0

    async def probe(self) -> None:
        """Ask connection tracking about nothing, in both families. Raises OSError when it does not answer."""
        for nobody in (ip_address("0.0.0.0"), ip_address("::")):  # noqa: S104 - not an address to listen at
            await self._conntrack.find(Flow(nobody, 1, nobody, 1))

    async def listen(self, datagrams: Sequence[socket.socket], streams: Sequence[socket.socket]) -> None:
        """Begin to answer at these sockets, made by `udp_socket` and `tcp_socket`."""
        for each in datagrams:
            asyncio.get_running_loop().add_reader(each, self._read, each)
        for each in streams:
            await asyncio.start_server(self._talk, sock=each, limit=LINE_MAX)

    def _read(self, receiver: socket.socket) -> None:
        for _ in range(_BATCH):
            try:
                data, ancillary, _flags, sender = receiver.recvmsg(DATAGRAM_MAX + 1, 64)
            except OSError:  # nothing left, or the network's word that an answer was lost
                return
            query = self._accepted(data, plain(sender[0]))
            if query is None:
                continue
            if len(self._questions) >= QUESTIONS:
                self._complaints.warn("HELPER:BUSY", query.flow.destination)
                continue
            task = asyncio.create_task(self._answer(query, receiver, ancillary, sender))
            self._questions.add(task)
            task.add_done_callback(self._questions.discard)

    def _accepted(self, data: bytes, gateway: Address) -> Query | None:
        """Read a question; None when it is to be met with silence."""
        network = self._gateways.find(gateway)
        query = read_query(data)
        complaint = ""
        if network is None:
            complaint = "HELPER:REFUSED not a gateway"
        elif query is None:
            complaint = "HELPER:REFUSED not a question"
        elif query.secret != self._secret:
            complaint = "HELPER:REFUSED wrong secret"
        elif query.flow.destination != gateway:
            complaint = "HELPER:REFUSED asks about a connection to another"
        elif not self._gateways.spend(network):
            complaint = "HELPER:REFUSED asks too often"
        if complaint:
            self._complaints.warn(complaint, gateway)
            return None
        return query

    async def _answer(
        self, query: Query, receiver: socket.socket, ancillary: Ancillary, sender: tuple[str, int]
    ) -> None:
        try:
            reply = write_reply(query, await self._origin(query.flow))
            receiver.sendmsg([reply], _from_there(ancillary), 0, sender)
        except OSError as error:  # it will ask again
            self._log.err("HELPER:FAILED", gateway=query.flow.destination, why=error.strerror or error)

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        gateway = plain(writer.get_extra_info("peername")[0])
        router = plain(writer.get_extra_info("sockname")[0])
        self._connections += 1
        try:
            network = self._gateways.find(gateway)
            if network is None:
                self._complaints.warn("HELPER:REFUSED not a gateway", gateway)
            elif self._connections > CONNECTIONS:
                self._complaints.warn("HELPER:BUSY", gateway)
            elif not self._gateways.spend(network):
                self._complaints.warn("HELPER:REFUSED asks too often", gateway)
            else:
                async with asyncio.timeout(CONNECTION_TIME):
                    ports = read_query_line(await reader.readuntil())
                if ports is None:
                    raise ValueError
                flow = Flow(router, ports[0], gateway, ports[1])
                writer.write(write_reply_line(flow, await self._origin(flow)))
        except (TimeoutError, ValueError, asyncio.LimitOverrunError, asyncio.IncompleteReadError):
            self._complaints.warn("HELPER:REFUSED not a question", gateway)
        except OSError as error:
            self._log.err("HELPER:FAILED", gateway=gateway, why=error.strerror or error)
        finally:
            self._connections -= 1
            writer.close()

    async def _origin(self, flow: Flow) -> Origin | None:
        seen = await self._conntrack.find(flow)
        fields = {"gateway": flow.destination, "port": flow.source_port}
        if seen is None:
            self._log.notice("ORIGIN:NOTFOUND", **fields)
            return None
        ident = await self._idents.name(seen)
        dst = SocketAddress(None, str(seen.destination), seen.destination_port)
        self._log.info("ORIGIN:FOUND", **fields, client=seen.source, dst=dst, ident=ident)
        return Origin(seen.destination, seen.destination_port, ident)


def udp_socket(address: Address, port: int) -> socket.socket:
    """Listen for datagrams at an address, `::` for all of both families. Raises OSError."""
    made = _bound(address, port, socket.SOCK_DGRAM)
    if address.version == 6:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
    else:
        made.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
    return made


def tcp_socket(address: Address, port: int) -> socket.socket:
    """Listen for connections at an address, `::` for all of both families. Raises OSError."""
    made = _bound(address, port, socket.SOCK_STREAM)
    made.listen(CONNECTIONS)
    return made


def _bound(address: Address, port: int, kind: int) -> socket.socket:
    six = address.version == 6
    made = socket.socket(socket.AF_INET6 if six else socket.AF_INET, kind | socket.SOCK_NONBLOCK)
    try:
        if kind == socket.SOCK_STREAM:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if six:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not address.is_unspecified)
        made.bind((str(address), port))
    except OSError:
        made.close()
        raise
    return made


def plain(address: str) -> Address:
    """Read an address that a socket tells; one of IPv4 is IPv4 also where the socket is for both."""
    return unmapped(ip_address(address.partition("%")[0]))


def _from_there(ancillary: Ancillary) -> Ancillary:
    """Have an answer come from the address that was asked: the gateway takes it from nowhere else."""
    for level, kind, data in ancillary:
        with contextlib.suppress(struct.error):
            if (level, kind) == (socket.IPPROTO_IP, _IP_PKTINFO):
                _, source, _ = _INFO4.unpack(data)
                return [(level, kind, _INFO4.pack(0, source, bytes(4)))]
            if (level, kind) == (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO):
                source, interface = _INFO6.unpack(data)
                scoped = interface if ip_address(source).is_link_local else 0
                return [(level, kind, _INFO6.pack(source, scoped))]
    return []
