"""Commands: what passes, what is answered here, and how a line is read (rules 1, 4.1, 4.4)."""

import pytest

from appliance.proxy.session import Action, Gate, Phase, Session, Verdict
from appliance.proxy.session.state import AUTH_ACCEPTED, AUTH_OFFERED, AUTH_REJECTED
from tests.proxy.session.cases import Case, case, check, every_way
from tests.proxy.session.recorder import C, Recorder, S, settings

REFUSE = Verdict(Action.REFUSE, 552, "5.3.2", "slow down")
TAKE = Verdict(Action.TAKEOVER, 550, "5.7.1", "gw no", "why")
TOO_LONG = "500 5.5.2 Line too long"
BARE = "550 5.5.2 Lines must end in CRLF"

COMMANDS = [
    case(
        "1.1 greeting and replies pass byte for byte",
        S("220-mx.example  ESMTP", "220 \xe4 ready"),
        C("nOOP  x y "),
        S("250-2.0.0  ok", "250 "),
        client=["220-mx.example  ESMTP", "220 \xe4 ready", "250-2.0.0  ok", "250 "],
        server=["nOOP  x y "],
        offers=None,
    ),
    case(
        "1.1 a bare code is a reply",
        C("NOOP"),
        S("250"),
        client=["250"],
        server=["NOOP"],
        phase=Phase.COMMAND,
    ),
    case(
        "4.2 pipelined commands go on at once and replies come back in order",
        C("MAIL FROM:<a@b>", "RCPT TO:<c@d>", "RCPT TO:<e@f>"),
        S("250 one", "250 two", "550 three"),
        client=["250 one", "250 two", "550 three"],
        server=["MAIL FROM:<a@b>", "RCPT TO:<c@d>", "RCPT TO:<e@f>"],
    ),
    case(
        "4.2 a local reply waits its turn",
        C("NOOP", "BURL x", "NOOP"),
        S("250 one", "250 two"),
        client=["250 one", "502 5.5.1 not here", "250 two"],
        server=["NOOP", "NOOP"],
    ),
    case(
        "4.2 a local reply waits for the last line of a long one",
        C("VRFY a", "BURL x"),
        S("250-one"),
        S("250-two", "250 three"),
        client=["250-one", "250-two", "250 three", "502 5.5.1 not here"],
        server=["VRFY a"],
    ),
    case(
        "4.2 with nothing outstanding a local reply comes at once",
        C("BURL x"),
        client=["502 5.5.1 not here"],
        server=[],
    ),
    case(
        "4.2 no enhanced code unless the server offered them",
        C("BURL x"),
        client=["502 not here"],
        server=[],
        offers=("SIZE 1",),
    ),
    case(
        "4.2 HELO takes the offers back",
        C("HELO client"),
        S("250 mx"),
        C("BURL x"),
        client=["250 mx", "502 not here"],
        server=["HELO client"],
    ),
    case(
        "4.2 a refused EHLO leaves the offers",
        C("EHLO again"),
        S("550-no", "550 never"),
        C("BURL x"),
        client=["550-no", "550 never", "502 5.5.1 not here"],
        server=["EHLO again"],
    ),
    case(
        "4.2 what stands behind EHLO waits for the offers",
        C("EHLO c", "BURL x", "NOOP"),
        S("250-mx", "250 ENHANCEDSTATUSCODES"),
        S("250 ok"),
        client=["250-mx", "250 ENHANCEDSTATUSCODES", "502 5.5.1 not here", "250 ok"],
        server=["EHLO c", "NOOP"],
        offers=(),
    ),
    case(
        "4.1 masked extensions in the middle and at the end; the last line keeps its blank",
        C("EHLO c"),
        S("250-mx", "250-XEXCH50", "250-SIZE 1", "250-PRDR", "250-BURL imap", "250 XEXCH50"),
        client=["250-mx", "250 SIZE 1"],
        server=["EHLO c"],
        phase=Phase.COMMAND,
    ),
    case(
        "4.1 only the greeting of EHLO remains",
        C("EHLO c"),
        S("250-mx", "250-starttls", "250 burl"),
        client=["250 mx"],
        server=["EHLO c"],
        settings={"forbid_starttls": True},
    ),
    case(
        "4.1 a host named like an extension is no extension",
        C("EHLO c"),
        S("250-STARTTLS", "250 BURL"),
        client=["250 STARTTLS"],
        server=["EHLO c"],
        settings={"forbid_starttls": True},
    ),
    case(
        "4.1 STARTTLS stays on offer unless forbidden",
        C("EHLO c"),
        S("250-mx", "250-STARTTLS", "250 XCLIENT ADDR"),
        client=["250-mx", "250-STARTTLS", "250 XCLIENT ADDR"],
        server=["EHLO c"],
    ),
    case(
        "2 nobody is invited to talk early where that is refused",
        C("EHLO c"),
        S("250-mx", "250-PIPECONNECT", "250-X_PIPE_CONNECT", "250-SIZE 1", "250 PIPE_CONNECT"),
        client=["250-mx", "250 SIZE 1"],
        server=["EHLO c"],
        settings={"gates": Gate.EARLY},
    ),
    case(
        "2 but elsewhere",
        C("EHLO c"),
        S("250-mx", "250 PIPECONNECT"),
        client=["250-mx", "250 PIPECONNECT"],
        server=["EHLO c"],
    ),
    case(
        "4.1 forbid_starttls refuses the command",
        C("STARTTLS", "NOOP"),
        S("250 ok"),
        client=["502 5.5.1 not here", "250 ok"],
        server=["NOOP"],
        settings={"forbid_starttls": True},
    ),
    case(
        "4.1 masked XCLIENT is neither offered nor taken",
        C("EHLO c"),
        S("250-mx", "250 XCLIENT ADDR NAME"),
        C("XCLIENT ADDR=1.2.3.4", "xforward NAME=x"),
        S("250 ok"),
        client=["250 mx", "502 not here", "250 ok"],
        server=["EHLO c", "xforward NAME=x"],
        settings={"mask_xclient": True},
    ),
    case(
        "4.1 XCLIENT passes in other modes",
        C("XCLIENT ADDR=1.2.3.4"),
        S("220 mx"),
        client=["220 mx"],
        server=["XCLIENT ADDR=1.2.3.4"],
    ),
    case(
        "4.1 XEXCH50 is refused with arguments only",
        C("XEXCH50", "XEXCH50 1 2", " burl\tx"),
        S("500 what"),
        client=["500 what", "502 5.5.1 not here", "502 5.5.1 not here"],
        server=["XEXCH50"],
    ),
    case(
        "4.1 unknown and empty commands pass",
        C("", "FROBNICATE  now", "   ", "QUIT"),
        S("500 a", "500 b", "500 c", "221 d"),
        client=["500 a", "500 b", "500 c", "221 d"],
        server=["", "FROBNICATE  now", "   ", "QUIT"],
    ),
    case(
        "4.2 the queue holds pipeline_size - 1 commands",
        C("NOOP", "NOOP", "NOOP"),
        S("250 a", "250 b", "250 c"),
        client=["250 a", "250 b", "250 c"],
        server=["NOOP", "NOOP", "NOOP"],
        settings={"pipeline_size": 4},
    ),
    case(
        "4.2 one more is refused behind the others, QUIT, take over",
        C("NOOP", "NOOP", "NOOP", "VRFY x", "NOOP"),
        S("250 a", "250 b"),
        S("250 c"),
        client=["250 a", "250 b", "250 c", "503 5.5.0 pipeline full", "250 OK"],
        server=["NOOP", "NOOP", "NOOP", "QUIT"],
        settings={"pipeline_size": 4},
        phase=Phase.TAKEN,
        events=["close server", "taken over: pipeline full"],
    ),
    case(
        "4.2 a chunk behind the overflow is swallowed, not obeyed",
        C("NOOP", "BDAT 6", b"QUIT\r\n", "NOOP"),
        S("250 a"),
        client=["250 a", "503 5.5.0 pipeline full", "250 OK"],
        server=["NOOP", "QUIT"],
        settings={"pipeline_size": 2},
    ),
    case(
        "4.2 long lines count as commands too",
        C("NOOP", "X " + "x" * 3000, "NOOP"),
        S("250 a"),
        client=["250 a", "503 5.5.0 pipeline full", "250 OK"],
        server=["NOOP", "QUIT"],
        settings={"pipeline_size": 2},
    ),
    case(
        "4.2 refused long lines count as commands too",
        C("NOOP", "MAIL " + "x" * 3000, "NOOP"),
        S("250 a"),
        client=["250 a", "503 5.5.0 pipeline full", "250 OK"],
        server=["NOOP", "QUIT"],
        settings={"pipeline_size": 2},
    ),
    case(
        "4.1 AUTH with several challenges",
        C("AUTH LOGIN", "dXNlcg==", "cGFzcw==", "NOOP"),
        S("334 VXNlcm5hbWU6"),
        S("334 UGFzc3dvcmQ6"),
        S("235 ok"),
        S("250 ok"),
        client=["334 VXNlcm5hbWU6", "334 UGFzc3dvcmQ6", "235 ok", "250 ok"],
        server=["AUTH LOGIN", "dXNlcg==", "cGFzcw==", "NOOP"],
    ),
    case(
        "4.1 an answer is no command, whatever it says",
        C("AUTH LOGIN"),
        S("334 "),
        C("DATA"),
        S("334 "),
        C("*"),
        S("501 cancelled"),
        C("DATA"),
        S("354 go"),
        client=["334 ", "334 ", "501 cancelled", "354 go"],
        server=["AUTH LOGIN", "DATA", "*", "DATA"],
        phase=Phase.BODY,
    ),
    case(
        "4.1 an AUTH command of 12288 bytes passes",
        C("AUTH PLAIN " + "x" * 12275),
        S("535 no"),
        client=["535 no"],
        server=["AUTH PLAIN " + "x" * 12275],
        sizes=(0, 61, 4096),
    ),
    case(
        "4.1 a longer one is refused here",
        C("AUTH PLAIN " + "x" * 12276, "NOOP"),
        S("250 ok"),
        client=[TOO_LONG, "250 ok"],
        server=["NOOP"],
        sizes=(0, 61, 4096),
    ),
    case(
        "4.1 an answer of 12288 bytes passes",
        C("AUTH PLAIN"),
        S("334 "),
        C("x" * 12286),
        S("535 no"),
        client=["334 ", "535 no"],
        server=["AUTH PLAIN", "x" * 12286],
        sizes=(0, 61, 4096),
    ),
    case(
        "4.1 a longer answer cancels the exchange",
        C("AUTH PLAIN"),
        S("334 "),
        C("x" * 12287, "NOOP"),
        S("501-cancelled", "501 really"),
        S("250 ok"),
        client=["334 ", TOO_LONG, "250 ok"],
        server=["AUTH PLAIN", "*", "NOOP"],
        sizes=(0, 61, 4096),
    ),
    case(
        "4.1 a checked verb may have 2048 bytes",
        C("MAIL " + "x" * 2041),
        S("501 no"),
        client=["501 no"],
        server=["MAIL " + "x" * 2041],
    ),
    case(
        "4.1 a checked verb with more is refused and not forwarded",
        C("NOOP", "MAIL " + "x" * 2042, "NOOP"),
        S("250 a", "250 b"),
        client=["250 a", TOO_LONG, "250 b"],
        server=["NOOP", "NOOP"],
    ),
    case(
        "4.1 the same limits where lines may end in LF",
        C(b"MAIL " + b"x" * 2042 + b"\n", "MAIL " + "x" * 2041, b"MAIL " + b"x" * 2043 + b"\n"),
        S("501 a", "501 b"),
        client=["501 a", "501 b", TOO_LONG],
        server=[b"MAIL " + b"x" * 2042 + b"\n", "MAIL " + "x" * 2041],
        settings={"bare_newline": "pass"},
    ),
    case(
        "4.1 a verb of 2047 bytes is nobody's",
        C("x" * 2047, "NOOP"),
        S("250 ok"),
        client=[TOO_LONG, "250 ok"],
        server=["NOOP"],
    ),
    case(
        "4.1 white space alone is no verb either",
        C(" " * 2047 + "DATA", "NOOP"),
        S("250 ok"),
        client=[TOO_LONG, "250 ok"],
        server=["NOOP"],
    ),
    case(
        "4.1 a line nobody checks may have any length",
        C("NOOP " + "x" * 9000, "NOOP"),
        S("250 a", "250 b"),
        client=["250 a", "250 b"],
        server=["NOOP " + "x" * 9000, "NOOP"],
    ),
    case(
        "4.1 and passes as it comes",
        C(b"NOOP " + b"x" * 9000),
        client=[],
        server=[b"NOOP " + b"x" * 9000],
        phase=Phase.LONG,
    ),
    case(
        "4.1 12288 bytes of it, for servers take what stands behind their own limit for a command",
        C("NOOP " + "x" * 12281, "NOOP " + "x" * 12281 + "BDAT 6 LAST", "NOOP"),
        S("250 a", "250 b", "250 c"),
        client=["250 a", "250 b", "250 c"],
        server=["NOOP " + "x" * 12281, "NOOP " + "x" * 12281, "NOOP"],
        sizes=(0, 61, 4096),
    ),
    case(
        "4.1 as many where lines may end in LF",
        C(b"NOOP " + b"x" * 12281 + b"\n", b"NOOP " + b"x" * 12282 + b"\n", "NOOP"),
        S("250 a", "250 b", "250 c"),
        client=["250 a", "250 b", "250 c"],
        server=[b"NOOP " + b"x" * 12281 + b"\n", "NOOP " + "x" * 12281, "NOOP"],
        settings={"bare_newline": "pass"},
        sizes=(0, 61, 4096),
    ),
    *(
        case(
            f"4.1 {blank!r} in front of and behind a verb hides nothing",
            C(blank + b"bUrL" + blank + b"x\r\n"),
            client=["502 5.5.1 not here"],
            server=[],
        )
        for blank in (b" ", b"\t", b"\v", b"\f", b" \t \v\f")
    ),
    case(
        "4.1 a CR in front of a verb hides nothing where it passes",
        C(b"\r BURL x\r\n"),
        client=["502 5.5.1 not here"],
        server=[],
        settings={"bare_newline": "pass"},
    ),
    case(
        "4.4 a body that nobody asked for in clear ends the session",
        C("XDATA"),
        S("354 go on"),
        client=[],
        server=["XDATA"],
        phase=Phase.CLOSED,
    ),
    case(
        "4.2 more replies announced than commands await end the session",
        C("MAIL FROM:<a> PRDR", "RCPT TO:<b>", "RCPT TO:<c>", "DATA"),
        S("250 a", "250 b", "250 c", "354 go"),
        C("text", ".", "VRFY d", "DATA", "EICAR", "."),
        S("353 PRDR", "250 b", "250 c"),
        client=["250 a", "250 b", "250 c", "354 go"],
        server=["MAIL FROM:<a> PRDR", "RCPT TO:<b>", "RCPT TO:<c>", "DATA", "text", ".", "VRFY d", "DATA"],
        phase=Phase.CLOSED,
    ),
    case(
        "4.2 a reply to DATA that is another's does not make commands of the message",
        C("NOOP", "DATA", "EICAR", "."),
        S("250-a", "250 a", "250 b", "354 go"),
        client=["250-a", "250 a"],
        server=["NOOP", "DATA"],
        phase=Phase.CLOSED,
    ),
    case(
        "4.2 a challenge passes whatever asked for it",
        C("X-EXPS NTLM"),
        S("334 "),
        client=["334 "],
        server=["X-EXPS NTLM"],
    ),
    case(
        "4.3 XCLIENT ends what EHLO offered: a server may read chunks as commands now",
        C("XCLIENT ADDR=1.2.3.4", "BDAT 6 LAST", "DATA"),
        S("220 mx"),
        client=["220 mx", "502 not here"],
        server=["XCLIENT ADDR=1.2.3.4"],
        offers=("CHUNKING",),
    ),
]


@pytest.mark.parametrize(("one", "size", "late", "patient"), every_way(COMMANDS))
def test_rule(one: Case, size: int, late: bool, patient: bool) -> None:
    check(one, size, late, patient)


def test_a_late_verdict_after_the_end_is_ignored() -> None:
    recorder = Recorder({Gate.MAIL: TAKE}, late=Gate.MAIL)
    session = Session(settings(gates=Gate.MAIL), recorder)
    session.server_data(b"220 mx\r\n")
    session.client_data(b"MAIL FROM:<a>\r\n")
    session.server_eof()
    assert recorder.answer_late(session)
    assert bytes(recorder.to_client_bytes) == b"220 mx\r\n"
    assert recorder.events == ["MAIL a", "close server", "close client"]


def test_what_the_worker_reads_off_a_session() -> None:
    session = Session(settings(gates=Gate.RCPT), Recorder())
    session.server_data(b"220 mx\r\n")
    session.client_data(b"ehlo  [10.0.0.1] \r\n")
    assert session.helo == b"[10.0.0.1]"
    session.server_data(b"250-mx\r\n250-AUTH=LOGIN\r\n250-SIZE 1000\r\n250 chunking\r\n")
    assert session.offers == {b"AUTH": b"LOGIN", b"SIZE": b"1000", b"CHUNKING": b""}
    assert session.auth == AUTH_OFFERED
    session.client_data(b"AUTH PLAIN x\r\n")
    session.server_data(b"535 no\r\n")
    session.client_data(b"AUTH PLAIN y\r\n")
    session.server_data(b"235 yes\r\n")
    assert session.auth == AUTH_OFFERED | AUTH_ACCEPTED | AUTH_REJECTED
    session.client_data(b"MAIL FROM:<a@b>\r\nRCPT TO:<c>\r\nRCPT TO:<d>\r\nDATA\r\nearly")
    assert session.mail_from == b"a@b"
    assert session.backlog == 5
    session.server_data(b"250 a\r\n250-c\r\n250 c\r\n550 d\r\n354 go\r\n")
    assert (session.recipients, session.transactions, session.message_size) == (1, 1, 5)
    assert session.commands == 7
    assert session.backlog == 0
    assert not session.pipeline_overflow
