"""Packets for the gate, and a second opinion on them: what it has to do, said in Python.

The gate looks at exactly those packets that `read_syn` finds. The two were written apart on purpose: neither
is to be corrected by copying the other.
"""

import socket
import struct
from ipaddress import IPv4Address, IPv6Address, ip_address

IPV4, IPV6, VLAN, SERVICE_VLAN = 0x0800, 0x86DD, 0x8100, 0x88A8
TCP, UDP = 6, 17
HOP_BY_HOP, ROUTING, FRAGMENT, DESTINATION = 0, 43, 44, 60
FIN, SYN, RST, PUSH, ACK = 1, 2, 4, 8, 16

CLIENT4, SERVER4 = "10.77.1.66", "198.51.100.25"
CLIENT6, SERVER6 = "fd77:1::66", "2001:db8:25::25"


def tcp(port: int = 25, flags: int = SYN, options: bytes = b"") -> bytes:
    head = struct.pack(">HHIIBBHHH", 40000, port, 1, 0, (5 + len(options) // 4) << 4, flags, 65535, 0, 0)
    return head + options


def ipv4(
    payload: bytes,
    source: str = CLIENT4,
    target: str = SERVER4,
    *,
    protocol: int = TCP,
    options: bytes = b"",
    fragment: int = 0,
    length: int | None = None,
) -> bytes:
    words = 5 + len(options) // 4
    total = words * 4 + len(payload) if length is None else length
    head = struct.pack(">BBHHHBBH", 0x40 | words, 0, total, 1, fragment, 64, protocol, 0)
    return head + socket.inet_aton(source) + socket.inet_aton(target) + options + payload


def ipv6(
    payload: bytes, source: str = CLIENT6, target: str = SERVER6, *, following: int = TCP, before: bytes = b""
) -> bytes:
    head = struct.pack(">IHBB", 6 << 28, len(before) + len(payload), following, 64)
    return head + IPv6Address(source).packed + IPv6Address(target).packed + before + payload


def extension(following: int, words: int = 0) -> bytes:
    return bytes([following, words]) + bytes(6 + words * 8)


def frame(payload: bytes, kind: int, *tags: int) -> bytes:
    kinds = [*tags, kind]
    between = b"".join(struct.pack(">HH", 5, following) for following in kinds[1:])
    return bytes(12) + struct.pack(">H", kinds[0]) + between + payload


def syn(source: str = CLIENT4, target: str = SERVER4, port: int = 25) -> bytes:
    """Give the frame that begins a connection."""
    if ":" in source:
        return frame(ipv6(tcp(port), source, target), IPV6)
    return frame(ipv4(tcp(port), source, target), IPV4)


def read_syn(packet: bytes) -> tuple[str, str, int] | None:
    """Give client, server and port of a packet that is whole enough to be seen as a connection's first."""
    kind, rest = int.from_bytes(packet[12:14]), packet[14:]
    for _ in range(2):
        if kind in (VLAN, SERVICE_VLAN) and len(rest) >= 4:
            kind, rest = int.from_bytes(rest[2:4]), rest[4:]
    source, target, segment = {IPV4: _of_ipv4, IPV6: _of_ipv6}.get(kind, _of_others)(rest)
    if len(segment) < 20 or segment[13] & (SYN | ACK) != SYN:
        return None
    return str(ip_address(source)), str(ip_address(target)), int.from_bytes(segment[2:4])


def _of_others(_: bytes) -> tuple[bytes, bytes, bytes]:
    return b"", b"", b""


def _of_ipv4(rest: bytes) -> tuple[bytes, bytes, bytes]:
    if len(rest) < 20 or rest[0] >> 4 != 4 or rest[9] != TCP:
        return _of_others(rest)
    header = (rest[0] & 15) * 4
    total, fragment = struct.unpack_from(">HxxH", rest, 2)
    if header < 20 or total < header + 20 or fragment & 0x3FFF:
        return _of_others(rest)
    return rest[12:16], rest[16:20], rest[header:]


def _of_ipv6(rest: bytes) -> tuple[bytes, bytes, bytes]:
    if len(rest) < 40 or rest[0] >> 4 != 6 or IPv6Address(rest[8:24]).ipv4_mapped is not None:
        return _of_others(rest)
    source, target, following, rest = rest[8:24], rest[24:40], rest[6], rest[40:]
    for _ in range(6):
        if following not in (HOP_BY_HOP, ROUTING, DESTINATION) or len(rest) < 8:
            break
        following, rest = rest[0], rest[8 + rest[1] * 8 :]
    return source, target, rest if following == TCP else b""


def address(number: int) -> str:
    """Give the address of one of many servers."""
    return str(IPv4Address(0x2D000000 + number * 7919))
