"""Who talks much: what each client of one worker did lately, for an administrator who asks.

`Clients` holds one `Talkers`; the connection, its inspection and its messages count here, the supervisor asks
through `questions.py`. Memory is bounded, so nobody is judged by these numbers: limits have the ledger.
"""

import heapq
import math
import time
from collections.abc import Callable
from typing import Final

PERIOD: Final = 3600.0  # seconds; what is told covers this long at least, unless there are very many clients
ROOM: Final = 4096  # clients whose doings are kept, twice
_BITS: Final = 2048  # for the destinations of one client


class Tally:
    """What one client did. Destinations are kept as bits, which tells their number to a few percent."""

    __slots__ = ("bits", "connections", "mails", "refusals")

    def __init__(self) -> None:
        self.connections = self.mails = self.refusals = self.bits = 0

    def went_to(self, destination: str) -> None:
        """Count a mail server in."""
        self.bits |= 1 << hash(destination) % _BITS

    def plus(self, other: "Tally | None") -> "Tally":
        """Give both as one."""
        both = Tally()
        for each in (self, other) if other else (self,):
            both.connections += each.connections
            both.mails += each.mails
            both.refusals += each.refusals
            both.bits |= each.bits
        return both

    def destinations(self) -> int:
        """About how many different mail servers it addressed."""
        left = max(1, _BITS - self.bits.bit_count())
        return round(-_BITS * math.log(left / _BITS))

    def row(self) -> list[int]:
        """Connections, mails, refusals, destinations."""
        return [self.connections, self.mails, self.refusals, self.destinations()]


class Talkers:
    """A tally for each client of the last one to two periods.

    When a period is over, or `ROOM` clients are known, the tallies become the old ones, and the old ones are
    forgotten.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began = clock()
        self._recent: dict[str, Tally] = {}
        self._old: dict[str, Tally] = {}

    def of(self, client: str) -> Tally:
        """Give the tally to count in."""
        tally = self._recent.get(client)
        if tally is None or self._clock() - self._began > PERIOD:
            self._turn()
            tally = self._recent.setdefault(client, Tally())
        return tally

    def known(self, client: str) -> Tally:
        """Give what is known of a client."""
        self._turn()
        return self._recent.get(client, Tally()).plus(self._old.get(client))

    def busiest(self, column: int, most: int) -> list[tuple[str, list[int]]]:
        """Give clients and their rows, those with the highest numbers in a column first."""
        self._turn()
        rows = ((client, self.known(client).row()) for client in {**self._old, **self._recent})
        return heapq.nlargest(most, rows, key=lambda each: each[1][column])

    def _turn(self) -> None:
        age = self._clock() - self._began
        if age > PERIOD or len(self._recent) >= ROOM:
            self._old = self._recent if age < 2 * PERIOD else {}
            self._recent = {}
            self._began = self._clock()
