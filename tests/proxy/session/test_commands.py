"""Commands and replies: what passes, what is answered here, and in which order (rules 4.1, 4.2, 1)."""

import pytest

from appliance.proxy.session import Action, Gate, Phase, Session, Verdict
from appliance.proxy.session.state import AUTH_ACCEPTED, AUTH_OFFERED, AUTH_REJECTED
from tests.proxy.session.cases import Case, case, check, every_way
from tests.proxy.session.recorder import CLIENT_ENDS, SERVER_ENDS, C, Recorder, S, settings

REFUSE = Verdict(Action.REFUSE, 552, "5.3.2", "slow down")
TAKE = Verdict(Action.TAKEOVER, 550, "5.7.1", "gw no", "why")
HANG = Verdict(Action.HANGUP, 554, "5.7.1", "gw off")
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
        S("250-mx", "250-XEXCH50", "250-SIZE 1", "250-BURL imap", "250 XEXCH50"),
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
]

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


@pytest.mark.parametrize(("one", "size", "late", "patient"), every_way(COMMANDS + NEWLINES + GATES + REPLIES))
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
