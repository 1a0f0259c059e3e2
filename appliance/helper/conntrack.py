"""What the kernel's connection tracking knows of one connection, asked for by netlink.

The kernel finds a connection by its addresses and ports in a hash table, however many there are: one question
costs as much among a million as among ten. Needs CAP_NET_ADMIN for each question. Used by `service.py` alone.
"""

import asyncio
import errno
import os
import socket
from ipaddress import ip_address

from pyroute2.conntrack import AsyncConntrack
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.nfnetlink.nfctsocket import NFCTAttrTuple

from appliance.origin import Address, Flow

_WITHIN = 5.0  # seconds; an answer that was lost must not be waited for
_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}


class Conntrack:
    """Finds connections; belongs to one event loop and one network namespace."""

    def __init__(self) -> None:
        self._sockets = {
            version: AsyncConntrack(nfgen_family=family) for version, family in _FAMILIES.items()
        }

    async def find(self, flow: Flow) -> Flow | None:
        """Give a connection as its client sees it, from how the gateway sees it; None if there is none.

        The gateway's end is where the kernel expects answers to come from, the router's where they go to.
        Raises OSError when the kernel does not tell.
        """
        version = flow.source.version
        wanted = NFCTAttrTuple(
            family=_FAMILIES[version],
            proto=socket.IPPROTO_TCP,
            saddr=str(flow.destination),
            sport=flow.destination_port,
            daddr=str(flow.source),
            dport=flow.source_port,
        )
        try:
            async with asyncio.timeout(_WITHIN):
                found = await self._sockets[version].entry("get", tuple_reply=wanted)
        except TimeoutError:
            raise OSError(errno.ETIMEDOUT, "no answer from connection tracking") from None
        except NetlinkError as error:
            if error.code == errno.ENOENT:
                return None
            why = f"connection tracking says {os.strerror(error.code)}; is nf_conntrack_netlink loaded?"
            raise OSError(error.code, why) from None
        seen = found[0].get_attr("CTA_TUPLE_ORIG")
        addresses, ports = seen.get_attr("CTA_TUPLE_IP"), seen.get_attr("CTA_TUPLE_PROTO")

        def address(end: str) -> Address:
            return ip_address(addresses.get_attr(f"CTA_IP_V{version}_{end}"))

        def port(end: str) -> int:
            return int(ports.get_attr(f"CTA_PROTO_{end}_PORT"))

        return Flow(address("SRC"), port("SRC"), address("DST"), port("DST"))

    async def close(self) -> None:
        """Close both sockets."""
        for each in self._sockets.values():
            await each.close()
