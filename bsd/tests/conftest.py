"""Fake devices: they check the bytes that the kernel would be handed, and answer as it would.

They know the structures from the systems' headers alone, as formats of the struct module, so that a mistake
in the ctypes structures cannot hide in them.
"""

import ctypes
import errno
import os
import socket
import struct
from collections.abc import Callable
from typing import ClassVar

import pytest

from appliance_bsd.kernel import Device
from appliance_bsd.pf_layout import SYSTEMS

INET6 = {"freebsd": 28, "openbsd": 24, "darwin": 30}

State = tuple[tuple[str, int], tuple[str, int], tuple[str, int]]  # client, local end, destination


def error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


class Fake(Device):
    """A device that is not there."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, bytes]] = []
        self.refuses = 0  # an errno

    def ask(self, request: int, structure: ctypes.Structure) -> None:
        given = bytes(structure)
        self.asked.append((request, given))
        if self.refuses:
            raise error(self.refuses)
        answer = self.answer(request, given)
        assert len(answer) == len(given) == request >> 16 & 0x1FFF
        ctypes.memmove(ctypes.addressof(structure), answer, len(answer))

    def answer(self, request: int, given: bytes) -> bytes:
        raise NotImplementedError


def wire(address: str) -> bytes:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return socket.inet_pton(family, address).ljust(16, b"\0")


class FakePfStates(Fake):
    """/dev/pf of a system, with translated connections."""

    PORTS: ClassVar = {"freebsd": "!4H 3B x", "openbsd": "!4x 4H 3B x", "darwin": "!H2x H2x H2x H2x 2B x B"}
    REQUEST: ClassVar = {"freebsd": 0xC04C4417, "openbsd": 0xC0504417, "darwin": 0xC0544417}

    def __init__(self, system: str, *states: State) -> None:
        super().__init__()
        self.form = struct.Struct(self.PORTS[system])
        self.request = self.REQUEST[system]
        self.inet6 = INET6[system]
        self.states = states

    def answer(self, request: int, given: bytes) -> bytes:
        assert request == self.request
        assert len(given) == 64 + self.form.size
        addresses, rest = given[:64], self.form.unpack(given[64:])
        sport, dport, rsport, rdport, af, proto, direction = rest
        assert (rsport, rdport, proto, direction) == (0, 0, 6, 2)
        assert addresses[32:] == bytes(32)
        for client, local, destination in self.states:
            six = ":" in client[0]
            asked = (addresses[:16], addresses[16:32], sport, dport, af)
            if asked == (wire(client[0]), wire(local[0]), client[1], local[1], self.inet6 if six else 2):
                packed = self.form.pack(sport, dport, sport, destination[1], af, proto, direction)
                return addresses[:32] + wire(client[0]) + wire(destination[0]) + packed
        raise error(errno.ENOENT)


class FakeIpnat(Fake):
    """/dev/ipnat, with translated connections."""

    LOOKUP = struct.Struct("16s16s16s ii 2s2s2s 2x")

    def __init__(self, *states: State) -> None:
        super().__init__()
        self.states = states

    def answer(self, request: int, given: bytes) -> bytes:
        assert request == 0xC038723F
        revision, size, pointer, kind, offset, retval = struct.unpack("IIQiii28x", given)
        assert (revision, size, kind, offset, retval) == (5010200, 64, 9, 0, 0)
        inip, outip, realip, version, flags, inport, outport, realport = self.LOOKUP.unpack(
            ctypes.string_at(pointer, size)
        )
        assert (realip, realport, flags) == (bytes(16), bytes(2), 1)
        for client, local, destination in self.states:
            asked = (inip, inport, outip, outport, version)
            theirs = (*_port(local), *_port(client), 6 if ":" in client[0] else 4)
            if asked == theirs:
                real, port = _port(destination)
                found = self.LOOKUP.pack(inip, outip, real, version, flags, inport, outport, port)
                ctypes.memmove(pointer, found, len(found))
                return given
        raise error(errno.ESRCH)


def _port(end: tuple[str, int]) -> tuple[bytes, bytes]:
    return wire(end[0]), struct.pack("!H", end[1])


class FakePfTables(Fake):
    """/dev/pf of a system, with tables: sets of the address, family and prefix length of each element."""

    REQUEST = struct.Struct("1024s32sIB3x QiiiiiiiI")
    ELEMENT: ClassVar = {"freebsd": "16sBBBB", "openbsd": "16s16xIHBBBBB7x2x", "darwin": "16sBBBB"}
    AT_ONCE = 65535

    def __init__(self, system: str, *names: str) -> None:
        super().__init__()
        self.element = struct.Struct(self.ELEMENT[system])
        self.plain = system != "openbsd"
        self.inet6 = INET6[system]
        self.tables: dict[str, set[tuple[bytes, int, int]]] = {name: set() for name in names}

    def answer(self, request: int, given: bytes) -> bytes:
        anchor, name, flags, back, pointer, esize, size, size2, nadd, ndel, nchange, how, ticket = (
            self.REQUEST.unpack(given)
        )
        assert (anchor, flags, back, size2, nadd, ndel, nchange, how, ticket) == (bytes(1024), *[0] * 8)
        if esize != self.element.size:
            raise error(errno.ENODEV)
        if size > self.AT_ONCE:
            raise error(errno.EINVAL)
        table = self.tables.get(name.rstrip(b"\0").decode())
        if table is None:
            raise error(errno.ESRCH)
        given_elements = ctypes.string_at(pointer, esize * size)
        elements = {self._read(raw) for raw in self.element.iter_unpack(given_elements)}
        before = set(table)
        match request:
            case 0xC4504443:
                table |= elements
            case 0xC4504444:
                table -= elements
            case 0xC4504445:
                table.clear()
                table |= elements
            case _:
                raise error(errno.ENODEV)
        nadd, ndel = len(table - before), len(before - table)
        return self.REQUEST.pack(
            anchor, name, flags, back, pointer, esize, size, size2, nadd, ndel, nchange, how, ticket
        )

    def _read(self, raw: tuple[bytes, *tuple[int, ...]]) -> tuple[bytes, int, int]:
        address, *rest = raw
        if not self.plain:
            states, weight, *rest = rest
            assert (states, weight) == (0, 0)
        af, net, *others = rest
        assert not any(others)
        assert (af, net) in {(2, 32), (self.inet6, 128)}
        assert af != 2 or address[4:] == bytes(12)
        return address, af, net


@pytest.fixture(params=SYSTEMS)
def system(request: pytest.FixtureRequest) -> str:
    """Each system that has pf."""
    return str(request.param)


@pytest.fixture
def pf_states(system: str) -> Callable[..., FakePfStates]:
    """Make /dev/pf with states."""
    return lambda *states: FakePfStates(system, *states)


@pytest.fixture
def ipnat() -> type[FakeIpnat]:
    """Make /dev/ipnat with states."""
    return FakeIpnat


@pytest.fixture
def pf_tables(system: str) -> Callable[..., FakePfTables]:
    """Make /dev/pf with tables."""
    return lambda *names: FakePfTables(system, *names)
