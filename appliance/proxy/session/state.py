"""The state of a session that its two directions share, and the moves that both make.

`client.py` and `content.py` read what the client sends, `server.py` what the server answers.
"""

import enum
from collections.abc import Callable
from typing import Final

from appliance.proxy.session import command
from appliance.proxy.session.message import DataBody
from appliance.proxy.session.reply import EhloReply, reply
from appliance.proxy.session.takeover import TakeOver
from appliance.proxy.session.verdict import BARE_LINE_END, PASS, Action, Effects, Gate, Settings, Verdict
from appliance.proxy.session.xclient import ClientOrigin


class Phase(enum.IntEnum):
    """Where the client's direction stands. In the phases marked * its bytes wait."""

    __hash__ = int.__hash__  # an enum's own is a call of Python, for each lookup

    COMMAND = enum.auto()
    ANSWER = enum.auto()  # the next line answers an AUTH challenge
    LONG = enum.auto()  # inside a line that passes, too long to be held whole
    SKIP = enum.auto()  # inside a line that was refused for its length
    BODY = enum.auto()  # behind a 354
    CHUNK = enum.auto()  # inside the bytes of a BDAT
    WAIT = enum.auto()  # * a reply decides how the next bytes are read
    ASKED = enum.auto()  # * a check is thinking
    ENDING = enum.auto()  # * a verdict waits for the server's answers to earlier commands
    TAKEN = enum.auto()  # the gateway plays server
    DIRECT = enum.auto()  # the worker relays by itself
    CLOSED = enum.auto()


class Awaited(enum.IntEnum):
    """What the client is still owed, in the order in which it will get it."""

    __hash__ = int.__hash__

    # The server's reply passes as it comes.
    PLAIN = 0
    GREETING = 1
    RCPT = 2
    # The server's reply is looked at.
    HELO = 3
    EHLO = 4
    RSET = 5
    MAIL_WATCHED = 6
    RCPT_WATCHED = 7
    AUTH = 8
    STARTTLS = 9
    DATA = 10
    CHUNK = 11
    LAST_CHUNK = 12
    FINAL = 13  # to the LAST that follows the verdict
    XCLIENT_GREETING = 14
    XCLIENT_EHLO = 15
    XCLIENT = 16
    CANCELLED = 17  # the reply to a `*` or RSET of the gateway's; the client gets the gateway's own, or none
    # The gateway's own turn.
    OWN = 18
    CONCLUDE = 19
    CHUNKS_DONE = 20


class Chunks(enum.Enum):
    """How far a message by BDAT has come."""

    NONE = enum.auto()
    OPEN = enum.auto()
    FAILED = enum.auto()  # a chunk was refused: only the last one, RSET, EHLO or MAIL lead out


AUTH_OFFERED, AUTH_ACCEPTED, AUTH_REJECTED = 1, 2, 4
"""Bits of `Session.auth`."""

_ABOUT_CHUNKS: Final = frozenset((Awaited.CHUNK, Awaited.LAST_CHUNK))
UNINSPECTABLE: Final = frozenset((b"XEXCH50", b"BURL", b"X-ANONYMOUSTLS"))
"""Extensions by which content would reach the server past the gateway's eyes: never offered."""


class SessionState:
    """The state that both directions share, and the few moves that both make."""

    def __init__(self, settings: Settings, effects: Effects, origin: ClientOrigin | None = None) -> None:
        """Begin on a fresh connection to the server; with `origin`, introduce the client by XCLIENT first."""
        self._settings = settings
        self._effects = effects
        self._gates = settings.gates
        self._may_be_early = bool(settings.gates & Gate.EARLY)
        self._origin = origin
        self.phase = Phase.WAIT if origin else Phase.COMMAND
        self.auth = 0
        self.recipients = 0
        self.transactions = 0
        self.message_size = 0
        self.commands = 0
        self.offers: dict[bytes, bytes] = {}
        self._helo_line = b""
        self._mail_line = b""
        self._in = b""
        self._start = 0  # first byte of _in not yet sent on
        self._at = 0  # first byte of _in not yet read
        self._end = 0  # end of the command line being read
        self._line_left = 0  # bytes of a long line that may still pass
        self._client_done = False
        first = Awaited.XCLIENT_GREETING if origin else Awaited.GREETING
        self._awaited = [(first, b"")]  # a few, but for pipeline_size at most
        self._final = PASS  # the verdict that CONCLUDE will carry out
        self._then: Callable[[Verdict], None] | None = None
        self._unfinished = False  # the server holds part of a message
        self.pipeline_overflow = False
        self._body: DataBody | None = None
        self._chunks = Chunks.NONE
        self._chunk_left = 0
        self._chunk_last = False
        self._chunk_cr = False  # the last byte of the chunks so far is a CR
        self._chunk_taken = False  # the server has agreed to one
        self._chunk_refusal = b""
        self._in_line = False  # the client was cut off inside a line
        self._release = b""
        self._header = b""  # goes out with the first bytes of the message: one packet, one wake-up less
        self._taken: TakeOver | None = None
        self._tail = b""  # the server's half line
        self._code = b""  # of the multi-line reply under way
        self._ehlo_under_way: EhloReply | None = None

    @property
    def helo(self) -> bytes:
        """The name the client gave with HELO or EHLO."""
        return command.argument(self._helo_line)

    @property
    def mail_from(self) -> bytes:
        """The reverse-path of the transaction, without angle brackets."""
        return command.path(self._mail_line)

    @property
    def backlog(self) -> int:
        """Bytes of the client that wait, for a reply, a verdict or the rest of their line.

        The worker stops reading when they are more than may wait (buffer_size), far more than a line has.
        """
        return len(self._in) - self._at

    @property
    def swallowing(self) -> bool:
        """Whether the session is taken over, and its client has yet to send the rest of a message."""
        return self._taken is not None and self._taken.swallowing

    def _reply(self, code: int, enhanced: str, text: str) -> bytes:
        return reply(code, enhanced if b"ENHANCEDSTATUSCODES" in self.offers else "", text)

    def _out_of_order(self) -> bytes:
        return self._reply(503, "5.5.1", self._settings.texts.proto_error)

    def _unavailable(self) -> bytes:
        return self._reply(502, "5.5.1", self._settings.texts.unimpl_command)

    def _to_client(self, data: bytes) -> None:
        if data:
            self._effects.to_client(data)

    def _own(self, data: bytes) -> None:
        """Give a reply of the gateway in its place among the server's."""
        self._awaited.append((Awaited.OWN, data))
        self._drain()

    def _refuse(self, verdict: Verdict) -> None:
        """Carry out a verdict that is not PASS, when its turn comes."""
        if verdict.action is Action.REFUSE and not self._unfinished:
            self._own(self._reply(verdict.code, verdict.enhanced, verdict.text))
            return
        self._final = verdict
        self._awaited.append((Awaited.CONCLUDE, b""))
        self.phase = Phase.ENDING
        self._drain()

    def _drain(self) -> None:
        """Speak the gateway's own replies whose turn has come."""
        while self._awaited and self._awaited[0][0] >= Awaited.OWN:
            kind, data = self._awaited.pop(0)
            if kind is Awaited.OWN:
                self._effects.to_client(data)
            elif kind is Awaited.CONCLUDE:
                self._conclude(self._final)
            else:
                self._chunks_done()

    def _conclude(self, verdict: Verdict) -> None:
        """Cut the server off: answer, then play server or hang up."""
        effects = self._effects
        effects.to_client(self._reply(verdict.code, verdict.enhanced, verdict.text))
        if verdict.action is Action.HANGUP:
            self.end()
            return
        owed = self._awaited.copy()
        self._awaited.clear()
        if not self._unfinished and all(kind is not Awaited.DATA for kind, _ in owed):
            effects.to_server(b"QUIT\r\n")  # never where it might become part of a message
        effects.drop_message()
        effects.close_server()
        self._take_over(verdict.reason or verdict.text)
        assert self._taken
        for kind, data in owed:
            if self._taken.done:
                break
            if kind in (Awaited.OWN, Awaited.CANCELLED):
                self._to_client(data)
            elif kind is Awaited.CONCLUDE:  # a verdict that came first, and is told all the same
                final = self._final
                effects.to_client(self._reply(final.code, final.enhanced, final.text))
            elif kind is not Awaited.GREETING:
                effects.to_client(self._taken.answer(_VERBS.get(kind, data)))
        if self._chunk_refusal and not self._taken.done:
            effects.to_client(self._chunk_refusal)
        self._serve(self._unread())

    def greet_and_take_over(self, reason: str) -> None:
        """Greet in place of a server that was not reached, and play server; `reason` is what MAIL is told."""
        self._awaited.clear()
        self._effects.to_client(reply(220, "", f"{self._settings.proxy_name} ESMTP"))
        self._take_over(reason)
        self._serve(self._unread())

    def expire(self) -> None:
        """timeout_session is over: the last words of a taken-over session."""
        if self.phase is Phase.TAKEN and self._taken:
            self._effects.to_client(self._taken.expired())
            self.end()

    def _unread(self) -> bytes:
        """Give the client's bytes not read yet, for another reader."""
        rest, self._in = self._in[self._at :], b""
        self._start = self._at = 0
        return rest

    def _take_over(self, reason: str) -> None:
        enhanced = b"ENHANCEDSTATUSCODES" in self.offers
        in_line = self._in_line or self.phase in (Phase.LONG, Phase.SKIP)
        self._taken = TakeOver(self._settings, enhanced, reason, in_line, self._body, self._chunk_left)
        self.phase = Phase.TAKEN
        self._effects.taken_over(reason)

    def _serve(self, data: bytes) -> None:
        assert self._taken
        answers = self._taken.feed(data)
        if answers:
            self._effects.to_client(answers)
        if self._taken.done or self._client_done:
            self.end()

    def end(self) -> None:
        """Close both sides after what was already said. Nothing happens afterwards."""
        if self.phase is Phase.CLOSED:
            return
        if self.phase is not Phase.TAKEN:
            self._effects.drop_message()
            self._effects.close_server()
        self.phase = Phase.CLOSED
        self._then = None
        self._in = b""
        self._start = self._at = 0
        self._effects.close_client()

    def _ask(self, gate: Gate, subject: bytes, then: Callable[[Verdict], None]) -> None:
        verdict = self._effects.ask(gate, subject) if self._gates & gate else PASS
        if verdict is None:
            self._wait_for(then)
        else:
            then(verdict)

    def _wait_for(self, then: Callable[[Verdict], None]) -> None:
        """A check takes its time: go on with its verdict when it comes."""
        self.phase = Phase.ASKED
        self._then = then

    def _end_of_message(self) -> None:
        """Everything but the end is with the server: the scanners have the word."""
        self._ask(Gate.END, b"", self._released)

    def _released(self, verdict: Verdict) -> None:
        if verdict.action is not Action.PASS:
            self._refuse(verdict)
            return
        self._effects.to_server(self._header + self._release)
        self._header = b""
        if self._chunks is Chunks.NONE:
            self._awaited.append((Awaited.PLAIN, b"DATA"))
        else:
            self._awaited.append((Awaited.FINAL, b"BDAT"))
            self._chunks = Chunks.NONE
            self.phase = Phase.WAIT  # nothing follows that could be taken for a part of the message
        self._unfinished = False
        self._effects.finish_message()

    def _chunks_done(self) -> None:
        """Every chunk was answered; only `BDAT 0 LAST` is missing."""
        self.phase = Phase.COMMAND
        if self._chunks is Chunks.FAILED:
            self._effects.to_client(self._out_of_order())
            self._leave_failed_message()
            return
        if self._chunk_cr and b"BINARYMIME" not in self.offers:
            self._refuse(BARE_LINE_END)  # Exim would read on for the LF, into the commands that follow
            return
        self._release = b"BDAT 0 LAST\r\n"
        self._end_of_message()

    def _in_chunks(self) -> bool:
        """Tell whether the server may be inside a message by BDAT."""
        if self._chunks is Chunks.NONE:
            return False
        return self._unfinished or any(kind in _ABOUT_CHUNKS for kind, _ in self._awaited)

    def _leave_failed_message(self) -> None:
        """The client has sent its last chunk in vain: the server, which saw no LAST, learns it by RSET."""
        if self._chunks is Chunks.FAILED and self._chunk_last and not self._in_chunks():
            self._chunks = Chunks.NONE
            self._effects.to_server(b"RSET\r\n")
            self._awaited.append((Awaited.CANCELLED, b""))
            self.phase = Phase.WAIT  # without PIPELINING Exim minds what comes before its answer


_VERBS: Final = {
    Awaited.RCPT: b"RCPT",
    Awaited.RCPT_WATCHED: b"RCPT",
    Awaited.MAIL_WATCHED: b"MAIL",
    Awaited.HELO: b"HELO",
    Awaited.EHLO: b"EHLO",
    Awaited.RSET: b"RSET",
    Awaited.DATA: b"DATA",
    Awaited.CHUNK: b"BDAT",
    Awaited.LAST_CHUNK: b"BDAT",
    Awaited.CHUNKS_DONE: b"BDAT",
}
