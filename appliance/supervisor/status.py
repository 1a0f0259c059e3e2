"""The status file: what the gateway has done and is doing, for people and for programs that read it.

The supervisor has it written when it is asked to (signal USR1). Numbers come from the shared scoreboard, rows
from the workers, whose text is not trusted: the file holds printable ASCII only, and no value holds a blank.
"""

import contextlib
import os
import re
import tempfile
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from appliance.proxy.scoreboard import Counter, Scoreboard
from appliance.supervisor.worker import Rows

COLUMNS = (
    "slot",
    "pid",
    "state",
    "flags",
    "time",
    "source",
    "target",
    "trns",
    "cli_rx",
    "srv_rx",
    "kbps",
    "ident",
)
_UNFIT = re.compile(r"[^!-~]")
_LONGEST_VALUE = 64
_MOST_ROWS = 100_000  # of one worker

# A line of the human form: its label, and for each number its name in the flat form and its counter.
_COUNTERS: dict[str, dict[str, Counter]] = {
    "Found": {
        "found.viruses": Counter.VIRUSES,
        "found.spams": Counter.SPAMS,
        "found.noauths": Counter.NOAUTHS,
        "found.spf": Counter.SPF,
        "found.regex": Counter.REGEX,
        "found.earlytalk": Counter.EARLYTALK,
    },
    "Requests": {
        "requests.total": Counter.REQUESTS,
        "requests.direct": Counter.DIRECT,
        "requests.empty": Counter.EMPTY,
    },
    "Rejects": {
        "rejects.host": Counter.REJECT_HOST,
        "rejects.ident": Counter.REJECT_IDENT,
        "rejects.lock": Counter.REJECT_LOCK,
        "rejects.dnsbl": Counter.REJECT_DNSBL,
        "rejects.rate": Counter.REJECT_RATE,
        "rejects.ratelimit": Counter.REJECT_RATELIMIT,
        "rejects.other": Counter.REJECT_OTHER,
    },
    "Errors": {"errors.pipeline": Counter.PIPELINE},
    "Auth": {"auth.accepts": Counter.AUTH_ACCEPTS, "auth.rejects": Counter.AUTH_REJECTS},
}


@dataclass(frozen=True)
class Facts:
    """What a status tells; times are those of time.time(), which may be set; `uptime` is in seconds.

    `sessions` has the process number of each worker and its rows, None from one that did not answer.
    """

    version: str
    started: float
    reloaded: float
    now: float
    uptime: float
    crashed: int
    bugs: int
    board: Scoreboard
    sessions: Sequence[tuple[int, Rows | None]]

    def children(self) -> dict[str, int]:
        """Name and value of the numbers about sessions and workers."""
        return {
            "children.current": self.board.total(Counter.SESSIONS),
            "children.max": self.board.peak(),
            "children.crashed": self.crashed,
            "children.bugs": self.bugs,
        }


def render(forms: Collection[str], facts: Facts) -> str:
    """Give the text of the file in the forms of `statefile_type`, always in the order human, flat, slots."""
    parts = {"human": _human, "flat": _flat, "slots": _slots}
    return "\n".join(
        "".join(f"{line}\n" for line in part(facts)) for form, part in parts.items() if form in forms
    )


def write(path: Path, permissions: int, text: str, owner: tuple[int, int] | None = None) -> None:
    """Put a file with exactly these permissions in the place of the old one, in one step. Raises OSError.

    `owner` are the numbers of another user and group whose it shall be, which takes root.
    """
    fd, aside = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with open(fd, "w", encoding="ascii") as file:  # noqa: PTH123 - a descriptor, not a path
            file.write(text)
            os.fchmod(fd, permissions)
            if owner:
                with contextlib.suppress(PermissionError):  # a root that may not is served as well
                    os.fchown(fd, *owner)
        os.rename(aside, path)  # noqa: PTH104 - both are paths of text
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(aside)  # noqa: PTH108
        raise


def _human(facts: Facts) -> Iterator[str]:
    yield _line("Version", facts.version)
    yield _line("Start time", time.ctime(facts.started))
    yield _line("Restart time", time.ctime(facts.reloaded))
    yield _line("Dump time", time.ctime(facts.now))
    yield _line("Uptime", _span(int(facts.uptime)))
    yield _line("Children", "/".join(map(str, facts.children().values())))
    for label, counters in _COUNTERS.items():
        yield _line(label, "/".join(str(facts.board.total(counter)) for counter in counters.values()))


def _line(label: str, value: str) -> str:
    return f"{label + ':':<15}{value}"


def _span(seconds: int) -> str:
    minutes, second = divmod(seconds, 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    return f"{days} days {hour:02}:{minute:02}:{second:02}"


def _flat(facts: Facts) -> Iterator[str]:
    yield f"version: {facts.version}"
    yield f"time.dump.unix: {facts.now:.0f}"
    yield f"time.start.unix: {facts.started:.0f}"
    yield f"time.restart.unix: {facts.reloaded:.0f}"
    yield f"uptime.ticks: {facts.uptime:.0f}"
    for name, number in facts.children().items():
        yield f"{name}: {number}"
    for counters in _COUNTERS.values():
        for name, counter in counters.items():
            yield f"{name}: {facts.board.total(counter)}"


def _slots(facts: Facts) -> Iterator[str]:
    yield " ".join(COLUMNS)
    workers = len(facts.sessions)
    for index, (pid, rows) in enumerate(facts.sessions):
        if rows is None:
            yield " ".join(["-", str(pid), "unanswered", *["-"] * (len(COLUMNS) - 3)])
            continue
        for row in rows[:_MOST_ROWS]:
            slot, *rest = row or ("-",)
            # Workers number their slots alone; together they must still be different.
            number = slot * workers + index if isinstance(slot, int) else slot
            values = [number, pid, *rest][: len(COLUMNS)]
            yield " ".join([*map(_value, values), *["-"] * (len(COLUMNS) - len(values))])


def _value(value: object) -> str:
    return _UNFIT.sub("?", str("-" if value is None else value)[:_LONGEST_VALUE]) or "-"
