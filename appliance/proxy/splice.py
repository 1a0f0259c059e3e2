"""Bytes that go from socket to socket within the kernel (splice(2)): those of direct sessions.

`streams.py` calls `carry` when a socket whose bytes nobody looks at has something to say.
"""

import fcntl
import os
from contextlib import suppress
from functools import cache

AVAILABLE = hasattr(os, "splice")
_ROOM = 1 << 20  # bytes in the pipe, if the system allows; the more, the fewer times it is filled
_PIECE = 1 << 18  # bytes that are read where there is no pipe


@cache
def _pipe() -> tuple[int, int]:
    """Give this process's pipe, which is empty but while bytes are carried. Raises OSError."""
    ends = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    with suppress(OSError):
        fcntl.fcntl(ends[1], fcntl.F_SETPIPE_SZ, _ROOM)
    return ends


def carry(source: int, target: int) -> tuple[int, bytes, OSError | None]:
    """Carry what waits in one socket to another, as much as a pipe holds; neither may block.

    Gives the number of bytes taken from the source, 0 at its end; those of them that the target had no room
    for; and the target's error, with which the rest is lost. Raises OSError for the source, BlockingIOError
    when nothing waits there.
    """
    try:
        reading, writing = _pipe()
    except OSError:  # no more files may be opened: what there is goes through this process
        data = os.read(source, _PIECE)
        return len(data), data, None
    count = left = os.splice(source, writing, _ROOM)
    try:
        while left:
            left -= os.splice(reading, target, left)
    except BlockingIOError:
        return count, os.read(reading, left), None
    except OSError as error:
        os.read(reading, left)
        return count, b"", error
    return count, b"", None
