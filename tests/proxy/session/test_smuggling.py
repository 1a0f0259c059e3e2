"""Ends of messages that readers differ about (rule 4.4)."""

from collections.abc import Iterator
from itertools import product

import pytest

from appliance.proxy.session import Phase
from appliance.proxy.session.message import _APART, DataBody
from tests.proxy.session.cases import Case, case, check, every_way
from tests.proxy.session.recorder import C, S

_END = b"\r\n.\r\nRSET\r.\r\n"  # and what comes behind it
BARE = "550 5.5.2 Lines of a message must end in CRLF"

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


@pytest.mark.parametrize(("one", "size", "late", "patient"), every_way(SMUGGLING))
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
@pytest.mark.option("bare_newline")
def test_every_short_body_in_every_two_pieces(mode: str) -> None:
    """All bodies of up to five of the letters that matter: one outcome, whatever the pieces."""
    for text in _short_bodies(5):
        length = len(text) - len(_END)
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


@pytest.mark.parametrize("mode", ["reject", "normalise", "pass"])
@pytest.mark.option("bare_newline")
def test_dots_are_found_however_many_came_before(mode: str) -> None:
    """Where dots are rare each is looked at by itself; where they are not, the rest is searched."""
    for text in _short_bodies(4):
        wire, content, smuggling, rest = _outcome(mode, b"x" + text)
        for dots in range(4):
            filler = b"x." * dots + b"x" * (_APART - 2 * dots)
            expected = filler + wire[1:], filler + content[1:], smuggling, rest
            assert _outcome(mode, filler + text) == expected, (text, dots)


def _short_bodies(longest: int) -> Iterator[bytes]:
    """Give all bodies of so many of the letters that matter, each with an end and more behind it."""
    for length in range(longest + 1):
        for letters in product((b"\r", b"\n", b".", b"\0", b"x"), repeat=length):
            yield b"".join(letters) + _END


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
