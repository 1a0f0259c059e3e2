"""Deadlines of many connections, kept by one timer of the event loop.

A connection moves its deadline several times in a life of milliseconds. A timer of the loop for each would
cost more than all else that is done for it.
"""

import asyncio
from typing import Final, Protocol

GRAIN: Final = 0.1  # seconds; a deadline is noticed within two of these
STILL: Final = 2.0  # seconds late, after which it was this process that stood still, or the machine


class Timed(Protocol):
    """Something with a deadline."""

    def ring(self) -> None:
        """The time has come; the deadline is gone."""


class Deadlines:
    """Rings whoever's time has come. Nothing runs while nobody waits.

    `resumed` is when this process last went on after it had stood still: what it was sent meanwhile, it has
    yet to hear, and peers may have stood still, too.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._due: dict[int, set[Timed]] = {}
        self._turned = 0  # the grain up to which everybody was rung
        self._turning = False
        self.resumed = 0.0

    def set(self, who: Timed, seconds: float) -> int:
        """Ring in so many seconds; give the number by which `clear` finds it."""
        now = self._loop.time()
        at = int((now + seconds) / GRAIN) + 1
        group = self._due.get(at)
        if group is None:
            group = self._due[at] = set()
        group.add(who)
        if not self._turning:
            self._turning = True
            self._turned = int(now / GRAIN)
            self._loop.call_later(GRAIN, self._turn)
        return at

    def clear(self, who: Timed, at: int) -> None:
        """Do not ring after all."""
        group = self._due.get(at)
        if group is not None:
            group.discard(who)
            if not group:
                del self._due[at]

    def _turn(self) -> None:
        if not self._due:
            self._turning = False
            return
        self._loop.call_later(GRAIN, self._turn)
        time = self._loop.time()
        now = int(time / GRAIN)
        if time - max(self._turned * GRAIN, self.resumed) > STILL:
            self.resumed = time
            return
        for at in range(self._turned + 1, now + 1):
            while group := self._due.get(at):
                group.pop().ring()
            self._due.pop(at, None)
        self._turned = now
