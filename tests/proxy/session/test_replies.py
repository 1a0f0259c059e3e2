"""Replies: their order, their length, and what they change (rules 1, 4.2)."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.proxy.session import Action, Gate, Phase, Verdict
from appliance.proxy.session.reply import line_end
from tests.proxy.session.cases import Case, case, check, every_way
from tests.proxy.session.recorder import CLIENT_ENDS, SERVER_ENDS, C, S

TAKE = Verdict(Action.TAKEOVER, 550, "5.7.1", "gw no", "why")

REPLIES = [
    case(
        "4.2 a reply that no command awaits ends the session",
        S("250 surprise"),
        client=[],
        server=[],
        events=["close server", "close client"],
        phase=Phase.CLOSED,
    ),
    case(
        "4.2 one reply too many",
        C("NOOP"),
        S("250 a", "250 b"),
        client=["250 a"],
        server=["NOOP"],
        phase=Phase.CLOSED,
    ),
    case(
        "4.2 an unasked 421 gets through, then both sides close",
        S("421-bye", "421 now"),
        client=["421-bye", "421 now"],
        server=[],
        phase=Phase.CLOSED,
    ),
    *(
        case(
            f"4.2 malformed reply {bad!r} ends the session, what came before passes",
            C("NOOP", "NOOP"),
            S("250 a", bad),
            client=["250 a"],
            server=["NOOP", "NOOP"],
            phase=Phase.CLOSED,
        )
        for bad in (
            *(b"hello\r\n", b"250 a\n", b"\r\n", b"25\r\n", b"2500 a\r\n", b"150 a\r\n", b"650 a\r\n"),
            *(b"250\ta\r\n", b"250 a\rb\r\n", b"25x a\r\n", b" 250 a\r\n"),
        )
    ),
    case(
        "4.2 a reply of several lines must keep its code",
        C("NOOP"),
        S("250-a", "251 b"),
        client=["250-a"],
        server=["NOOP"],
        phase=Phase.CLOSED,
    ),
    case(
        "4.2 a reply line of 4096 bytes passes",
        C("NOOP"),
        S("250 " + "x" * 4090),
        client=["250 " + "x" * 4090],
        server=["NOOP"],
        phase=Phase.COMMAND,
    ),
    case(
        "4.2 a longer one ends the session",
        C("NOOP"),
        S("250 " + "x" * 4091),
        client=[],
        server=["NOOP"],
        phase=Phase.CLOSED,
    ),
    case(
        "4.2 so does one that never ends",
        C("NOOP"),
        S(b"250 " + b"x" * 4093),
        client=[],
        server=["NOOP"],
        phase=Phase.CLOSED,
    ),
    case(
        "1 the client's end waits for what it is owed",
        C("NOOP", "BURL x", "QUIT"),
        CLIENT_ENDS,
        S("250 a", "221 b"),
        client=["250 a", "502 5.5.1 not here", "221 b"],
        server=["NOOP", "QUIT"],
        events=["close server", "close client"],
        phase=Phase.CLOSED,
    ),
    case(
        "1 a client that leaves with nothing owed",
        C(b"NOO"),
        CLIENT_ENDS,
        client=[],
        server=[],
        phase=Phase.CLOSED,
    ),
    case(
        "1 a client that leaves before the greeting still gets it",
        CLIENT_ENDS,
        S("220 mx"),
        client=["220 mx"],
        server=[],
        offers=None,
        phase=Phase.CLOSED,
    ),
    case(
        "1 a client that leaves while a challenge waits",
        C("AUTH LOGIN"),
        S("334 "),
        CLIENT_ENDS,
        client=["334 "],
        server=["AUTH LOGIN"],
        phase=Phase.CLOSED,
    ),
    case(
        "1 a client that leaves before its refusal hears it",
        C("NOOP", "MAIL FROM:<a>"),
        CLIENT_ENDS,
        S("250 a"),
        client=["250 a", "550 5.7.1 gw no"],
        server=["NOOP", "QUIT"],
        verdicts={Gate.MAIL: TAKE},
        events=["MAIL a", "close server", "taken over: why", "close client"],
    ),
    case(
        "1 the server's end ends the session",
        C("NOOP", "NOOP"),
        S("250 a", b"250 "),
        SERVER_ENDS,
        client=["250 a"],
        server=["NOOP", "NOOP"],
        events=["close server", "close client"],
    ),
]


@pytest.mark.parametrize(("one", "size", "late", "patient"), every_way(REPLIES))
def test_rule(one: Case, size: int, late: bool, patient: bool) -> None:
    check(one, size, late, patient)


LINE = re.compile(rb"[2-5][0-9][0-9](?:[ -][^\r\n]*)?\r\n")
PIECES = st.lists(
    st.sampled_from([b"2", b"5", b"0", b"9", b"6", b"250", b" ", b"-", b"x", b"\r", b"\n", b"\r\n"])
)


@given(PIECES.map(b"".join), st.integers(0, 3))
def test_a_reply_line_is_what_its_grammar_says(data: bytes, at: int) -> None:
    found = LINE.match(data, at)
    assert line_end(data, at) == (found.end() if found else 0)
