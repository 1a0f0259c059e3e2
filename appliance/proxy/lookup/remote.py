"""The destination as the client's own router knows it, asked over TCP: mode remote.

The router has translated the client's address and sent the connection here; what it was before, only the
router can tell. `RemoteUdp` asks the same over UDP. What is said stands in `appliance.origin`.
"""

import asyncio
import socket
from abc import abstractmethod
from ipaddress import ip_address

from appliance.config import Config
from appliance.origin import (
    LINE_MAX,
    Flow,
    Malformed,
    Mismatch,
    NotFound,
    Origin,
    read_reply_line,
    write_query_line,
)
from appliance.proxy.lookup import Endpoint, Lookup, LookupFailure, Route

_BROADCAST = ip_address("255.255.255.255")


class RemoteLookup(Lookup):
    """Asks at the address that a connection came from, on remote_port."""

    def __init__(self, config: Config) -> None:
        """Keep the options of remote lookups."""
        self._config = config

    async def find(self, accepted: socket.socket, client: Endpoint, local: Endpoint) -> Route:  # noqa: ARG002
        """Ask the router; raises LookupFailure, and OSError when it cannot even be asked."""
        config = self._config
        flow = Flow(ip_address(client.address), client.port, ip_address(local.address), local.port)
        if config.remote_routers and not any(flow.source in network for network in config.remote_routers):
            raise LookupFailure(config.msg_lookup_notfound, "not one of remote_routers, so it is not asked")
        where = f"port {config.remote_port}"
        try:
            return _route(await self._ask(flow), flow)
        except NotFound:
            raise LookupFailure(
                config.msg_lookup_notfound, f"the router knows no connection to {local}"
            ) from None
        except Mismatch as error:
            raise LookupFailure(config.msg_lookup_mismatch, f"{where} not understood: {error}") from None
        except Malformed as error:
            raise LookupFailure(config.msg_malformed_ip, f"{where} is of no use: {error}") from None
        except TimeoutError as error:
            raise LookupFailure(config.msg_lookup_timeout, str(error) or f"no answer from {where}") from None

    @abstractmethod
    async def _ask(self, flow: Flow) -> Origin:
        """Put the question. Raises NotFound, Mismatch, Malformed, TimeoutError with the cause, OSError."""


class Remote(RemoteLookup):
    """Over TCP, as one asks an ident daemon."""

    async def _ask(self, flow: Flow) -> Origin:
        config = self._config
        async with asyncio.timeout(config.timeout_lookup or None):
            reader, writer = await asyncio.open_connection(
                *(str(flow.source), config.remote_port), local_addr=(str(flow.destination), 0), limit=LINE_MAX
            )
            try:
                writer.write(write_query_line(flow))
                return read_reply_line(await reader.readuntil(), flow)
            except asyncio.LimitOverrunError:
                raise Mismatch(f"more than {LINE_MAX} bytes without a line end") from None
            except asyncio.IncompleteReadError as error:
                raise Mismatch(f"closed after {error.partial[:80]!r}") from None
            finally:
                writer.transport.abort()


def _route(origin: Origin, flow: Flow) -> Route:
    """Go where the router says, unless no router can mean that. Raises Malformed."""
    address = origin.destination
    foreign = address.is_loopback and not flow.source.is_loopback  # the gateway's own, not the router's
    mapped = address.version == 6 and address.ipv4_mapped
    if foreign or mapped or address.is_unspecified or address.is_multicast or address == _BROADCAST:
        raise Malformed(f"address {address}")
    if not origin.port:
        raise Malformed(f"address {address}, port 0")
    return Route(Endpoint(str(address), origin.port), ident=origin.ident)
