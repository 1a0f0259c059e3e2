"""Replies: the gateway's own, written; the server's, read line by line (RFC 5321 section 4.2).

Used by the session, the take-over, and for clients that are turned away. Knows nothing of commands or of
what a reply means.
"""

import re
from typing import Final

REPLY_MAX: Final = 4096
"""Longest reply line, CRLF included, that is accepted from a server."""

_TEXT_MAX: Final = 480
_OFFERS_MAX: Final = 64

HYPHEN: Final = 0x2D
"""What stands behind the code when more lines follow."""

_CR: Final = 0x0D
_LF: Final = 0x0A
_BLANK: Final = 0x20

_UNSAFE: Final = re.compile(r"[\x00-\x1f\x7f]")


def line_end(data: bytes, at: int) -> int:
    """Give where the reply line that begins at `at` ends, its CRLF included.

    0 when none stands there whole: three digits from 200 to 599, then nothing, or a blank or hyphen and text
    without CR and LF (RFC 5321 section 4.2). A bare code is a reply, too.
    """
    end = len(data) - 2
    if at or end < 0 or data[end] != _CR or _CR in data[:end]:  # it is not the only one, or not whole
        end = data.find(b"\r", at)
    if end < at + 3 or end + 1 == len(data) or data[end + 1] != _LF:
        return 0
    if not (0x32 <= data[at] <= 0x35 and 0x30 <= data[at + 1] <= 0x39 and 0x30 <= data[at + 2] <= 0x39):
        return 0
    if end > at + 3 and data[at + 3] != _BLANK and data[at + 3] != HYPHEN:
        return 0
    return 0 if _LF in data[at:end] else end + 2


def reply(code: int, enhanced: str, text: str) -> bytes:
    """Write a reply; a text of several lines becomes a reply of several lines.

    `enhanced` is the RFC 3463 code or empty. Control characters become `?`, each line is cut to what RFC 5321
    section 4.5.3.1.5 allows, characters outside ASCII are sent as UTF-8.
    """
    prefix = f"{enhanced} " if enhanced else ""
    lines = text.splitlines() or [""]
    last = len(lines) - 1
    return b"".join(
        b"%d%s%s\r\n" % (code, b" " if number == last else b"-", _clean(prefix + line))
        for number, line in enumerate(lines)
    )


def _clean(line: str) -> bytes:
    encoded = _UNSAFE.sub("?", line).encode("utf-8", "replace")
    return encoded if len(encoded) <= _TEXT_MAX else encoded[:_TEXT_MAX].decode("utf-8", "ignore").encode()


class EhloReply:
    """The reply to EHLO on its way to the client, without the extensions that must not be offered.

    One line is held back, because the last line that stays must carry the blank that ends the reply.
    """

    def __init__(self, masked: set[bytes]) -> None:
        self.offers: dict[bytes, bytes] = {}
        self._masked = masked
        self._held = b""

    def line(self, line: bytes, last: bool) -> bytes:
        """Take one whole line of a positive reply; give what goes to the client now."""
        keyword, _, arguments = line[4:].strip().upper().partition(b" ")
        keyword, _, equals = keyword.partition(b"=")  # AUTH=LOGIN of old servers
        first = not self._held
        if not first and keyword in self._masked:
            ready, self._held = (b"", self._held) if not last else (self._ended(self._held), b"")
            return ready
        if not first and len(self.offers) < _OFFERS_MAX:
            self.offers[keyword] = arguments or equals
        ready, self._held = (self._held, line) if not last else (self._held + line, b"")
        return ready

    @staticmethod
    def _ended(line: bytes) -> bytes:
        return line[:3] + b" " + line[4:]
