"""Messages by BDAT (rules 1, 4.3)."""

import pytest

from appliance.proxy.session import Action, Gate, Phase, Verdict
from tests.proxy.session.cases import Case, case, check, every_way
from tests.proxy.session.recorder import CLIENT_ENDS, C, S

BAD = Verdict(Action.TAKEOVER, 550, "5.7.1", "gw virus (X)", "virus")
REFUSE = Verdict(Action.REFUSE, 530, "5.7.1", "log in first")
PASS = Verdict(Action.PASS)
HEADER = b"X-Nat: gw\r\n"

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


@pytest.mark.parametrize(("one", "size", "late", "patient"), every_way(BDAT))
def test_rule(one: Case, size: int, late: bool, patient: bool) -> None:
    check(one, size, late, patient)
