"""The address at which the connection was accepted is the one it was meant for: mode getsockname."""

import socket

from appliance.proxy.lookup import Endpoint, Lookup, Route


class Getsockname(Lookup):
    """For systems that redirect a connection without changing its destination."""

    def known(self, accepted: socket.socket, client: Endpoint, local: Endpoint) -> Route:  # noqa: ARG002
        """Give the accepted socket's own address."""
        return Route(local)
