"""The gateway in front of Postfix says what Postfix says, and lets through every extension that it offers."""

import re

import pytest

from lab.clients import swaks
from lab.network import Network
from lab.process import wait_until
from lab.servers import PASSWORD, Postfix
from tests.lab.conftest import GatewayFactory
from tests.lab.raw import RawClient

pytestmark = pytest.mark.lab

DIALOGUE = (
    *(
        b"HELO client.test",
        b"EHLO client.test",
        b"NOOP",
        b"noop with words",
        b"HELP",
        b"VRFY alice@example.test",
    ),
    *(
        b"VRFY nobody@example.test",
        b"EXPN alice",
        b"ETRN example.test",
        b"XYZZY",
        b"",
        b"MAIL",
        b"RCPT TO:<a@b.test>",
    ),
    *(
        b"MAIL FROM:<bad",
        b"MAIL FROM:<a@b.test> SIZE=3000000000",
        b"MAIL FROM:<a@b.test> BODY=8BITMIME SIZE=100",
    ),
    *(b"MAIL FROM:<second@b.test>", b"RCPT TO:<nobody@example.test>", b"RCPT TO:<a@elsewhere.test>", b"DATA"),
    *(
        b"RCPT TO:<alice@example.test> NOTIFY=NEVER",
        b"rcpt to:<BOB@example.test>",
        b"RSET",
        b"RSET",
        b"rset x",
    ),
    *(b"AUTH", b"AUTH NONSENSE", b"mail from:<>", b"RCPT TO:<bob@example.test>", b"QUIT"),
)


@pytest.mark.parametrize("pipelined", [False, True])
def test_every_reply_is_the_servers_own_byte_for_byte(
    network: Network, postfix: Postfix, gateway: GatewayFactory, pipelined: bool
) -> None:
    def talk(direct: bool) -> list[bytes]:
        with RawClient(network.mail if direct else network.client, postfix.ipv4) as client:
            heard = [client.reply()]
            if not pipelined:
                heard += [client.ask(line) for line in DIALOGUE]
                return [*heard, client.rest()]
            client.send(b"".join(line + b"\r\n" for line in DIALOGUE))
            return [*heard, *client.replies(len(DIALOGUE)), client.rest()]

    gateway(None)
    through_gateway = talk(direct=False)
    assert through_gateway == talk(direct=True)
    assert len({answer[:3] for answer in through_gateway}) > 8  # that was not one error all the time


@pytest.mark.option("forbid_starttls")
def test_forbidden_starttls_is_not_offered_and_refused(
    network: Network, postfix: Postfix, gateway: GatewayFactory
) -> None:
    with RawClient(network.mail, postfix.ipv4) as client:
        offered = client.begin()
    gateway({"forbid_starttls": "yes"})
    with RawClient(network.client, postfix.ipv4) as client:
        assert client.begin() == offered.replace(b"250-STARTTLS\r\n", b"")
        assert client.ask(b"STARTTLS").startswith(b"502 5.5.1 ")
        client.envelope()
        assert client.data(b"Subject: in the clear\r\n").startswith(b"250")
    assert b"X-NAT-Received" in postfix.mailbox("alice").wait("in the clear")


def test_mail_inside_tls_is_delivered_unread(
    network: Network, postfix: Postfix, gateway: GatewayFactory
) -> None:
    running = gateway(None)
    with RawClient(network.client, postfix.ipv4) as client:
        client.begin()
        client.starttls()
        assert b"STARTTLS" not in client.ask(b"EHLO client.test")
        client.envelope()
        assert client.data(b"Subject: under cover\r\n\r\n" + b"x" * 300_000).startswith(b"250")
        assert client.ask(b"QUIT").startswith(b"221")
        assert client.rest() == b""
    assert b"X-NAT-Received" not in postfix.mailbox("alice").wait("under cover")
    line = running.wait_log("CLOSE:DIRECT .*")[0]
    received = re.search(r"rcv=(\d+)/(\d+)", line)
    assert received
    assert int(received[1]) > 300_000


@pytest.mark.parametrize("user", ["alice", "alice@example.test"])
@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN", "CRAM-MD5"])
def test_authentication_by_every_mechanism(
    network: Network, postfix: Postfix, gateway: GatewayFactory, mechanism: str, user: str
) -> None:
    running = gateway(None)
    login = ("--auth", mechanism, "--auth-user", user, "--auth-password")
    sent = swaks(network.client, postfix.ipv4, *login, PASSWORD, subject="known to the server")
    assert sent.accepted, sent.transcript
    assert b"X-NAT-Received" in postfix.mailbox("alice").wait("known to the server")
    assert re.search(r"CLOSE .*auth=3,", running.wait_log("CLOSE .*")[0])
    refused = swaks(network.client, postfix.ipv4, *login, "wrong")
    assert refused.refusal.startswith("535 5.7.8")
    running.wait_log("CLOSE .*auth=5,")
    assert running.log.count("AUTH:ACCEPT") == running.log.count("AUTH:REJECT") == 1


def test_authentication_step_by_step_keeps_secrets_out_of_the_log(
    network: Network, postfix: Postfix, gateway: GatewayFactory
) -> None:
    running = gateway(None)
    plain, user, secret = b"AGFsaWNlAHNlY3JldA==", b"YWxpY2U=", b"c2VjcmV0"
    with RawClient(network.client, postfix.ipv4) as client:
        client.begin()
        assert client.ask(b"AUTH PLAIN") == b"334 \r\n"
        assert client.ask(b"*").startswith(b"501 ")
        assert client.ask(b"AUTH LOGIN") == b"334 VXNlcm5hbWU6\r\n"
        assert client.ask(user) == b"334 UGFzc3dvcmQ6\r\n"
        assert client.ask(b"d3Jvbmc=").startswith(b"535 ")
        assert client.ask(b"auth login " + user) == b"334 UGFzc3dvcmQ6\r\n"
        assert client.ask(b"Z" * 12_200).startswith(b"5")
        assert client.ask(b"AUTH PLAIN") == b"334 \r\n"
        assert client.ask(plain).startswith(b"235 ")
        assert client.ask(b"AUTH PLAIN " + plain).startswith(b"503 ")
        client.envelope(b"someone@elsewhere.test")  # it does relay for whom it knows
        client.ask(b"QUIT")
    running.wait_log("CLOSE .*auth=7,")
    for word in (plain, user, secret, b"d3Jvbmc=", b"ZZZZ", PASSWORD.encode()):
        assert word.decode() not in running.log


@pytest.mark.parametrize("require", ["ifsupported", "mandatory"])
@pytest.mark.option("auth_require")
def test_required_authentication(
    network: Network, postfix: Postfix, gateway: GatewayFactory, require: str
) -> None:
    running = gateway({"auth_require": require})
    with RawClient(network.client, postfix.ipv4) as client:
        client.begin()
        client.envelope()
        assert client.ask(b"DATA").startswith(b"530 5.7.1 ")
        client.send(b"BDAT 5 LAST\r\nhello")
        assert client.reply().startswith(b"530 5.7.1 ")
        assert client.ask(b"RSET").startswith(b"250 2.0.0")
        assert client.ask(b"AUTH PLAIN AGFsaWNlAHNlY3JldA==").startswith(b"235")
        client.envelope()
        assert client.data(b"Subject: after AUTH\r\n").startswith(b"250")
    postfix.mailbox("alice").wait("after AUTH")
    assert len(postfix.mailbox("alice").messages()) == 1
    assert re.search(r"Found: +0/0/2/", running.status())


def test_authentication_is_only_required_where_it_is_offered(
    network: Network, gateway: GatewayFactory
) -> None:
    without = Postfix(
        network.mail, name="simple", number=31, options={"smtpd_sasl_auth_enable": "no"}
    ).start()
    try:
        running = gateway({"auth_require": "ifsupported"})
        assert swaks(network.client, without.ipv4).accepted
        running.reload({"auth_require": "mandatory"})
        assert swaks(network.client, without.ipv4).refusal.startswith("530 5.7.1")
    finally:
        without.stop()


@pytest.mark.option("auth_skip")
def test_auth_skip_direct_ends_the_inspection(
    network: Network, postfix: Postfix, gateway: GatewayFactory
) -> None:
    running = gateway({"auth_skip": "direct"})
    login = ("--auth-user", "alice", "--auth-password")
    assert swaks(network.client, postfix.ipv4, *login, PASSWORD, subject="trusted").accepted
    assert b"X-NAT-Received" not in postfix.mailbox("alice").wait("trusted")
    running.wait_log("CLOSE:DIRECT")
    assert not swaks(network.client, postfix.ipv4, *login, "wrong").accepted
    assert swaks(network.client, postfix.ipv4, subject="stranger").accepted
    assert b"X-NAT-Received" in postfix.mailbox("alice").wait("stranger")
    assert running.log.count("CLOSE:DIRECT") == 1


def test_extensions_reach_the_server(network: Network, postfix: Postfix, gateway: GatewayFactory) -> None:
    gateway(None)
    sender = "jürgen@client.test".encode()
    with RawClient(network.client, postfix.ipv4) as client:
        client.begin()
        answer = client.ask(b"MAIL FROM:<" + sender + b"> SMTPUTF8 BODY=8BITMIME SIZE=1000")
        assert answer.startswith(b"250"), answer
        assert client.ask(b"RCPT TO:<alice@example.test>").startswith(b"250")
        assert client.data(b"Subject: Gr\xc3\xbc\xc3\x9fe\r\n\r\n\xe4\xf6\xfc\xff\r\n").startswith(b"250")
        parameters = b"RET=HDRS ENVID=QQ314159"
        assert client.ask(b"MAIL FROM:<bob@example.test> " + parameters).startswith(b"250")
        notify = b"NOTIFY=SUCCESS ORCPT=rfc822;liddell@example.test"
        assert client.ask(b"RCPT TO:<alice@example.test> " + notify).startswith(b"250")
        assert client.data(b"Subject: tell me\r\n\r\nnot to be returned\r\n").startswith(b"250")
    message = postfix.mailbox("alice").wait("Grüße")
    assert b"Return-Path: <" + sender + b">" in message
    assert b"UTF8SMTP" in message
    assert b"\xe4\xf6\xfc\xff" in message
    notice = postfix.mailbox("bob").wait("Original-Envelope-Id: QQ314159")
    assert b"Original-Recipient: rfc822;liddell@example.test" in notice
    assert b"not to be returned" not in notice


def test_rejected_recipients_among_accepted_ones_under_pipelining(
    network: Network, postfix: Postfix, gateway: GatewayFactory
) -> None:
    running = gateway(None)
    recipients = (b"alice@example.test", b"nobody@example.test", b"a@elsewhere.test", b"bob@example.test")
    with RawClient(network.client, postfix.ipv4) as client:
        client.begin()
        for number in (b"one", b"two"):
            lines = [
                b"MAIL FROM:<sender@client.test>",
                *(b"RCPT TO:<" + name + b">" for name in recipients),
                b"DATA",
            ]
            client.send(b"\r\n".join(lines) + b"\r\n")
            codes = [answer[:3] for answer in client.replies(6)]
            assert codes == [b"250", b"250", b"550", b"554", b"250", b"354"]
            client.send(b"Subject: mail " + number + b"\r\n\r\n.\r\n")
            assert client.reply().startswith(b"250")
        lines[1:5] = [b"RCPT TO:<nobody@example.test>", b"RSET", b"NOOP", b"VRFY bob@example.test"]
        client.send(b"\r\n".join(lines) + b"\r\nQUIT\r\n")
        codes = [answer[:3] for answer in client.replies(7)]
        assert codes == [b"250", b"550", b"250", b"250", b"252", b"503", b"221"]
        assert client.rest() == b""
    for user in ("alice", "bob"):
        wait_until(lambda: len(postfix.mailbox(user).messages()) == 2, 5, "two mails")  # noqa: B023 - used at once
        assert len(postfix.mailbox(user).find("mail one")) == len(postfix.mailbox(user).find("mail two")) == 1
    running.wait_log("CLOSE .*trns=2, rcpts=4,")


@pytest.mark.parametrize("refused_by", ["server", "gateway"])
def test_a_message_refused_in_chunks_is_over_for_the_server_too(
    network: Network, gateway: GatewayFactory, refused_by: str
) -> None:
    """Dovecot's submission server, for one, goes on with MAIL behind its last chunk."""
    picky = {"smtpd_data_restrictions": "check_sender_access inline:{{bad@client.test=REJECT}}"}
    server = Postfix(network.mail, name="picky", number=31, options=picky).start()
    try:
        gateway({"auth_require": "mandatory" if refused_by == "gateway" else "no"})
        with RawClient(network.client, server.ipv4) as client:
            client.begin()
            for chunks in ((b"Subject: bad\r\n",), (b"Subject: bad\r\n", b"\r\ntext\r\n")):
                client.envelope(sender=b"bad@client.test")
                answers = client.bdat(*chunks)
                assert answers[0].startswith(b"554 5.7.1 <bad" if refused_by == "server" else b"530 ")
                assert all(answer.startswith(b"5") for answer in answers)
            if refused_by == "gateway":
                assert client.ask(b"AUTH PLAIN AGFsaWNlAHNlY3JldA==").startswith(b"235")
            client.envelope()
            assert client.bdat(b"Subject: good\r\n")[0].startswith(b"250 ")
        server.mailbox("alice").wait("Subject: good")
    finally:
        server.stop()
