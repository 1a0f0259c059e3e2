"""A gateway in the test's own process: for what can only be arranged or seen from within."""

import asyncio
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from appliance.config import parse
from appliance.log import Log
from appliance.proxy.checks import Checks
from appliance.proxy.clients import Clients
from appliance.proxy.connection import Connection, Connections
from appliance.proxy.doorway import Doorway
from appliance.proxy.scoreboard import Scoreboard
from appliance.proxy.service import Service


def service(text: str, log: Log) -> Service:
    """Put a configuration to use, with nobody known and nothing counted."""
    return Service(parse(text), log, Scoreboard.create(1), Clients())


@contextmanager
def served(by: Service, last_left: Callable[[], None] = lambda: None) -> Iterator[tuple[str, int]]:
    """Take clients in, with the running event loop; give the address to connect to."""
    loop = asyncio.get_running_loop()
    checks, connections = Checks(by), Connections(last_left)

    def welcome(client: socket.socket, peer: tuple[Any, ...]) -> None:
        Connection(loop, checks, connections, client, peer)

    listener = socket.create_server(("127.0.0.1", 0))
    address: tuple[str, int] = listener.getsockname()
    doorway = Doorway(listener, connections.turn, welcome, pytest.fail)
    doorway.open(1)
    try:
        yield address
    finally:
        doorway.close()
