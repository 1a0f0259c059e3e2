"""How a gateway asks the router of its clients where a connection was meant to go: both protocols, sans I/O.

The gateway's lookups `remote` (a line over TCP) and `remote-udp` (a datagram) write queries and read answers
here, `appliance.helper` on the router the other way round. docs/remote.md shows every byte. Nothing here
opens a socket, waits, or decides whom to believe.
"""

import re
import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

Address = IPv4Address | IPv6Address

MAGIC = 0x52504844  # RPHD
VERSION4, VERSION6 = 0x0402, 0x0600
QUERY, REPLY, FOUND, NOT_FOUND = 0x0001, 0x0002, 0x0010, 0x0020
LINE_MAX = 256  # bytes of a line over TCP, either way

_HEAD = struct.Struct("!IIIHH")  # magic, cookie, secret, version, flags
_BODIES = {
    VERSION4: struct.Struct("!4s4sHH32s6x"),  # source, destination, their ports, ident, an unused MAC address
    VERSION6: struct.Struct("!16s16sHH64s"),
}
DATAGRAM_MAX = _HEAD.size + _BODIES[VERSION6].size
_IDENT4, _IDENT6 = 20, 64  # characters of an ident over TCP, beside an IPv4 and an IPv6 address

_NOT_IN_IDENT = re.compile(r"[^A-Za-z0-9._@+=:/-]")
_PORTS = re.compile(rb"[ \t]*(\d{1,5})[ \t]*,[ \t]*(\d{1,5})[ \t]*")
_ANSWER = re.compile(_PORTS.pattern + rb":[ \t]*([A-Z]+)[ \t]*:[ \t]*(.*?)[ \t]*")
_ORIGIN = re.compile(rb"(?:\[([^\[\]\s]*)\]|([^:\[\]\s]*))[ \t]*:[ \t]*(\d{1,5})[ \t]*(?::[ \t]*([^\r\n]*))?")


class NotFound(Exception):
    """The router knows no such connection."""


class Mismatch(Exception):
    """An answer that is not one to this query; the text says what is wrong with it."""


class Malformed(Exception):
    """An answer whose address cannot be read; the text has it."""


@dataclass(frozen=True, slots=True)
class Flow:
    """A TCP connection as the gateway sees it: from the router's address to its own, of one IP version."""

    source: Address
    source_port: int
    destination: Address
    destination_port: int


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a connection was meant to go, and who is behind the router's address; that may be empty."""

    destination: Address
    port: int
    ident: str


@dataclass(frozen=True, slots=True)
class Query:
    """A datagram that asks for the origin of a flow."""

    flow: Flow
    cookie: int
    secret: int


def write_query(query: Query) -> bytes:
    """Give the datagram of a query."""
    return _written(query, QUERY, query.flow.destination, query.flow.destination_port, "")


def read_query(data: bytes) -> Query | None:
    """Read a datagram that may be from anybody; None when it is no query."""
    if len(data) < _HEAD.size:
        return None
    magic, cookie, secret, version, flags = _HEAD.unpack_from(data)
    body = _BODIES.get(version)
    if magic != MAGIC or flags != QUERY or not body or len(data) != _HEAD.size + body.size:
        return None
    source, destination, source_port, destination_port, _ = body.unpack_from(data, _HEAD.size)
    flow = Flow(ip_address(source), source_port, ip_address(destination), destination_port)
    return Query(flow, cookie, secret)


def write_reply(query: Query, origin: Origin | None) -> bytes:
    """Give the datagram that answers a query, as long as the query was; None says that there is no origin."""
    if origin is None:
        return _written(query, REPLY | NOT_FOUND, query.flow.destination, query.flow.destination_port, "")
    return _written(query, REPLY | FOUND, origin.destination, origin.port, origin.ident)


def _written(query: Query, flags: int, destination: Address, port: int, ident: str) -> bytes:
    flow = query.flow
    version = VERSION4 if flow.source.version == 4 else VERSION6
    head = _HEAD.pack(MAGIC, query.cookie, query.secret, version, flags)
    packed = (
        flow.source.packed,
        destination.packed,
        flow.source_port,
        port,
        ident.encode("ascii", "replace"),
    )
    return head + _BODIES[version].pack(*packed)


def read_reply(data: bytes, query: Query) -> Origin | None:
    """Read a datagram that came from where the query was sent to; None when it is no answer to it.

    Raises NotFound and Mismatch.
    """
    if len(data) < _HEAD.size:
        return None
    magic, cookie, _, version, flags = _HEAD.unpack_from(data)
    if magic != MAGIC or cookie != query.cookie:
        return None
    asked = VERSION4 if query.flow.source.version == 4 else VERSION6
    if version != asked:
        raise Mismatch(f"version 0x{version:04x} where 0x{asked:04x} was asked")
    if not flags & REPLY or flags & QUERY or bool(flags & FOUND) == bool(flags & NOT_FOUND):
        raise Mismatch(f"flags 0x{flags:04x}")
    if len(data) != _HEAD.size + _BODIES[version].size:
        raise Mismatch(f"{len(data)} bytes")
    if flags & NOT_FOUND:
        raise NotFound
    _, destination, _, port, ident = _BODIES[version].unpack_from(data, _HEAD.size)
    return Origin(ip_address(destination), port, _ident(ident.partition(b"\0")[0]))


def write_query_line(flow: Flow) -> bytes:
    """Give the line that asks over TCP, whose addresses are those of the connection it is sent on."""
    return b"%d , %d\r\n" % (flow.source_port, flow.destination_port)


def read_query_line(line: bytes) -> tuple[int, int] | None:
    """Read a query's two ports; None when it is no query."""
    found = _PORTS.fullmatch(line.rstrip(b"\r\n"))
    ports = (int(found[1]), int(found[2])) if found else (0, 0)
    return ports if all(0 < port < 65536 for port in ports) else None


def write_reply_line(flow: Flow, origin: Origin | None) -> bytes:
    """Give the line that answers over TCP; IPv6 addresses stand in brackets."""
    ports = f"{flow.source_port} , {flow.destination_port}"
    if origin is None:
        return f"{ports} : ERROR : NO-USER\r\n".encode()
    six = origin.destination.version == 6
    where = f"[{origin.destination}]" if six else str(origin.destination)
    ident = origin.ident[: _IDENT6 if six else _IDENT4]
    return f"{ports} : ORIGIN : {where} : {origin.port} : {ident}\r\n".encode("ascii", "replace")


def read_reply_line(line: bytes, flow: Flow) -> Origin:
    """Read the line that came for a query. Raises NotFound, Mismatch and Malformed."""
    line = line.rstrip(b"\r\n")
    found = _ANSWER.fullmatch(line)
    if not found:
        raise Mismatch(f"answer {line[:80]!r}")
    if (int(found[1]), int(found[2])) != (flow.source_port, flow.destination_port):
        raise Mismatch(f"answer to another query: {line[:80]!r}")
    if found[3] == b"ERROR":
        raise NotFound
    origin = _ORIGIN.fullmatch(found[4])
    if found[3] != b"ORIGIN" or not origin or int(origin[3]) > 65535:
        raise Mismatch(f"answer {line[:80]!r}")
    written = (origin[1] if origin[1] is not None else origin[2]).decode("ascii", "replace")
    try:
        address = ip_address(written)
    except ValueError:
        raise Malformed(f"address {written[:80]!r}") from None
    if address.version != flow.source.version or "%" in written:
        raise Malformed(f"address {written[:80]!r}")
    return Origin(
        address, int(origin[3]), _ident((origin[4] or b"")[: _IDENT6 if address.version == 6 else _IDENT4])
    )


def _ident(raw: bytes) -> str:
    """Give a router's word for a user as text that is safe in headers, logs and file names."""
    return _NOT_IN_IDENT.sub("_", raw.decode("ascii", "replace").strip())
