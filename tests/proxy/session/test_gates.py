"""Gates: what a verdict does where (rules 4.1, 4.2)."""

import pytest

from appliance.proxy.session import Action, Gate, Phase, Verdict
from tests.proxy.session.cases import Case, case, check, every_way
from tests.proxy.session.recorder import C, S

REFUSE = Verdict(Action.REFUSE, 552, "5.3.2", "slow down")
TAKE = Verdict(Action.TAKEOVER, 550, "5.7.1", "gw no", "why")
WRONG = "503 5.5.1 wrong order"
HANG = Verdict(Action.HANGUP, 554, "5.7.1", "gw off")

GATES = [
    case(
        "4.1 REFUSE keeps the command from the server and the session going",
        C("MAIL FROM:<a>", "RCPT TO:<b>", "RCPT TO:<c>", "NOOP"),
        S("250 a", "250 c", "250 d"),
        client=["250 a", "552 5.3.2 slow down", "250 c", "250 d"],
        server=["MAIL FROM:<a>", "RCPT TO:<c>", "NOOP"],
        verdicts={(Gate.RCPT, b"b"): REFUSE},
        events=["RCPT b", "RCPT c"],
    ),
    case(
        "4.1 REFUSE at HELO",
        S("220 mx"),
        C("EHLO bad", "HELO good"),
        S("250 mx"),
        client=["220 mx", "552 slow down", "250 mx"],
        server=["HELO good"],
        verdicts={(Gate.HELO, b"bad"): REFUSE},
        events=["HELO bad", "HELO good"],
        offers=None,
    ),
    case(
        "4.1 REFUSE at DATA: the body's bytes are commands",
        C("MAIL FROM:<a>", "DATA", "NOOP"),
        S("250 a", "250 b"),
        client=["250 a", "552 5.3.2 slow down", "250 b"],
        server=["MAIL FROM:<a>", "NOOP"],
        verdicts={Gate.DATA: REFUSE},
        events=["DATA"],
    ),
    *(
        case(
            f"4.1 TAKEOVER at {gate.name}: in its place, QUIT, take over",
            C("NOOP", line, "MAIL FROM:<z>"),
            S("250 a"),
            client=["250 a", "550 5.7.1 gw no", "451 4.3.2 gw why"],
            server=["NOOP", "QUIT"],
            verdicts={gate: TAKE},
            events=[f"{gate.name} {subject}".strip(), "close server", "taken over: why"],
            phase=Phase.TAKEN,
        )
        for gate, line, subject in (
            (Gate.MAIL, "MAIL FROM:<a@b> SIZE=1", "a@b"),
            (Gate.RCPT, 'RCPT TO:<"x>y"@b>', '"x>y"@b'),
            (Gate.RCPT, "RCPT TO: b@c NOTIFY=NEVER", "b@c"),
            (Gate.RCPT, "RCPT", ""),
            (Gate.DATA, "DATA", ""),
        )
    ),
    case(
        "4.1 TAKEOVER at HELO",
        S("220 mx"),
        C("EHLO bad", "NOOP"),
        client=["220 mx", "550 gw no", "250 OK"],
        server=["QUIT"],
        verdicts={Gate.HELO: TAKE},
        offers=None,
    ),
    case(
        "4.1 HANGUP closes both sides in its turn",
        C("NOOP", "MAIL FROM:<a>", "NOOP"),
        S("250 a"),
        client=["250 a", "554 5.7.1 gw off"],
        server=["NOOP"],
        verdicts={Gate.MAIL: HANG},
        events=["MAIL a", "close server", "close client"],
        phase=Phase.CLOSED,
    ),
    case(
        "8 a reply gate sees code and subject, and passes",
        C("MAIL FROM:<a>", "RCPT TO:<b>", "NOOP"),
        S("250 a", "550-b", "550 c", "250 d"),
        client=["250 a", "550-b", "550 c", "250 d"],
        server=["MAIL FROM:<a>", "RCPT TO:<b>", "NOOP"],
        verdicts={Gate.REPLY_MAIL: Verdict(Action.PASS), Gate.REPLY_RCPT: Verdict(Action.PASS)},
        events=["REPLY_MAIL 250 a", "REPLY_RCPT 550 b"],
    ),
    case(
        "8 a reply gate takes over; commands already under way are answered in order",
        C("RCPT TO:<a>", "RCPT TO:<b>", "BURL x", "NOOP", "VRFY x", "MAIL FROM:<a>"),
        S("550-no", "550 no", "250 never seen"),
        client=[
            "550 5.7.1 gw no",
            "503 5.5.1 wrong order",
            "502 5.5.1 not here",
            "250 OK",
            "502 5.5.2 not here",
            "451 4.3.2 gw why",
        ],
        server=["RCPT TO:<a>", "RCPT TO:<b>", "NOOP", "VRFY x", "MAIL FROM:<a>", "QUIT"],
        verdicts={Gate.REPLY_RCPT: TAKE},
        phase=Phase.TAKEN,
    ),
    case(
        "8 no QUIT behind a DATA that may have been accepted",
        C("RCPT TO:<a>", "DATA"),
        S("550 no", "354 go"),
        client=["550 5.7.1 gw no", "503 5.5.1 wrong order"],
        server=["RCPT TO:<a>", "DATA"],
        verdicts={Gate.REPLY_RCPT: TAKE},
        phase=Phase.TAKEN,
    ),
    case(
        "6 QUIT among the commands under way is the last that is answered",
        C("RCPT TO:<a>", "QUIT", "NOOP"),
        S("550 no"),
        client=["550 5.7.1 gw no", "221 bye"],
        server=["RCPT TO:<a>", "QUIT", "NOOP", "QUIT"],
        verdicts={Gate.REPLY_RCPT: TAKE},
        phase=Phase.CLOSED,
    ),
    *(
        case(
            f"8 a reply gate takes over before {what}, which is answered in its place",
            C("RCPT TO:<a>", *said),
            S("550 no"),
            C("NOOP"),
            client=["550 5.7.1 gw no", *answers, "250 OK"],
            server=["RCPT TO:<a>", *passed],
            verdicts={
                Gate.REPLY_RCPT: TAKE,
                (Gate.MAIL, b"bad"): Verdict(Action.TAKEOVER, 550, "", "gw bad"),
            },
            settings={"pipeline_size": 3, "size_limit": 2},
            phase=Phase.TAKEN,
        )
        for what, said, answers, passed in (
            ("a refused command", ["MAIL FROM:<bad>", "RCPT TO:<b>"], ["550 gw bad", WRONG], ["QUIT"]),
            (
                "a line that is not clean",
                [b"NOOP\0\r\n"],
                ["550 5.5.2 NUL is not allowed in a command"],
                ["QUIT"],
            ),
            (
                "one command too many",
                ["NOOP", "VRFY a", "RSET"],
                ["250 OK", "503 5.5.0 pipeline full", "250 OK"],
                ["NOOP", "QUIT"],
            ),
            ("a chunk too large", ["BDAT 3 LAST", b"abc"], ["552 5.3.4 too big"], ["BDAT 3", b"ab"]),
            ("an empty last chunk", ["BDAT 0 LAST"], [WRONG], []),
        )
    ),
    case(
        "8 a reply gate hangs up",
        C("MAIL FROM:<a>", "NOOP"),
        S("550 no"),
        client=["554 5.7.1 gw off"],
        server=["MAIL FROM:<a>", "NOOP"],
        verdicts={Gate.REPLY_MAIL: HANG},
        phase=Phase.CLOSED,
    ),
    case(
        "8 a rejected AUTH of several lines is replaced as a whole",
        C("AUTH PLAIN x"),
        S("535-no", "535 never"),
        client=["550 5.7.1 gw no"],
        server=["AUTH PLAIN x", "QUIT"],
        verdicts={(Gate.REPLY_AUTH, b"535 "): TAKE},
        events=["REPLY_AUTH 535", "close server", "taken over: why"],
    ),
    case(
        "8 challenges are not shown to the checks",
        C("AUTH LOGIN"),
        S("334 "),
        C("x"),
        S("535 no"),
        client=["334 ", "535 no"],
        server=["AUTH LOGIN", "x"],
        verdicts={Gate.REPLY_AUTH: Verdict(Action.PASS)},
        events=["REPLY_AUTH 535"],
    ),
    case(
        "2 early talk is refused in the greeting's place",
        C("EHLO x", "QUIT"),
        client=["554 gw off"],
        server=[],
        verdicts={Gate.EARLY: HANG},
        events=["EARLY", "close server", "close client"],
        offers=None,
    ),
    case(
        "2 early talk taken over: the greeting is not answered twice, the commands are",
        C("EHLO x", "MAIL FROM:<a>"),
        client=["550 gw no", "250 gw hello", "451 gw why"],
        server=["QUIT"],
        verdicts={Gate.EARLY: TAKE},
        offers=None,
    ),
    case(
        "2 early talk that passes loses no byte and is asked about once",
        C("NOOP", "NOOP"),
        S("220 mx", "250 a", "250 b"),
        client=["220 mx", "250 a", "250 b"],
        server=["NOOP", "NOOP"],
        verdicts={Gate.EARLY: Verdict(Action.PASS)},
        events=["EARLY"],
        offers=None,
    ),
]


@pytest.mark.parametrize(("one", "size", "late", "patient"), every_way(GATES))
def test_rule(one: Case, size: int, late: bool, patient: bool) -> None:
    check(one, size, late, patient)
