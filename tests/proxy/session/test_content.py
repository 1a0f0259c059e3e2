"""Messages: what the server and the scanners get, what is withheld, and forged ends (rules 4.3, 4.4, 1)."""

from itertools import product

import pytest

from appliance.proxy.session import Action, Gate, Phase, Verdict
from appliance.proxy.session.message import DataBody
from tests.proxy.session.cases import Case, case, check, every_way
from tests.proxy.session.recorder import CLIENT_ENDS, SERVER_ENDS, C, S

BAD = Verdict(Action.TAKEOVER, 550, "5.7.1", "gw virus (X)", "virus")
REFUSE = Verdict(Action.REFUSE, 530, "5.7.1", "log in first")
PASS = Verdict(Action.PASS)
BARE = "550 5.5.2 Lines of a message must end in CRLF"
HEADER = b"X-Nat: gw\r\n"

DATA = [
    case(
        "4.3 header behind the 354, dots unstuffed for the scanners, end passed when clean",
        C("DATA"),
        S("354 go"),
        C("Subject: x", "", "..dot", ".", "QUIT"),
        S("250 taken", "221 bye"),
        client=["354 go", "250 taken", "221 bye"],
        server=["DATA", HEADER, "Subject: x", "", "..dot", ".", "QUIT"],
        spool=[b"Subject: x\r\n\r\n.dot\r\n"],
        verdicts={Gate.END: PASS},
        events=["begin", "END", "finish"],
        header=HEADER,
    ),
    case(
        "4.3 nothing to ask: the end passes with the body",
        C("DATA"),
        S("354 go"),
        C("x", "."),
        S("250 taken"),
        client=["354 go", "250 taken"],
        server=["DATA", "x", "."],
        spool=[b"x\r\n"],
        events=["begin", "finish"],
    ),
    case(
        "4.3 an empty message",
        C("DATA", ".", "NOOP"),
        S("354 go"),
        S("250 taken", "250 b"),
        client=["354 go", "250 taken", "250 b"],
        server=["DATA", HEADER, ".", "NOOP"],
        spool=[b""],
        header=HEADER,
    ),
    case(
        "4.3 a body that came before the 354 waits for it",
        C("DATA", "x", ".", "MAIL FROM:<a>"),
        S("354-go", "354 on"),
        S("250 taken", "250 b"),
        client=["354-go", "354 on", "250 taken", "250 b"],
        server=["DATA", HEADER, "x", ".", "MAIL FROM:<a>"],
        header=HEADER,
    ),
    case(
        "4.3 DATA refused by the server: what follows is commands",
        C("MAIL FROM:<a>", "DATA", "NOOP"),
        S("250 a", "554 no recipients"),
        S("250 b"),
        client=["250 a", "554 no recipients", "250 b"],
        server=["MAIL FROM:<a>", "DATA", "NOOP"],
        events=["DATA"],
        verdicts={Gate.DATA: PASS},
    ),
    case(
        "4.3 two messages in one session",
        C("DATA"),
        S("354 go"),
        C("x", "."),
        S("250 taken"),
        C("DATA"),
        S("354 go"),
        C("y", "."),
        S("250 taken"),
        client=["354 go", "250 taken"] * 2,
        server=["DATA", "x", ".", "DATA", "y", "."],
        spool=[b"x\r\n", b"y\r\n"],
    ),
    case(
        "1.3 a bad verdict: server closed without end and QUIT, 550, take over",
        C("DATA"),
        S("354 go"),
        C("EICAR", ".", "RSET", "MAIL FROM:<a>"),
        client=["354 go", "550 5.7.1 gw virus (X)", "250 OK", "451 4.3.2 gw virus"],
        server=["DATA", HEADER, "EICAR"],
        verdicts={Gate.END: BAD},
        events=["begin", "END", "drop", "close server", "taken over: virus"],
        header=HEADER,
        phase=Phase.TAKEN,
    ),
    case(
        "1.3 a message cannot be refused and the session go on",
        C("DATA"),
        S("354 go"),
        C("x", ".", "NOOP"),
        client=["354 go", "530 5.7.1 log in first", "250 OK"],
        server=["DATA", "x"],
        verdicts={Gate.END: REFUSE},
        phase=Phase.TAKEN,
    ),
    case(
        "4.3 size_limit reached is not passed",
        C("DATA"),
        S("354 go"),
        C("12345678", "."),
        S("250 taken"),
        client=["354 go", "250 taken"],
        server=["DATA", HEADER, "12345678", "."],
        settings={"size_limit": 10},
        header=HEADER,
    ),
    case(
        "4.3 size_limit passed: 552, take over, the rest of the body is swallowed",
        C("DATA"),
        S("354 go"),
        C("123456789", "QUIT", "..", ".", "NOOP"),
        client=["354 go", "552 5.3.4 too big", "250 OK"],
        server=["DATA", b"1234567890"[:9], b"\r"],
        settings={"size_limit": 10},
        events=["begin", "drop", "close server", "taken over: too big"],
    ),
    case(
        "4.3 the copy fails: the message ends there",
        C("DATA"),
        S("354 go"),
        C("x", ".", "NOOP"),
        client=["354 go", "451 4.3.1 disk", "250 OK"],
        server=["DATA", "x"],
        spool_fails=Verdict(Action.TAKEOVER, 451, "4.3.1", "disk"),
        sizes=(0,),
    ),
    case(
        "1 the client leaves inside a body",
        C("DATA"),
        S("354 go"),
        C("x"),
        CLIENT_ENDS,
        client=["354 go"],
        server=["DATA", b"x"],
        events=["begin", "drop", "close server", "close client"],
    ),
    case(
        "1 the client leaves behind the end: its answer is delivered",
        C("DATA", "x", "."),
        CLIENT_ENDS,
        S("354 go"),
        S("250 taken"),
        client=["354 go", "250 taken"],
        server=["DATA", "x", "."],
        verdicts={Gate.END: PASS},
        events=["begin", "END", "finish", "close server", "close client"],
    ),
    case(
        "1 the server leaves inside a body",
        C("DATA"),
        S("354 go"),
        C("x", ""),
        SERVER_ENDS,
        client=["354 go"],
        server=["DATA", b"x\r\n"],
        events=["begin", "drop", "close server", "close client"],
    ),
    *(
        case(
            f"4.2 a {code} inside a body gets through, then both sides close",
            C("DATA"),
            S("354 go"),
            C("x", "y"),
            S(f"{code}-no", f"{code} more"),
            client=["354 go", f"{code}-no", f"{code} more"],
            server=["DATA", "x", b"y"],
            phase=Phase.CLOSED,
        )
        for code in (421, 452, 554)
    ),
    case(
        "4.2 a 250 inside a body does not",
        C("DATA"),
        S("354 go"),
        C("x"),
        S("250 ok"),
        client=["354 go"],
        server=["DATA", b"x"],
        phase=Phase.CLOSED,
    ),
]

BDAT = [
    case(
        "4.3 LAST is withheld; header in the first chunk, its size corrected",
        C("BDAT 5", b"a\r\n.\nBDAT 3 last\r\n", b"x\0z", "NOOP"),
        S("250 five"),
        S("250 three"),
        S("250 taken", "250 b"),
        client=["250 five", "250 taken", "250 b"],
        server=["BDAT 16", HEADER, b"a\r\n.\n", "BDAT 3", b"x\0z", "BDAT 0 LAST", "NOOP"],
        spool=[b"a\r\n.\nx\0z"],
        verdicts={Gate.DATA: PASS, Gate.END: PASS},
        events=["DATA", "begin", "END", "finish"],
        header=HEADER,
    ),
    case(
        "4.3 one chunk",
        C("BDAT 3 LAST", b"xyz"),
        S("250-three", "250 octets"),
        S("250 taken"),
        client=["250 taken"],
        server=["BDAT 3", b"xyz", "BDAT 0 LAST"],
        spool=[b"xyz"],
    ),
    case(
        "4.3 an empty last chunk adds nothing",
        C("BDAT 3", b"xyz", "BDAT 0 LAST"),
        S("250 three"),
        S("250 taken"),
        client=["250 three", "250 taken"],
        server=["BDAT 3", b"xyz", "BDAT 0 LAST"],
    ),
    case(
        "4.3 an empty message with a header",
        C("BDAT 0 LAST"),
        S("250 header"),
        S("250 taken"),
        client=["250 taken"],
        server=["BDAT 11", HEADER, "BDAT 0 LAST"],
        header=HEADER,
    ),
    case(
        "4.3 an empty message without",
        C("BDAT 0 LAST"),
        S("250 taken"),
        client=["250 taken"],
        server=["BDAT 0 LAST"],
        spool=[b""],
    ),
    case(
        "4.3 an empty chunk in between passes",
        C("BDAT 1", b"x", "BDAT 0", "BDAT 1 LAST", b"y"),
        S("250 a", "250 b", "250 c"),
        S("250 taken"),
        client=["250 a", "250 b", "250 taken"],
        server=["BDAT 1", b"x", "BDAT 0", "BDAT 1", b"y", "BDAT 0 LAST"],
    ),
    case(
        "4.3 a refused chunk: its reply passes, later ones are answered here until RSET",
        C("BDAT 1", b"x"),
        S("552 full"),
        C("BDAT 6", b"QUIT\r\n", "DATA", "RSET", "BDAT 1 LAST", b"y"),
        S("250 reset"),
        S("250 one"),
        S("250 taken"),
        client=["552 full", "503 5.5.1 wrong order", "503 5.5.1 wrong order", "250 reset", "250 taken"],
        server=["BDAT 1", b"x", "RSET", "BDAT 1", b"y", "BDAT 0 LAST"],
        events=["begin", "drop", "begin", "finish"],
        spool=[b"x", b"y"],
    ),
    case(
        "4.3 a refused chunk with LAST already behind it",
        C("BDAT 1", b"x", "BDAT 1 LAST", b"y", "NOOP"),
        S("552 full", "552 full too"),
        S("250 a"),
        client=["552 full", "552 full too", "250 a"],
        server=["BDAT 1", b"x", "BDAT 1", b"y", "NOOP"],
        phase=Phase.COMMAND,
    ),
    case(
        "4.3 the server takes the last chunk but not the one before",
        C("BDAT 1", b"x", "BDAT 1 LAST", b"y", "NOOP"),
        S("552 full", "250 fine"),
        S("250 a"),
        client=["552 full", "503 5.5.1 wrong order", "250 a"],
        server=["BDAT 1", b"x", "BDAT 1", b"y", "NOOP"],
    ),
    case(
        "4.3 a chunk refused before it is whole is still delivered, but not to the scanners",
        C("BDAT 4", b"ab"),
        S("552-full", "552 full"),
        C(b"cd", "RSET"),
        S("250 a"),
        client=["552-full", "552 full", "250 a"],
        server=["BDAT 4", b"abcd", "RSET"],
        spool=[b"ab"],
    ),
    case(
        "4.3 a last chunk taken before it is whole ends the session",
        C("BDAT 4 LAST", b"ab"),
        S("250 four"),
        client=[],
        server=["BDAT 4", b"ab"],
        phase=Phase.CLOSED,
    ),
    case(
        "4.3 MAIL and RCPT inside chunks",
        C("BDAT 1", b"x", "MAIL FROM:<a>", "RCPT TO:<b>", "NOOP"),
        S("250 a", "250 b"),
        client=["250 a", "503 5.5.1 wrong order", "503 5.5.1 wrong order", "250 b"],
        server=["BDAT 1", b"x", "NOOP"],
    ),
    case(
        "4.3 DATA inside chunks is 503",
        C("BDAT 1", b"x", "DATA"),
        S("250 a"),
        client=["250 a", "503 5.5.1 wrong order"],
        server=["BDAT 1", b"x"],
    ),
    *(
        case(
            f"4.3 {verb} between chunks forgets them",
            C("BDAT 1", b"x", verb, "DATA"),
            S("250 a", "250 reset"),
            S("354 go"),
            client=["250 a", "250 reset", "354 go"],
            server=["BDAT 1", b"x", verb, "DATA"],
            events=["begin", "drop", "begin"],
        )
        for verb in ("RSET", "EHLO x", "HELO x")
    ),
    case(
        "4.3 a refused RSET forgets nothing",
        C("BDAT 1", b"x", "RSET", "DATA"),
        S("250 a", "500 what"),
        client=["250 a", "500 what", "503 5.5.1 wrong order"],
        server=["BDAT 1", b"x", "RSET"],
    ),
    case(
        "4.3 a new MAIL leads out of a refused chunk",
        C("BDAT 1", b"x"),
        S("552 full"),
        C("MAIL FROM:<a>", "DATA"),
        S("250 ok"),
        S("354 go"),
        client=["552 full", "250 ok", "354 go"],
        server=["BDAT 1", b"x", "MAIL FROM:<a>", "DATA"],
    ),
    case(
        "4.3 MAIL and its chunks in one go: the reply to MAIL does not touch them",
        C("MAIL FROM:<a>", "RCPT TO:<b>", "BDAT 1 LAST", b"x"),
        S("250 a", "250 b", "250 one"),
        S("250 taken"),
        client=["250 a", "250 b", "250 taken"],
        server=["MAIL FROM:<a>", "RCPT TO:<b>", "BDAT 1", b"x", "BDAT 0 LAST"],
        verdicts={Gate.MAIL: PASS, Gate.REPLY_MAIL: PASS, Gate.END: PASS},
        events=["MAIL a", "begin", "REPLY_MAIL 250 a", "END", "finish"],
    ),
    case(
        "4.3 without CHUNKING on offer BDAT is refused and its bytes dropped",
        C("BDAT 6 LAST", b"QUIT\r\n", "NOOP"),
        S("250 a"),
        client=["502 not here", "250 a"],
        server=["NOOP"],
        offers=("SIZE",),
    ),
    *(
        case(
            f"4.3 malformed {bad!r} ends in take-over",
            C("NOOP", bad),
            S("250 a"),
            client=["250 a", "501 5.5.4 BDAT takes a size and perhaps LAST"],
            server=["NOOP", "QUIT"],
            phase=Phase.TAKEN,
        )
        for bad in (
            *("BDAT", "BDAT -1", "BDAT x", "BDAT 1x", "BDAT 0x5", "BDAT +5", "BDAT 5 FIRST"),
            *("BDAT 5 LAST LAST", "BDAT 1234567890123456", "BDAT 2147483648", "BDAT 5LAST", "BDAT\v5"),
        )
    ),
    case(
        "1.3 a bad verdict: no BDAT 0 LAST",
        C("BDAT 5 LAST", b"EICAR", "NOOP"),
        S("250 five"),
        client=["550 5.7.1 gw virus (X)", "250 OK"],
        server=["BDAT 5", b"EICAR"],
        verdicts={Gate.END: BAD},
        events=["begin", "END", "drop", "close server", "taken over: virus"],
    ),
    case(
        "4.1 REFUSE before the first chunk drops it",
        C("NOOP", "BDAT 6", b"QUIT\r\n", "BDAT 1 LAST", b"x", "RSET", "DATA"),
        S("250 a", "250 b"),
        client=[
            "250 a",
            "530 5.7.1 log in first",
            "503 5.5.1 wrong order",
            "250 b",
            "530 5.7.1 log in first",
        ],
        server=["NOOP", "RSET"],
        verdicts={Gate.DATA: REFUSE},
    ),
    case(
        "4.1 TAKEOVER before the first chunk swallows it",
        C("NOOP", "BDAT 6", b"QUIT\r\n", "NOOP"),
        S("250 a"),
        client=["250 a", "550 5.7.1 gw virus (X)", "250 OK"],
        server=["NOOP", "QUIT"],
        verdicts={Gate.DATA: BAD},
    ),
    case(
        "4.3 size_limit passed inside a chunk, in its place",
        C("RCPT TO:<a>", "BDAT 12", b"QUIT\r\nQUIT\r\n", "NOOP"),
        S("250 a"),
        client=["250 a", "552 5.3.4 too big", "250 OK"],
        server=["RCPT TO:<a>", "BDAT 12", b"QUIT\r\nQUIT"],
        settings={"size_limit": 10},
    ),
    case(
        "4.3 a copy that fails inside a chunk",
        C("BDAT 3", b"xyz", "NOOP"),
        client=["451 4.3.1 disk", "250 OK"],
        server=["BDAT 3", b"xyz"],
        spool_fails=Verdict(Action.TAKEOVER, 451, "4.3.1", "disk"),
        sizes=(0,),
    ),
    case(
        "1 the client leaves inside a chunk",
        C("BDAT 5 LAST", b"ab"),
        CLIENT_ENDS,
        client=[],
        server=["BDAT 5", b"ab"],
        events=["begin", "drop", "close server", "close client"],
    ),
    case(
        "8 taken over by a reply inside a chunk: the rest of it is swallowed",
        C("RCPT TO:<a>", "BDAT 6", b"QU"),
        S("550 no"),
        C(b"IT\r\n", "NOOP"),
        client=["550 5.7.1 gw virus (X)", "503 5.5.1 wrong order", "250 OK"],
        server=["RCPT TO:<a>", "BDAT 6", b"QU"],
        verdicts={Gate.REPLY_RCPT: BAD},
    ),
    case(
        "8 taken over by a reply inside a chunk that was refused here",
        C("RCPT TO:<a>", "BDAT 6", b"QU"),
        S("550 no"),
        C(b"IT\r\n", "NOOP"),
        client=["550 gw virus (X)", "502 not here", "250 OK"],
        server=["RCPT TO:<a>", "QUIT"],
        verdicts={Gate.REPLY_RCPT: BAD},
        offers=(),
    ),
    case(
        "8 taken over by a reply inside a long line",
        C("RCPT TO:<a>", b"NOOP " + b"x" * 3000),
        S("550 no"),
        C(b"QUIT\r\n", "NOOP"),
        client=["550 5.7.1 gw virus (X)", "250 OK", "250 OK"],
        server=["RCPT TO:<a>", b"NOOP " + b"x" * 3000, "QUIT"],
        verdicts={Gate.REPLY_RCPT: BAD},
    ),
]

# What one reader takes for the end of a message or for stuffing, another not; and what normalise makes of it.
FORGED = {
    b"\n.\n": b"\r\n..\r\n",
    b"\n.\r": b"\r\n..\r\n",
    b"\n.\r\n": b"\r\n..\r\n",
    b"\r.\n": b"\r\n..\r\n",
    b"\r.\r": b"\r\n..\r\n",
    b"\r.\r\n": b"\r\n..\r\n",
    b"\r\n.\n": b"\r\n..\r\n",
    b"\r\n.\r": b"\r\n..\r\n",
    b"\r\n.\r\r\n": b"\r\n..\r\n\r\n",
    b"\r\n.\0": b"\r\n..\0",
    b"\n.": b"\r\n..",
    b"\r.": b"\r\n..",
}

SMUGGLING = [
    *(
        case(
            f"4.4 reject: {forged!r}",
            C("DATA"),
            S("354 go"),
            C(b"x" + forged + b"MAIL FROM:<a>\r\n", "QUIT", ".", "NOOP"),
            client=["354 go", BARE, "250 OK"],
            server=["DATA", b"x" + forged[: forged.index(b".") - (2 if b"\r\n." in forged else 1)]],
            phase=Phase.TAKEN,
        )
        for forged in FORGED
    ),
    *(
        case(
            f"4.4 normalise: {forged!r} becomes text",
            C("DATA"),
            S("354 go"),
            C(b"x" + forged + b"y\r\n", "."),
            S("250 taken"),
            client=["354 go", "250 taken"],
            server=["DATA", b"x" + text + b"y\r\n", "."],
            settings={"bare_newline": "normalise"},
        )
        for forged, text in FORGED.items()
    ),
    *(
        case(
            f"4.4 pass: {forged!r} passes as it is",
            C("DATA"),
            S("354 go"),
            C(b"x" + forged + b"y\r\n", "."),
            S("250 taken"),
            client=["354 go", "250 taken"],
            server=["DATA", b"x" + forged + b"y\r\n", "."],
            settings={"bare_newline": "pass"},
        )
        for forged in FORGED
    ),
    *(
        case(
            f"4.4 reject: {start!r} right behind the 354",
            C("DATA"),
            S("354 go"),
            C(start + b"\r\n", ".", "NOOP"),
            client=["354 go", BARE, "250 OK"],
            server=["DATA"],
            phase=Phase.TAKEN,
        )
        for start in (b".\n", b".\rx\r\n")
    ),
    case(
        "4.4 reject: bare newlines without a dot behind them pass as they are",
        C("DATA"),
        S("354 go"),
        C(b"a\nb\rc\n\rd.\n\r\n..\0e\r\n", "."),
        S("250 taken"),
        client=["354 go", "250 taken"],
        server=["DATA", b"a\nb\rc\n\rd.\n\r\n..\0e\r\n", "."],
        spool=[b"a\nb\rc\n\rd.\n\r\n.\0e\r\n"],
    ),
]


@pytest.mark.parametrize(("one", "size", "late", "patient"), every_way(DATA + BDAT + SMUGGLING))
def test_rule(one: Case, size: int, late: bool, patient: bool) -> None:
    check(one, size, late, patient)


def _readers_differ(body: bytes) -> bool:
    """Whether some server would end the message, or take a dot away, where a strict one does not."""
    for at, letter in enumerate(body):
        before, behind = body[:at], body[at + 1 :]
        if letter == 0x2E and before.endswith((b"\r", b"\n")):
            if not before.endswith(b"\r\n") or behind.startswith((b"\n", b"\0")):
                return True
            if behind.startswith(b"\r") and not behind.startswith(b"\r\n"):
                return True
    return False


@pytest.mark.parametrize("mode", ["reject", "normalise", "pass"])
def test_every_short_body_in_every_two_pieces(mode: str) -> None:
    """All bodies of up to five of the letters that matter: one outcome, whatever the pieces."""
    for length in range(6):
        for letters in product((b"\r", b"\n", b".", b"\0", b"x"), repeat=length):
            text = b"".join(letters) + b"\r\n.\r\nrest"
            end = (b"\r\n" + text).index(b"\r\n.\r\n")
            wire, content, smuggling, rest = whole = _outcome(mode, text)
            for cut in range(1, length + 4):
                assert _outcome(mode, text[:cut], text[cut:]) == whole, (text, cut)
            assert _outcome(mode, *(text[at : at + 1] for at in range(len(text)))) == whole, text
            assert mode == "pass" or not _readers_differ(b"\r\n" + wire), text
            assert (b"\r\n" + wire).replace(b"\r\n.", b"\r\n")[2:] == content, text
            assert smuggling == (mode == "reject" and _readers_differ(b"\r\n" + text[:end])), text
            assert smuggling or rest == text[end + 3 :], text
            if mode == "normalise":
                assert set(wire.replace(b"\r\n", b"")) <= set(b".\0x"), text


def _outcome(mode: str, *pieces: bytes) -> tuple[bytes, bytes, bool, bytes]:
    body = DataBody(mode)
    wire = content = rest = b""
    for piece in pieces:
        if body.rest is not None:
            rest += piece
            continue
        body.feed(piece)
        wire += body.wire
        content += body.content
        rest = body.rest or b""
    return wire, content, body.smuggling, b"" if body.smuggling else rest
