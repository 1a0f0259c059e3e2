"""Counters in memory that the supervisor and all workers share.

One row of 64-bit numbers for each worker, written by that worker alone, read by everybody: no lock, no
message, and nothing is lost when a worker dies. The supervisor makes the board, each worker attaches to it by
descriptor.
"""

import enum
import fcntl
import mmap
import os
import tempfile
from typing import Final


class Counter(enum.IntEnum):
    """What is counted; the status file prints these."""

    SESSIONS = 0  # the one gauge: sessions open now
    REQUESTS = enum.auto()
    DIRECT = enum.auto()
    EMPTY = enum.auto()  # the client left without a command
    VIRUSES = enum.auto()
    SPAMS = enum.auto()
    NOAUTHS = enum.auto()
    SPF = enum.auto()
    REGEX = enum.auto()
    EARLYTALK = enum.auto()
    REJECT_HOST = enum.auto()
    REJECT_IDENT = enum.auto()
    REJECT_LOCK = enum.auto()
    REJECT_DNSBL = enum.auto()
    REJECT_RATE = enum.auto()
    REJECT_RATELIMIT = enum.auto()
    REJECT_OTHER = enum.auto()
    PIPELINE = enum.auto()
    AUTH_ACCEPTS = enum.auto()
    AUTH_REJECTS = enum.auto()
    MAX_SESSIONS = enum.auto()  # the most sessions all workers had at once, as this worker saw it
    MESSAGES = enum.auto()  # released to their servers


_ROW: Final = 8 * len(Counter)


class Scoreboard:
    """A view of the shared board; `row` is the one row that this process writes."""

    def __init__(self, fd: int, row: int) -> None:
        self.fd = fd
        self._map = mmap.mmap(fd, 0)
        self._cells = memoryview(self._map).cast("Q")
        self.rows = len(self._map) // _ROW
        self._base = row * len(Counter)

    @classmethod
    def create(cls, rows: int) -> "Scoreboard":
        """Make a board of `rows` workers, all zero; its `fd` is what workers inherit."""
        if hasattr(os, "memfd_create"):
            fd = os.memfd_create("scoreboard", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        else:
            fd, name = tempfile.mkstemp()
            os.unlink(name)  # noqa: PTH108 - a path of text
        os.ftruncate(fd, rows * _ROW)
        if hasattr(os, "memfd_create"):  # a worker that cut it off would kill whoever looks at it
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        return cls(fd, 0)

    def add(self, counter: Counter, amount: int = 1) -> None:
        """Add to this process's own row."""
        self._cells[self._base + counter] += amount

    def total(self, counter: Counter) -> int:
        """Sum of a counter over all workers."""
        return sum(self._cells[counter :: len(Counter)])

    def of(self, row: int, counter: Counter) -> int:
        """A worker's own count."""
        return self._cells[row * len(Counter) + counter]

    def opened(self) -> int:
        """Count a session in; return how many all workers have now."""
        self.add(Counter.SESSIONS)
        now = self.total(Counter.SESSIONS)
        peak = self._base + Counter.MAX_SESSIONS
        if now > self._cells[peak]:
            self._cells[peak] = now
        return now

    def closed(self) -> None:
        """Count a session out."""
        self._cells[self._base + Counter.SESSIONS] -= 1

    def peak(self) -> int:
        """The most sessions that were ever open at once."""
        return max(self._cells[Counter.MAX_SESSIONS :: len(Counter)])

    def forget_sessions(self, row: int) -> None:
        """A worker died: its sessions are gone with it."""
        self._cells[row * len(Counter) + Counter.SESSIONS] = 0
