"""Bare newlines and NULs in commands, by bare_newline (rule 4.4)."""

import pytest

from appliance.proxy.session import Action, Gate, Phase, Verdict
from tests.proxy.session.cases import Case, case, check, every_way
from tests.proxy.session.recorder import C, S

REFUSE = Verdict(Action.REFUSE, 552, "5.3.2", "slow down")
TAKE = Verdict(Action.TAKEOVER, 550, "5.7.1", "gw no", "why")
TOO_LONG = "500 5.5.2 Line too long"
BARE = "550 5.5.2 Lines must end in CRLF"

NEWLINES = [
    *(
        case(
            f"4.4 reject: {bad!r} in a command",
            C("NOOP", b"MAIL FROM" + bad + b":<a>", b"\r\n", "NOOP"),
            S("250 a"),
            client=["250 a", text, *rest],
            server=["NOOP", "QUIT"],
            phase=Phase.TAKEN,
        )
        for bad, text, rest in (
            (b"\n", BARE, ["502 5.5.2 not here", "250 OK"]),
            (b"\r", BARE, ["250 OK"]),
            (b"\r\r", BARE, ["250 OK"]),
            (b"\0", "550 5.5.2 NUL is not allowed in a command", ["250 OK"]),
        )
    ),
    *(
        case(
            f"4.4 {how}: NUL in a command",
            C(b"NO\0OP\r\n", "NOOP"),
            client=["550 5.5.2 NUL is not allowed in a command", "250 OK"],
            server=["QUIT"],
            settings={"bare_newline": how},
        )
        for how in ("normalise", "pass")
    ),
    case(
        "4.4 normalise: bare newlines end commands and go on as CRLF",
        C(b"NOOP a\nNOOP b\rNOOP c\r\nRSET\r\r\n"),
        S("250 a", "250 b", "250 c", "250 d", "500 e"),
        client=["250 a", "250 b", "250 c", "250 d", "500 e"],
        server=["NOOP a", "NOOP b", "NOOP c", "RSET", ""],
        settings={"bare_newline": "normalise"},
    ),
    case(
        "4.4 normalise: a checked command",
        C(b"NOOP\nMAIL FROM:<a>\nRCPT TO:<b>\nNOOP\n"),
        S("250 a", "250 b", "250 c"),
        client=["250 a", "552 5.3.2 slow down", "250 b", "250 c"],
        server=["NOOP", "RCPT TO:<b>", "NOOP"],
        verdicts={Gate.MAIL: REFUSE},
        settings={"bare_newline": "normalise"},
    ),
    case(
        "4.4 normalise: behind a long line",
        C(b"NOOP " + b"x" * 3000 + b"\nNOOP " + b"x" * 3000 + b"\rNOOP\n"),
        S("250 a", "250 b", "250 c"),
        client=["250 a", "250 b", "250 c"],
        server=["NOOP " + "x" * 3000, "NOOP " + "x" * 3000, "NOOP"],
        settings={"bare_newline": "normalise"},
    ),
    case(
        "4.4 normalise: an answer to a challenge",
        C(b"AUTH LOGIN\n"),
        S("334 "),
        C(b"abc\n"),
        S("235 ok"),
        client=["334 ", "235 ok"],
        server=["AUTH LOGIN", "abc"],
        settings={"bare_newline": "normalise"},
    ),
    case(
        "4.4 pass: LF ends a command, CR is part of it",
        C(b"NOOP a\nNOOP\rb\r\n"),
        S("250 a", "250 b"),
        client=["250 a", "250 b"],
        server=[b"NOOP a\nNOOP\rb\r\n"],
        settings={"bare_newline": "pass"},
    ),
    case(
        "4.4 reject: inside a long line; the server's half of it has no answer",
        C("NOOP", b"NOOP " + b"x" * 3000 + b"\0y\r\n", "NOOP"),
        S("250 a"),
        client=["250 a", "550 5.5.2 NUL is not allowed in a command", "250 OK"],
        server=["NOOP", b"NOOP " + b"x" * 3000, "QUIT"],
        phase=Phase.TAKEN,
        sizes=(0, 1),
    ),
    case(
        "4.4 reject: inside a long line that the server has already refused",
        C(b"NOOP " + b"x" * 3000),
        S("500 too long"),
        C(b"\0y\r\n", "NOOP"),
        client=["500 too long", "550 5.5.2 NUL is not allowed in a command", "250 OK"],
        server=[b"NOOP " + b"x" * 3000, "QUIT"],
        phase=Phase.TAKEN,
    ),
    case(
        "4.4 reject: a bare CR as answer to a challenge",
        C("AUTH LOGIN"),
        S("334 "),
        C(b"abc\rdef\r\n", "NOOP"),
        client=["334 ", BARE, "250 OK"],
        server=["AUTH LOGIN", "QUIT"],
    ),
]


@pytest.mark.parametrize(("one", "size", "late", "patient"), every_way(NEWLINES))
def test_rule(one: Case, size: int, late: bool, patient: bool) -> None:
    check(one, size, late, patient)
