"""The sets of locked clients in the kernel: elements are added, removed, replaced and read here.

An element is a client's address with what is left of its lock as timeout (none for an endless one), a counter
of the packets dropped, and the cause as comment, so that `nft list set inet appliance locked4` reads like a
report. The lock mirror of the supervisor writes here, appliance-ctl reads. The table and its sets are made by
the installer, never here, and nothing here knows a lock file.
"""

import errno
import itertools
import math
import re
import socket
import struct
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, NamedTuple, TypeVar

from appliance.config import Address
from appliance.nft.names import FAMILY, LOCKED, TABLE

T = TypeVar("T")

BATCH = 500  # elements of a transaction: some 10 ms, for which a lock that was just made has to wait
_TOLERANCE = 2.0  # seconds; nft tells whole ones
_LONGEST_COMMENT = 128  # bytes, all that nft reads back
_NOT_IN_COMMENT = re.compile(r"[^ !#-~]")  # a quotation mark would end the comment in nft's text
_LONGEST_TIMEOUT = 10 * 365 * 86400  # seconds; the kernel counts milliseconds in 64 bits, nft's text in fewer

_NETLINK_NETFILTER = 12
_NFNL_SUBSYS_NFTABLES = 10
_NFT_MSG_NEWGEN = 15
_NFT_MSG_GETGEN = 16
_NLM_F_REQUEST = 1
_GENERATION = struct.Struct(">20x4xI")  # behind two headers and the attribute's own


class NoTable(Exception):
    """There is no table, or it has no sets for locks: the installer has not run, or somebody undid it."""


class NftError(Exception):
    """The kernel or libnftables refused; the text is theirs."""


class Lock(NamedTuple):
    """A lock as the kernel is told of it: the unix time of its end (None: endless) and its cause."""

    until: float | None
    cause: str


@dataclass(frozen=True, slots=True)
class Element:
    """A locked client as the kernel has it; `remaining` is in seconds, None without end."""

    address: Address
    remaining: int | None
    packets: int
    bytes: int
    comment: str


def comment(cause: str) -> str:
    """Give a cause as nft can keep it: printable ASCII without quotation marks, 128 bytes at most."""
    return _NOT_IN_COMMENT.sub("'", cause.strip())[:_LONGEST_COMMENT].rstrip()


class LockSets:
    """The sets locked4 and locked6 in the network namespace this is made in.

    Raises ImportError or OSError where the nftables library is missing. What the methods do to one address
    they do in one transaction: a client that stays locked is locked at every moment.
    """

    def __init__(self) -> None:
        from nftables import Nftables  # a package of the system, which may lack it

        self._nft = Nftables()
        self._nft.set_json_output(True)
        self._netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER)
        self._netlink.settimeout(1)
        self._generation: int | None = None

    def add(self, locks: Mapping[Address, Lock]) -> None:
        """Lock clients that are not locked; it does no harm to one that is. Raises NoTable, NftError."""
        for some in _batches(locks.items()):
            self._commit(_commands("add", some))

    def renew(self, locks: Mapping[Address, Lock]) -> None:
        """Give clients another end and cause, locked or not; their counters begin anew.

        Raises NoTable, NftError.
        """
        for some in _batches(locks.items()):  # older kernels keep an element's timeout for its life
            self._commit([*_removal([address for address, _ in some]), *_commands("add", some)])

    def remove(self, addresses: Iterable[Address]) -> None:
        """Unlock clients, whether or not they are locked. Raises NoTable, NftError."""
        for some in _batches(addresses):
            self._commit(_removal(some))

    def replace(self, locks: Mapping[Address, Lock]) -> tuple[int, int]:
        """Make these all the locks there are; give how many were added or renewed, and how many removed.

        Whoever is locked already, for the same time and cause, keeps its counter. Raises NoTable, NftError.
        """
        now = time.time()
        present = {element.address: element for element in self.dump()}
        tolerance = _TOLERANCE + time.time() - now  # many elements take seconds to read
        fresh = {address: lock for address, lock in locks.items() if address not in present}
        wrong = {
            address: lock
            for address, lock in locks.items()
            if address in present and not _same(present[address], lock, now, tolerance)
        }
        surplus = present.keys() - locks.keys()
        self.remove(surplus)
        self.renew(wrong)
        self.add(fresh)
        return len(fresh) + len(wrong), len(surplus)

    def dump(self) -> list[Element]:
        """Give all locked clients; some may be missed while the kernel makes a set larger or smaller.

        That happens within a second after thousands have come or gone. Raises NoTable, NftError.
        """
        self._generation = self._current_generation()  # before: what changes meanwhile is seen next time
        return [element for name in LOCKED.values() for element in self._dump_set(name)]

    def changed_by_others(self) -> bool:
        """Tell whether anybody but this object changed any rule or set since the last `dump`.

        One question to the kernel, which counts its transactions, however many elements there are. Raises
        OSError.
        """
        return self._generation is None or self._current_generation() != self._generation

    def close(self) -> None:
        """Leave the kernel alone; the elements stay."""
        self._netlink.close()

    def _dump_set(self, name: str) -> Iterator[Element]:
        found = self._run([{"list": {"set": {"family": FAMILY, "table": TABLE, "name": name}}}])
        for entry in found["nftables"]:
            for raw in entry.get("set", {}).get("elem", []):
                yield _parse(raw)

    def _commit(self, commands: Iterable[dict[str, Any]]) -> None:
        before = self._current_generation()
        self._run([*commands])
        if self._generation == before and self._current_generation() == _next(before):
            self._generation = _next(before)

    def _run(self, commands: list[dict[str, Any]]) -> dict[str, Any]:
        status, output, error = self._nft.json_cmd({"nftables": commands})
        if status:
            if "No such file or directory" in error:
                raise NoTable
            raise NftError(" ".join(error.split())[:200])
        return output or {"nftables": []}

    def _current_generation(self) -> int:
        """Ask for the number of the last transaction on any rule or set of this namespace. Raises OSError."""
        kind = _NFNL_SUBSYS_NFTABLES << 8
        header = struct.pack("=IHHII", 20, kind | _NFT_MSG_GETGEN, _NLM_F_REQUEST, 0, 0)
        self._netlink.sendto(header + bytes(4), (0, 0))
        answer = self._netlink.recv(4096)
        if len(answer) < _GENERATION.size or answer[4:6] != struct.pack("=H", kind | _NFT_MSG_NEWGEN):
            raise OSError(errno.EPROTO, "the kernel does not tell the generation of its rules")
        return int(_GENERATION.unpack_from(answer)[0])


def _next(generation: int) -> int:
    return (generation + 1) & 0xFFFFFFFF or 1  # the kernel leaves out zero


def _batches(items: Iterable[T]) -> Iterator[list[T]]:
    left = iter(items)
    while some := list(itertools.islice(left, BATCH)):
        yield some


def _commands(do: str, locks: Iterable[tuple[Address, Lock | None]]) -> Iterator[dict[str, Any]]:
    """Make the commands that add or delete elements, one for each set concerned."""
    now = time.time()
    elements: dict[int, list[dict[str, Any]]] = {}
    for address, lock in locks:
        elements.setdefault(address.version, []).append({"elem": _element(address, lock, now)})
    for version, some in elements.items():
        yield {do: {"element": {"family": FAMILY, "table": TABLE, "name": LOCKED[version], "elem": some}}}


def _removal(addresses: Sequence[Address]) -> Iterator[dict[str, Any]]:
    """Add before deleting: one that is gone already, its time being over, would undo the whole batch."""
    bare: list[tuple[Address, Lock | None]] = [(address, None) for address in addresses]
    yield from _commands("add", bare)
    yield from _commands("delete", bare)


def _element(address: Address, lock: Lock | None, now: float) -> dict[str, Any]:
    element: dict[str, Any] = {"val": str(address)}
    if lock is None:
        return element
    if lock.until is not None:
        element["timeout"] = min(max(1, math.ceil(lock.until - now)), _LONGEST_TIMEOUT)
    if words := comment(lock.cause):
        element["comment"] = words
    return element


def _parse(raw: Any) -> Element:
    element = raw["elem"] if isinstance(raw, dict) else {"val": raw}  # without anything else it is bare
    counter = element.get("counter", {})
    return Element(
        address=ip_address(element["val"]),
        remaining=element.get("expires"),
        packets=counter.get("packets", 0),
        bytes=counter.get("bytes", 0),
        comment=element.get("comment", ""),
    )


def _same(element: Element, lock: Lock, now: float, tolerance: float) -> bool:
    if element.comment != comment(lock.cause) or (element.remaining is None) != (lock.until is None):
        return False
    if element.remaining is None or lock.until is None:
        return True
    left = min(lock.until - now, _LONGEST_TIMEOUT)
    return abs(element.remaining - left) <= tolerance
