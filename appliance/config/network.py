"""Value types of the configuration language that name places in a network.

Used by the option tables; `Address`, `Network` and `SocketAddress` are for everybody. No name is ever looked
up here.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
    summarize_address_range,
)
from pathlib import Path
from typing import Final

from appliance.config.option import Int, Kind, List, shown

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
_PRIVATE = "10.0.0.0/8 169.254.0.0/16 172.16.0.0/12 192.168.0.0/16 fc00::/7 fe80::/10"
PRIVATE: Final[tuple[Network, ...]] = tuple(map(ip_network, _PRIVATE.split()))
"""The clients that mode tproxy,netfilter redirects; the rules and the lookup must agree on them."""

_HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?", re.ASCII)


def unmapped(address: Address) -> Address:
    """Give the IPv4 address that one of IPv6 stands for (RFC 4291 section 2.5.5.2), or the address itself."""
    return getattr(address, "ipv4_mapped", None) or address


def Port() -> Int:  # noqa: N802
    """Make the type of a TCP or UDP port."""
    return Int(1, 65535, "PORT")


class IP(Kind[Address]):
    """An IPv4 or IPv6 address."""

    word = "IP"
    allowed = "an IPv4 or IPv6 address"

    def read(self, text: str) -> Address:
        """Read an address; a name is never looked up."""
        try:
            if "%" in text:  # a scope names an interface, which only the kernel can judge
                raise ValueError
            return ip_address(text)
        except ValueError:
            raise ValueError(f"{shown(text)} is not an address") from None


class Net(Kind[Network]):
    """A network, or one address as the smallest of networks."""

    word = "NETWORK"
    allowed = "an address or a network such as 192.0.2.0/24 or 2001:db8::/32"

    def read(self, text: str) -> Network:
        """Read a network without host bits."""
        try:
            return ip_network(text)
        except ValueError as error:
            bits = ": it has bits behind its mask" if "host bits" in str(error) else ""
            raise ValueError(f"{shown(text)} is not a network{bits}") from None


class Nets(List[Network]):
    """Networks, addresses and ranges of addresses; a range is read as the few networks it consists of."""

    def __init__(self, maximum: int) -> None:
        super().__init__(Net(), maximum)
        self.allowed += ", or a range such as 192.0.2.10-192.0.2.19"

    def read(self, text: str) -> tuple[Network, ...]:
        """Read networks, addresses and ranges."""
        parts = (part.strip(" \t") for part in text.split(","))
        networks = [network for part in parts if part for network in _networks(part)]
        return super().read(",".join(map(str, networks)))


class Networks:
    """Networks, to be asked which addresses are in one of them.

    The answer takes as long as there are different lengths of prefixes, however many networks there are.
    """

    def __init__(self, networks: Iterable[Network]) -> None:
        self._prefixes: dict[tuple[int, int], set[int]] = {}  # by version of IP, and bits that are not theirs
        for network in networks:
            bits = network.max_prefixlen - network.prefixlen
            prefixes = self._prefixes.setdefault((network.version, bits), set())
            prefixes.add(int(network.network_address) >> bits)

    def __contains__(self, address: Address) -> bool:
        """Tell whether an address is in one of them."""
        number = int(address)
        return any(
            number >> bits in prefixes
            for (version, bits), prefixes in self._prefixes.items()
            if version == address.version
        )


def _networks(text: str) -> list[Network]:
    first, dash, last = text.partition("-")
    if not dash:
        return [Net().read(text)]
    low, high = IP().read(first.rstrip(" \t")), IP().read(last.lstrip(" \t"))
    if isinstance(low, IPv4Address) and isinstance(high, IPv4Address) and low <= high:
        return list(summarize_address_range(low, high))
    if isinstance(low, IPv6Address) and isinstance(high, IPv6Address) and low <= high:
        return list(summarize_address_range(low, high))
    raise ValueError(f"{shown(text)} is not a range: it does not lead from an address to a higher one")


@dataclass(frozen=True, slots=True)
class SocketAddress:
    """Where a service listens: at a UNIX socket if `path` is set, else at `host` and TCP `port`."""

    path: Path | None
    host: str = ""
    port: int = 0

    def __str__(self) -> str:
        """Give the form the file uses: /path, host:port or [IPv6]:port."""
        if self.path is not None:
            return str(self.path)
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Socket(Kind[SocketAddress]):
    """A UNIX or TCP socket."""

    word = "SOCKET"
    allowed = "the absolute path of a UNIX socket, or address:port ([address]:port for IPv6)"

    def read(self, text: str) -> SocketAddress:
        """Read a path or an address with its port."""
        if text.startswith("/"):
            return SocketAddress(Path(text))
        host, _, port = text.rpartition(":")
        try:
            if host.startswith("[") and host.endswith("]"):
                return SocketAddress(None, str(IPv6Address(host[1:-1])), Port().read(port))
            if _HOST.fullmatch(host) is None:
                raise ValueError
            return SocketAddress(None, host, Port().read(port))
        except ValueError:
            raise ValueError(f"{shown(text)} is not a socket") from None
