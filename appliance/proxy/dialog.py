"""A dialog with a daemon: what it is asked and what it answers, over a stream of the worker's turn.

Scanners hold one for each scan: `with await reach(address, most) as daemon`. What is said goes out with what
sessions say, so that a scan costs a connection and hardly more; nothing blocks, and nothing is left open.
"""

import asyncio
import os
import socket
from errno import EAGAIN, EINPROGRESS
from functools import partial
from typing import Any, Final, Self

from appliance.config.network import SocketAddress
from appliance.proxy.streams import BACKLOG, Owner, Stream, current_turn

RETRY: Final = 0.05  # seconds until a UNIX socket whose queue is full is tried again


class Dialog(Owner):
    """A connection to a daemon whose answer has at most `most` bytes, closed at the end of a `with` block."""

    def __init__(self, sock: socket.socket, most: int) -> None:
        self._most = most
        self._answer = b""
        self._over = False  # the daemon says nothing more
        self._error: Exception | None = None
        self._full = False
        self._news: asyncio.Future[None] | None = None
        self._stream = Stream(current_turn(), sock, self, BACKLOG)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._stream.abort()

    async def say(self, data: bytes) -> None:
        """Send; wait as long as the daemon does not take it.

        One that hangs up meanwhile may have said why: `answer` tells.
        """
        self._stream.say(data)
        while self._full and not self._over:
            await self._wait()

    def hand_over(self, data: bytes, descriptor: int) -> None:
        """Send a few first bytes and an open file with them, over a UNIX socket. Raises OSError."""
        socket.send_fds(self._stream.sock, [data], [descriptor])

    def finish(self) -> None:
        """Say that this was all."""
        self._stream.shut()

    async def answer(self, end: bytes = b"") -> bytes:
        """Give the answer up to where it ends so; all there is when it does not. Raises OSError.

        What is longer than allowed raises ValueError.
        """
        while not (self._over or (end and self._answer.endswith(end))):
            await self._wait()
        if len(self._answer) > self._most:
            raise ValueError("its answer does not end")
        if self._error and not self._answer:
            raise self._error
        return self._answer

    async def _wait(self) -> None:
        self._news = asyncio.get_running_loop().create_future()
        await self._news

    def _tell(self) -> None:
        if self._news and not self._news.done():
            self._news.set_result(None)

    def heard(self, stream: Stream, data: bytes) -> None:
        """Keep what the daemon said."""
        self._answer += data
        if not data or len(self._answer) > self._most:
            self._over = True
            stream.pause()
        self._tell()

    def carried(self, stream: Stream, count: int) -> None:
        """Nothing is carried here."""

    def filled(self, stream: Stream, full: bool) -> None:  # noqa: ARG002
        """The daemon is slow, or goes on."""
        self._full = full
        self._tell()

    def lingers(self, stream: Stream) -> None:
        """Nobody is parted from with words left."""

    def parted(self, stream: Stream, error: OSError | None) -> None:  # noqa: ARG002
        """The connection is gone."""
        self._over = True
        self._error = self._error or error
        self._tell()

    def broken(self, error: Exception) -> None:
        """A defect."""
        self._over = True
        self._error = error
        self._stream.abort()


async def reach(address: SocketAddress, most: int) -> Dialog:
    """Connect to a daemon; raises OSError. One whose queue of connections is full is waited for."""
    made = await (_by_name(address) if address.path is None else _by_path(str(address.path)))
    return Dialog(made, most)


async def _by_path(path: str) -> socket.socket:
    made = socket.socket(socket.AF_UNIX)
    made.setblocking(False)
    try:
        while error := made.connect_ex(path):
            if error != EAGAIN:
                raise OSError(error, os.strerror(error))
            await asyncio.sleep(RETRY)
    except BaseException:
        made.close()
        raise
    return made


async def _by_name(address: SocketAddress) -> socket.socket:
    failure: OSError | None = None
    for family, kind, protocol, _, name in await _found(address):
        made = socket.socket(family, kind, protocol)
        try:
            made.setblocking(False)
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await _connect(made, name)
        except OSError as error:
            made.close()
            failure = error
        except BaseException:
            made.close()
            raise
        else:
            return made
    raise failure or OSError(f"{address.host} has no address")


async def _found(address: SocketAddress) -> list[Any]:
    """Look a name up in a thread of Python's: where there can be no more, it raises RuntimeError.

    libuv ends the process then, with all its sessions.
    """
    look_up = partial(socket.getaddrinfo, address.host, address.port, type=socket.SOCK_STREAM)
    try:
        return look_up(flags=socket.AI_NUMERICHOST)
    except socket.gaierror:
        return await asyncio.to_thread(look_up)


async def _connect(made: socket.socket, name: tuple[Any, ...]) -> None:
    """Connect; not by uvloop, which looks addresses up, too, and with libuv's threads. Raises OSError."""
    if (error := made.connect_ex(name)) == EINPROGRESS:
        loop, done = asyncio.get_running_loop(), asyncio.Event()
        loop.add_writer(made, done.set)
        try:
            await done.wait()
        finally:
            loop.remove_writer(made)
        error = made.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if error:
        raise OSError(error, os.strerror(error))
