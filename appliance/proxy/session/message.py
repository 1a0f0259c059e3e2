"""Where a message ends: the framing of DATA (RFC 5321 section 4.5.2), on whole buffers.

Only CRLF . CRLF ends a message. A lone dot between line ends of which one is not CRLF is what SMTP smuggling
is made of: some servers would take it for the end. So is a dot before a NUL, where OpenSMTPD sees its line
end. A dot behind a bare newline is text to one server and stuffing to another, which could show a scanner
other words than a reader. Depending on `bare_newline` all that is refused, rewritten or passed.
"""

import re
from typing import Final

_END: Final = b"\r\n.\r\n"
_APART: Final = 32  # bytes from dot to dot, on the average, from which on each is looked at by itself

# A line end, perhaps a dot, perhaps half a line end: what the next bytes may turn into an end of message.
_UNDECIDED: Final = re.compile(rb"(?:\r\n|\n|\r)(?:\.\r?)?\Z")

# A dot that a lenient reader takes for the end of the message or for stuffing. `\r\n.\r` at the very end of a
# buffer is still undecided.
_LENIENT_END: Final = re.compile(rb"(?:(?<!\r)\n|\r)\.|\r\n\.(?:[\0\n]|\r[^\n])")

# What `normalise` must stuff, for to a strict reader it neither begins a line nor ends the message: a dot
# behind a bare newline, and a dot that stands alone once the bare newline behind it is a line end.
_BARE_DOT: Final = re.compile(rb"(?:(?<!\r)\n|\r)\.")
_LONE_DOT: Final = re.compile(rb"(?<=\r\n)\.(?=[\0\n]|\r(?!\n))")


def crlf(text: bytes) -> bytes:
    """Make every line end CRLF."""
    return text.replace(b"\r\n", b"\n").replace(b"\r", b"\n").replace(b"\n", b"\r\n")


class DataBody:
    """The body of one DATA command, fed in pieces of any size.

    After each `feed`: `wire` is what goes to the server (dots stuffed), `content` what the message says (dots
    restored), `rest` the client's bytes behind the end, or None while the message goes on. `smuggling` tells
    that a forged end stands in `rest`. The terminating dot is in neither.
    """

    __slots__ = ("_bare_newline", "_held", "_virtual", "content", "rest", "smuggling", "wire")

    def __init__(self, bare_newline: str) -> None:
        self._bare_newline = bare_newline
        self._held = b"\r\n"  # the body begins at the start of a line; this line end itself belongs to nobody
        self._virtual = 2
        self.wire = b""
        self.content = b""
        self.rest: bytes | None = None
        self.smuggling = False

    def feed(self, data: bytes) -> None:
        """Take the client's next bytes."""
        if 0 < self._virtual == len(self._held) and data[:1] != b".":
            self._held, self._virtual = b"", 0  # only to a dot it matters that a line begins
        buffer = self._held + data if self._held else data
        first = _dot_of_a_line(buffer)
        dot = buffer.find(b"\n.", first) if first >= 0 else -1
        end = buffer.find(_END, max(dot - 1, 0)) if dot >= 0 else -1
        if end >= 0:
            cut, self.rest = end + 2, buffer[end + 5 :]
        else:
            undecided = _UNDECIDED.search(buffer, max(len(buffer) - 4, 0))
            cut = undecided.start() if undecided else len(buffer)
            if buffer.endswith(b"\r\n.", 0, cut):  # what follows that dot decides about it, and is held too
                cut -= 3
        # The end's own dot is at end + 2; any that comes before it is looked at.
        dotted = first >= 0 and (end < 0 or first != end + 1)
        if dotted and self._bare_newline == "reject":
            limit = cut if end >= 0 else len(buffer)
            forged = _suspicious(buffer, limit) and _LENIENT_END.search(buffer, 0, limit)
            if forged:
                self.smuggling = True
                cut, self.rest = forged.start(), buffer[forged.start() :]
        self._held = b"" if self.rest is not None else buffer[cut:]
        self._emit(buffer[:cut] if cut < len(buffer) else buffer, dotted)  # a slice is a copy

    def look_for_end_only(self) -> None:
        """From here on the message is dropped: nothing but its end matters."""
        self._bare_newline = "pass"
        self.smuggling = False
        self.rest = None

    def _emit(self, piece: bytes, dotted: bool) -> None:
        if self._bare_newline == "normalise" and (b"\n.\0" in piece or not _only_crlf(piece)):
            piece = crlf(_BARE_DOT.sub(b"\r\n..", _LONE_DOT.sub(b"..", piece)))
            dotted = True
        content = piece.replace(b"\r\n.", b"\r\n") if dotted else piece
        if self._virtual and piece:
            piece = piece[self._virtual :]
            content = content[self._virtual :] if dotted else piece
            self._virtual = 0
        self.wire, self.content = piece, content


def _dot_of_a_line(text: bytes) -> int:
    """Find the first dot that begins a line, by anybody's reading: give where its line end is, or -1.

    One byte is found many times faster than two, so each dot is found and looked at by itself, unless there
    are very many.
    """
    dot, looks = text.find(b"."), len(text) // _APART + 1
    while dot >= 0 and looks:
        if dot and text[dot - 1] in (0x0D, 0x0A):
            return dot - 1
        dot, looks = text.find(b".", dot + 1), looks - 1
    if dot < 0:
        return -1
    lf = text.find(b"\n.", dot - 1)
    cr = text.find(b"\r.", dot - 1, lf if lf >= 0 else len(text))
    return cr if cr >= 0 else lf


def _suspicious(text: bytes, limit: int) -> bool:
    """Whether a closer look is worth its time, which is fifty times that of these."""
    return (
        text.count(b"\n.", 0, limit) != text.count(b"\r\n.", 0, limit)
        or text.find(b"\r.", 0, limit) >= 0
        or text.find(b"\n.\n", 0, limit) >= 0
        or text.find(b"\n.\r", 0, limit) >= 0
        or text.find(b"\n.\0", 0, limit) >= 0
    )


def _only_crlf(piece: bytes) -> bool:
    return piece.count(b"\r\n") == piece.count(b"\n") == piece.count(b"\r")
