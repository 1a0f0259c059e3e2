"""Ports for programs that are told theirs: `free_port`. Tests run side by side, and so do their clients."""

import random
import socket
from contextlib import suppress

# Below those that the kernel gives to clients (ip_local_port_range), one of whom would have it in between.
_FIRST, _LAST = 10_000, 32_000


def free_port() -> int:
    """Give a TCP port that nobody has at any address."""
    while True:
        port = random.randint(_FIRST, _LAST)
        with (
            suppress(OSError),
            socket.create_server(("", port)),
            socket.create_server(("::1", port), family=socket.AF_INET6),
        ):
            return port
