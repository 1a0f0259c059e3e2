"""Times and sizes as people write and read them. Commands call this."""

import re
import time

from appliance.ctl.base import Code, CtlError
from appliance.proxy.locks import FOREVER

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_PART = re.compile(r"([0-9]{1,9})([smhdw]?)", re.ASCII)
_LONGEST = 10 * 365 * 86400


def duration(text: str) -> int:
    """Read a duration in seconds: 90, 90s, 30m, 2h, 1d12h, 2w, or forever. Raises CtlError."""
    if text == "forever":
        return FOREVER
    parts = _PART.findall(text)
    seconds = sum(int(number) * _UNITS[unit or "s"] for number, unit in parts)
    if "".join(map("".join, parts)) != text or not 0 < seconds <= _LONGEST:
        raise CtlError(
            f"{text!r} is not a duration: write 90s, 30m, 2h, 1d12h, 2w (ten years at most), or forever",
            Code.BAD_USAGE,
        )
    return seconds


def moment(when: float) -> str:
    """Write a unix time in local time, or as a number when no calendar goes that far."""
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(when))
    except (OSError, OverflowError, ValueError):  # files may have any date
        return f"unix time {when:.0f}"


def end(until: float | None) -> str:
    """Write how long something lasts; None: without end."""
    return "for ever" if until is None else f"until {moment(until)}"


def span(seconds: float) -> str:
    """Write a time span with its two largest units."""
    left, words = max(0, int(seconds)), []
    for unit, size in reversed(_UNITS.items()):
        if unit != "w" and left >= size:
            words.append(f"{left // size}{unit}")
            left %= size
    return "".join(words[:2]) or "0s"


def size(number: float) -> str:
    """Write a number of bytes."""
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000 or unit == "GB":
            break
        number /= 1000
    return f"{number:.3g} {unit}" if unit != "B" else f"{number:.0f} B"
