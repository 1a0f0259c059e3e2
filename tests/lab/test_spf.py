"""4.1, SPF: what the sender's domain says of the sending address, asked for at a real DNS server."""

import time
from collections.abc import Iterator

import pytest

from lab.gateway import Options
from lab.network import CLIENT4, CLIENT6, PUBLIC_CLIENT4, ROUTER_WAN, Network
from lab.process import wait_until
from lab.servers import Postfix, Unbound
from tests.lab.conftest import GatewayFactory
from tests.lab.raw import RawClient

pytestmark = [pytest.mark.lab, pytest.mark.usefixtures("unbound")]

GATEWAY4 = ROUTER_WAN[0].partition("/")[0]
RECORDS = (
    f'strict.test. 60 IN TXT "v=spf1 ip4:{PUBLIC_CLIENT4} ip6:{CLIENT6} -all exp=why.strict.test"',
    'why.strict.test. 60 IN TXT "%{i} may not send as %{s}"',
    'curt.test. 60 IN TXT "v=spf1 -all"',
    'soft.test. 60 IN TXT "v=spf1 ~all"',
    'undecided.test. 60 IN TXT "v=spf1 ?all"',
    'broken.test. 60 IN TXT "v=spf1 nonsense -all"',
    f'gateway.test. 60 IN TXT "v=spf1 ip4:{GATEWAY4} -all"',
    'office.test. 60 IN TXT "v=spf1 ip4:192.0.2.80 -all"',
    'mailhost.test. 60 IN TXT "v=spf1 mx -all"',
    "mailhost.test. 60 IN MX 10 mx.mailhost.test.",
    f"mx.mailhost.test. 60 IN A {CLIENT4}",
)
REFUSED = b"550 5.7.1 gw.example.test the sender's domain does not allow mail from this address (SPF)"


@pytest.fixture(scope="module")
def unbound(network: Network) -> Iterator[Unbound]:
    server = Unbound(network.router, ("test",), records=RECORDS, silent=("silent.test",)).start()
    yield server
    server.stop()


def options(spf: str = "incoming", **more: str | int) -> Options:
    return {"dns_servers": "127.0.0.1", "spf": spf, "lock_on": "never", **more}


def mail(
    network: Network, postfix: Postfix, sender: str, *, client: str = CLIENT4, helo: bytes = b"client.test"
) -> bytes:
    server = postfix.ipv6 if ":" in client else postfix.ipv4
    with RawClient(network.client, server, source=client) as connection:
        connection.begin(helo)
        return connection.ask(b"MAIL FROM:<%s>" % sender.encode())


@pytest.mark.option("spf", "msg_spf_reject")
def test_incoming_judges_the_clients_address(
    network: Network, postfix: Postfix, gateway: GatewayFactory
) -> None:
    running = gateway(options())
    refused = mail(network, postfix, "a@strict.test")
    assert refused == REFUSED + b" (strict.test says: 10.77.1.5 may not send as a@strict.test)\r\n"
    assert mail(network, postfix, "a@curt.test") == REFUSED + b"\r\n"
    assert mail(network, postfix, "a@curt.test", client=CLIENT6) == REFUSED + b"\r\n"
    assert mail(network, postfix, "a@strict.test", client=PUBLIC_CLIENT4).startswith(b"250 ")
    assert mail(network, postfix, "a@strict.test", client=CLIENT6).startswith(b"250 ")
    for domain, result in (
        ("mailhost", "pass"),
        ("soft", "softfail"),
        ("undecided", "neutral"),
        ("broken", "permerror"),
        ("nowhere", "none"),
    ):
        assert mail(network, postfix, f"a@{domain}.test").startswith(b"250 ")
        assert running.wait_log(
            rf"SPF:{result} src=10\.77\.1\.5:\d+, ident=, ip=10\.77\.1\.5, domain={domain}\.test"
        )
    assert "0/0/0/3/0/0" in running.status()


@pytest.mark.option("spf")
def test_a_null_sender_is_judged_by_its_helo(
    network: Network, postfix: Postfix, gateway: GatewayFactory
) -> None:
    gateway(options())
    assert mail(network, postfix, "", helo=b"curt.test") == REFUSED + b"\r\n"
    assert mail(network, postfix, "", helo=b"mailhost.test").startswith(b"250 ")
    assert mail(network, postfix, "", helo=b"[10.77.1.5]").startswith(b"250 ")


@pytest.mark.parametrize(
    "sender",
    [
        b"<a@curt.test(x)>",
        b"(<a@soft.test>)a@curt.test",
        b"<a @ curt.test>",
        b"<,a@curt.test;>",
        b"<a@soft.test>:a@curt.test;",
    ],
)
def test_no_other_way_that_postfix_understands_hides_the_domain(
    network: Network, postfix: Postfix, gateway: GatewayFactory, sender: bytes
) -> None:
    with RawClient(network.mail, postfix.ipv4) as straight:
        straight.begin()
        assert straight.ask(b"MAIL FROM:" + sender).startswith(b"250")
        assert straight.ask(b"RCPT TO:<alice@example.test>").startswith(b"250")
        straight.data(b"Subject: understood")
    assert postfix.mailbox("alice").wait("understood").startswith(b"Return-Path: <a@curt.test>\n")
    gateway(options())
    with RawClient(network.client, postfix.ipv4, source=CLIENT4) as client:
        client.begin()
        assert client.ask(b"MAIL FROM:" + sender) == REFUSED + b"\r\n"


@pytest.mark.option("spf", "spf_fixed_ip", "outgoing_addr")
@pytest.mark.parametrize(
    ("more", "domain"),
    [
        ({"spf": "outgoing", "mode": "netfilter"}, "gateway"),
        ({"spf": "outgoing", "mode": "netfilter", "outgoing_addr": GATEWAY4}, "gateway"),
        ({"spf": "outgoing", "mode": "tproxy"}, "mailhost"),
        ({"spf": "fixed", "spf_fixed_ip": "192.0.2.80"}, "office"),
    ],
)
def test_other_addresses_are_judged_where_that_is_wanted(
    network: Network,
    postfix: Postfix,
    gateway: GatewayFactory,
    more: dict[str, str],
    domain: str,
) -> None:
    gateway(options(**more))
    for other in ("gateway", "mailhost", "office"):
        answer = mail(network, postfix, f"a@{other}.test")
        assert answer.startswith(b"250 ") if other == domain else answer == REFUSED + b"\r\n"


@pytest.mark.option("spf_log_only")
def test_log_only_refuses_nobody(network: Network, postfix: Postfix, gateway: GatewayFactory) -> None:
    running = gateway(options(spf_log_only="yes"))
    assert mail(network, postfix, "a@curt.test").startswith(b"250 ")
    assert running.wait_log(r"SPF:fail src=")
    assert "0/0/0/0/0/0" in running.status()


@pytest.mark.option("timeout_spf")
def test_a_domain_that_does_not_answer_costs_the_timeout_and_passes(
    network: Network, postfix: Postfix, gateway: GatewayFactory
) -> None:
    running = gateway(options(timeout_spf=2, workers=1))
    begin = time.monotonic()
    with RawClient(network.client, postfix.ipv4) as waiting:
        waiting.begin()
        waiting.send(b"MAIL FROM:<a@silent.test>\r\n")
        wait_until(lambda: " spf " in running.status(), 1, "a session that waits for SPF")
        assert mail(network, postfix, "a@curt.test") == REFUSED + b"\r\n"
        assert time.monotonic() - begin < 1.5
        assert waiting.reply().startswith(b"250 ")
    assert 2 <= time.monotonic() - begin < 3.5
    assert running.wait_log(r"SPF:temperror src=")


@pytest.mark.option("lock_on")
def test_a_fail_is_an_event_and_takes_over(
    network: Network, postfix: Postfix, gateway: GatewayFactory
) -> None:
    running = gateway(options(lock_on="spf"))
    with RawClient(network.client, postfix.ipv4, source=CLIENT4) as client:
        client.begin()
        refused = client.ask(b"MAIL FROM:<a@curt.test>")
        assert refused == REFUSED + b"\r\n"
        assert client.ask(b"MAIL FROM:<a@b.test>") == refused.replace(b"550 5.7.1", b"451 4.3.2")
        assert client.ask(b"RCPT TO:<a@b.test>").startswith(b"503 ")
        assert client.ask(b"QUIT").startswith(b"221 ")
    assert (running.locks / CLIENT4).read_text() == "SPF curt.test\n"
