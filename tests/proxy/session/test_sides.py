"""Direct sessions, take-over, XCLIENT, the texts spoken, and what hostile lines cost (rules 2.12, 5, 6)."""

import time

import pytest

from appliance.proxy.session import Action, Gate, Phase, Session, Verdict, command
from appliance.proxy.session.reply import reply
from appliance.proxy.session.xclient import ClientOrigin
from tests.proxy.session.cases import Case, case, check, every_way
from tests.proxy.session.recorder import CLIENT_ENDS, EXPIRES, SERVER_ENDS, C, Recorder, S, lines, settings

DIRECT = Verdict(Action.DIRECT)
TAKE = Verdict(Action.TAKEOVER, 550, "5.7.1", "gw no", "why")
UNKNOWN = "502 5.5.2 not here"

DIRECTS = [
    case(
        "5 STARTTLS and 220: direct",
        C("STARTTLS"),
        S("220-go", "220 on"),
        client=["220-go", "220 on"],
        server=["STARTTLS"],
        events=["direct"],
        phase=Phase.DIRECT,
    ),
    case(
        "5 what the server says behind its 220 passes before the worker relays",
        C("STARTTLS"),
        S("220 go", b"\x16\x03"),
        client=["220 go", b"\x16\x03"],
        server=["STARTTLS"],
        events=["direct"],
        sizes=(0,),
    ),
    case(
        "5 STARTTLS waits for what is outstanding",
        C("NOOP", "STARTTLS"),
        S("250 a", "220 go"),
        client=["250 a", "220 go"],
        server=["NOOP", "STARTTLS"],
        phase=Phase.DIRECT,
    ),
    case(
        "4.1 STARTTLS refused by the server",
        C("STARTTLS", "NOOP"),
        S("454 later"),
        S("250 a"),
        client=["454 later", "250 a"],
        server=["STARTTLS", "NOOP"],
        phase=Phase.COMMAND,
    ),
    case(
        "4.4 bytes injected behind STARTTLS end the session",
        C("STARTTLS", "NOOP"),
        S("220 go"),
        client=[],
        server=["STARTTLS"],
        events=["close server", "close client"],
    ),
    case(
        "5 AUTH accepted and the checks say direct",
        C("AUTH LOGIN", "x", "NOOP"),
        S("334 "),
        S("235-yes", "235 welcome"),
        client=["334 ", "235-yes", "235 welcome"],
        server=["AUTH LOGIN", "x", "NOOP"],
        verdicts={(Gate.REPLY_AUTH, b"235 "): DIRECT},
        events=["REPLY_AUTH 235", "direct"],
    ),
]

COMMANDS = ["RSET", "noop x", "HELO a", " EHLO a", "MAIL FROM:<a>", "RCPT TO:<b>", "DATA"]
ANSWERS = [
    "250 OK",
    "250 OK",
    "250 gw hello",
    "250 gw hello",
    "451 4.3.2 gw why",
    "503 5.5.1 wrong order",
    "503 5.5.1 wrong order",
]


def taken(rule: str, *steps: object, client: list[str | bytes], **more: object) -> Case:
    """A session taken over at its MAIL command."""
    return case(
        f"6 {rule}",
        C("MAIL FROM:<a>"),
        *steps,  # type: ignore[arg-type]
        client=["550 5.7.1 gw no", *client],
        server=["QUIT"],
        **({"verdicts": {Gate.MAIL: TAKE}} | more),
    )


TAKEN = [
    taken("every command has its answer", C(*COMMANDS), client=[*ANSWERS], phase=Phase.TAKEN),
    taken(
        "all else is unknown",
        C("", "STARTTLS", "AUTH PLAIN x", b"\0\xff\r\n"),
        client=[UNKNOWN] * 4,
    ),
    taken(
        "QUIT ends it, nothing behind it is answered",
        C("QUIT", "NOOP"),
        client=["221 bye"],
        events=["MAIL a", "close server", "taken over: why", "close client"],
        phase=Phase.CLOSED,
    ),
    taken(
        "on_takeover_cmds commands, not one more",
        C("NOOP", "x", "NOOP", "NOOP"),
        client=["250 OK", UNKNOWN, "250 OK", "554 5.5.0 enough"],
        settings={"on_takeover_cmds": 3},
        phase=Phase.CLOSED,
    ),
    taken("timeout_session", C("NOOP"), EXPIRES, client=["250 OK", "421 4.4.2 too slow"], phase=Phase.CLOSED),
    taken("the client leaves", CLIENT_ENDS, client=[], phase=Phase.CLOSED),
    taken("the server says what it likes", S("221 bye"), SERVER_ENDS, client=[], phase=Phase.TAKEN),
    taken(
        "a chunk is swallowed, not obeyed",
        C("BDAT 6 LAST", b"QUIT\r\n", "NOOP"),
        client=["503 5.5.1 wrong order", "250 OK"],
    ),
    taken("lines may end in LF", C(b"NOOP\nRSET\n"), client=["250 OK", "250 OK"]),
    taken(
        "a line without end is one command, however long",
        C(b"NOOP " + b"x" * 9000 + b"\r\n", "RSET"),
        client=["250 OK", "250 OK"],
        sizes=(0, 1, 1000),
    ),
    case(
        "6 no enhanced codes where the server offered none",
        C("MAIL FROM:<a>", "MAIL FROM:<b>", "DATA", "x"),
        client=["550 gw no", "451 gw why", "503 wrong order", "502 not here"],
        server=["QUIT"],
        verdicts={Gate.MAIL: TAKE},
        offers=(),
    ),
]

ORIGIN = ClientOrigin("10.0.0.5", 4711, "2001:db8::1", 25)
FAILED = ["220 gw ESMTP", "451 gw no introduction"]


def introduced(rule: str, *steps: object, server: list[str | bytes], **more: object) -> Case:
    """A session that begins with the gateway introducing its client."""
    return case(f"2.12 {rule}", *steps, server=server, origin=ORIGIN, offers=None, **more)  # type: ignore[arg-type]


XCLIENT = [
    introduced(
        "EHLO, XCLIENT, and the answer is the greeting",
        C("EHLO c"),
        S("220-mx", "220 mx"),
        S("250-mx", "250-XCLIENT NAME ADDR PORT DESTPORT DESTADDR HELO", "250 SIZE"),
        S("220 mx again"),
        S("250-mx", "250-XCLIENT NAME", "250 SIZE"),
        client=["220 mx again", "250-mx", "250 SIZE"],
        server=[
            "EHLO gw",
            "XCLIENT ADDR=10.0.0.5 NAME=[UNAVAILABLE] PORT=4711 DESTADDR=IPV6:2001:db8::1 DESTPORT=25",
            "EHLO c",
        ],
        settings={"mask_xclient": True},
        phase=Phase.COMMAND,
    ),
    introduced(
        "only what the server lists",
        S("220 mx"),
        S("250-mx", "250 XCLIENT NAME ADDR"),
        S("220-mx", "220 again"),
        client=["220-mx", "220 again"],
        server=["EHLO gw", "XCLIENT ADDR=10.0.0.5 NAME=[UNAVAILABLE]"],
    ),
    *(
        introduced(
            f"{what}: QUIT, take over",
            C("MAIL FROM:<a>"),
            *steps,
            client=FAILED,
            server=[*sent, "QUIT"],
            events=["close server", "taken over: no introduction"],
            phase=Phase.TAKEN,
        )
        for what, steps, sent in (
            ("not greeted with 220", [S("554-no", "554 never")], []),
            ("malformed greeting", [S("hello")], []),
            ("endless greeting", [S(b"x" * 5000)], []),
            ("a server that leaves", [SERVER_ENDS], []),
            ("a server that asks for a body", [S("354 go")], []),
            ("EHLO refused", [S("220 mx"), S("502 what")], ["EHLO gw"]),
            ("XCLIENT not offered", [S("220 mx"), S("250-mx", "250 SIZE")], ["EHLO gw"]),
            (
                "XCLIENT refused",
                [S("220 mx"), S("250-mx", "250 XCLIENT"), S("550 no")],
                ["EHLO gw", "XCLIENT ADDR=10.0.0.5 NAME=[UNAVAILABLE]"],
            ),
        )
    ),
    introduced(
        "fails when the client has already left",
        C("MAIL FROM:<a>"),
        CLIENT_ENDS,
        SERVER_ENDS,
        client=FAILED,
        server=["QUIT"],
        phase=Phase.CLOSED,
    ),
]


@pytest.mark.parametrize(("one", "size", "late", "patient"), every_way(DIRECTS + TAKEN + XCLIENT))
def test_rule(one: Case, size: int, late: bool, patient: bool) -> None:
    check(one, size, late, patient)


def test_no_server_at_all() -> None:
    recorder = Recorder()
    session = Session(settings(), recorder)
    session.greet_and_take_over("no route to mx")
    session.client_data(b"EHLO c\r\nMAIL FROM:<a>\r\nQUIT\r\n")
    assert bytes(recorder.to_client_bytes) == lines(
        "220 gw ESMTP", "250 gw hello", "451 gw no route to mx", "221 bye"
    )
    assert recorder.events == ["taken over: no route to mx", "close client"]


@pytest.mark.parametrize(
    ("text", "enhanced", "written"),
    [
        ("50% of %s", "", b"550 50% of %s\r\n"),
        ("", "", b"550 \r\n"),
        ("", "5.7.1", b"550 5.7.1 \r\n"),
        ("one\ntwo\r\nthree", "5.7.1", b"550-5.7.1 one\r\n550-5.7.1 two\r\n550 5.7.1 three\r\n"),
        ("gr\u00fc\u00dfe", "", b"550 gr\xc3\xbc\xc3\x9fe\r\n"),
        ("a\x00b\x1bc\x7fd\te", "", b"550 a?b?c?d?e\r\n"),
        ("\ud800", "", b"550 ?\r\n"),
        ("x" * 600, "5.7.1", b"550 5.7.1 " + b"x" * 474 + b"\r\n"),
        ("\u20ac" * 300, "", b"550 " + "\u20ac".encode() * 160 + b"\r\n"),
    ],
)
def test_texts_are_made_fit_for_a_reply(text: str, enhanced: str, written: bytes) -> None:
    assert reply(550, enhanced, text) == written


@pytest.mark.parametrize(
    ("line", "path"),
    [
        (b"MAIL FROM:<a@b> SIZE=1\r\n", b"a@b"),
        (b"MAIL FROM: <a@b>\r\n", b"a@b"),
        (b"MAIL FROM:<>\r\n", b""),
        (b"RCPT TO:<@r:a@b>\r\n", b"@r:a@b"),
        (b'RCPT TO:<"a>\\"b"@c>\r\n', b'"a>\\"b"@c'),
        (b'RCPT TO:<"a@b>\r\n', b'<"a@b>'),
        (b"RCPT TO:a@b NOTIFY=NEVER\r\n", b"a@b"),
        (b"RCPT TO\r\n", b""),
        (b"MAIL FROM:\r\n", b""),
        # Other ways to say it, all of which Postfix or Exim understand.
        (b"MAIL FROM: x <a@b>\r\n", b"a@b"),
        (b"MAIL FROM:x=<a@b> SIZE=1\r\n", b"a@b"),
        (b'MAIL FROM:"x <y>"<a@b>\r\n', b"a@b"),
        (b"MAIL FROM:\v<a@b>\r\n", b"a@b"),
        (b"MAIL FROM:< a@b >\r\n", b"a@b"),
        (b"MAIL FROM:<<a@b>>\r\n", b"a@b"),
        (b"MAIL FROM:<,a@b; >\r\n", b"a@b"),
        (b"MAIL FROM:a@b AUTH=<>\r\n", b"a@b"),
        (b"RCPT TO:a@b ORCPT=rfc822;<c@d>\r\n", b"a@b"),
        (b"RCPT TO:a@b\vORCPT=rfc822;<c@d>\r\n", b"a@b"),
        (b"MAIL FROM:<c@d>:a@b;\r\n", b"a@b"),
        (b"MAIL FROM:<c@d>x:<a@b>; SIZE=1\r\n", b"a@b"),
        (b"MAIL FROM:@r<c@d>:a@b\r\n", b"a@b"),
        (b'MAIL FROM:<"c>:d"@b>\r\n', b'"c>:d"@b'),
        (b"RCPT TO:c@d:a@b; NOTIFY=NEVER\r\n", b"a@b"),
        (b"RCPT TO:<@r:a@b> ORCPT=rfc822;c:d;\r\n", b"@r:a@b"),
        (b"MAIL FROM:<a@b(x)> SIZE=1\r\n", b"a@b"),
        (b"MAIL FROM:(x)<(y)a(z)@b>\r\n", b"a@b"),
        (b"MAIL FROM:(<c@d>)<a@b>\r\n", b"a@b"),
        (b"MAIL FROM:(x(y)<c@d>)a@b\r\n", b"a@b"),
        (b"MAIL FROM:(\\)<c@d>)a@b\r\n", b"a@b"),
        (b'MAIL FROM:("<c@d>)<a@b>\r\n', b"a@b"),
        (b'MAIL FROM:"("<a@b>\r\n', b"a@b"),
        (b"RCPT TO:a@b(<c@d>\r\n", b"a@b"),
        (b"RCPT TO:<a@b(<c@d>>\r\n", b"a@b"),
        (b'RCPT TO:<"a(x)"@b>\r\n', b'"a(x)"@b'),
        (b"RCPT TO:<a@b)>\r\n", b"a@b)"),
    ],
)
def test_the_path_of_an_envelope(line: bytes, path: bytes) -> None:
    assert command.path(line) == path


@pytest.mark.parametrize(
    "line",
    [
        b":<" * 1000,
        b'"' * 2000,
        b':<"' * 600,
        b':<"\\' * 500,
        b"x" * 2040,
        b" " * 2040,
        b"x " * 1000,
        b':<"a"' * 400,
        b": AUTH=" * 250,
        b":" + b"(" * 2000,
        b":" + b"()" * 1000,
        b"::" + b"<" * 2000,
        b'::"' + b"\\a" * 1000,
        b":" + b"<>:" * 680,
        b"::" + b'<"' * 1000,
    ],
)
def test_no_line_costs_more_than_its_length(line: bytes) -> None:
    """A pattern that tries again takes seconds for these."""
    before = time.process_time()
    for _ in range(100):
        command.path(b"RCPT TO" + line)
        for mode in ("reject", "normalise", "pass"):
            command.LINE[mode].match(line)
            command.LINE[mode].match(line + b"\0")
        command.chunk(b"BDAT " + line)
    assert time.process_time() - before < 1


@pytest.mark.parametrize("mode", ["reject", "normalise", "pass"])
@pytest.mark.parametrize("unit", [b"\n", b"\r.", b"BURL x\n", b"BDAT 1\r\nx"])
def test_no_buffer_costs_more_than_its_length(mode: str, unit: bytes) -> None:
    """Commands, a body and a take-over of 256 kB, verdicts late."""
    data = unit * (262144 // len(unit))
    before = time.process_time()
    for prelude in (b"", b"DATA\r\n", b"QUIT\r\n" * 200):
        recorder = Recorder({Gate.DATA: Verdict(Action.REFUSE, 552, "", "x")}, late=Gate.DATA)
        gates = Gate.DATA if prelude != b"DATA\r\n" else 0
        session = Session(
            settings(bare_newline=mode, on_takeover_cmds=1 << 30, gates=gates, pipeline_size=1 << 30),
            recorder,
        )
        session.server_data(b"220 mx\r\n")
        session.client_data(b"EHLO c\r\n")
        session.server_data(b"250-mx\r\n250 CHUNKING\r\n")
        session.client_data(prelude)
        if prelude == b"DATA\r\n":
            session.server_data(b"354 go\r\n")
        session.client_data(data)
        while recorder.answer_late(session):
            pass
    assert time.process_time() - before < 10


def test_a_read_buffer_is_not_kept_behind_half_a_line() -> None:
    session = Session(settings(), Recorder())
    session.server_data(b"220 mx\r\n")
    session.client_data(b"NOOP\r\n" * 100 + b"NOO")
    assert len(session._in) < 10
