"""The messages of a session, by DATA or BDAT: passed and copied, end withheld until the verdict."""

from functools import partial

from appliance.proxy.session import command
from appliance.proxy.session.message import DataBody, crlf
from appliance.proxy.session.state import Awaited, Chunks, Phase, SessionState
from appliance.proxy.session.verdict import BARE_LINE_END, Action, Gate, Verdict


class ContentSide(SessionState):
    """What a session does with the content of messages."""

    def _flush(self) -> None:
        """Send on the commands that have been read and pass."""
        if self._at > self._start:
            data = self._in[self._start : self._at]
            self._effects.to_server(crlf(data) if self._settings.bare_newline == "normalise" else data)
            self._start = self._at

    def _drop_line(self) -> None:
        """The line being read does not go on."""
        self._flush()
        self._start = self._at = self._end

    def _body_bytes(self) -> bool:
        """Pass the body of a DATA command on, up to its end."""
        body = self._body
        assert body
        body.feed(self._in[self._at :] if self._at else self._in)
        self._in = b"" if body.rest is None else body.rest
        self._start = self._at = 0
        if body.rest is not None and not body.smuggling:
            self._body = None
        if not self._message_bytes(body.wire, body.content):
            return True
        if body.smuggling:
            self._refuse(BARE_LINE_END)
        elif body.rest is not None:
            self._release = b".\r\n"
            self.phase = Phase.COMMAND
            self._end_of_message()
        return True

    def _message_bytes(self, wire: bytes, content: bytes) -> bool:
        """Send a piece of message to the server and to the scanners; False when that ends the message."""
        verdict = None
        limit = self._settings.size_limit
        if limit and self.message_size + len(wire) > limit:
            wire = wire[: limit - self.message_size]
            verdict = Verdict(Action.TAKEOVER, 552, "5.3.4", self._settings.texts.size_limit)
        self.message_size += len(wire)
        if self._settings.spool and content and verdict is None:
            verdict = self._effects.spool(content)
        if wire:
            if self._header:
                self._effects.to_server(self._header)
                self._header = b""
            self._effects.to_server(wire)
        if verdict:
            if self.phase is Phase.CHUNK and self._awaited:
                self._awaited.pop()  # the server never answers a chunk that it has only part of
            self._refuse(verdict)
        return verdict is None

    def _bdat(self, line: bytes) -> None:
        parsed = command.chunk(line)
        if parsed is None:
            # Where the next command begins would be anybody's guess.
            self._drop_line()
            self._refuse(Verdict(Action.TAKEOVER, 501, "5.5.4", "BDAT takes a size and perhaps LAST"))
            return
        size, last = parsed
        if b"CHUNKING" not in self.offers:
            self._swallow_chunk(size, last, self._unavailable())
        elif self._chunks is Chunks.FAILED:
            self._swallow_chunk(size, last, self._out_of_order())
        elif self._chunks is Chunks.OPEN:
            self._pass_chunk(size, last, b"")
        else:
            self._flush()
            self._ask(Gate.DATA, b"", partial(self._first_chunk, size, last))

    def _first_chunk(self, size: int, last: bool, verdict: Verdict) -> None:
        if verdict.action is Action.PASS:
            self._begin_message()
            self._chunks = Chunks.OPEN
            self._pass_chunk(size, last, self._effects.begin_message())
        elif verdict.action is Action.REFUSE:
            self._chunks = Chunks.FAILED
            self._swallow_chunk(size, last, self._reply(verdict.code, verdict.enhanced, verdict.text))
        else:
            self._drop_line()
            self._chunk_left = size
            self._refuse(verdict)

    def _open_body(self) -> None:
        """The server said 354: the header goes in front of the client's first byte."""
        self._begin_message()
        self._header = self._effects.begin_message()
        self._body = DataBody(self._settings.bare_newline)
        self.phase = Phase.BODY

    def _begin_message(self) -> None:
        self.message_size = 0
        self._chunk_cr = self._chunk_taken = False
        self.transactions += 1
        self._unfinished = True

    def _pass_chunk(self, size: int, last: bool, header: bytes) -> None:
        """Announce a chunk, never as the last one, its size grown by the header that goes in front."""
        self._drop_line()
        total = size + len(header)
        if total or not last:
            self._effects.to_server(b"BDAT %d\r\n" % total + header)
            self._awaited.append((Awaited.LAST_CHUNK if last else Awaited.CHUNK, b""))
        else:
            self._awaited.append((Awaited.CHUNKS_DONE, b""))
        self._begin_chunk(size, last)

    def _swallow_chunk(self, size: int, last: bool, refusal: bytes) -> None:
        """Drop a chunk that the server shall not see; its sender gets the refusal behind it."""
        self._drop_line()
        self._chunk_refusal = refusal
        self._begin_chunk(size, last)

    def _begin_chunk(self, size: int, last: bool) -> None:
        self._chunk_left = size
        self._chunk_last = last
        self.phase = Phase.CHUNK
        if not size:
            self._chunk_ended()

    def _chunk_bytes(self) -> bool:
        whole = self._at == 0 and len(self._in) <= self._chunk_left
        piece = self._in if whole else self._in[self._at : self._at + self._chunk_left]
        self._at += len(piece)
        self._start = self._at
        self._chunk_left -= len(piece)
        self._chunk_cr = piece.endswith(b"\r")
        if self._chunks is Chunks.FAILED and not self._chunk_refusal:
            self._effects.to_server(piece)  # refused early, but promised
        elif not self._chunk_refusal and not self._message_bytes(piece, piece):
            return True
        if not self._chunk_left:
            self._chunk_ended()
        return True

    def _chunk_ended(self) -> None:
        self.phase = Phase.COMMAND
        if self._chunk_refusal:
            refusal, self._chunk_refusal = self._chunk_refusal, b""
            self._own(refusal)
        elif self._chunk_last and self._awaited:
            self.phase = Phase.WAIT
            self._drain()
            return
        self._leave_failed_message()
