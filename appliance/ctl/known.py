"""What files and the kernel know of clients, gateway or not: lock files, the rules' sets, the gate's maps.

The commands call this. What it reads it never changes; who writes does so with the rights of the gateway's
user (`as_owner`), so that a command run by root leaves nothing behind that the gateway could not use.
"""

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Final, NamedTuple

from appliance import process
from appliance.bpf import gate, layout
from appliance.bpf.locks import dropped as dropped_by_gate
from appliance.bpf.pinned import Gate
from appliance.config import Address, Config
from appliance.config.network import unmapped
from appliance.ctl.base import Code, CtlError
from appliance.nft.kernel import KernelError, transact
from appliance.nft.locks import Element, LockSets, NftError, NoTable
from appliance.nft.names import DROPPED_LOCKED, FAMILY, TABLE
from appliance.nft.ruleset import intercepts
from appliance.privileges import Identity, PrivilegeError, acting_as, identity
from appliance.proxy.locks import Lock, LockDirectory, lock_name, locked_address, read_lock

NO_TABLE: Final = f"the kernel has no table {FAMILY} {TABLE}; appliance-ctl up makes it"


class Client(NamedTuple):
    """A client, and who is behind it if only that one is meant; `name` is that of its lock and record."""

    address: Address
    ident: str

    @property
    def name(self) -> str:
        """The name of its files."""
        return lock_name(str(self.address), self.ident)


class LockFile(NamedTuple):
    """A lock as its file says; `until` is None without end.

    `exempt`: another's file, which never locks, or one of a trusted client.
    """

    name: str
    since: float
    until: float | None
    why: str
    exempt: bool


def client(text: str) -> Client:
    """Read ADDRESS or ADDRESS-IDENT. Raises CtlError."""
    address, _, ident = text.partition("-")
    if "%" in address:
        raise CtlError(
            f"{text!r}: a client is known by its address alone; leave out what follows %", Code.BAD_USAGE
        )
    try:
        found = ip_address(address)
    except ValueError:
        raise CtlError(
            f"{text!r} is not a client: give an IPv4 or IPv6 address, or ADDRESS-IDENT", Code.BAD_USAGE
        ) from None
    return Client(unmapped(found), ident)


def owner(config: Config) -> Identity:
    """Give the gateway's user. Raises CtlError."""
    try:
        return identity(config.set_user, config.set_group)
    except PrivilegeError as error:
        raise CtlError(str(error), Code.BAD_CONFIGURATION) from None


@contextlib.contextmanager
def as_owner(config: Config, doing: str) -> Iterator[Identity]:
    """Act as the gateway's user. Raises CtlError for whoever cannot, and for what fails on disk."""
    who = owner(config)
    if os.geteuid() not in (0, who.uid):
        raise CtlError(f"only root can {doing}: try again with sudo", Code.FORBIDDEN)
    try:
        with acting_as(who):
            yield who
    except OSError as error:
        if not error.filename:  # a file that is open already, such as on a full disk
            raise CtlError(f"cannot {doing}: {error.strerror}") from None
        where = Path(error.filename)
        if where.name.startswith("."):  # a lock before it has its name
            where = where.parent
        raise CtlError(f"{where}: {error.strerror}; look after {where}") from None


def lock_directory(config: Config, *, trusting: bool = True) -> LockDirectory:
    """Give the lock directory as the gateway sees it; or with trusted clients' locks, which do not count."""
    path = config.outside(config.lock_path)
    return LockDirectory.of(config, path, owner(config).uid, trusting=trusting)


def lock_names(config: Config) -> list[str]:
    """Give the names of all lock files and exemptions. Raises CtlError."""
    path = config.outside(config.lock_path)
    try:
        names = os.listdir(path)  # noqa: PTH208 - names, fast
    except FileNotFoundError:
        return []
    except OSError as error:
        code = Code.FORBIDDEN if isinstance(error, PermissionError) else Code.FAILED
        raise CtlError(f"lock_path {path}: {error.strerror}; try as root", code) from None
    return [name for name in names if locked_address(name.partition("-")[0])]


def locks(config: Config, client: str | None = None, latest: int | None = None) -> list[LockFile]:
    """Give the locks in force and the exemptions, oldest first, or only so many of the latest.

    With a name, those of that client and its idents. Raises CtlError.
    """
    directory, path, now = lock_directory(config), config.outside(config.lock_path), time.time()
    found: list[tuple[float, str, Lock | None]] = []
    for name in lock_names(config):
        if client is not None and name != client and not name.startswith(f"{client}-"):
            continue
        lock = directory.look(name)
        if lock and (lock.until is None or lock.until > now):
            found.append((lock.since, name, lock))
        elif lock is None and (since := exemption(path / name)) is not None:
            found.append((since, name, None))
    found.sort(key=lambda each: each[:2])
    return [
        LockFile(name, since, lock.until if lock else None, _cause(path / name), exempt=lock is None)
        for since, name, lock in found[-latest if latest else 0 :]
    ]


def _cause(file: Path) -> str:
    if not os.access(file, os.R_OK) and file.exists():  # how long it lasts stands in there, too
        raise CtlError(f"only root can read {file}: try again with sudo", Code.FORBIDDEN)
    return read_lock(file)[0]


def exemption(path: Path) -> float | None:
    """Give the date of a file that exempts its client, None if there is none."""
    try:
        return path.lstat().st_mtime
    except OSError:
        return None


def may_ask_kernel() -> bool:
    """Tell whether we have the right to; to whoever has not, libnftables says so by itself, too."""
    return bool(process.capabilities()[0] >> process.CAP_NET_ADMIN & 1)


def kernel_locks() -> dict[str, Element] | str:
    """Give the clients that the kernel drops, by rules or by the gate, by address; or why that is unknown."""
    if not may_ask_kernel():
        return "only root may ask the kernel"
    try:
        sets = LockSets()
    except (ImportError, OSError) as error:
        return f"nftables cannot be asked ({error}); install python3-nftables"
    try:
        found = {str(element.address): element for element in sets.dump()}
    except NoTable:
        return NO_TABLE
    except (NftError, OSError) as error:
        return f"the kernel refuses: {error}"
    finally:
        sets.close()
    for address, packets in _dropped_by_gate().items():  # before the sets could count them
        if element := found.get(str(address)):
            found[str(address)] = replace(element, packets=element.packets + packets)
    return found


def led_past(config: Config, kernel: dict[str, Element] | str | None) -> bool:
    """Tell whether rules of ours should lead connections to the gateway, but are not there."""
    return kernel == NO_TABLE and intercepts(config) and bool(config.lan_interfaces)


def dropped(counters: dict[str, int]) -> int:
    """Give the connections that rules and gate have dropped in all, the rules' by their counters."""
    return counters.get(DROPPED_LOCKED, 0) + sum(_dropped_by_gate().values())


def _dropped_by_gate() -> dict[Address, int]:
    """Give the connections that the gate dropped, by client; nothing without a gate."""
    try:
        return dropped_by_gate()
    except OSError:
        return {}


def kernel_counters() -> dict[str, int]:
    """Give the packets of the table's named counters; nothing where there is no table, or no right to ask."""
    if not may_ask_kernel():
        return {}
    try:
        found = transact([{"list": {"counters": {"table": {"family": FAMILY, "name": TABLE}}}}])
    except KernelError:
        return {}
    counters = [each["counter"] for each in found if "counter" in each]
    return {
        each["name"]: each["packets"]
        for each in counters
        if (each["family"], each["table"]) == (FAMILY, TABLE)
    }


def gate_interfaces() -> dict[str, str]:
    """Give the interfaces that the gate watches, and how; nothing where there is none to be asked."""
    try:
        return gate.attached()
    except OSError:
        return {}


def gate_clients(config: Config) -> dict[str, layout.Client]:
    """Give what the gate has counted of each client, by address; nothing where there is none to be asked."""
    try:
        with Gate() as standing:
            return {str(client.address): client for client in standing.clients(config.fanout_period)}
    except OSError:
        return {}


def gate_client(config: Config, address: Address) -> layout.Client | None:
    """Give what the gate has counted of a client, None if nothing."""
    try:
        with Gate() as standing:
            return standing.client(address, config.fanout_period)
    except OSError:
        return None


def trusted(config: Config, address: Address) -> str | None:
    """Give the entry of trusted_clients that an address is in, None if there is none."""
    return next((str(network) for network in config.trusted_clients if address in network), None)
