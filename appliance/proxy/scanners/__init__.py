"""Scanners: daemons that are handed a message's copy and say what it is.

Each scanner is one module of this package, named as the value of `antivirus_type` or `antispam_type` that
selects it, with a class `Scanner` in it; that file is all there is to add. A worker makes its scanners with
`configured` when it reads its configuration, calls `scan` at the end of a message and `probe` when it is
asked how they are; the supervisor does that itself before it starts. What a finding means for the mail is
decided by the caller. Nothing here keeps a connection: a scanner that was started again is simply there at
the next scan.
"""

import asyncio
import enum
import importlib
import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

from appliance.config import Config, SocketAddress
from appliance.proxy.deadlines import STILL
from appliance.proxy.spool import Spool

CONCURRENT = 16  # scans of one scanner that one worker has under way
_WAITING = 1024  # scans that are under way or wait for their turn
_UNPRINTABLE = re.compile(r"[^ -~]")
_PROBE_TIMEOUT = 5.0


class State(enum.Enum):
    """How a scan ended. FOUND is a virus, or spam."""

    CLEAN = enum.auto()
    FOUND = enum.auto()
    FAILED = enum.auto()
    TIMEOUT = enum.auto()


@dataclass(frozen=True, slots=True)
class Finding:
    """A scan's result: a virus's name or the spam score, or why there is none. Text is printable ASCII."""

    state: State
    name: str = ""
    score: float = 0.0
    detail: str = ""


class ScanError(Exception):
    """The scanner did not say what the message is; the text tells why."""


def printable(text: str, limit: int = 128) -> str:
    """Make a scanner's text fit for replies, logs and scripts: printable ASCII, `limit` characters."""
    return _UNPRINTABLE.sub("?", text.strip()[:limit])


class Scanner(ABC):
    """A scanner at `address`, allowed `timeout` seconds for a scan and its waiting; 0 sets no limit.

    `needs_path` tells that it opens a copy by its name, which the copy then must have.
    """

    option: str  # the option that holds the address, for people who have to correct it
    needs_path = False

    def __init__(self, address: SocketAddress, timeout: float) -> None:
        self.address = address
        self.timeout = timeout
        self._waiting = 0
        self._turns = asyncio.Semaphore(CONCURRENT)

    async def scan(self, spool: Spool) -> Finding:
        """Scan a message's copy, which must stay open meanwhile. Never fails; cancelling frees everything."""
        if self._waiting >= _WAITING:
            return Finding(State.FAILED, detail="too many messages wait for the scanner")
        self._waiting += 1
        try:
            async with _Within(self.timeout), self._turns:
                return await self._scan(spool)
        except TimeoutError:
            return Finding(State.TIMEOUT, detail=f"no answer from {self.address} within {self.timeout:g} s")
        except Exception as error:  # also what a library makes of an answer it does not understand
            return Finding(State.FAILED, detail=_told(error))
        finally:
            self._waiting -= 1

    async def probe(self) -> str | None:
        """Ask whether the scanner is there; None, or what is wrong and what to do about it."""
        try:
            async with asyncio.timeout(min(self.timeout or _PROBE_TIMEOUT, _PROBE_TIMEOUT)):
                await self._ping()
        except TimeoutError:
            why = "no answer"
        except Exception as error:
            why = _told(error)
        else:
            return None
        return f"no scanner at {self.address} ({why}): start it, or correct {self.option}"

    @abstractmethod
    async def _scan(self, spool: Spool) -> Finding:
        """Do one scan; raise whatever went wrong."""

    @abstractmethod
    async def _ping(self) -> None:
        """Do the least that proves the scanner is there; raise whatever went wrong."""


class _Within:
    """Raise TimeoutError after so many seconds, 0 for never; they begin anew when this process stood still.

    The answer may be there already, and the scanner may have stood still, too.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._loop = asyncio.get_running_loop()
        self._timeout = asyncio.timeout(None)
        self._timer: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()
        self._begin()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None
        await self._timeout.__aexit__(kind, error, trace)

    def _begin(self) -> None:
        if self._seconds:
            due = self._loop.time() + self._seconds
            self._timer = self._loop.call_at(due, self._look, due)

    def _look(self, due: float) -> None:
        if self._loop.time() - due > STILL:
            self._begin()
        else:
            self._timeout.reschedule(due)


def _told(error: Exception) -> str:
    reason = error.strerror if isinstance(error, OSError) else str(error)
    return printable(reason or str(error) or type(error).__name__, 256)


def configured(
    config: Config, reached: Callable[[SocketAddress], SocketAddress] = lambda address: address
) -> tuple[Scanner | None, Scanner | None]:
    """Make the scanners for viruses and for spam, None where nothing is scanned.

    `reached` gives the place of an address for whoever asks.
    """
    return (
        antivirus(
            config.antivirus_type if config.scan_max_size else "off",
            reached(config.antivirus_path),
            config.timeout_scanner,
            config.antivirus_transfer,
        ),
        antispam(
            config.antispam_type if config.spam_max_size > 0 else "off",
            reached(config.antispam_path),
            config.timeout_spam,
            config.spam_threshold,
        ),
    )


def antivirus(kind: str, address: SocketAddress, timeout: float, transfer: str) -> Scanner | None:
    """Make the virus scanner that `antivirus_type` names, None for off. `transfer` is path, stream or fd."""
    return None if kind == "off" else _load(kind)(address, timeout, transfer)


def antispam(kind: str, address: SocketAddress, timeout: float, threshold: float) -> Scanner | None:
    """Make the spam scanner of `antispam_type`, None for off; `threshold` is the least score of spam."""
    return None if kind == "off" else _load(kind)(address, timeout, threshold)


def _load(kind: str) -> Callable[..., Scanner]:
    found: Callable[..., Scanner] = importlib.import_module(f"{__name__}.{kind}").Scanner
    return found
