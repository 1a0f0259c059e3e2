"""Rate limits as arithmetic: what a client may use in a period, and what it has used.

The checks spend from a `Record`, `ledger.py` keeps the records of one worker in memory, `records.py` on disk.
Nothing here reads a clock, a file or a socket: the time is handed in, in seconds of unix time.
"""

import enum
import functools
import hashlib
import struct
from dataclasses import dataclass
from typing import Final

from appliance.config import Config


class Use(enum.IntEnum):
    """What is counted. Each has its quota in the option `ratelimit_<name>`, and three columns on disk."""

    CONNECTIONS = 0
    SESSIONS = enum.auto()  # messages
    RECIPIENTS = enum.auto()
    BYTES = enum.auto()  # of messages
    MAILFROM_REJECTS = enum.auto()
    RCPTTO_REJECTS = enum.auto()
    AUTH_REJECTS = enum.auto()
    HELOS = enum.auto()  # the last three: different ones
    MAILFROMS = enum.auto()
    DESTINATIONS = enum.auto()

    @property
    def word(self) -> str:
        """Its name in options, columns and log lines."""
        return self.name.lower()


NAMED: Final = (Use.HELOS, Use.MAILFROMS, Use.DESTINATIONS)
REMEMBERED: Final = 64  # destinations of a client that are remembered

_DIGEST: Final = 8  # bytes that stand for a name
_RECENT_NAMES: Final = 4096  # whose digests are at hand
_DESTINATION: Final = struct.Struct(f"<{_DIGEST}sI")


@dataclass(frozen=True, slots=True)
class Limits:
    """What a configuration says of rate limits: seconds, and a quota for each use, 0 for none."""

    period: int
    generation: int
    expiration: int
    quotas: tuple[int, ...]

    @classmethod
    def of(cls, config: Config) -> "Limits":
        """Read them from the options."""
        quotas = tuple(max(0, getattr(config, f"ratelimit_{use.word}")) for use in Use)
        expiration = config.ratelimit_dst_expiration
        return cls(config.ratelimit_period, config.ratelimit_generation, expiration, quotas)

    @property
    def memory(self) -> int:
        """Seconds from a record's last clearing after which nothing in it matters any more."""
        return self.period + max(self.period, self.expiration)


class Record:
    """What one client may use, and has used since `cleared`.

    `generation` is that of the quotas; a personal quota has a higher one than any configuration. `edited` is
    the number of the last edit from outside. `stored` is False while nobody knows what the database has of
    the client; such a record is never written. `sessions` that hold it keep it in memory.
    """

    __slots__ = (
        *("cleared", "client", "edited", "generation", "names"),
        *("quotas", "remembered", "sessions", "stored", "tries", "used"),
    )

    def __init__(self, client: str, limits: Limits, now: float) -> None:
        self.client = client
        self.generation = limits.generation
        self.quotas = limits.quotas
        self.edited = 0
        self.stored = True
        self.sessions = 0
        self.remembered = b""
        self.clear(now)

    def clear(self, now: float) -> None:
        """Begin a new period: nothing is used yet."""
        self.cleared = now
        self.used = [0] * len(Use)
        self.tries = [0] * len(Use)
        self.names = [b""] * len(NAMED)

    def refresh(self, limits: Limits, now: float) -> None:
        """Begin a new period if the last one is over, and take over quotas of a higher generation.

        After `Limits.memory` seconds the record is as good as new: whether it was forgotten meanwhile makes
        no difference.
        """
        age = now - self.cleared
        if 0 <= age < limits.period and self.generation >= limits.generation:
            return
        if age < 0:
            self.cleared, age = now, 0.0  # the clock was set back; a period is never longer than that
        forgotten = self.generation == limits.generation and age >= limits.memory
        if self.generation < limits.generation or forgotten:
            self.generation, self.quotas = limits.generation, limits.quotas
        if age >= limits.period:
            self.clear(now)

    def spend(self, use: Use, amount: int = 1) -> bool:
        """Use so much, unless that would pass the quota; False when it would."""
        self.tries[use] += amount
        quota = self.quotas[use]
        if quota and self.used[use] + amount > quota:
            return False
        self.used[use] += amount
        return True

    def add(self, use: Use, amount: int) -> None:
        """Count what has happened already, quota or not."""
        self.tries[use] += amount
        self.used[use] += amount

    def exhausted(self, use: Use) -> bool:
        """Tell whether nothing is left of a quota."""
        return 0 < self.quotas[use] <= self.used[use]

    def spend_name(self, use: Use, name: bytes) -> bool:
        """Use one of the `NAMED` by its name; one used before in the period costs nothing.

        What is kept of names is bounded by the quota, and nothing is kept where there is none.
        """
        if not self.quotas[use]:
            self.tries[use] += 1
            return True
        seen = use - NAMED[0]
        digest = _digest(name)
        if stands_in(digest, self.names[seen]):
            self.tries[use] += 1
            return True
        if not self.spend(use):
            return False
        self.names[seen] += digest
        return True

    def remember(self, destination: bytes, now: float, expiration: int) -> bool:
        """Remember a destination; False when `REMEMBERED` others are, each used in the last seconds."""
        today = int(now)
        known = {digest: min(then, today) for digest, then in _DESTINATION.iter_unpack(self.remembered)}
        digest = _digest(destination)
        if digest not in known and len(known) >= REMEMBERED:
            oldest = min(known, key=known.__getitem__)
            if today - known[oldest] <= expiration:
                return False
            del known[oldest]
        known[digest] = today
        self.remembered = b"".join(_DESTINATION.pack(*item) for item in known.items())
        return True

    @property
    def destinations(self) -> int:
        """How many destinations are remembered."""
        return len(self.remembered) // _DESTINATION.size

    def facts(self) -> dict[str, object]:
        """Give what it says, fit for JSON: a row for each use."""
        rows = {
            use.word: {"used": self.used[use], "quota": self.quotas[use], "tries": self.tries[use]}
            for use in Use
        }
        return {"client": self.client, "generation": self.generation, "since": self.cleared, "limits": rows}

    def adopt(self, edited: "Record") -> None:
        """Take over what was edited from outside: quotas, and a clearing that this record has not seen."""
        self.edited, self.generation, self.quotas = edited.edited, edited.generation, edited.quotas
        if edited.cleared > self.cleared:
            self.cleared, self.used, self.tries = edited.cleared, edited.used, edited.tries
            self.names, self.remembered = edited.names, edited.remembered


@functools.lru_cache(_RECENT_NAMES)
def _digest(name: bytes) -> bytes:
    return hashlib.blake2b(name, digest_size=_DIGEST).digest()


def stands_in(digest: bytes, digests: bytes) -> bool:
    """Tell whether a digest is one of those, which stand side by side."""
    at = digests.find(digest)
    while at > 0 and at % _DIGEST:
        at = digests.find(digest, at + 1)
    return at >= 0
