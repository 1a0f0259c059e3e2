"""A DNS server on loopback: says what a test tells it to, over UDP and TCP, and counts what it is asked."""

import errno
import socket
import socketserver
import struct
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.rrset

from appliance.config import SocketAddress

SILENCE, FAILURE = "silence", "failure"
Record = tuple[str, str]  # type and value as a zone file has them
Handler = type[socketserver.BaseRequestHandler]


class NameServer:
    """`zone` maps names to records, or to SILENCE or FAILURE; `asked` counts questions as (name, type).

    A record FAILURE beside others makes the questions fail that they do not answer. Without `edns` it does
    not understand questions that have that.
    """

    def __init__(self) -> None:
        self.zone: dict[str, list[Record] | str] = {}
        self.ttl = 300
        self.edns = True
        self.negative_ttl = 300
        self.asked: Counter[tuple[str, str]] = Counter()
        outer = self

        class Datagram(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                data, sender = self.request
                if answer := outer.answer(data):
                    sender.sendto(answer, self.client_address)

        class Stream(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                (size,) = struct.unpack("!H", self.request.recv(2, socket.MSG_WAITALL))
                if answer := outer.answer(self.request.recv(size, socket.MSG_WAITALL), datagram=False):
                    self.request.sendall(struct.pack("!H", len(answer)) + answer)

        self._udp, self._tcp = self._listen(Datagram, Stream)
        for server in (self._udp, self._tcp):
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        self.address = SocketAddress(None, "127.0.0.1", self._udp.server_address[1])

    @staticmethod
    def _listen(
        datagram: Handler, stream: Handler
    ) -> tuple[socketserver.ThreadingUDPServer, socketserver.ThreadingTCPServer]:
        """Take one port for both; a port that is free for UDP may belong to somebody's TCP connection."""
        for _ in range(20):
            udp = socketserver.ThreadingUDPServer(("127.0.0.1", 0), datagram)
            try:
                return udp, socketserver.ThreadingTCPServer(("127.0.0.1", udp.server_address[1]), stream)
            except OSError as error:
                udp.server_close()
                if error.errno != errno.EADDRINUSE:
                    raise
        raise OSError(errno.EADDRINUSE, "no port is free for both UDP and TCP")

    def close(self) -> None:
        for server in (self._udp, self._tcp):
            server.shutdown()
            server.server_close()

    def answer(self, data: bytes, *, datagram: bool = True) -> bytes | None:
        query = dns.message.from_wire(data)
        question = query.question[0]
        name, kind = question.name, dns.rdatatype.to_text(question.rdtype)
        self.asked[self._text(name), kind] += 1
        response = dns.message.make_response(query, recursion_available=True)
        spoken = self.edns or query.edns < 0
        outcome = self._collect(name, kind, response) if spoken else dns.rcode.FORMERR
        if outcome is None:
            return None
        response.set_rcode(outcome)
        if not response.answer:
            soa = f"ns. admin. 1 1 1 1 {self.negative_ttl}"
            response.authority.append(dns.rrset.from_text(".", self.negative_ttl, "IN", "SOA", soa))
        wire = response.to_wire(max_size=65535)
        if datagram and len(wire) > max(512, query.payload):
            response.answer, response.authority = [], []
            response.flags |= dns.flags.TC
            wire = response.to_wire()
        return wire

    def _collect(
        self, name: dns.name.Name, kind: str, response: dns.message.Message
    ) -> dns.rcode.Rcode | None:
        """Put the answer together, following aliases as a recursive server does; None is silence."""
        for _ in range(8):
            known = self.zone.get(self._text(name))
            if known is None or isinstance(known, str):
                return {SILENCE: None, FAILURE: dns.rcode.SERVFAIL}.get(known or "", dns.rcode.NXDOMAIN)
            values = [value for record, value in known if record == kind]
            aliases = [value for record, value in known if record == "CNAME"]
            if values:
                response.answer.append(self._rrset(name, kind, values))
            elif any(record == FAILURE for record, _ in known):
                return dns.rcode.SERVFAIL
            elif aliases:
                response.answer.append(self._rrset(name, "CNAME", aliases))
                name = dns.name.from_text(aliases[0])
                continue
            break
        return dns.rcode.NOERROR

    def _rrset(self, name: dns.name.Name, kind: str, values: list[str]) -> dns.rrset.RRset:
        records = [dns.rdata.from_text("IN", kind, value) for value in values]
        return dns.rrset.from_rdata_list(name, self.ttl, records)

    @staticmethod
    def _text(name: dns.name.Name) -> str:
        return ".".join(label.decode("utf-8", "replace") for label in name.labels[:-1]).lower()


@contextmanager
def name_server() -> Iterator[NameServer]:
    server = NameServer()
    try:
        yield server
    finally:
        server.close()
