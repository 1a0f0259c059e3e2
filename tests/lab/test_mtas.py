"""Exim and OpenSMTPD behind the gateway: other greetings, other extensions, other habits than Postfix's."""

import pytest

from lab.clients import smtp_source, swaks
from lab.network import Network
from lab.process import wait_until
from lab.samples import EICAR
from lab.servers import Clamd, Exim, MailServer, OpenSMTPD
from tests.lab.conftest import GatewayFactory
from tests.lab.raw import RawClient

pytestmark = pytest.mark.lab


@pytest.fixture(params=["Exim", "OpenSMTPD"])
def server(request: pytest.FixtureRequest, exim: Exim, opensmtpd: OpenSMTPD) -> MailServer:
    return exim if request.param == "Exim" else opensmtpd


def scanning(clamd: Clamd) -> dict[str, str | int | None]:
    return {"antivirus_type": "clamd", "antivirus_path": str(clamd.socket), "lock_on": "never"}


def arrived(server: MailServer, user: str, count: int) -> list[bytes]:
    mailbox = server.mailbox(user)
    wait_until(lambda: len(mailbox.messages()) >= count, 20, f"{count} mails for {user}", 0.1)
    assert len(mailbox.messages()) == count
    return mailbox.messages()


def test_every_reply_is_the_servers_own(
    network: Network, server: MailServer, gateway: GatewayFactory
) -> None:
    dialogue = (
        *(
            b"EHLO client.test",
            b"NOOP",
            b"HELP",
            b"VRFY alice@example.test",
            b"XYZZY",
            b"DATA",
        ),
        *(
            b"MAIL FROM:<a@b.test> SIZE=1000",
            b"RCPT TO:<a@elsewhere.test>",
            b"RCPT TO:<alice@example.test>",
            b"RSET",
        ),
        *(b"RCPT TO:<bob@example.test>", b"MAIL FROM:<>", b"RCPT TO:<bob@example.test>", b"QUIT"),
    )

    def talk(direct: bool) -> list[bytes]:
        with RawClient(network.mail if direct else network.client, server.ipv4) as client:
            heard = [client.reply()[:40], *(client.ask(line) for line in dialogue), client.rest()]
            addresses = (b"198.51.100.", b"10.77.1.")
            return [
                b" ".join(word for word in answer.split(b" ") if not any(a in word for a in addresses))
                for answer in heard
            ]

    gateway({"earlytalk": "no"})  # or Exim's PIPECONNECT would not be offered
    through_gateway = talk(direct=False)
    assert through_gateway == talk(direct=True)
    assert through_gateway[1].startswith(b"250-")


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
def test_mail_to_several_recipients(
    network: Network, server: MailServer, clamd: Clamd, gateway: GatewayFactory, family: str
) -> None:
    gateway(scanning(clamd))
    with RawClient(network.client, getattr(server, family)) as client:
        client.begin()
        for number in range(3):
            assert client.ask(b"MAIL FROM:<sender@client.test>").startswith(b"250")
            for name, code in (
                (b"alice@example", b"250"),
                (b"nobody@example", b"550"),
                (b"bob@example", b"250"),
            ):
                assert client.ask(b"RCPT TO:<%s.test>" % name).startswith(code)
            assert client.data(b"Subject: %d\r\n\r\n..\r\ntext\r\n" % number).startswith(b"250")
        assert client.ask(b"QUIT").startswith(b"221")
    for user in ("alice", "bob"):
        for message in arrived(server, user, 3):
            assert message.count(b"\nX-NAT-Received: ") == 1
            assert message.endswith(b"\n\n.\ntext\n")


def test_pipelined_and_chunked_mail(
    network: Network, exim: Exim, clamd: Clamd, gateway: GatewayFactory
) -> None:
    gateway(scanning(clamd))
    envelope = (
        b"MAIL FROM:<sender@client.test>\r\nRCPT TO:<alice@example.test>\r\nRCPT TO:<x@elsewhere.test>\r\n"
    )
    with RawClient(network.client, exim.ipv4) as client:
        assert b"PIPELINING" in client.begin()
        client.send(envelope + b"DATA\r\n")
        assert [answer[:3] for answer in client.replies(4)] == [b"250", b"250", b"550", b"354"]
        client.send(b"Subject: by DATA\r\n\r\ntext\r\n.\r\n")
        assert client.reply().startswith(b"250 ")
        for size in (7, 1 << 20):
            text = b"Subject: by BDAT\r\n\r\n" + b".\r\n" * size
            client.send(
                envelope + b"BDAT 10\r\n" + text[:10] + b"BDAT %d LAST\r\n" % (len(text) - 10) + text[10:]
            )
            assert [answer[:3] for answer in client.replies(5)] == [b"250", b"250", b"550", b"250", b"250"]
        assert client.ask(b"QUIT").startswith(b"221")
    assert sorted(len(message) > 1 << 20 for message in arrived(exim, "alice", 3)) == [False, False, True]


def test_a_crowd(network: Network, server: MailServer, clamd: Clamd, gateway: GatewayFactory) -> None:
    gateway(scanning(clamd))
    smtp_source(network.client, server.ipv4, messages=60, sessions=10, length=5000)
    arrived(server, "alice", 60)


def test_a_virus_is_refused(
    network: Network, server: MailServer, clamd: Clamd, gateway: GatewayFactory
) -> None:
    gateway(scanning(clamd))
    sent = swaks(network.client, server.ipv4, subject="infected", body=EICAR)
    assert sent.refusal.startswith("550 ")
    assert "Eicar" in sent.refusal
    with RawClient(network.client, server.ipv6) as client:
        client.begin()
        client.envelope()
        assert client.data(b"Subject: clean\r\n").startswith(b"250")
        client.envelope()
        assert client.data(b"Subject: infected\r\n\r\n" + EICAR.encode()).startswith(b"550 ")
        assert client.ask(b"MAIL FROM:<a@b.test>").startswith(b"451 ")
    assert b"Subject: clean" in arrived(server, "alice", 1)[0]


def test_a_virus_in_chunks_is_refused(
    network: Network, exim: Exim, clamd: Clamd, gateway: GatewayFactory
) -> None:
    gateway(scanning(clamd))
    with RawClient(network.client, exim.ipv4) as client:
        client.begin()
        client.envelope()
        infected = EICAR.encode()
        answers = client.bdat(b"Subject: infected\r\n\r\n" + infected[:20], infected[20:], b"")
        assert [answer[:3] for answer in answers] == [b"250", b"250", b"550"]
    assert swaks(network.client, exim.ipv4, subject="clean").accepted
    assert b"Subject: clean" in arrived(exim, "alice", 1)[0]
