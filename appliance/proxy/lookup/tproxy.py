"""Transparent proxying: the destination is kept and the server sees the client's address.

Modes tproxy and tproxy,netfilter. The second is for routers that translate private addresses: such a client
gets the router's address as it would without the gateway.
"""

import socket
from ipaddress import ip_address

from appliance.config import Config, Networks
from appliance.config.network import PRIVATE
from appliance.proxy.lookup import Endpoint, Lookup, Route
from appliance.proxy.lookup.netfilter import Netfilter

_PRIVATE = Networks(PRIVATE)


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
        lookup = self._netfilter if ip_address(client.address) in _PRIVATE else self._tproxy
        return lookup.known(accepted, client, local)
