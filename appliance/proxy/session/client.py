"""The client's direction: commands, and what of them goes on to the server. Messages stand in `content.py`.

The hot path looks at whole buffers: a batch of commands that all pass goes on as one slice, a body as it
came.
"""

from functools import partial
from typing import Final

from appliance.proxy.session import command
from appliance.proxy.session.command import ANSWER_MAX, LINE_MAX
from appliance.proxy.session.content import ContentSide
from appliance.proxy.session.state import UNINSPECTABLE, Awaited, Chunks, Phase
from appliance.proxy.session.verdict import Action, Gate, Verdict

_WAITS: Final = frozenset((Awaited.HELO, Awaited.EHLO, Awaited.AUTH, Awaited.STARTTLS, Awaited.DATA))

_LEAVES_MESSAGE: Final = frozenset((b"RSET", b"HELO", b"EHLO", b"QUIT"))

_ABOUT_MAIL: Final = Gate.MAIL | Gate.REPLY_MAIL
_ABOUT_RCPT: Final = Gate.RCPT | Gate.REPLY_RCPT

_BARE_ENDS: Final = {"reject": b"", "normalise": b"\r\n", "pass": b"\n"}


class ClientSide(ContentSide):
    """What a session does with the client's bytes."""

    def client_data(self, data: bytes) -> None:
        """Take bytes that the client sent."""
        if self.phase is Phase.TAKEN:
            self._serve(data)
            return
        if self.phase in (Phase.CLOSED, Phase.DIRECT):
            return
        self._end -= self._at  # of the line that a check is thinking about
        self._in = self._in[self._at :] + data if self._in else data
        self._start = self._at = 0
        if self._may_be_early and self.phase is Phase.COMMAND:
            self._may_be_early = self._ungreeted()
            if self._may_be_early:
                self._ask(Gate.EARLY, data, self._early)
        self._advance()

    def client_eof(self) -> None:
        """The client has said all it will; what the server still owes it is delivered first."""
        self._client_done = True
        self._leave_if_done()

    def resume(self, verdict: Verdict) -> None:
        """Take the late answer of a check; ignored when the session has ended meanwhile."""
        if self.phase is not Phase.ASKED:
            return
        self.phase = Phase.COMMAND
        then, self._then = self._then, None
        assert then
        then(verdict)
        self._advance()

    def _ungreeted(self) -> bool:
        return bool(self._awaited) and self._awaited[0][0] is Awaited.GREETING

    def _early(self, verdict: Verdict) -> None:
        self._may_be_early = False  # asked once
        if verdict.action is not Action.PASS:
            self._conclude(verdict)

    def _advance(self) -> None:
        """Read on as far as the bytes and the phase allow."""
        if self._in:
            while self._at < len(self._in):
                if not self._step():
                    break
            self._flush()
            if self._at * 2 >= len(self._in):  # keep no more than twice what waits
                self._end -= self._at
                self._in = self._in[self._at :]
                self._start = self._at = 0
        if self._client_done:
            self._leave_if_done()

    def _step(self) -> bool:
        """Read what the phase expects; False when that takes more bytes, or another phase."""
        phase = self.phase
        if phase is Phase.COMMAND:
            return self._commands()
        if phase is Phase.BODY:
            return self._body_bytes()
        if phase is Phase.CHUNK:
            return self._chunk_bytes()
        if phase is Phase.ANSWER:
            return self._irregular()
        if phase is Phase.LONG:
            return self._long()
        return phase is Phase.SKIP and self._skip()

    def _leave_if_done(self) -> None:
        if self.phase in (Phase.ASKED, Phase.ENDING, Phase.DIRECT, Phase.CLOSED):
            return
        if not self._awaited or self.phase in (Phase.BODY, Phase.CHUNK, Phase.LONG, Phase.TAKEN):
            self.end()

    def _pass_line(self, kind: Awaited, subject: bytes) -> None:
        """The line being read goes on, and a reply of this kind is awaited."""
        self._awaited.append((kind, subject))
        self._at = self._end
        if kind in _WAITS or (self._chunks is not Chunks.NONE and kind >= Awaited.HELO):
            self._flush()
            self.phase = Phase.WAIT

    def _commands(self) -> bool:
        """Read whole lines; those nobody has to look at cost one match each."""
        line_of = command.LINE[self._settings.bare_newline]
        longest = LINE_MAX - (self._settings.bare_newline == "normalise")  # a bare newline may grow
        while self.phase is Phase.COMMAND and self._at < len(self._in):
            match = line_of.match(self._in, self._at)
            end = match.end() if match else 0
            if match and end - self._at <= longest:
                self._command(match[1].upper(), end)
            elif not self._irregular():
                break
        return self.phase is not Phase.COMMAND

    def _command(self, verb: bytes, end: int) -> None:
        self._end = end
        if self._full():
            chunk = command.chunk(self._in[self._at : end])
            self._chunk_left = chunk[0] if chunk else 0
            self._drop_line()
            self._overflow()
            return
        self.commands += 1
        if verb != b"BDAT" and self._in_chunks():
            self._interrupts(verb)
            return
        handler = _HANDLERS.get(verb)
        if handler is None:
            self._awaited.append((Awaited.PLAIN, verb))
            self._at = end
        else:
            handler(self, self._in[self._at : end])

    def _interrupts(self, verb: bytes) -> None:
        """A command stands between chunks: the server never sees it.

        Behind many of them, and some chunks, Exim takes chunks for commands, or what follows for a message by
        DATA. So whoever gives a message up gives up its server, too.
        """
        if self._chunks is Chunks.OPEN and verb not in _LEAVES_MESSAGE:
            self._answer_here(self._out_of_order())
        else:
            self._drop_line()
            self._refuse(Verdict(Action.TAKEOVER, 451, "4.5.1", self._settings.texts.proto_error))

    def _full(self) -> bool:
        return len(self._awaited) >= self._settings.pipeline_size - 1

    def _overflow(self) -> None:
        self.pipeline_overflow = True
        self._refuse(Verdict(Action.TAKEOVER, 503, "5.5.0", self._settings.texts.pipeline_full))

    def _irregular(self) -> bool:
        """Read on at a line that answers a challenge, is not whole, not clean or too long.

        False when more bytes are needed.

        What is decided depends on the line alone, never on how its bytes arrived.
        """
        at, size, mode = self._at, len(self._in), self._settings.bare_newline
        found = command.UNCLEAN[mode].search(self._in, at)
        stop = found.start() if found else size
        verb = command.VERB[mode].match(self._in, at, at + LINE_MAX - 1)
        assert verb
        limit = ANSWER_MAX if self.phase is Phase.ANSWER or verb[1].upper() == b"AUTH" else LINE_MAX
        if stop - at > limit - (1 if mode == "pass" else 2):
            return self._too_long(verb[1].upper(), verb.end() - at == LINE_MAX - 1)
        if found is None or (stop + 1 == size and found[0] == b"\r"):
            return False
        width = self._line_end(stop)
        if not width:
            return self._unclean(stop)
        if self.phase is Phase.ANSWER:
            self._end = stop + width
            self._pass_line(Awaited.AUTH, b"")
        else:
            self._command(verb[1].upper(), stop + width)
        return True

    def _line_end(self, stop: int) -> int:
        """How many bytes of line end stand at `stop`; 0 when what stands there may not end a line."""
        if self._in.startswith(b"\r\n", stop):
            return 2
        return int(self._in[stop] in _BARE_ENDS[self._settings.bare_newline])

    def _too_long(self, verb: bytes, verb_unfinished: bool) -> bool:
        self._flush()
        if self.phase is Phase.COMMAND:
            if self._full():
                self._in_line = True
                self._overflow()
                return True
            self.commands += 1
            if verb not in _HANDLERS and not verb_unfinished and not self._in_chunks():
                self._awaited.append((Awaited.PLAIN, verb))
                self._line_left = ANSWER_MAX - 2
                self.phase = Phase.LONG
                return True
        refusal = self._reply(500, "5.5.2", "Line too long")
        if self.phase is Phase.ANSWER:
            self._effects.to_server(b"*\r\n")
            self._awaited.append((Awaited.CANCELLED, refusal))
        else:
            self._own(refusal)
        self.phase = Phase.SKIP
        return True

    def _unclean(self, stop: int) -> bool:
        """A NUL, a bare LF or a bare CR stands at `stop`, inside a command."""
        self._flush()
        if self.phase is Phase.LONG and self._awaited:
            self._awaited.pop()  # the server will never see the end of that line
        self._in_line = self._in[stop] != 0x0A
        text = "Lines must end in CRLF" if self._in[stop] else "NUL is not allowed in a command"
        self._start = self._at = stop + 1
        self._refuse(Verdict(Action.TAKEOVER, 550, "5.5.2", text))
        return True

    def _long(self) -> bool:
        """Pass the rest of a long line on as it comes, and no more of it than a server may read as one line.

        Exim takes what stands behind the first 16384 bytes of a line for the next command.
        """
        found = command.UNCLEAN[self._settings.bare_newline].search(self._in, self._at)
        stop = found.start() if found else len(self._in)
        passing = min(stop - self._at, self._line_left)
        self._at += passing
        self._line_left -= passing
        self._flush()
        if self._at < stop:
            self._effects.to_server(b"\r\n")
            self.phase = Phase.SKIP
            return True
        if found is None:
            return True
        if stop + 1 == len(self._in) and found[0] == b"\r":
            return False
        width = self._line_end(stop)
        if not width:
            return self._unclean(stop)
        self._at += width
        self._flush()
        self.phase = Phase.COMMAND
        return True

    def _skip(self) -> bool:
        """Drop the rest of a refused line."""
        end = self._in.find(b"\n", self._at)
        self._start = self._at = end + 1 or len(self._in)
        if end >= 0:
            self.phase = Phase.COMMAND
        return True

    def _checked(self, gate: Gate, subject: bytes, kind: Awaited, owed: bytes = b"") -> None:
        """Pass the line when the checks of its gate agree."""
        if not self._gates & gate:
            self._pass_line(kind, owed)
            return
        self._flush()
        verdict = self._effects.ask(gate, subject)
        if verdict is None:
            self._wait_for(partial(self._decided, kind, owed))
        else:
            self._decided(kind, owed, verdict)

    def _decided(self, kind: Awaited, owed: bytes, verdict: Verdict) -> None:
        if verdict.action is Action.PASS:
            self._pass_line(kind, owed)
        else:
            self._drop_line()
            self._refuse(verdict)

    def _answer_here(self, answer: bytes) -> None:
        self._drop_line()
        self._own(answer)

    def _helo(self, line: bytes) -> None:
        self._helo_line = line
        self._checked(Gate.HELO, command.argument(line), Awaited.HELO)

    def _ehlo(self, line: bytes) -> None:
        self._helo_line = line
        self._checked(Gate.HELO, command.argument(line), Awaited.EHLO)

    def _mail(self, line: bytes) -> None:
        self._mail_line = line
        failed = self._chunks is Chunks.FAILED  # until the server agrees to a new transaction
        if not failed and not self._gates & _ABOUT_MAIL:
            self._pass_line(Awaited.PLAIN, b"MAIL")
        else:
            address = command.path(line)
            watched = failed or self._gates & Gate.REPLY_MAIL
            kind, owed = (Awaited.MAIL_WATCHED, address) if watched else (Awaited.PLAIN, b"MAIL")
            self._checked(Gate.MAIL, address, kind, owed)

    def _rcpt(self, line: bytes) -> None:
        if not self._gates & _ABOUT_RCPT:
            self._pass_line(Awaited.RCPT, b"")
        else:
            address = command.path(line)
            watched = Awaited.RCPT_WATCHED if self._gates & Gate.REPLY_RCPT else Awaited.RCPT
            self._checked(Gate.RCPT, address, watched, address)

    def _rset(self, _line: bytes) -> None:
        if self._chunks is Chunks.NONE:
            self._pass_line(Awaited.PLAIN, b"RSET")
        else:
            self._pass_line(Awaited.RSET, b"")

    def _data(self, _line: bytes) -> None:
        if self._chunks is not Chunks.NONE:
            self._answer_here(self._out_of_order())
        else:
            self._checked(Gate.DATA, b"", Awaited.DATA)

    def _auth(self, _line: bytes) -> None:
        self._pass_line(Awaited.AUTH, b"")

    def _starttls(self, _line: bytes) -> None:
        if self._settings.forbid_starttls:
            self._answer_here(self._unavailable())
        else:
            self._pass_line(Awaited.STARTTLS, b"")

    def _xclient(self, _line: bytes) -> None:
        if self._settings.mask_xclient:
            self._answer_here(self._unavailable())
        else:
            self._pass_line(Awaited.HELO, b"")  # to the server it is another client, who has said nothing yet

    def _uninspectable(self, line: bytes) -> None:
        if command.argument(line):
            self._answer_here(self._unavailable())
        else:
            self._pass_line(Awaited.PLAIN, b"")


_HANDLERS: Final = {
    b"HELO": ClientSide._helo,
    b"EHLO": ClientSide._ehlo,
    b"MAIL": ClientSide._mail,
    b"RCPT": ClientSide._rcpt,
    b"RSET": ClientSide._rset,
    b"DATA": ClientSide._data,
    b"BDAT": ClientSide._bdat,
    b"AUTH": ClientSide._auth,
    b"STARTTLS": ClientSide._starttls,
    b"XCLIENT": ClientSide._xclient,
    **dict.fromkeys(UNINSPECTABLE, ClientSide._uninspectable),
}
