"""Transparent proxying: the destination is kept and the server sees the client's address.

Modes tproxy and tproxy,netfilter. The second is for routers that translate private addresses: such a client
gets the router's address as it would without the gateway.
"""

import socket
from ipaddress import ip_address, ip_network

from appliance.config import Config
from appliance.proxy.lookup import Endpoint, Lookup, Route
from appliance.proxy.lookup.netfilter import Netfilter

_PRIVATE = [
    ip_network(network)
    for network in (
        "10.0.0.0/8",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "169.254.0.0/16",
        "fc00::/7",
        "fe80::/10",
    )
]


class Tproxy(Lookup):
    """For connections that a tproxy rule handed to the gateway."""

    def known(self, accepted: socket.socket, client: Endpoint, local: Endpoint) -> Route:  # noqa: ARG002
        """Give the accepted socket's own address, to be reached in the client's name."""
        return Route(local, as_client=True)


class TproxyOrNetfilter(Lookup):
    """Private clients as netfilter, all others as tproxy."""

    def __init__(self, config: Config) -> None:
        """Make both."""
        self._tproxy, self._netfilter = Tproxy(config), Netfilter(config)

    def known(self, accepted: socket.socket, client: Endpoint, local: Endpoint) -> Route:
        """Give the destination the client's way."""
        address = ip_address(client.address)
        lookup = self._netfilter if any(address in network for network in _PRIVATE) else self._tproxy
        return lookup.known(accepted, client, local)
