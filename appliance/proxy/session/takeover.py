"""The gateway in the server's place: what a client hears after its server has been cut off, until it leaves.

Sans I/O like the session, which hands it the client's bytes and sends what it answers.
"""

from appliance.proxy.session.command import LINE_MAX, chunk
from appliance.proxy.session.message import DataBody
from appliance.proxy.session.reply import reply
from appliance.proxy.session.verdict import Settings


class TakeOver:
    """Answers for a server that is gone. `reason` is what MAIL is told.

    A client that was cut off inside a line, a body or a chunk goes on sending it: the rest of that is
    swallowed first.
    """

    def __init__(
        self,
        settings: Settings,
        enhanced: bool,
        reason: str,
        in_line: bool,
        body: DataBody | None,
        chunk_left: int,
    ) -> None:
        self._settings = settings
        self._enhanced = enhanced
        self._reason = reason
        self._in_line = in_line
        self._body = body
        if body:
            body.look_for_end_only()
        self._chunk_left = chunk_left
        self._buffer = b""
        self._commands = 0
        self.done = False

    @property
    def swallowing(self) -> bool:
        """Whether the client has yet to send the rest of a message."""
        return self._body is not None or self._chunk_left > 0

    def feed(self, data: bytes) -> bytes:
        """Take bytes from the client, give the replies. `done` turns true when both sides should part."""
        data = self._buffer + self._leave_message(data)
        at, out = 0, []
        while not self.done:
            if self._chunk_left:
                gone = min(self._chunk_left, len(data) - at)
                self._chunk_left -= gone
                at += gone
            end = data.find(b"\n", at)
            if end < 0:
                break
            out.append(self._line(data[at : end + 1]))
            at = end + 1
        self._buffer = data[at : at + LINE_MAX]
        return b"".join(out)

    def answer(self, verb: bytes) -> bytes:
        """Answer one command, whether it comes now or was left unanswered by the server."""
        texts, name = self._settings.texts, self._settings.proxy_name
        match verb:
            case b"RSET" | b"NOOP":
                return reply(250, "", "OK")
            case b"HELO" | b"EHLO":
                return reply(250, "", f"{name} {texts.hello}")
            case b"MAIL":
                return self._reply(451, "4.3.2", f"{name} {self._reason}")
            case b"RCPT" | b"DATA" | b"BDAT":
                return self._reply(503, "5.5.1", texts.proto_error)
            case b"QUIT":
                self.done = True
                return reply(221, "", texts.sign_off)
        return self._reply(502, "5.5.2", texts.unimpl_command)

    def expired(self) -> bytes:
        """The last words when timeout_session is over."""
        self.done = True
        return self._reply(421, "4.4.2", self._settings.texts.session_timeout)

    def _line(self, line: bytes) -> bytes:
        self._commands += 1
        if self._commands > self._settings.on_takeover_cmds:
            self.done = True
            return self._reply(554, "5.5.0", self._settings.texts.transaction_failed)
        words = line.split(None, 1)
        verb = words[0].upper() if words else b""
        if verb == b"BDAT":
            size = chunk(line)
            self._chunk_left = size[0] if size else 0
        return self.answer(verb)

    def _leave_message(self, data: bytes) -> bytes:
        if self._in_line:
            _, found, data = data.partition(b"\n")
            self._in_line = not found
        if self._body:
            self._body.feed(data)
            if self._body.rest is None:
                return b""
            data, self._body = self._body.rest, None
        return data

    def _reply(self, code: int, enhanced: str, text: str) -> bytes:
        return reply(code, enhanced if self._enhanced else "", text)
