"""A little mail server, strict or lenient, for the property tests. No test lives here."""

import re
from dataclasses import dataclass, field

CHUNK = re.compile(rb"BDAT (\d+)( LAST)?\Z", re.IGNORECASE)

LINE_END = {
    "strict": re.compile(rb"\r\n"),
    "lenient": re.compile(rb"\r?\n"),
    "mixed": re.compile(rb"\r?\n"),
    "any": re.compile(rb"\r\n|\n|\r(?=[^\n])"),
}


@dataclass
class Server:
    """Answers what it receives, as it receives it; keeps the messages that it accepted.

    `reading` says what ends its lines and with them its messages: "strict" CRLF alone, "lenient" LF too,
    "any" CR too; "mixed" lets LF end commands but not messages. Replies repeat the command, so that a client
    can tell whose reply it got. A word in the command makes it refuse (`refuse`), answer at length (`wordy`),
    ask questions (`ask`, once for each).
    """

    reading: str = "strict"
    chunking: bool = True
    choosy: bool = True  # refuses some chunks
    accepted: list[bytes] = field(default_factory=list)
    commands: list[bytes] = field(default_factory=list)
    _buffer: bytes = b""
    _reads: str = "command"
    _message: bytes = b""
    _chunk_left: int = 0
    _chunk: bytes = b""
    _refused: bool = False
    _challenges: int = 0

    def feed(self, data: bytes) -> bytes:
        """Take bytes, give the replies."""
        self._buffer += data
        out = b""
        while self._buffer:
            if self._chunk_left:
                taken = self._buffer[: self._chunk_left]
                self._message += taken
                self._buffer = self._buffer[len(taken) :]
                self._chunk_left -= len(taken)
                if self._chunk_left:
                    break
                out += self._chunk_taken()
                continue
            line = self._line()
            if line is None:
                break
            out += self._body(line) if self._reads == "body" else self._command(line)
        return out

    def _line(self) -> bytes | None:
        """Take one line, its end included."""
        found = LINE_END[self.reading].search(self._buffer)
        if found is None:
            return None
        line, self._buffer = self._buffer[: found.end()], self._buffer[found.end() :]
        return line

    def _body(self, line: bytes) -> bytes:
        after_crlf = not self._message or self._message.endswith(b"\r\n")
        ends = (b".\r\n", b".\n", b".\r") if self.reading != "mixed" else (b".\r\n",) if after_crlf else ()
        if line in ends:
            self._reads = "command"
            return self._accept()
        self._message += line[1:] if line.startswith(b".") and after_crlf else line
        return b""

    def _accept(self) -> bytes:
        self.accepted.append(self._message)
        self._message = b""
        return b"250 2.0.0 accepted\r\n"

    def _chunk_taken(self) -> bytes:
        name = self._chunk
        if self._refused:
            return b"552 %s\r\n" % name
        if name.upper().endswith(b"LAST"):
            return self._accept()
        return b"250 %s\r\n" % name

    def _command(self, line: bytes) -> bytes:
        text = line.rstrip(b"\r\n")
        if self._challenges:
            self._challenges -= 1
            if text == b"*":
                self._challenges = 0
                return b"501 cancelled\r\n"
            return b"334 \r\n" if self._challenges else b"235 yes\r\n"
        self.commands.append(text)
        verb = text.upper().split(b" ")[0]
        refuse = b"refuse" in text
        if verb == b"EHLO" and not refuse:
            self._reset()
            last = b"250 CHUNKING\r\n" if self.chunking else b"250 SIZE\r\n"
            return b"250-%s\r\n250-AUTH=LOGIN\r\n250-XEXCH50\r\n250-ENHANCEDSTATUSCODES\r\n" % text + last
        if verb == b"DATA" and not refuse:
            self._reads, self._message = "body", b""
            return b"354 go\r\n"
        if verb == b"BDAT" and self.chunking and (found := CHUNK.fullmatch(text)):
            self._chunk, self._chunk_left = text, int(found[1])
            self._refused |= self.choosy and int(found[1]) % 7 == 6
            return b"" if self._chunk_left else self._chunk_taken()
        if verb in (b"RSET", b"HELO", b"EHLO", b"MAIL"):
            self._reset()
        if verb == b"AUTH" and not refuse:
            self._challenges = text.count(b"ask")
            return b"334 \r\n" if self._challenges else b"235 yes\r\n"
        shown = text[:100].replace(b"\0", b"?").replace(b"\r", b"?").replace(b"\n", b"?")
        code = b"550" if refuse else b"221" if verb == b"QUIT" else b"250"
        more = code + b"-" + shown + b"\r\n" if b"wordy" in text else b""
        return more + code + b" " + shown + b"\r\n"

    def _reset(self) -> None:
        self._message, self._refused = b"", False
