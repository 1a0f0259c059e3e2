"""A message says the same to the server as to the scanners and as its sender said, by DATA and by BDAT."""

import hashlib
import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from lab.network import CLIENT4, Network
from lab.process import wait_until
from lab.samples import EICAR
from lab.servers import Clamd, Postfix
from tests.lab.conftest import GatewayFactory
from tests.lab.raw import RawClient, queue_id

pytestmark = pytest.mark.lab

HEADER = (
    b"From: <sender@client.test>\r\nDate: Thu, 1 Jan 2026 00:00:00 +0000\r\nMessage-ID: <%s@client.test>\r\n"
)
_FIRST_HEADERS = re.compile(
    rb"(?:(?:Return-Path|X-Original-To|Delivered-To|Received|X-NAT-Received):.*\n(?:[ \t].*\n)*)*"
)


def _random_text(size: int, letters: bytes) -> bytes:
    return bytes(random.Random(size).choices(letters, k=size))


CONTENTS = {
    "no-body": b"Subject: only headers\r\n",
    "empty-body": b"Subject: no text\r\n\r\n",
    "no-header": b"\r\nthe text begins at once\r\n",
    "dots": b"\r\n.\r\n..\r\n...\r\n. \r\n.x\r\n\r\n.\t\r\nx.\r\n.\r\n",
    "dots-alone": b"\r\n" + b".\r\n" * 5000,
    "empty-lines": b"\r\n" * 5000,
    "8-bit": b"\r\n" + bytes(set(range(1, 256)) - {10, 13}) + b"\r\n",
    "NUL": b"\r\nbefore\0after\r\n\0\r\n",
    "long-line": b"\r\n" + b"0123456789" * 30_000 + b"\r\nshort\r\n",
    "long-header": b"X-Long: " + b"y" * 50_000 + b"\r\n\r\ntext\r\n",
    "bare-line-feeds": b"\r\none\ntwo\n\nthree\r\n",
    "bare-carriage-returns": b"\r\none\rtwo\r\r\nthree\r\n",
    "line-ends-at-odd-places": b"\r\n" + _random_text(200_000, b"ab\n\n.").replace(b"\n", b"\r\n") + b"\r\n",
    "looks-like-commands": b"\r\nQUIT\r\nRSET\r\nBDAT 5 LAST\r\nSTARTTLS\r\n354 go\r\n",
    "2-MB": b"\r\n" + (b"a line of text, as there are many of them\r\n" * 50_000),
}


def stuffed(content: bytes) -> bytes:
    """Double the dots at the beginning of lines, as DATA wants it."""
    return (b"\r\n" + content).replace(b"\r\n.", b"\r\n..")[2:]


def said(delivered: bytes) -> str:
    """Digest what the sender said, without the headers that servers and gateway put on top."""
    return hashlib.sha256(delivered[_FIRST_HEADERS.match(delivered).end() :]).hexdigest()  # type: ignore[union-attr]


def by_data(client: RawClient, content: bytes) -> bytes:
    return client.data(stuffed(content))


def in_chunks(size: int) -> Callable[[RawClient, bytes], bytes]:
    def send(client: RawClient, content: bytes) -> bytes:
        answers = client.bdat(*(content[at : at + size] for at in range(0, len(content), size)))
        assert all(answer.startswith(b"250") for answer in answers[:-1]), answers
        return answers[-1]

    return send


def with_empty_last_chunk(client: RawClient, content: bytes) -> bytes:
    return client.bdat(content[:1], content[1:], b"")[-1]


def all_at_once(client: RawClient, content: bytes) -> bytes:
    half = len(content) // 2
    client.send(
        b"BDAT %d\r\n%sBDAT %d LAST\r\n%s" % (half, content[:half], len(content) - half, content[half:])
    )
    assert client.reply().startswith(b"250")
    return client.reply()


WAYS = {
    "DATA": by_data,
    "BDAT": in_chunks(1 << 30),
    "BDAT-of-50001": in_chunks(50_001),
    "BDAT-0-LAST": with_empty_last_chunk,
    "BDAT-pipelined": all_at_once,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("bare_newline", ["reject", "normalise"])
@pytest.mark.option("bare_newline", "antivirus_transfer")
def test_content_arrives_as_it_was_said_and_as_it_was_scanned(
    network: Network, postfix: Postfix, clamd: Clamd, gateway: GatewayFactory, way: str, bare_newline: str
) -> None:
    changed = (
        {"bare-line-feeds", "bare-carriage-returns"}
        if bare_newline == "normalise" and way == "DATA"
        else set()
    )
    contents = {name: HEADER % name.encode() + content for name, content in CONTENTS.items()}
    running = gateway(
        {
            "antivirus_type": "clamd",
            "antivirus_path": str(clamd.socket),
            "antivirus_transfer": "fd",
            "spool_leave_on": "always",
            "bare_newline": bare_newline,
        }
    )
    mailbox = postfix.mailbox("alice")
    arrived: list[dict[str, str]] = []
    for host in (network.mail, network.client):
        postfix.clear()
        with RawClient(host, postfix.ipv4) as client:
            client.begin()
            for content in contents.values():
                client.envelope()
                assert WAYS[way](client, content).startswith(b"250")
        wait_until(lambda: len(mailbox.messages()) == len(contents), 20, f"{len(contents)} mails")
        found = {name: mailbox.find(f"<{name}@client.test>") for name in contents}
        assert all(len(messages) == 1 for messages in found.values())
        arrived.append({name: said(messages[0]) for name, messages in found.items() if name not in changed})
    assert arrived[1] == arrived[0]
    copies = scanned(running.spool)
    assert {name: copies[name.encode()] for name in contents if name not in changed} == {
        name: content for name, content in contents.items() if name not in changed
    }


def scanned(spool: Path) -> dict[bytes, bytes]:
    """Give the copies that were kept, by their Message-ID, without the header on top."""
    copies = [file.read_bytes().partition(b"\r\n")[2] for file in spool.iterdir()]
    return {re.search(rb"Message-ID: <(.*?)@", copy)[1]: copy for copy in copies}  # type: ignore[index]


@pytest.mark.parametrize("way", WAYS)
def test_a_virus_is_refused_however_it_is_sent(
    network: Network, postfix: Postfix, clamd: Clamd, gateway: GatewayFactory, way: str
) -> None:
    gateway({"antivirus_type": "clamd", "antivirus_path": str(clamd.socket), "lock_on": "never"})
    infected = b"Subject: infected\r\n\r\n" + EICAR.encode() + b"\r\n"
    for _ in range(2):
        with RawClient(network.client, postfix.ipv4) as client:
            client.begin()
            client.envelope()
            assert queue_id(WAYS[way](client, b"Subject: clean\r\n\r\ntext\r\n"))
            client.envelope()
            assert WAYS[way](client, infected).startswith(b"550 5.7.1 gw.example.test ")
            assert client.ask(b"RSET").startswith(b"250")
            assert client.ask(b"MAIL FROM:<a@b.test>").startswith(b"451 4.3.2 gw.example.test ")
            assert client.ask(b"QUIT").startswith(b"221")
            assert client.rest() == b""
    wait_until(lambda: len(postfix.mailbox("alice").find("Subject: clean")) == 2, 5, "two clean mails")
    assert len(postfix.mailbox("alice").messages()) == 2
    assert postfix.log.count("lost connection after") >= 2


GENERIC = (
    rb"X-NAT-Received: from \[10\.77\.1\.5\]:PORT \[ident-empty\]\n"
    rb"\tby gw\.example\.test with TPROXY id \d+\.\S+\n"
)
FORMS: dict[str, tuple[str | None, bytes]] = {
    "none": (None, b""),
    "generic": (None, GENERIC),
    "generic-with-abuse": ("abuse@example.test", GENERIC + rb"\tabuse-to abuse@example\.test\n"),
    "ip-only": (None, rb"X-NAT-Received: 10\.77\.1\.5\n"),
}


@pytest.mark.parametrize("way", ["DATA", "BDAT"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.option("nat_header_type", "abuse")
def test_nat_header_has_three_forms(
    network: Network, postfix: Postfix, gateway: GatewayFactory, form: str, way: str
) -> None:
    abuse, pattern = FORMS[form]
    gateway({"nat_header_type": form.partition("-with")[0], "abuse": abuse})
    with RawClient(network.client, postfix.ipv4, source=CLIENT4) as client:
        port = client.socket.getsockname()[1]
        client.begin()
        for subject in (b"first", b"second"):
            client.envelope()
            assert WAYS[way](client, b"Subject: %s\r\n\r\ntext\r\n" % subject).startswith(b"250")
    header = pattern.replace(b"PORT", b"%d" % port)
    for text in ("Subject: first", "Subject: second"):
        message = postfix.mailbox("alice").wait(text)
        expected = rb"(?s)\AReturn-Path: .*\n\tfor <alice@example\.test>; [^\n]+\n" + header
        assert re.fullmatch(expected + rb"Subject: \w+\n\ntext\n", message), message


def test_chunks_between_other_commands(network: Network, postfix: Postfix, gateway: GatewayFactory) -> None:
    gateway(None)
    with RawClient(network.client, postfix.ipv4) as client:
        client.begin()
        client.send(b"BDAT 31\r\nMAIL FROM:<smuggler@b.test>\r\n\r\n")
        assert client.reply().startswith(b"503 ")
        assert client.ask(b"RSET").startswith(b"250 2")
        client.envelope()
        client.send(b"BDAT 14\r\nSubject: one\r\n")
        assert client.reply().startswith(b"250 2")
        assert client.ask(b"DATA").startswith(b"503 5.5.1 ")
        assert client.ask(b"NOOP").startswith(b"503 5.5.1 ")
        client.send(b"BDAT 6 LAST\r\n\r\ntext")
        assert queue_id(client.reply())
        client.envelope()
        assert queue_id(client.bdat(b"", b"Subject: two\r\n", b"")[-1])
        client.envelope()
        client.send(b"BDAT 18\r\nSubject: dropped\r\n")
        assert client.reply().startswith(b"250 2")
        assert client.ask(b"RSET").startswith(b"451 4.5.1 ")
        assert client.ask(b"MAIL FROM:<sender@client.test>").startswith(b"451 ")
        assert client.ask(b"QUIT").startswith(b"221")
    postfix.mailbox("alice").wait("Subject: one\n\ntext\n")
    postfix.mailbox("alice").wait("Subject: two\n")
    assert len(postfix.mailbox("alice").messages()) == 2


def test_message_is_forwarded_while_it_arrives_and_ends_unsaid(
    network: Network, postfix: Postfix, clamd: Clamd, gateway: GatewayFactory
) -> None:
    gateway({"antivirus_type": "clamd", "antivirus_path": str(clamd.socket), "size_limit": 200_000})
    with RawClient(network.client, postfix.ipv4) as client:
        client.begin()
        client.envelope()
        assert client.ask(b"DATA").startswith(b"354")
        client.send(b"Subject: half\r\n\r\n" + b"the half of a mail\r\n" * 5000)
        wait_until(lambda: queued(postfix) > 90_000, 5, "the message's beginning in Postfix's queue")
        client.send(b"the other half\r\n" * 10_000)
        assert client.reply().startswith(b"552 5.3.4 ")
        client.send(b"and more\r\n.\r\n")
        assert client.ask(b"QUIT").startswith(b"221")
    wait_until(lambda: queued(postfix) == 0, 5, "an empty queue")
    assert not postfix.mailbox("alice").messages()


def queued(postfix: Postfix) -> int:
    """How many bytes the messages have that Postfix is receiving."""
    return sum(file.stat().st_size for file in (postfix.directory / "queue/incoming").iterdir())
