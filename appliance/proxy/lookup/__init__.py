"""Ways to find the mail server that a client meant to reach: one module each, chosen by the option `mode`.

A module of this package has a class derived from `Lookup`. Other packages add theirs as entry points of the
group `appliance.lookup`, named as the mode. The worker asks once for each connection; nothing here connects
anywhere.
"""

import functools
import importlib
import socket
import sys
from importlib.metadata import entry_points
from typing import NamedTuple

from appliance.config import Config

_BUILT_IN = {
    "fixed": "fixed:Fixed",
    "fixed+xclient": "fixed:Fixed",
    "getsockname": "getsockname:Getsockname",
    "netfilter": "netfilter:Netfilter",
    "remote": "remote:Remote",
    "remote-udp": "remote_udp:RemoteUdp",
    "tproxy": "tproxy:Tproxy",
    "tproxy,netfilter": "tproxy:TproxyOrNetfilter",
}
_LINUX_ALONE = {"netfilter", "tproxy", "tproxy,netfilter"}

_GROUP = "appliance.lookup"


class Endpoint(NamedTuple):
    """A TCP address: a numeric IP address (IPv4 as such, never mapped into IPv6) and a port."""

    address: str
    port: int

    def __str__(self) -> str:
        return f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"


class Route(NamedTuple):
    """Where a connection was meant to go, whether to go there in the client's name, and who is behind it."""

    destination: Endpoint
    as_client: bool = False
    ident: str = ""


class LookupFailure(Exception):
    """The destination cannot be found. The text tells the client why; `cause` tells the log more, if set."""

    def __init__(self, text: str, cause: str = "") -> None:
        super().__init__(text)
        self.cause = cause


class Lookup:
    """Finds the destination of connections, by one of the modes: `known` or `find` has to be there."""

    @classmethod
    def prepare(cls) -> None:
        """Open what takes privileges; raises ValueError. A worker calls it once, while it still has them."""

    def __init__(self, config: Config) -> None:
        """Keep what is needed of the configuration."""

    def known(self, accepted: socket.socket, client: Endpoint, local: Endpoint) -> Route | None:  # noqa: ARG002
        """Tell where an accepted connection was meant to go if nobody has to be waited for; else None.

        Raises LookupFailure.
        """
        return None

    async def find(self, accepted: socket.socket, client: Endpoint, local: Endpoint) -> Route:
        """Find it, when it is not known; raises LookupFailure."""
        raise NotImplementedError


def modes() -> tuple[str, ...]:
    """Name the modes that this machine has: the built-in ones and those of installed packages."""
    here = [mode for mode in _BUILT_IN if sys.platform == "linux" or mode not in _LINUX_ALONE]
    added = sorted(point.name for point in entry_points(group=_GROUP) if point.name not in _BUILT_IN)
    return (*here, *added)


def prepare(mode: str) -> None:
    """Load a mode and open what it needs, before privileges and files are out of reach; raises ValueError."""
    _find(mode).prepare()


def make(config: Config) -> Lookup:
    """Make the lookup of the configured mode; raises ValueError when there is none of that name."""
    return _find(config.mode)(config)


@functools.cache  # a worker that reloads may not be able to read our files any more
def _find(mode: str) -> type[Lookup]:
    place = _BUILT_IN.get(mode)
    if place:
        module, name = place.split(":")
        found: type[Lookup] = getattr(importlib.import_module(f"{__name__}.{module}"), name)
    else:
        points = entry_points(group=_GROUP, name=mode)
        if not points:
            raise ValueError(f"mode {mode}: not available here; modes are {', '.join(modes())}")
        found = next(iter(points)).load()
    assert issubclass(found, Lookup)
    return found
