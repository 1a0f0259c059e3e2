"""Where clients come in: the listening socket of a worker.

The worker opens its doorway when it is ready to serve and closes it when it drains. Who may stay is decided
in `admission.py`; here clients are taken from the kernel's queue as long as there are files to hold them.
Once there are none, each try to take one would fail, over and over, so the doorway shuts before.
"""

import asyncio
import resource
import socket
from collections.abc import Callable
from typing import Any, Final

from appliance.config import Config
from appliance.proxy.readiness import READ
from appliance.proxy.streams import Turn, Watched

LEAST_QUEUE: Final = 1024  # clients in the kernel's queue, however short connect_queue is
_SPARE: Final = 16  # files kept for the sessions that are there, or an eighth of all if that is more
_TOGETHER: Final = 16  # clients that are taken in at a time, at most


def queue_length(config: Config) -> int:
    """Give how many clients the kernel keeps waiting for a worker: connect_queue, or more.

    Once as many clients as a queue is long come at the same time, the kernel remembers none of them (SYN
    cookies, tcp(7)). Whoever sends the last ACK of its handshake while there is no room is then connected
    for itself, but not for us, and in SMTP waits for the greeting in vain.
    """
    return max(config.connect_queue, LEAST_QUEUE)


class Doorway(Watched):
    """Hands clients that connect to `listener`, and their addresses, to `welcome`.

    When there are no files for more, `crowded` is told why, and should `pause` it.
    """

    def __init__(
        self,
        listener: socket.socket,
        turn: Turn,
        welcome: Callable[[socket.socket, tuple[Any, ...]], None],
        crowded: Callable[[str], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._listener, self._turn = listener, turn
        self._welcome, self._crowded = welcome, crowded
        self._open = False
        self._together = 1
        self._opening: asyncio.TimerHandle | None = None
        allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._most = allowed - max(_SPARE, allowed // 8)
        listener.setblocking(False)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # clients' sockets inherit it

    def open(self, queue: int) -> None:
        """Take clients in; the kernel keeps at most `queue` more waiting."""
        self._opening = None
        self._open = True
        self._listener.listen(queue)
        self._turn.watch(self._listener.fileno(), READ, 0, self)

    def ready(self, _mask: int) -> None:
        """Take the next ones in: as many as there were lately, and twice as many if that was not all."""
        for taken in range(self._together):
            if not self._open:
                return
            try:
                client, peer = self._listener.accept()
            except ConnectionAbortedError:
                continue
            except BlockingIOError:
                self._together = max(taken, 1)  # to ask once too often costs as much as a turn
                return
            except OSError as error:
                self._crowded(error.strerror or str(error))
                return
            client.setblocking(False)
            # The kernel gives out the lowest number that is free, so it tells how many are in use.
            if client.fileno() >= self._most:
                self._crowded("too many open files")
            self._welcome(client, peer)
        self._together = min(2 * self._together, _TOGETHER)

    def broken(self, error: Exception) -> None:
        """A defect in welcoming a client costs that client."""
        told = {"message": "a client was not welcomed", "exception": error}
        self._loop.call_exception_handler(told)

    def pause(self, seconds: float, queue: int) -> bool:
        """Leave clients in the queue for a while; false when that is done already."""
        if not self._open:
            return False
        self._shut()
        self._opening = self._loop.call_later(seconds, self.open, queue)
        return True

    def close(self) -> None:
        """Take nobody in any more."""
        if self._opening:
            self._opening.cancel()
        self._shut()
        self._listener.close()

    def _shut(self) -> None:
        if self._open:
            self._open = False
            self._turn.watch(self._listener.fileno(), 0, READ, self)
