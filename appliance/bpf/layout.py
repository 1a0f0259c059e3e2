"""What the gate's maps hold: names, sizes and the structures of gate.c, read and written in Python.

For compile.py, and for whoever reads or writes the maps. Pure: nothing here speaks to the kernel.
"""

import hashlib
import math
import os
import struct
import time
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Final

from appliance.config import Address, Network

SOURCE: Final = Path(__file__).with_name("gate.c")
BITS: Final = 1024  # of a sketch: tells up to 3000 servers apart, 2 to 5 percent off
SIZES: Final = {"IN_FORCE": 1 << 17, "CLIENTS": 1 << 15, "NETWORKS": 1 << 16, "BITS": BITS}
PROGRAM: Final = "gate"

_SETTINGS = struct.Struct("=QQIIII")
_LOCK = struct.Struct("=QQQQ")
_CLIENT = struct.Struct("=QQQQII")
_SUSPECT = struct.Struct("=16sQ")
MAPS: Final = {
    "configured": _SETTINGS.size + 65536 // 8,
    "locks": _LOCK.size,
    "clients": _CLIENT.size + 2 * BITS // 8,
    "trusted_clients": 8,
    "trusted_servers": 8,
    "suspects": _SUSPECT.size,
}
"""The maps, and how long their values are."""
_MAPPED = bytes(10) + b"\xff\xff"  # what an IPv4 address has in front
_SECOND = 1_000_000_000
_LAST = (1 << 64) - 1  # in 584 years


def fingerprint() -> int:
    """Tell one gate from another: by its source and the sizes of its maps."""
    told = SOURCE.read_bytes() + repr(SIZES).encode()
    return int.from_bytes(hashlib.sha256(told).digest()[:8])


def pack_address(address: Address) -> bytes:
    """Write an address as a key of the maps; an IPv4-mapped one is the IPv4 address."""
    return _MAPPED + address.packed if address.version == 4 else address.packed


def unpack_address(key: bytes) -> Address:
    """Read a key of the maps."""
    return IPv4Address(key[12:]) if key.startswith(_MAPPED) else IPv6Address(key)


def pack_network(network: Network) -> bytes:
    """Write a network as a key of the tries."""
    length = network.prefixlen + (96 if network.version == 4 else 0)
    return struct.pack("=I", length) + pack_address(network.network_address)


@dataclass(frozen=True, slots=True)
class Settings:
    """What the gate is told: ports to drop at, SYNs a minute left to the locked, and when to report a client.

    `limit` servers in `period` seconds are allowed, any number if 0.
    """

    ports: frozenset[int]
    talk: int
    limit: int
    period: int

    def pack(self, source: int, seed: int) -> bytes:
        """Write them for a gate with this fingerprint; `seed` decides which servers share a bit."""
        bitmap = bytearray(8192)
        for port in self.ports:
            bitmap[port // 8] |= 1 << port % 8
        half = max(self.period, 1) * _SECOND // 2
        talk = min(self.talk, 2**32 - 1)
        return _SETTINGS.pack(source, half, bits_allowed(self.limit), talk, seed, 0) + bytes(bitmap)


def unpack_source(settings: bytes) -> tuple[int, int]:
    """Read fingerprint and seed of a gate from its settings."""
    source, _, _, _, seed, _ = _SETTINGS.unpack_from(settings)
    return source, seed


def bits_allowed(limit: int) -> int:
    """How many bits `limit` servers set at the very most, but for one client in a thousand; 0 stays 0.

    Servers share bits by chance, so a number of bits stands for a range of numbers of servers. Whoever keeps
    to the limit is given the benefit of the doubt.
    """
    load = limit / BITS
    free = math.exp(-load)
    scatter = math.sqrt(BITS * free * (1 - (1 + load) * free))
    return min(limit, math.floor(BITS * (1 - free) + 3 * scatter), BITS - 1)


def servers(bits: int) -> int:
    """Estimate how many servers set that many bits of a sketch."""
    return round(-BITS * math.log(1 - min(bits, BITS - 1) / BITS))


def now() -> int:
    """The gate's clock: nanoseconds since boot, suspended time included."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def deadline_of(until: float | None) -> int:
    """Turn a unix time into the gate's; None, no end, is 0, and what lies beyond its numbers the last one."""
    return 0 if until is None else min(max(1, now() + int((until - time.time()) * _SECOND)), _LAST)


def pack_lock(deadline: int, old: bytes | None = None) -> bytes:
    """Write a lock until `deadline`; what is counted in an old one of the same client is kept."""
    counted = _LOCK.unpack(old)[1:] if old else (0, 0, 0)
    return _LOCK.pack(deadline, *counted)


def unpack_lock(value: bytes) -> tuple[int, int]:
    """Read deadline and packets dropped of a lock."""
    deadline, _, _, dropped = _LOCK.unpack(value)
    return deadline, dropped


@dataclass(frozen=True, slots=True)
class Client:
    """What the gate counted of a client: SYNs to mail ports, those dropped, unix time of the last, servers.

    `servers` is an estimate for the last fanout_period.
    """

    address: Address
    syns: int
    dropped: int
    seen: float
    servers: int


def unpack_client(key: bytes, value: bytes, period: int) -> Client:
    """Read a client; `period` is fanout_period in seconds."""
    syns, dropped, seen, turned, bits, fresh = _CLIENT.unpack_from(value)
    age = 2 * max(now() - turned, 0) // (max(period, 1) * _SECOND)
    counted = bits if age == 0 else fresh if age == 1 else 0
    since = (now() - seen) / _SECOND
    return Client(unpack_address(key), syns, dropped, time.time() - since, servers(counted))


def unpack_suspect(value: bytes) -> tuple[Address, int]:
    """Read a report: the client, and how many servers it went to."""
    key, bits = _SUSPECT.unpack(value)
    return unpack_address(key), servers(bits)


def seed() -> int:
    """Give a number for sketches that nobody can guess."""
    return int.from_bytes(os.urandom(4))


def keys(networks: Iterable[Network]) -> set[bytes]:
    """Write networks as keys of the tries."""
    return {pack_network(network) for network in networks}
