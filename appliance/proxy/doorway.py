"""Where clients come in: the listening socket of a worker.

The worker opens its doorway when it is ready to serve and closes it when it drains. Who may stay is decided
in `admission.py`; here clients are taken from the kernel's queue as long as there are files to hold them.
Once there are none, the event loop would take each client and drop it at once, so the doorway shuts before.
"""

import asyncio
import resource
import socket
from collections.abc import Callable

from appliance.config import Config

LEAST_QUEUE = 1024  # clients in the kernel's queue, however short connect_queue is
_SPARE = 16  # files kept for the sessions that are there, or an eighth of all if that is more


def queue_length(config: Config) -> int:
    """Give how many clients the kernel keeps waiting for a worker: connect_queue, or more.

    Once as many clients as a queue is long come at the same time, the kernel remembers none of them (SYN
    cookies, tcp(7)). Whoever sends the last ACK of its handshake while there is no room is then connected
    for itself, but not for us, and in SMTP waits for the greeting in vain.
    """
    return max(config.connect_queue, LEAST_QUEUE)


class Doorway:
    """Hands clients that connect to `listener` to what `make` makes."""

    def __init__(self, listener: socket.socket, make: Callable[[], asyncio.Protocol]) -> None:
        self._loop = asyncio.get_running_loop()
        self._listener, self._make = listener, make
        self._server: asyncio.Server | None = None
        self._opening: asyncio.Task[None] | None = None
        allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._most = allowed - max(_SPARE, allowed // 8)

    async def open(self, queue: int) -> None:
        """Take clients in; the kernel keeps at most `queue` more waiting."""
        # The server closes the socket that it is given, and the queue with it if there is no other.
        self._server = await self._loop.create_server(self._make, sock=self._listener.dup(), backlog=queue)

    def is_narrow(self, descriptor: int) -> bool:
        """Tell whether the one who came in by this descriptor should be the last for now.

        The kernel gives out the lowest number that is free, so it tells how many are in use.
        """
        return descriptor >= self._most

    def pause(self, seconds: float, queue: int) -> bool:
        """Leave clients in the queue for a while; false when that is so already."""
        if self._server is None:
            return False
        self._server.close()
        self._server = None
        self._opening = self._loop.create_task(self._open_later(seconds, queue))
        return True

    async def _open_later(self, seconds: float, queue: int) -> None:
        await asyncio.sleep(seconds)
        await self.open(queue)

    def close(self) -> None:
        """Take nobody in any more."""
        if self._opening:
            self._opening.cancel()
        if self._server:
            self._server.close()
            self._server = None
        self._listener.close()
