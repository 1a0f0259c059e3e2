"""The server's direction, which reply answers what, and with it the whole `Session`."""

from collections.abc import Callable
from typing import Final

from appliance.proxy.session.client import ClientSide
from appliance.proxy.session.reply import HYPHEN, REPLY_MAX, EhloReply, line_end
from appliance.proxy.session.state import (
    AUTH_ACCEPTED,
    AUTH_OFFERED,
    AUTH_REJECTED,
    UNINSPECTABLE,
    Awaited,
    Chunks,
    Phase,
)
from appliance.proxy.session.verdict import Action, Gate, Settings


class Session(ClientSide):
    """One SMTP session, both directions: what the worker holds for each client.

    The worker hands in bytes (`client_data`, `server_data`), ends (`client_eof`, `server_eof`) and late
    verdicts (`resume`); the session answers through `Effects`.
    """

    def server_data(self, data: bytes) -> None:
        """Take bytes that the server sent."""
        if self._tail:
            data, self._tail = self._tail + data, b""
        start = at = 0
        size = len(data)
        while at < size and self.phase not in _SERVER_GONE:
            end, code = line_end(data, at), data[at : at + 3]
            if not end or end - at > REPLY_MAX or (self._code and code != self._code):
                self._to_client(data[start:at])
                self._odd(data[at:], end > 0)
                break
            last = data[at + 3] != HYPHEN
            if not self._awaited:
                self._to_client(data[start:at])
                self._unasked(code, data[at:end], last)
            elif (kind := self._awaited[0][0]) <= Awaited.RCPT and (code[0] != 0x33 or code == b"334"):
                at = end
                if not last:
                    self._code = code
                    continue
                self._code = b""
                self._awaited.pop(0)
                self.recipients += kind is Awaited.RCPT and code[0] == 0x32
                if not self._awaited or self._awaited[0][0] < Awaited.OWN:
                    continue
                self._to_client(data[start:at])
                self._drain()
            else:
                self._to_client(data[start:at])
                self._looked_at(code, data[at:end], last)
            start = at = end
        else:
            self._to_client(data[start:at])
        if self.phase is Phase.DIRECT:
            self._to_client(data[at:])
            if rest := self._unread():
                self._effects.to_server(rest)
            self._effects.direct()
        else:
            self._advance()

    def server_eof(self) -> None:
        """The server has closed its side."""
        if self.phase not in _SERVER_GONE:
            self._fail()

    @property
    def introducing(self) -> bool:
        """Whether the server has yet to take the introduction by XCLIENT."""
        return bool(self._awaited) and self._awaited[0][0] in _XCLIENT

    def _fail(self) -> None:
        """The server is gone, or makes no sense."""
        if self.introducing:
            self._xclient_failed()
        else:
            self.end()

    def _odd(self, rest: bytes, whole: bool) -> None:
        """What stands next is no reply line, or only part of one."""
        if whole or b"\n" in rest or len(rest) > REPLY_MAX:
            self._fail()
        else:
            self._tail = rest

    def _unasked(self, code: bytes, line: bytes, last: bool) -> None:
        """A reply that no command awaits ends the session; a farewell still gets through.

        A farewell is a 421 at any time and, inside a message, any refusal.
        """
        if code == b"421" or (code[0] != 0x32 and code[0] != 0x33 and self._unfinished):
            self._to_client(line)
            if not last:
                self._code = code
                return
        self.end()

    def _looked_at(self, code: bytes, line: bytes, last: bool) -> None:
        """One line of a reply that changes something."""
        first = not self._code
        self._code = b"" if last else code
        kind, subject = self._awaited[0]
        if code[0] == 0x33 and code != b"334" and kind is not Awaited.DATA:
            # 354: the server would read what follows as a message, and nobody looks at it. 353, which asking
            # Exim for PRDR unoffered leads to: more replies come than commands await.
            self._fail()
            return
        if last:
            self._awaited.pop(0)
            if self.phase is Phase.WAIT and not self._awaited:
                self.phase = Phase.COMMAND
        _REPLIES[kind](self, code, line, first, last, subject)
        if last and self.phase not in _SERVER_GONE:
            self._drain()

    def _helo_reply(self, code: bytes, line: bytes, _first: bool, last: bool, _subject: bytes) -> None:
        self._to_client(line)
        if last and code[0] == 0x32:
            self.offers = {}
            self._reset()

    def _rset_reply(self, code: bytes, line: bytes, _first: bool, last: bool, _subject: bytes) -> None:
        self._to_client(line)
        if last and code[0] == 0x32:
            self._reset()

    def _reset(self) -> None:
        """The server has forgotten the transaction, and any message half sent."""
        if self._chunks is not Chunks.NONE:
            self._chunks = Chunks.NONE
            self._unfinished = False
            self._effects.drop_message()

    def _ehlo_reply(self, code: bytes, line: bytes, first: bool, last: bool, _subject: bytes) -> None:
        if code[0] != 0x32:
            self._to_client(line)
            return
        if first or self._ehlo_under_way is None:
            self._ehlo_under_way = EhloReply(_masked(self._settings))
        self._to_client(self._ehlo_under_way.line(line, last))
        if last:
            self.offers, self._ehlo_under_way = self._ehlo_under_way.offers, None
            self.auth |= AUTH_OFFERED if b"AUTH" in self.offers else 0
            self._reset()

    def _mail_reply(self, code: bytes, line: bytes, first: bool, last: bool, subject: bytes) -> None:
        passed = self._watched(Gate.REPLY_MAIL, code, line, first, subject)
        alone = not self._awaited and self.phase is Phase.COMMAND  # no chunk of its own has failed behind it
        if passed and last and code[0] == 0x32 and alone:
            self._reset()

    def _rcpt_reply(self, code: bytes, line: bytes, first: bool, last: bool, subject: bytes) -> None:
        if self._watched(Gate.REPLY_RCPT, code, line, first, subject) and last:
            self.recipients += code[0] == 0x32

    def _watched(self, gate: Gate, code: bytes, line: bytes, first: bool, subject: bytes) -> bool:
        """Show a reply to the checks before the client gets it; False when they cut the session."""
        verdict = self._effects.ask(gate, code + b" " + subject) if first and self._gates & gate else None
        if verdict and verdict.action is Action.DIRECT:
            self._to_client(line)
            self.phase = Phase.DIRECT
            return False
        if verdict and verdict.action is not Action.PASS:
            if self._code:
                self._awaited.pop(0)
            self._conclude(verdict)
            return False
        self._to_client(line)
        return True

    def _auth_reply(self, code: bytes, line: bytes, first: bool, last: bool, _subject: bytes) -> None:
        if code == b"334":
            self._to_client(line)
            if last:
                self.phase = Phase.ANSWER
            return
        if first:
            self.auth |= AUTH_ACCEPTED if code == b"235" else AUTH_REJECTED
        # An accepted AUTH may make the session direct, once its reply is whole.
        self._watched(Gate.REPLY_AUTH, code, line, last if code == b"235" else first, b"")

    def _starttls_reply(self, code: bytes, line: bytes, _first: bool, last: bool, _subject: bytes) -> None:
        if code == b"220" and last and self.backlog:
            # These bytes came before TLS and would be taken for part of it (RFC 3207 section 6): an
            # injection.
            self.end()
            return
        self._to_client(line)
        if code == b"220" and last:
            self.phase = Phase.DIRECT

    def _data_reply(self, code: bytes, line: bytes, _first: bool, last: bool, _subject: bytes) -> None:
        if code != b"354" and code[0] < 0x34:
            # Another command's reply: taken for a refusal, it would make commands of a message.
            self._fail()
            return
        self._to_client(line)
        if last and code == b"354":
            self._open_body()
        elif last:
            self._effects.drop_message()

    def _chunk_reply(self, code: bytes, line: bytes, first: bool, last: bool, _subject: bytes) -> None:
        if first and code[0] == 0x32:
            self._unfinished = self._chunk_taken = True
        elif first:
            self._chunk_failed()
        self._to_client(line)
        if last and self.phase is Phase.COMMAND:  # the client's last chunk may have been swallowed meanwhile
            self._leave_failed_message()

    def _last_chunk_reply(self, code: bytes, line: bytes, first: bool, last: bool, _subject: bytes) -> None:
        if code[0] != 0x32:
            if first:
                self._chunk_failed()
            self._to_client(line)
            if last and not self._chunk_left:
                self._leave_failed_message()
        elif self._chunk_left:
            self.end()  # an answer to a chunk that is not there yet
        elif last:
            self._chunks_done()

    def _final_reply(self, _code: bytes, line: bytes, _first: bool, _last: bool, _subject: bytes) -> None:
        self._to_client(line)

    def _chunk_failed(self) -> None:
        self._chunks = Chunks.FAILED
        self._unfinished = self._chunk_taken  # the server may have refused the command alone, as Exim does
        self._effects.drop_message()

    def _cancelled_reply(self, _code: bytes, _line: bytes, _first: bool, last: bool, subject: bytes) -> None:
        if last:
            self._to_client(subject)

    # -- introducing the client by XCLIENT ---------------------------------------------------------

    def _xclient_greeting(self, code: bytes, _line: bytes, _first: bool, last: bool, _subject: bytes) -> None:
        if code != b"220":
            self._xclient_failed()
        elif last:
            self._effects.to_server(b"EHLO %s\r\n" % self._settings.proxy_name.encode())
            self._await_xclient(Awaited.XCLIENT_EHLO)

    def _xclient_ehlo(self, code: bytes, line: bytes, first: bool, last: bool, _subject: bytes) -> None:
        if code != b"250":
            self._xclient_failed()
            return
        if first or self._ehlo_under_way is None:
            self._ehlo_under_way = EhloReply(set())
        self._ehlo_under_way.line(line, last)
        if not last:
            return
        attributes, self._ehlo_under_way = self._ehlo_under_way.offers.get(b"XCLIENT"), None
        if attributes is None:
            self._xclient_failed()
            return
        assert self._origin
        self._effects.to_server(self._origin.command(attributes.split()))
        self._await_xclient(Awaited.XCLIENT)

    def _xclient_reply(self, code: bytes, line: bytes, _first: bool, _last: bool, _subject: bytes) -> None:
        if code != b"220":
            self._xclient_failed()
        else:
            self._to_client(line)

    def _await_xclient(self, kind: Awaited) -> None:
        self._awaited.append((kind, b""))
        self.phase = Phase.WAIT

    def _xclient_failed(self) -> None:
        self._awaited.clear()
        self._code = b""
        self._effects.to_server(b"QUIT\r\n")
        self._effects.close_server()
        self.greet_and_take_over(self._settings.texts.fixed_xclient_fail)


def _masked(settings: Settings) -> set[bytes]:
    """The extensions that no client is told of."""
    masked = {*UNINSPECTABLE, b"PRDR"}  # by which a message has more replies than one
    if settings.forbid_starttls:
        masked.add(b"STARTTLS")
    if settings.gates & Gate.EARLY:
        masked |= _EARLY_TALK
    if settings.mask_xclient:
        masked.add(b"XCLIENT")
    return masked


_EARLY_TALK: Final = frozenset((b"PIPECONNECT", b"PIPE_CONNECT", b"X_PIPE_CONNECT"))  # by Exim's age
_SERVER_GONE: Final = frozenset((Phase.TAKEN, Phase.DIRECT, Phase.CLOSED))
_XCLIENT: Final = frozenset((Awaited.XCLIENT_GREETING, Awaited.XCLIENT_EHLO, Awaited.XCLIENT))

_REPLIES: Final[dict[Awaited, Callable[[Session, bytes, bytes, bool, bool, bytes], None]]] = {
    Awaited.HELO: Session._helo_reply,
    Awaited.EHLO: Session._ehlo_reply,
    Awaited.RSET: Session._rset_reply,
    Awaited.MAIL_WATCHED: Session._mail_reply,
    Awaited.RCPT_WATCHED: Session._rcpt_reply,
    Awaited.AUTH: Session._auth_reply,
    Awaited.STARTTLS: Session._starttls_reply,
    Awaited.DATA: Session._data_reply,
    Awaited.CHUNK: Session._chunk_reply,
    Awaited.LAST_CHUNK: Session._last_chunk_reply,
    Awaited.FINAL: Session._final_reply,
    Awaited.XCLIENT_GREETING: Session._xclient_greeting,
    Awaited.XCLIENT_EHLO: Session._xclient_ehlo,
    Awaited.XCLIENT: Session._xclient_reply,
    Awaited.CANCELLED: Session._cancelled_reply,
}
