"""Messages by DATA (rules 1, 4.3)."""

import pytest

from appliance.proxy.session import Action, Gate, Phase, Verdict
from tests.proxy.session.cases import Case, case, check, every_way
from tests.proxy.session.recorder import CLIENT_ENDS, SERVER_ENDS, C, S

BAD = Verdict(Action.TAKEOVER, 550, "5.7.1", "gw virus (X)", "virus")
REFUSE = Verdict(Action.REFUSE, 530, "5.7.1", "log in first")
PASS = Verdict(Action.PASS)
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


@pytest.mark.parametrize(("one", "size", "late", "patient"), every_way(DATA))
def test_rule(one: Case, size: int, late: bool, patient: bool) -> None:
    check(one, size, late, patient)
