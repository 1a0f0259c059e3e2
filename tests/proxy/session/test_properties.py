"""Properties of whole conversations with a model server, in whatever pieces bytes and verdicts come.

HYPOTHESIS_PROFILE=deep looks longer.
"""

import os
import random
import re
from dataclasses import dataclass

from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from appliance.proxy.session import Action, Gate, Phase, Session, Verdict
from tests.proxy.session import recorder as recording
from tests.proxy.session.cases import ALL_GATES
from tests.proxy.session.model import Server
from tests.proxy.session.recorder import Recorder

DEEP = os.environ.get("HYPOTHESIS_PROFILE") == "deep"
profile = settings(
    max_examples=4000 if DEEP else 200,
    deadline=None,
    derandomize=not DEEP,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)

HEADER = b"X-Nat: from [10.0.0.5]:25\r\n\tby gw\r\n"
LIMIT = 16384

VERDICTS: dict[Gate | tuple[Gate, bytes], Verdict] = {
    (Gate.HELO, b"no"): Verdict(Action.REFUSE, 550, "5.7.1", "gw no"),
    (Gate.MAIL, b"no"): Verdict(Action.REFUSE, 552, "5.3.2", "slow"),
    (Gate.MAIL, b"evil"): Verdict(Action.TAKEOVER, 550, "5.7.1", "gw evil", "evil"),
    (Gate.RCPT, b"no"): Verdict(Action.REFUSE, 552, "5.3.2", "slow"),
    (Gate.RCPT, b"evil"): Verdict(Action.HANGUP, 554, "5.7.1", "gw off"),
}


class Checks(Recorder):
    """Plays the scanners too: a message that holds EICAR is bad."""

    def ask(self, gate: Gate, subject: bytes) -> Verdict | None:
        bad = gate is Gate.END and self.copies and b"EICAR" in self.copies[-1].spool
        self._verdicts = VERDICTS | (
            {Gate.END: Verdict(Action.TAKEOVER, 550, "5.7.1", "virus")} if bad else {}
        )
        return super().ask(gate, subject)


# -- what clients say ----------------------------------------------------------------------------------

newline = st.sampled_from([b"\r\n"] * 6 + [b"\n", b"\r", b"\r\r\n", b"\n\r"])
word = st.sampled_from(
    [
        b".",
        b"..",
        b".x",
        b"",
        b"x",
        b"QUIT",
        b"MAIL FROM:<s>",
        b"DATA",
        b"BDAT 3 LAST",
        b"EICAR",
        b"\0",
        b".\0",
    ]
)
body_lines = st.lists(st.tuples(word, newline), max_size=6).map(
    lambda parts: b"".join(a + b for a, b in parts)
)

command = st.sampled_from(
    [
        b"NOOP",
        b"noop wordy",
        b" \tNOOP",
        b"RSET",
        b"HELO c",
        b"EHLO no",
        b"EHLO c",
        b"MAIL FROM:<a>",
        b"MAIL FROM:<no>",
        b"MAIL FROM:<evil>",
        b"RCPT TO:<b>",
        b"RCPT TO:<refuse>",
        b"RCPT TO:<wordy>",
        b"RCPT TO:<no>",
        b"RCPT TO:<evil>",
        b"VRFY refuse wordy",
        b"XEXCH50 1 2",
        b"BURL x",
        b"AUTH LOGIN",
        b"AUTH refuse",
        b"XCLIENT ADDR=1.2.3.4",
        b"",
        b"\vBURL\fx",
        b"NOOP " + b"x" * 2100,
        b"MAIL FROM:<" + b"x" * 2100,
        b"y" * 2100,
        b"AUTH " + b"x" * 12300,
    ]
)
strange = st.sampled_from(
    [b"NO\0OP", b"DATA\0", b"MAIL\nFROM", b"DATA\rX", b"BDAT x", b"BDAT 4LAST", b"NOOP\n.\nDATA"]
)


@st.composite
def chunks(draw: st.DrawFn) -> bytes:
    out = b""
    for last in [False] * draw(st.integers(0, 2)) + [draw(st.booleans())]:
        text = draw(body_lines)
        out += b"BDAT %d%s\r\n" % (len(text), b" LAST" if last else b"") + text
    return out


piece_of_talk = st.one_of(
    command.map(lambda text: text + b"\r\n"),
    command.map(lambda text: text + b"\r\n"),
    st.tuples(
        st.sampled_from([b"DATA\r\n", b"DATA refuse\r\n", b" data\r\n"]), body_lines, st.just(b"\r\n.\r\n")
    ).map(b"".join),
    chunks(),
    st.tuples(
        st.just(b"AUTH ask ask\r\n"), st.sampled_from([b"a\r\nb\r\n", b"*\r\n", b"x" * 12300 + b"\r\n"])
    ).map(b"".join),
    st.tuples(strange, newline).map(b"".join),
    st.tuples(command, newline).map(b"".join),
)
talk = st.lists(piece_of_talk, max_size=8).map(b"".join)
modes = st.sampled_from(["reject", "normalise", "pass"])
readings = st.sampled_from(["strict", "lenient", "any"])


# -- how it travels ------------------------------------------------------------------------------------


@dataclass
class Run:
    """One session with its server."""

    session: Session
    checks: Checks
    server: Server

    @property
    def outcome(self) -> tuple[object, ...]:
        return (
            bytes(self.checks.to_client_bytes),
            bytes(self.checks.to_server_bytes),
            self.checks.events,
            self.checks.passed,
            self.server.accepted,
            self.session.phase,
        )


def run(
    said: bytes,
    mode: str,
    server: Server,
    *,
    late: int = 0,
    seed: int | None = None,
    size_limit: int = 0,
) -> Run:
    """Carry `said` to the session and both answers back until nothing moves.

    Without `seed` everything travels whole and at once, else in random pieces and in random order. The client
    is not read while too much of it waits.
    """
    checks = Checks(late=late, header=HEADER)
    session = Session(
        recording.settings(
            gates=ALL_GATES,
            bare_newline=mode,
            pipeline_size=1 << 20,
            on_takeover_cmds=1 << 20,
            size_limit=size_limit,
        ),
        checks,
    )
    chance = random.Random(seed)
    upward, downward, delivered = said, b"220 mx\r\n", 0

    def cut(data: bytes) -> int:
        return len(data) if seed is None else min(len(data), chance.choice((1, 1, 2, 3, 5, 50, 1000)))

    first = True
    while True:
        moves: list[str] = []
        if upward and not first and session.backlog < LIMIT:
            moves.append("client")
        if downward:
            moves.append("server")
        if checks.waits:
            moves.append("verdict")
        if not moves or session.phase in (Phase.CLOSED, Phase.DIRECT):
            return Run(session, checks, server)
        move = moves[0] if seed is None else chance.choice(moves)
        if move == "client":
            size = cut(upward)
            session.client_data(upward[:size])
            upward = upward[size:]
        elif move == "server":
            size = cut(downward)
            session.server_data(downward[:size])
            downward = downward[size:]
            first = first and bool(downward)
        else:
            checks.answer_late(session)
        assert session.backlog <= max(LIMIT + 12288, len(said) if seed is None else 0)
        sent = bytes(checks.to_server_bytes[delivered:])
        delivered += len(sent)
        downward += server.feed(sent)


late_gates = st.lists(st.sampled_from([gate for gate in Gate if gate & ALL_GATES])).map(
    lambda gates: sum(set(gates))
)


@given(
    said=talk,
    mode=modes,
    reading=readings,
    chunking=st.booleans(),
    late=late_gates,
    seed=st.integers(0, 1 << 32),
)
@profile
def test_pieces_and_delays_change_nothing(
    said: bytes, mode: str, reading: str, chunking: bool, late: int, seed: int
) -> None:
    if mode == "pass":
        reading = "mixed"  # any other server loses count, and then a session ends at whatever byte that shows
    # A chunk may be on its way already when the one before is refused, or not yet: so no chunk is.
    whole = run(said, mode, Server(reading, chunking, choosy=False))
    note(repr(bytes(whole.checks.to_server_bytes)))
    assert (
        run(said, mode, Server(reading, chunking, choosy=False), late=late, seed=seed).outcome
        == whole.outcome
    )


@given(
    said=talk,
    mode=st.sampled_from(["reject", "normalise"]),
    reading=readings,
    late=late_gates,
    seed=st.integers(0, 1 << 32),
    size_limit=st.sampled_from([0, 0, 30]),
)
@profile
def test_a_server_accepts_what_the_scanners_passed_and_nothing_else(
    said: bytes, mode: str, reading: str, late: int, seed: int, size_limit: int
) -> None:
    done = run(said, mode, Server(reading), late=late, seed=seed, size_limit=size_limit)
    assert done.server.accepted == [HEADER + text for text in done.checks.passed]
    assert not any(b"EICAR" in text for text in done.server.accepted)
    for other in ("strict", "lenient", "any"):
        reads = Server(other)
        reads.feed(bytes(done.checks.to_server_bytes))
        assert (reads.accepted, reads.commands) == (done.server.accepted, done.server.commands)
    for number, sent in enumerate(done.checks.withheld):
        waits = Server(reading)
        waits.feed(sent)
        assert len(waits.accepted) == min(number, len(done.checks.passed))


@given(said=talk, mode=st.sampled_from(["reject", "normalise"]), seed=st.integers(0, 1 << 32))
@profile
def test_nothing_follows_a_bad_verdict(said: bytes, mode: str, seed: int) -> None:
    done = run(said + b"DATA\r\nEICAR\r\n.\r\nQUIT\r\n", mode, Server(), late=ALL_GATES, seed=seed)
    if done.checks.events[-1:] == ["taken over: virus"]:
        assert bytes(done.checks.to_server_bytes) == done.checks.withheld[-1]
        assert done.checks.events[-3:-1] == ["drop", "close server"]


# -- every command has its reply, and the right one ----------------------------------------------------

# What a client that waits may send: pipelined commands, and how they end. Each command is numbered.
polite = st.sampled_from(
    [
        b"NOOP %d",
        b"NOOP wordy %d",
        b"VRFY refuse %d",
        b"RCPT TO:<x%d>",
        b"RCPT TO:<no>",
        b"BURL %d",
        b"MAIL FROM:<no>",
        b"MAIL FROM:<y%d>",
        b"RSET",
        b"NOOP %d " + b"x" * 3000,
        b"MAIL %d " + b"x" * 3000,
        b"BDAT 3\r\nab%d",
        b"EHLO c",
        b"XCLIENT wordy %d",
        b"MAIL FROM:<evil>",
        b"AUTH %d",
    ]
)
last = st.sampled_from([b"DATA", b"DATA refuse", b"BDAT 3 LAST\r\nab%d", b"AUTH ask %d", b"NOOP"])
groups = st.lists(st.tuples(st.lists(polite, max_size=6), last), max_size=4)
REPLY = re.compile(rb"(?:(\d{3})-[^\r\n]*\r\n)*(\d{3})(?: [^\r\n]*)?\r\n")


@given(
    groups=groups, chunking=st.booleans(), late=late_gates, seed=st.integers(0, 1 << 32), clean=st.booleans()
)
@profile
def test_every_command_gets_its_own_reply(
    groups: list[tuple[list[bytes], bytes]], chunking: bool, late: int, seed: int, clean: bool
) -> None:
    talker = Talker(Server("strict", chunking), late, random.Random(seed))
    assert talker.say(b"", 1)[0].startswith(b"220 ")
    talker.say(b"EHLO start\r\n", 1)
    for pipelined, ending in groups:
        said = [text % (at + 1) if b"%d" in text else text for at, text in enumerate([*pipelined, ending])]
        wire = b"".join(text + (b"" if text.startswith(b"BDAT") else b"\r\n") for text in said)
        replies = talker.say(wire, len(said))
        for text, reply in zip(said, replies, strict=True):
            talker.judge(text, reply)
        if replies[-1].startswith(b"354"):
            talker.say(b"body %s\r\n.\r\n" % (b"" if clean else b"EICAR"), 1)
        elif replies[-1].startswith(b"334"):
            talker.say(b"answer\r\n", 1)


class Talker:
    """A client that counts its replies, with its session and server."""

    def __init__(self, server: Server, late: int, chance: random.Random) -> None:
        self.server = server
        self.checks = Checks(late=late, header=HEADER)
        self.session = Session(
            recording.settings(gates=ALL_GATES, pipeline_size=1 << 20, on_takeover_cmds=1 << 20), self.checks
        )
        self.chance = chance
        self.down = b"220 mx\r\n"
        self.up = 0
        self.heard = 0

    def say(self, data: bytes, expected: int) -> list[bytes]:
        """Send pipelined commands, wait until nothing comes any more; give the replies, `expected` many."""
        while data or self.down or self.checks.waits:
            move = self.chance.choice(
                ["up"] * bool(data) + ["down"] * bool(self.down) + ["verdict"] * self.checks.waits
            )
            size = self.chance.choice((1, 4, 50, 5000))
            if move == "up":
                self.session.client_data(data[:size])
                data = data[size:]
            elif move == "down":
                self.session.server_data(self.down[:size])
                self.down = self.down[size:]
            else:
                self.checks.answer_late(self.session)
            sent = bytes(self.checks.to_server_bytes[self.up :])
            self.up += len(sent)
            self.down = b"" if self.session.phase is Phase.TAKEN else self.down + self.server.feed(sent)
        got = bytes(self.checks.to_client_bytes[self.heard :])
        self.heard += len(got)
        replies = [found[0] for found in REPLY.finditer(got)]
        assert b"".join(replies) == got
        assert len(replies) == expected, (data, replies)
        return replies

    def judge(self, text: bytes, reply: bytes) -> None:
        """A reply that repeats a command must repeat this one; one that does not is the gateway's."""
        echo = reply.rstrip().rsplit(b"\r\n", 1)[-1][4:]
        if echo.split(b" ")[0] in (b"NOOP", b"VRFY", b"RCPT", b"MAIL", b"RSET", b"XCLIENT", b"EHLO"):
            assert text.startswith(echo[:100]) or echo.startswith(text[:50])
        if text.startswith((b"BURL", b"MAIL FROM:<no>", b"RCPT TO:<no>")):
            assert reply[0:1] in (b"5", b"4")
