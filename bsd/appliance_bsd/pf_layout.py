"""The structures of pf's device, net/pfvar.h, as each system lays them out.

`pf.py` and `pf_table.py` use the ones of the system they run on; the tests know the sizes and offsets of all.
The layouts are those of 64-bit systems. Nothing is asked here.
"""

import ctypes
from dataclasses import dataclass
from typing import Final

from appliance_bsd.kernel import Address

INET: Final = 2  # AF_INET of every system
OUT: Final = 2  # PF_OUT

_u8, _u16, _u32 = ctypes.c_uint8, ctypes.c_uint16, ctypes.c_uint32


class NatLook(ctypes.Structure):
    """What pf is asked about a connection: `s` source, `d` destination, `r` the same before or after pf.

    Ports are in network byte order.
    """

    saddr: ctypes.Array[ctypes.c_ubyte]
    daddr: ctypes.Array[ctypes.c_ubyte]
    rsaddr: ctypes.Array[ctypes.c_ubyte]
    rdaddr: ctypes.Array[ctypes.c_ubyte]
    sport: int
    dport: int
    rsport: int
    rdport: int
    af: int
    proto: int
    direction: int


_ADDRESSES = [(name, Address) for name in ("saddr", "daddr", "rsaddr", "rdaddr")]
_PORTS = ("sport", "dport", "rsport", "rdport")


class FreeBsdNatLook(NatLook):
    """As FreeBSD has it."""

    _fields_ = [
        *_ADDRESSES,
        *((name, _u16) for name in _PORTS),
        *((name, _u8) for name in ("af", "proto", "direction")),
    ]


class OpenBsdNatLook(NatLook):
    """As OpenBSD has it, with routing domains; 0 is the first one."""

    _fields_ = [
        *_ADDRESSES,
        *((name, _u16) for name in ("rdomain", "rrdomain", *_PORTS)),
        *((name, _u8) for name in ("af", "proto", "direction")),
    ]


class DarwinNatLook(NatLook):
    """As macOS has it: each port is the beginning of a 4-byte union."""

    _fields_ = [
        *_ADDRESSES,
        *((name, _u16) for port in _PORTS for name in (port, f"{port}_rest")),
        *((name, _u8) for name in ("af", "proto", "proto_variant", "direction")),
    ]


class TableAddress(ctypes.Structure):
    """An address or network in a table; `net` is the length of its prefix."""

    address: ctypes.Array[ctypes.c_ubyte]
    af: int
    net: int


class PlainTableAddress(TableAddress):
    """As FreeBSD and macOS have it."""

    _fields_ = [("address", Address), ("af", _u8), ("net", _u8), ("negated", _u8), ("feedback", _u8)]


class OpenBsdTableAddress(TableAddress):
    """As OpenBSD has it, where a table may hold interfaces and weights, too."""

    _fields_ = [
        ("address", Address),
        ("interface", ctypes.c_char * 16),
        ("states", _u32),
        ("weight", _u16),
        *((name, _u8) for name in ("af", "net", "negated", "feedback", "type")),
        ("padding", _u8 * 7),
    ]


class Table(ctypes.Structure):
    """The name of a table; the empty anchor is the main ruleset."""

    _fields_ = [
        ("anchor", ctypes.c_char * 1024),
        ("name", ctypes.c_char * 32),
        ("flags", _u32),
        ("feedback", _u8),
    ]


class TableRequest(ctypes.Structure):
    """What is done with a table: `size` elements of `esize` bytes each lie at `buffer`."""

    buffer: int
    esize: int
    size: int

    _fields_ = [
        ("table", Table),
        ("buffer", ctypes.c_void_p),
        *((name, ctypes.c_int) for name in ("esize", "size", "size2", "nadd", "ndel", "nchange", "flags")),
        ("ticket", _u32),
    ]


@dataclass(frozen=True, slots=True)
class System:
    """What differs between systems; `inet6` is AF_INET6."""

    natlook: type[NatLook]
    table_address: type[TableAddress]
    inet6: int


SYSTEMS: Final = {
    "freebsd": System(FreeBsdNatLook, PlainTableAddress, 28),
    "openbsd": System(OpenBsdNatLook, OpenBsdTableAddress, 24),
    "darwin": System(DarwinNatLook, PlainTableAddress, 30),
}
"""By the letters that sys.platform begins with."""


def system(platform: str) -> System:
    """Find the layouts of a sys.platform; raises ValueError when it has no pf that is known here."""
    for name, found in SYSTEMS.items():
        if platform.startswith(name):
            return found
    raise ValueError(
        f"the system {platform} has no pf that the gateway knows; FreeBSD, OpenBSD and macOS have"
    )
