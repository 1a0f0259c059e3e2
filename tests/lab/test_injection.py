"""Commands, chunks and STARTTLS that a server might read in its own way bring nothing past the scanners."""

import re
import socket
from concurrent.futures import ThreadPoolExecutor

import pytest

from lab.network import Network
from lab.samples import EICAR
from lab.servers import Clamd, Exim, MailServer, OpenSMTPD, Postfix
from tests.lab.conftest import GatewayFactory
from tests.lab.raw import RawClient

pytestmark = pytest.mark.lab

ENVELOPE = b"MAIL FROM:<sender@client.test>\r\nRCPT TO:<alice@example.test>\r\n"
TEXT = b"Subject: infected\r\n\r\n" + EICAR.encode() + b"\r\n"
DATA = b"DATA\r\n" + TEXT + b".\r\n"
CHUNK = b"BDAT %d LAST\r\n" % len(TEXT) + TEXT
SECOND = b"RSET\r\n" + ENVELOPE


@pytest.fixture(params=["Postfix", "Exim", "OpenSMTPD"])
def server(request: pytest.FixtureRequest, postfix: Postfix, exim: Exim, opensmtpd: OpenSMTPD) -> MailServer:
    servers: dict[str, MailServer] = {"Postfix": postfix, "Exim": exim, "OpenSMTPD": opensmtpd}
    return servers[request.param]


def commands() -> list[bytes]:
    """Lines in which something that is no CRLF might end the line or hide a verb, before an infected mail."""
    found = []
    for bad in (b"\n", b"\r", b"\0", b"\r\r\n", b"\n\r", b"\0\r\n", b"\r\0\n", b"\x0b", b"\x0c", b"\x85"):
        for end in (DATA, CHUNK):
            found += [
                ENVELOPE + b"NOOP" + bad + end,
                ENVELOPE + b"NOOP " + b"x" * 2046 + bad + end,
                ENVELOPE + b"XYZZY" + b"x" * 5000 + bad + end,
                ENVELOPE + bad + end,
                ENVELOPE + end.replace(b"\r\n", bad, 1),
                ENVELOPE + end.replace(b"\r\n", bad + b"\r\n", 1),
                ENVELOPE.replace(b"\r\n", bad) + end,
                b"MAIL FROM:<>" + bad + b"\r\nRCPT TO:<alice@example.test>" + bad + b"\r\n" + end,
                b"HELO x" + bad + ENVELOPE + end,
                b"AUTH LOGIN" + bad + ENVELOPE + end,
                b"QUIT" + bad + ENVELOPE + end,
                ENVELOPE + b"DATA\r\nSubject: outer\r\n\r\ntext\r\n.\r\n" + b"NOOP" + bad + SECOND + end,
            ]
    return found


SIZES = (
    *(
        b"+5",
        b"-5",
        b"0x5",
        b"5LAST",
        b"5 LAST x",
        b"5 LAS",
        b"",
        b"five",
        b"5,0",
        b"5.0",
        b"5e0",
        b"5 5",
        b"0 0",
    ),
    *(b"4294967296", b"4294967301", b"2147483653", b"18446744073709551616", b"18446744073709551621"),
    *(
        b"9223372036854775813",
        b"99999999999999999999999999",
        b"8589934597 LAST",
        b"4294967301 LAST",
        b"005",
        b"5\0",
    ),
)


def chunks() -> list[bytes]:
    """Chunks whose size might be read in two ways, or whose content looks like commands."""
    found = []
    for size in SIZES:
        for end in (DATA, CHUNK):
            found += [
                ENVELOPE + b"BDAT " + size + b"\r\n12345" + SECOND + end,
                b"BDAT " + size + b"\r\n12345" + SECOND + end,
            ]
    for content in (b"X\r", b"X\r\r\n", b"Subject: x\r\n", b"Subject: x\r\n\r\nab"):
        begun = ENVELOPE + b"BDAT %d\r\n" % len(content) + content
        found += [begun + between + TEXT + b".\r\n" for between in (b"RSET\r\n", b"QUIT\r\n")]
        for between in (b"VRFY x\r\n", b"HELO c\r\n", b"\r\n", b"XYZZY " + b"x" * 5000 + b"\r\n"):
            found.append(begun + between + b"BDAT %d\r\n" % len(SECOND + DATA) + SECOND + DATA)
    for content in (b"Subject: x\r", b"Subject: x\r\n\r", b"Subject: x\r\n\r\ntext\r"):
        whole = ENVELOPE + b"BDAT %d LAST\r\n" % len(content) + content
        found += [whole + TEXT + b".\r\n", whole + b"NOOP\r\n" + EICAR.encode() + b"\r\n"]
        begun = ENVELOPE + b"BDAT %d\r\n" % len(content) + content + b"BDAT 0\r\nBDAT 1 LAST\r\nx"
        found += [begun + between + TEXT + b".\r\n" for between in (b"", b"RSET\r\n", b"QUIT\r\n")]
    for end in (DATA, CHUNK):
        hidden = SECOND + end
        for bdat in (b"BDAT %d\r\n", b"BDAT %d LAST\r\n"):
            chunk = bdat % len(hidden) + hidden
            found += [
                chunk,  # without a transaction
                ENVELOPE + chunk,
                ENVELOPE + b"DATA\r\n" + chunk + b".\r\n",
                ENVELOPE + b"BDAT 5\r\n12345DATA\r\n" + chunk + b".\r\n",
                b"MAIL FROM:<sender@client.test>\r\nRCPT TO:<nobody@elsewhere.test>\r\n" + chunk,
                b"HELO client.test\r\n" + ENVELOPE + chunk,
                b"MAIL FROM:<sender@client.test> SIZE=4000000000\r\nRCPT TO:<alice@example.test>\r\n" + chunk,
            ]
    return found


def attack(network: Network, server: MailServer, said: bytes) -> bytes:
    """Say it all at once and end; give all that was heard."""
    with RawClient(network.client, server.ipv4) as client:
        client.begin()
        client.send(said + b"QUIT\r\n")
        client.socket.shutdown(socket.SHUT_WR)
        return client.rest()


def send_all(network: Network, server: MailServer, attacks: list[bytes]) -> list[bytes]:
    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(lambda said: attack(network, server, said), attacks))


def scanning(clamd: Clamd, bare_newline: str) -> dict[str, str | int | None]:
    return {
        "antivirus_type": "clamd",
        "antivirus_path": str(clamd.socket),
        "lock_on": "never",
        "bare_newline": bare_newline,
        "log_level": "info",
    }


def unscanned(network: Network, server: MailServer) -> list[bytes]:
    """Give what came to the mailbox without the gateway's header, once a last clean mail has arrived."""
    with RawClient(network.client, server.ipv4) as client:
        client.begin()
        client.envelope()
        assert client.data(b"Subject: the last one\r\n").startswith(b"250")
    server.mailbox("alice").wait("Subject: the last one")
    return [
        message
        for message in server.mailbox("alice").messages()
        if b"\nX-NAT-Received: " not in message or EICAR.encode() in message
    ]


@pytest.mark.parametrize("bare_newline", ["reject", "normalise", "pass"])
@pytest.mark.option("bare_newline")
def test_commands_with_odd_line_ends_hide_no_mail(
    network: Network, server: MailServer, clamd: Clamd, gateway: GatewayFactory, bare_newline: str
) -> None:
    running = gateway(scanning(clamd, bare_newline))
    send_all(network, server, commands())
    assert not unscanned(network, server)
    assert "BUG" not in running.log
    if bare_newline != "reject" and server.name != "opensmtpd":  # which takes no pipelined commands
        assert "SCAN:VIRUS" in running.log


def test_bare_newlines_in_commands_are_refused(
    network: Network, server: MailServer, gateway: GatewayFactory
) -> None:
    gateway(None)
    for bad in (b"\n", b"\r", b"\0", b"\r\r\n", b"\n\r"):
        for line in (b"NOOP%sNOOP\r\n", b"MAIL FROM:<a@b.test>%s\r\n", b"XYZZY " + b"x" * 5000 + b"%s\r\n"):
            heard = attack(network, server, line % bad)
            assert re.match(rb"550 .*\r\n(?:(?:250|502) .*\r\n)?221 ", heard), (line, bad, heard)


def test_long_lines_hide_no_mail(
    network: Network, server: MailServer, clamd: Clamd, gateway: GatewayFactory
) -> None:
    """A server may take what stands behind its own limit for the next command; Exim does."""
    running = gateway(scanning(clamd, "reject"))
    limits = (512, 1000, 1024, 2048, 4096, 8192, 12288, 16384, 32768, 65536)
    send_all(
        network,
        server,
        [
            ENVELOPE + b"NOOP ".ljust(limit + more, b"x") + end
            for limit in limits
            for more in (-1, 0, 1)
            for end in (DATA, CHUNK)
        ],
    )
    assert not unscanned(network, server)
    assert "BUG" not in running.log


def test_chunks_hide_no_mail(
    network: Network, server: MailServer, clamd: Clamd, gateway: GatewayFactory
) -> None:
    running = gateway(scanning(clamd, "reject"))
    send_all(network, server, chunks())
    assert not unscanned(network, server)
    assert "BUG" not in running.log


@pytest.mark.parametrize("name", ["Postfix", "Exim"])
def test_starttls_is_followed_by_nothing_that_came_before_it(
    network: Network, postfix: Postfix, exim: Exim, clamd: Clamd, gateway: GatewayFactory, name: str
) -> None:
    gateway(scanning(clamd, "reject"))
    server: MailServer = postfix if name == "Postfix" else exim
    injected = ENVELOPE + CHUNK
    heard = send_all(
        network,
        server,
        [
            b"STARTTLS\r\n" + injected,
            b"STARTTLS\r\nSTARTTLS\r\n",
            b"STARTTLS\r\nE",
            b"NOOP\r\nSTARTTLS\r\nNOOP\r\n",
        ],
    )
    assert not any(b"\n220 " in b"\n" + answer for answer in heard), heard  # no client goes on to TLS
    with RawClient(network.client, server.ipv4) as client:
        client.begin()
        client.send_in_pieces(b"STARTTLS\r\n", injected)  # the second may come after the switch
        client.rest()
    assert not unscanned(network, server)
