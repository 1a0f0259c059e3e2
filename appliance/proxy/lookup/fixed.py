"""One mail server for everybody: modes fixed and fixed+xclient."""

import socket

from appliance.config import Config
from appliance.proxy.lookup import Endpoint, Lookup, Route


class Fixed(Lookup):
    """The server that the configuration names."""

    def __init__(self, config: Config) -> None:
        """Keep fixed_server and fixed_server_port."""
        self._route = Route(Endpoint(str(config.fixed_server), config.fixed_server_port))

    def known(self, accepted: socket.socket, client: Endpoint, local: Endpoint) -> Route:  # noqa: ARG002
        """Give that server."""
        return self._route
