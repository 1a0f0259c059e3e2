"""Bytes that go from socket to socket within the kernel (splice(2)): direct sessions with much to carry.

`Relay` hands a direction over to this when much comes at once. Little is carried as well without. The
transports stay, for all but the bytes: they know when there is something to read, when a peer is gone, and
hold what one does not take at once.
"""

import asyncio
import fcntl
import os
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import cast

AVAILABLE = hasattr(os, "splice")
MUCH = 65536  # bytes that come at once where it is worth while
_ROOM = 1 << 20  # bytes in the pipe, if the system allows; the more, the fewer times it is filled


@cache
def _pipe() -> tuple[int, int]:
    """Give this process's pipe, which is empty but while bytes are carried. Raises OSError."""
    ends = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    with suppress(OSError):
        fcntl.fcntl(ends[1], fcntl.F_SETPIPE_SZ, _ROOM)
    return ends


@cache
def _buffer() -> memoryview:
    """Give this process's buffer, used from each read until its bytes are sent."""
    return memoryview(bytearray(MUCH))


class Splice:
    """The protocol of `source` from here on: carries what comes from it to `target`.

    Of much that comes at once the loop reads the first bytes; the others follow in the kernel. `carried` is
    told how many there were. All else is told to the protocol that `source` had before. Raises OSError when
    there is no file to be had.
    """

    def __init__(
        self, source: asyncio.Transport, target: asyncio.Transport, carried: Callable[[int], None]
    ) -> None:
        self._source, self._target = source, target
        self._carried = carried
        self._pipe = _pipe()
        self._buffer = _buffer()
        # The numbers are theirs as long as they are not closing, and only then they are used.
        self._from = source.get_extra_info("socket").fileno()
        self._to = target.get_extra_info("socket").fileno()
        before = cast("asyncio.Protocol", source.get_protocol())
        self.eof_received = before.eof_received
        self.connection_lost = before.connection_lost
        self.pause_writing, self.resume_writing = before.pause_writing, before.resume_writing
        reading = source.is_reading()
        source.pause_reading()
        source.set_protocol(cast("asyncio.BaseProtocol", self))
        if reading:
            source.resume_reading()

    def get_buffer(self, _hint: int) -> memoryview:
        """Give room for the first bytes that come."""
        return self._buffer

    def buffer_updated(self, count: int) -> None:
        """Carry what has come."""
        if not self._target.is_closing() and self._sent(self._buffer[:count]) and count == MUCH:
            count += self._follow()
        self._carried(count)

    def _sent(self, data: memoryview) -> bool:
        """Send the first bytes; false when some have to wait, and others behind them."""
        sent = 0
        try:
            if not self._target.get_write_buffer_size():
                sent = os.write(self._to, data)
        except BlockingIOError:
            pass
        except OSError:
            self._target.abort()
            return False
        if sent < len(data):
            self._target.write(bytes(data[sent:]))
        return sent == len(data)

    def _follow(self) -> int:
        """Let the kernel carry what else there is; give the number of bytes."""
        try:
            count = left = os.splice(self._from, self._pipe[1], _ROOM)
        except BlockingIOError:
            return 0
        except OSError:
            self._source.abort()
            return 0
        try:
            while left:
                left -= os.splice(self._pipe[0], self._to, left)
        except BlockingIOError:
            self._target.write(os.read(self._pipe[0], left))
        except OSError:
            os.read(self._pipe[0], left)
            self._target.abort()
        return count
