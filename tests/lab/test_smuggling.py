"""No second message is smuggled behind the gateway's back, whatever gateway and server make of line ends.

Every server gets what the scanners got, the whole of it, or nothing. The servers of the lab read mail as they
did before anyone spoke of smuggling (Postfix is told to), so that these tests could fail.
"""

import itertools
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lab.gateway import Gateway
from lab.network import Network
from lab.process import wait_until
from lab.servers import Clamd, Exim, MailServer, OpenSMTPD, Postfix
from tests.lab.conftest import GatewayFactory
from tests.lab.raw import RawClient

pytestmark = pytest.mark.lab

CRLF, LF, CR = b"\r\n", b"\n", b"\r"
END = b"\r\n.\r\n"
LINE_ENDS = (CRLF, LF, CR, b"\r\r\n", b"\n\r")
BESIDE = (b"", b"\0", b" ", b"x", b".")
INNER = (
    b"MAIL FROM:<smuggler@client.test>\r\nRCPT TO:<alice@example.test>\r\nDATA\r\n"
    b"Subject: smuggled <%d>\r\n\r\nhidden\r\n"
)


def forged_ends() -> list[bytes]:
    """All that a server might take for the end of a message and that is none: line ends around a dot."""
    around = list(itertools.product(LINE_ENDS, (b"",), (b"",), LINE_ENDS))
    around += itertools.product((CRLF, LF, CR), BESIDE, BESIDE, (CRLF, LF, CR))
    around += itertools.product((CRLF, LF), (b"\r", b"\n", b"\r\n"), (b"",), (CRLF, LF))
    ends = {before + beside + b"." + behind + after for before, beside, behind, after in around}
    return sorted(end for end in ends if END not in end)


FORGED = forged_ends()
SPLIT = [before + b"." + after for before in LINE_ENDS[:4] for after in LINE_ENDS[:4]]


@pytest.fixture(params=["Postfix", "Exim", "OpenSMTPD"])
def server(request: pytest.FixtureRequest, postfix: Postfix, exim: Exim, opensmtpd: OpenSMTPD) -> MailServer:
    servers: dict[str, MailServer] = {"Postfix": postfix, "Exim": exim, "OpenSMTPD": opensmtpd}
    return servers[request.param]


def outer(number: int) -> bytes:
    return (
        b"From: <sender@client.test>\r\nDate: Thu, 1 Jan 2026 00:00:00 +0000\r\n"
        b"Message-ID: <%d@client.test>\r\nSubject: outer <%d>\r\n\r\nbefore" % (number, number)
    )


def attempt(network: Network, server: MailServer, number: int, pieces: Iterable[bytes]) -> bytes:
    """Send one message in segments, then leave; give all that was heard behind the 354."""
    with RawClient(network.client, server.ipv4) as client:
        client.begin()
        client.envelope(sender=b"sender-%d@client.test" % number)
        assert client.ask(b"DATA").startswith(b"354")
        client.send_in_pieces(*pieces)
        client.send(INNER % number + b".\r\n")
        answer = client.reply()
        client.send(b"QUIT\r\n")
        return answer + client.rest()


def scanning(clamd: Clamd, bare_newline: str) -> dict[str, str | int | None]:
    return {
        "antivirus_type": "clamd",
        "antivirus_path": str(clamd.socket),
        "antivirus_transfer": "fd",
        "spool_leave_on": "always",
        "bare_newline": bare_newline,
        "log_level": "info",
    }


def text_of(message: bytes, server: MailServer) -> bytes:
    """Give what a message says, whatever the server stores for odd line ends and behind a NUL."""
    kept = re.sub(rb"\0[^\n]*", b"", message) if server.name == "opensmtpd" else message
    return re.sub(rb"[\r\n ]+", b"\n", kept).rstrip(b"\n")


def delivered(server: MailServer, attempts: int) -> dict[bytes, list[bytes]]:
    """Wait until no more mail arrives; give by the number of each attempt what its messages say."""
    wait_until(lambda: settled(server), 30, "delivery of all that was accepted", 0.3)
    found: dict[bytes, list[bytes]] = {}
    for message in server.mailbox("alice").messages():
        top, header, said = message.partition(b"\nX-NAT-Received: ")
        assert header, message  # the gateway has not seen it
        assert b"Subject" not in top, message
        number = re.search(rb"sender-(\d+)@client\.test", top)
        assert number, message
        assert int(number[1]) < attempts
        found.setdefault(number[1], []).append(text_of(re.sub(rb"\A.*\n(?:[ \t].*\n)*", b"", said), server))
    return found


_count: dict[str, int] = {}


def settled(server: MailServer) -> bool:
    """Tell whether the mailbox has not grown since the last look."""
    before, _count[server.name] = _count.get(server.name), len(server.mailbox("alice").messages())
    return before == _count[server.name]


def scanned(spool: Path, server: MailServer) -> dict[bytes, list[bytes]]:
    """Give what the scanners saw, by the number of the attempt."""
    found: dict[bytes, list[bytes]] = {}
    for file in spool.iterdir():
        copy = file.read_bytes().partition(b"\r\n")[2]
        number = re.search(rb"Message-ID: <(\d+)@", copy)
        assert number, copy
        found.setdefault(number[1], []).append(text_of(copy, server))
    return found


def check(server: MailServer, running: Gateway, attempts: list[bytes], heard: list[bytes]) -> None:
    arrived, copies = delivered(server, len(attempts)), scanned(running.spool, server)
    for number, (end, answers) in enumerate(zip(attempts, heard, strict=True)):
        key = b"%d" % number
        messages = arrived.get(key, [])
        assert len(messages) <= 1, (end, messages)
        assert messages == copies.get(key, []), (end, answers)
        if messages:
            assert answers.startswith(b"250"), (end, answers)
            assert messages[0].endswith(b"hidden"), (end, messages)  # what was to be smuggled is its text
        else:
            assert answers.startswith(b"550 "), (end, answers)
        assert re.search(rb"^221 .*\r\n\Z", answers, re.MULTILINE), (end, answers)


@pytest.mark.parametrize("bare_newline", ["reject", "normalise"])
def test_forged_ends_of_data(
    network: Network, server: MailServer, clamd: Clamd, gateway: GatewayFactory, bare_newline: str
) -> None:
    running = gateway(scanning(clamd, bare_newline))

    def one(numbered: tuple[int, bytes]) -> bytes:
        number, end = numbered
        return attempt(network, server, number, [outer(number) + end])

    with ThreadPoolExecutor(8) as pool:
        heard = list(pool.map(one, enumerate(FORGED)))
    check(server, running, FORGED, heard)


@pytest.mark.parametrize("bare_newline", ["reject", "normalise"])
def test_forged_ends_in_segments_of_any_size(
    network: Network, server: MailServer, clamd: Clamd, gateway: GatewayFactory, bare_newline: str
) -> None:
    running = gateway(scanning(clamd, bare_newline))
    attempts = [(end, at) for end in SPLIT if END not in end for at in range(len(end) + 1)]
    attempts += [(end, -1) for end in SPLIT if END not in end]  # each byte alone

    def one(numbered: tuple[int, tuple[bytes, int]]) -> bytes:
        number, (end, at) = numbered
        pieces = [end[:at], end[at:]] if at >= 0 else [end[at : at + 1] for at in range(len(end))]
        pieces[0] = outer(number) + pieces[0]
        return attempt(network, server, number, pieces)

    with ThreadPoolExecutor(8) as pool:
        heard = list(pool.map(one, enumerate(attempts)))
    check(server, running, [end for end, _ in attempts], heard)
