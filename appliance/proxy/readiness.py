"""Which of many sockets have something to say: one set of them, itself a file that an event loop can watch.

On Linux that is epoll as it stands. Elsewhere `selectors` knows what the system has (kqueue), and `Ready`
gives it epoll's few words, of which it knows only `READ` and `WRITE`. Used by `streams.py` alone.
"""

import select
import selectors
import sys
from contextlib import suppress
from typing import Final

READ: Final = 1  # EPOLLIN
WRITE: Final = 4  # EPOLLOUT
LAST: Final = 0x2002  # EPOLLRDHUP, EPOLLPRI: an end, or an urgent byte, behind what there is to read
EDGE: Final = 0x80000000  # EPOLLET: tell once, and again when more has come; modifying asks for both


class Ready:
    """What `streams.py` uses of select.epoll, made of a selector that has a file of its own."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()

    def fileno(self) -> int:
        """Give the file that is readable while a socket of the set is ready."""
        fileno: int = self._selector.fileno()
        return fileno

    def register(self, fd: int, mask: int) -> None:
        """Watch a file for what the mask says; a closed one that had its number is forgotten."""
        with suppress(KeyError):
            self._selector.unregister(fd)
        self._selector.register(fd, _events(mask))

    def modify(self, fd: int, mask: int) -> None:
        """Watch it for something else."""
        self._selector.modify(fd, _events(mask))

    def unregister(self, fd: int) -> None:
        """Watch it no longer."""
        self._selector.unregister(fd)

    def poll(self, timeout: float, most: int) -> list[tuple[int, int]]:
        """Give files that are ready and what for; peers that are gone make theirs ready for all."""
        found = self._selector.select(timeout)[:most]
        return [(key.fd, _mask(events)) for key, events in found]


def _events(mask: int) -> int:
    return (selectors.EVENT_READ if mask & READ else 0) | (selectors.EVENT_WRITE if mask & WRITE else 0)


def _mask(events: int) -> int:
    return (READ if events & selectors.EVENT_READ else 0) | (WRITE if events & selectors.EVENT_WRITE else 0)


if sys.platform == "linux":
    Poll = select.epoll
else:
    Poll = Ready
