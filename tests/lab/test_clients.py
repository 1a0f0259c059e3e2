"""Mail programs and mail servers that send through the gateway: all their mail arrives, once."""

import re
import smtplib
from collections.abc import Iterator

import pytest

from lab.clients import msmtp, smtp_source, swaks
from lab.namespace import inside
from lab.network import CLIENT6, Network
from lab.process import wait_until
from lab.servers import PASSWORD, Clamd, Exim, MailServer, Postfix
from tests.lab.conftest import GatewayFactory
from tests.lab.raw import RawClient

pytestmark = pytest.mark.lab

TLS = ("--tls=on", "--tls-starttls=on", "--tls-certcheck=off")


def scanning(clamd: Clamd) -> dict[str, str | int | None]:
    return {
        "antivirus_type": "clamd",
        "antivirus_path": str(clamd.socket),
        "antivirus_transfer": "fd",
        "timeout_scanner": 60,
        "log_level": "info",
    }


def arrive(server: MailServer, count: int, timeout: float = 60) -> list[bytes]:
    """Wait for exactly so many mails; give them."""
    mailbox = server.mailbox("alice")
    wait_until(lambda: len(mailbox.messages()) >= count, timeout, f"{count} mails", 0.2)
    messages = mailbox.messages()
    assert len(messages) == count
    return messages


@pytest.mark.parametrize("tls", [False, True])
def test_swaks(network: Network, postfix: Postfix, clamd: Clamd, gateway: GatewayFactory, tls: bool) -> None:
    gateway(scanning(clamd))
    for number, options in enumerate(
        ([], ["--pipeline"], ["--auth-user=alice", f"--auth-password={PASSWORD}"])
    ):
        sent = swaks(
            network.client, postfix.ipv4, *options, *(["--tls"] if tls else []), subject=f"mail {number}"
        )
        assert sent.accepted, sent.transcript
        assert (b"X-NAT-Received" in postfix.mailbox("alice").wait(f"mail {number}")) != tls


@pytest.mark.parametrize("tls", [(), TLS])
def test_msmtp(
    network: Network, postfix: Postfix, clamd: Clamd, gateway: GatewayFactory, tls: tuple[str, ...]
) -> None:
    gateway(scanning(clamd))
    text = "Subject: by msmtp\n\n.\n..\nGrüße\n" + "x" * 3000 + "\nlast line\n"
    for server in (postfix.ipv4, postfix.ipv6):
        postfix.clear()
        status, said = msmtp(network.client, server, text, *tls)
        assert status == 0, said
        message = postfix.mailbox("alice").wait("by msmtp").decode()
        assert message.endswith(text[text.index("\n\n") :])
        assert ("X-NAT-Received" in message) != bool(tls)


def test_smtplib(network: Network, postfix: Postfix, clamd: Clamd, gateway: GatewayFactory) -> None:
    gateway(scanning(clamd))

    def session() -> dict[str, tuple[int, bytes]]:
        with smtplib.SMTP(postfix.ipv6, timeout=20, source_address=(CLIENT6, 0)) as client:
            client.login("alice", PASSWORD)
            for number in range(3):
                client.sendmail("a@client.test", ["alice@example.test"], f"Subject: {number}\r\n\r\n.\r\n")
            refused = client.sendmail(
                "a@client.test", ["nobody@example.test", "alice@example.test"], b"Subject: 3\r\n\r\n\xe4\r\n"
            )
            assert client.verify("alice@example.test")[0] == 252
            assert client.noop()[0] == 250
            return refused

    refused = inside(network.client.namespace, session)
    assert refused["nobody@example.test"][0] == 550
    assert len({re.search(rb"Subject: \d", message)[0] for message in arrive(postfix, 4)}) == 4  # type: ignore[index]


@pytest.mark.parametrize("options", [("-d",), ()])
def test_a_hundred_sessions_at_once(
    network: Network, postfix: Postfix, clamd: Clamd, gateway: GatewayFactory, options: tuple[str, ...]
) -> None:
    running = gateway(scanning(clamd))
    count = 400 if options else 200  # with -d one connection carries several mails
    smtp_source(network.client, postfix.ipv4, messages=count, sessions=100, length=20_000, options=options)
    messages = arrive(postfix, count)
    assert all(b"\nX-NAT-Received: from [10.77.1.5]:" in message for message in messages)
    assert len({re.search(rb"with TPROXY id (\S+)", message)[1] for message in messages}) == count  # type: ignore[index]
    wait_until(
        lambda: len(re.findall("CLOSE ", running.log)) == (100 if options else 200), 10, "all sessions' ends"
    )
    ends = re.findall(r"CLOSE .*trns=(\d+), rcpts=(\d+)", running.log)
    assert sum(int(transactions) for transactions, _ in ends) == count
    assert sum(int(recipients) for _, recipients in ends) == count
    assert running.log.count("SCAN:CLEAN") == count


@pytest.fixture(scope="module", params=["Postfix", "Exim"])
def relay(request: pytest.FixtureRequest, network: Network, postfix_server: Postfix) -> Iterator[MailServer]:
    """A mail server behind the gateway that sends all its mail to Postfix outside."""
    server: MailServer
    if request.param == "Postfix":
        options = {
            "virtual_mailbox_domains": "",
            "relayhost": f"[{postfix_server.ipv4}]",
            "myhostname": "relay.client.test",
            "mynetworks": "10.77.1.0/24",
            "smtpd_relay_restrictions": "permit_mynetworks, reject_unauth_destination",
            "smtp_tls_security_level": "may",
            "smtp_destination_concurrency_limit": "5",
        }
        server = Postfix(network.client, name="relay-postfix", number=32, options=options)
    else:
        routers = (
            f"relay:\n  driver = manualroute\n  route_list = * {postfix_server.ipv4}\n  transport = outward\n"
        )
        server = Exim(network.client, name="relay-exim", number=33, routers=routers)
    server.start()
    yield server
    server.stop()


@pytest.mark.parametrize("tls", [False, True])
def test_a_mail_server_sends_outward(
    network: Network, postfix: Postfix, clamd: Clamd, gateway: GatewayFactory, relay: MailServer, tls: bool
) -> None:
    running = gateway(scanning(clamd) | {"forbid_starttls": "no" if tls else "yes"})
    count = 20 if tls else 60
    smtp_source(network.client, relay.ipv4, messages=count, sessions=10, length=5000)
    messages = arrive(postfix, count)
    assert all((b"\nX-NAT-Received: from [10.77.1." in message) != tls for message in messages)
    received = {re.findall(rb"\bid (\S+)", message)[-1] for message in messages}
    assert len(received) == count  # each once, by the name that the sending server gave it
    if not tls:
        wait_until(lambda: running.log.count("SCAN:CLEAN") == count, 5, "all mails scanned")


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("earlytalk", ["yes", "no"])
def test_exim_that_would_talk_early(
    network: Network, exim: Exim, gateway: GatewayFactory, earlytalk: str, tls: bool
) -> None:
    running = gateway({"earlytalk": earlytalk, "forbid_starttls": "no" if tls else "yes"})
    route = f"relay:\n  driver = manualroute\n  route_list = * {exim.ipv4}\n  transport = outward\n"
    relay = Exim(network.client, name=f"relay-{earlytalk}-{tls}", number=35, routers=route)
    relay.outward = "hosts_pipe_connect = *"
    relay.start()
    try:
        for number in range(3):
            text = f"Subject: early {number}\n\ntext\n"
            network.client.run(["exim4", "-odi", "-f", "a@client.test", "alice@example.test"], input=text)
        arrive(exim, 3)
        assert "EARLYTALK" not in running.log
    finally:
        relay.stop()


def test_several_recipients_between_exims(network: Network, exim: Exim, gateway: GatewayFactory) -> None:
    """Exim's PRDR answers the end of a message once for each recipient: it must not come to that."""
    exim.stop()
    exim.options = "prdr_enable = true"
    exim.start()
    route = f"relay:\n  driver = manualroute\n  route_list = * {exim.ipv4}\n  transport = outward\n"
    relay = Exim(network.client, name="relay-prdr", number=34, routers=route).start()
    try:
        gateway({"forbid_starttls": "yes"})
        with RawClient(network.mail, exim.ipv4) as client:
            assert b"-PRDR" in client.begin()
        both = ["alice@example.test", "bob@example.test"]
        text = "Subject: to both\n\ntext\n"
        network.client.run(["exim4", "-odi", "-f", "a@client.test", *both], input=text)
        for user in ("alice", "bob"):
            assert b"X-NAT-Received" in exim.mailbox(user).wait("to both")
        assert " Completed" in relay.log
    finally:
        relay.stop()
        exim.stop()
        exim.options = ""
        exim.start()
