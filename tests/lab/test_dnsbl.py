"""2.8: clients on block lists, asked for at a real DNS server, and what happens when it does not answer."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address

import pytest

from lab.gateway import Options
from lab.network import CLIENT4, CLIENT6, PUBLIC_CLIENT4, PUBLIC_CLIENT6, Network
from lab.process import wait_until
from lab.servers import Postfix, Unbound
from tests.lab.conftest import GatewayFactory
from tests.lab.raw import RawClient
from tests.lab.test_ctl import Ctl

pytestmark = pytest.mark.lab
ZONES = ("one.test", "two.test", "good.test")
TEXT = b"554 gw.example.test your address is on a block list: "


def listed(client: str, zone: str, answer: str = "127.0.0.2", ttl: int = 300) -> str:
    return f"{reverse(client)}.{zone}. {ttl} IN A {answer}"


def reverse(client: str) -> str:
    return ip_address(client).reverse_pointer.removesuffix(".in-addr.arpa").removesuffix(".ip6.arpa")


SILENT = f"{reverse(CLIENT4)}.dead.test"


@pytest.fixture(scope="module")
def unbound_server(network: Network) -> Iterator[Unbound]:
    server = Unbound(network.router, (*ZONES, "dead.test"), silent=(SILENT,)).start()
    yield server
    server.stop()


@pytest.fixture
def names(unbound_server: Unbound) -> Unbound:
    """Unbound with empty lists."""
    unbound_server.change()
    return unbound_server


def options(**more: str | int) -> Options:
    return {"dns_servers": "127.0.0.1", "dnsbl": "one.test", "lock_on": "never", "timeout_dnsbl": 2, **more}


def greeting(network: Network, postfix: Postfix, client: str) -> bytes:
    server = postfix.ipv6 if ":" in client else postfix.ipv4
    with RawClient(network.client, server, source=client) as connection:
        return connection.reply()


@pytest.mark.option("dnsbl", "dns_servers", "msg_dnsdb_reject")
def test_listed_clients_are_refused_and_no_others(
    network: Network, postfix: Postfix, gateway: GatewayFactory, names: Unbound
) -> None:
    names.change(listed(CLIENT4, "one.test"), listed(CLIENT6, "one.test", "127.0.1.9"))
    running = gateway(options())
    assert greeting(network, postfix, CLIENT4) == TEXT + b"one.test (127.0.0.2)\r\n"
    assert greeting(network, postfix, CLIENT6) == TEXT + b"one.test (127.0.1.9)\r\n"
    assert greeting(network, postfix, PUBLIC_CLIENT4).startswith(b"220 ")
    assert greeting(network, postfix, PUBLIC_CLIENT6).startswith(b"220 ")
    assert running.wait_log(r"DNSBL:FOUND src=10\.77\.1\.5:\d+, ident=, found=one\.test \(127\.0\.0\.2\)")
    assert "0/0/0/2/0/0/0" in running.status()


def test_nobody_is_foretold_what_a_list_may_refuse(
    network: Network, postfix: Postfix, gateway: GatewayFactory, names: Unbound
) -> None:
    names.change(listed(CLIENT4, "one.test"))
    ctl = Ctl(gateway(options(lan_interfaces="lan")))
    assert greeting(network, postfix, CLIENT4).startswith(TEXT)
    assert ", unless a list of dnsbl has it;" in ctl.outcome(CLIENT4)[1]
    ctl.gateway.reload({"auth_skip": "dnsbl"})
    assert greeting(network, postfix, CLIENT4).startswith(b"220 ")
    assert ctl.outcome(CLIENT4)[1].startswith("nothing is against it;")


@pytest.mark.option("dns_servers")
def test_without_servers_the_systems_are_asked(
    network: Network, postfix: Postfix, gateway: GatewayFactory, names: Unbound
) -> None:
    names.change(listed(CLIENT4, "one.test"))
    file = network.router.root / "etc/resolv.conf"
    before = file.read_text()
    file.write_text("nameserver 127.0.0.1\n")
    try:
        gateway(options() | {"dns_servers": None})
        assert greeting(network, postfix, CLIENT4).startswith(TEXT)
        assert greeting(network, postfix, PUBLIC_CLIENT4).startswith(b"220 ")
    finally:
        file.write_text(before)


REFUSAL = "127.255.255.254"  # Spamhaus's answer to name servers that everybody may use


def test_a_list_that_refuses_to_answer_lists_nobody(
    network: Network, postfix: Postfix, gateway: GatewayFactory, names: Unbound
) -> None:
    names.change(listed(CLIENT4, "one.test", REFUSAL))
    running = gateway(options(dnsbl="one.test", lock_on="dnsbl"))
    assert greeting(network, postfix, CLIENT4).startswith(b"220 ")
    assert running.wait_log(rf"warning: DNSBL:FAILED src=\S+, ident=, zone=one\.test, why=.* {REFUSAL}")


FILTER = "one.test=127.0.0.[2-11;20]"


@pytest.mark.option("dnsbl", "dnswl", "dnsbl_threshold")
@pytest.mark.parametrize(
    ("more", "found", "refused"),
    [
        ({"dnsbl": FILTER}, {"one.test": "127.0.0.11"}, b"one.test (127.0.0.11)"),
        ({"dnsbl": FILTER}, {"one.test": "127.0.0.20"}, b"one.test (127.0.0.20)"),
        ({"dnsbl": FILTER}, {"one.test": "127.0.0.12"}, b""),
        ({"dnsbl": "one.test"}, {"one.test": "192.0.2.1"}, b""),
        ({"dnsbl": "one.test=127.[0-255].255.254"}, {"one.test": REFUSAL}, b"one.test (127.255.255.254)"),
        ({"dnswl": "good.test"}, {"one.test": "127.0.0.2", "good.test": REFUSAL}, b"one.test (127.0.0.2)"),
        ({"dnsbl": "one.test=127.0.0.2,one.test"}, {"one.test": "127.0.0.3"}, b"one.test (127.0.0.3)"),
        ({"dnsbl": "one.test,two.test", "dnsbl_threshold": 2}, {"one.test": "127.0.0.2"}, b""),
        (
            {"dnsbl": "one.test,two.test", "dnsbl_threshold": 2},
            {"one.test": "127.0.0.2", "two.test": "127.0.0.4"},
            b"one.test (127.0.0.2), two.test (127.0.0.4)",
        ),
        (
            {"dnsbl": "one.test*2.5,two.test", "dnsbl_threshold": 2.5},
            {"one.test": "127.0.0.2"},
            b"one.test (127.0.0.2)",
        ),
        (
            {"dnsbl": "one.test*0.7,two.test*0.1", "dnsbl_threshold": "0.8"},
            {"one.test": "127.0.0.2", "two.test": "127.0.0.4"},
            b"one.test (127.0.0.2), two.test (127.0.0.4)",
        ),
        ({"dnsbl": "one.test,two.test*-1"}, {"one.test": "127.0.0.2", "two.test": "127.0.0.2"}, b""),
        ({"dnswl": "good.test"}, {"one.test": "127.0.0.2", "good.test": "127.0.5.1"}, b""),
        (
            {"dnswl": "good.test=127.0.5.2"},
            {"one.test": "127.0.0.2", "good.test": "127.0.5.1"},
            b"one.test (127.0.0.2)",
        ),
    ],
)
def test_answers_and_weights_decide(
    network: Network,
    postfix: Postfix,
    gateway: GatewayFactory,
    names: Unbound,
    more: dict[str, str | int],
    found: dict[str, str],
    refused: bytes,
) -> None:
    names.change(*(listed(CLIENT4, zone, answer) for zone, answer in found.items()))
    gateway(options(**more))
    said = greeting(network, postfix, CLIENT4)
    assert said == TEXT + refused + b"\r\n" if refused else said.startswith(b"220 ")


def test_answers_are_believed_as_long_as_they_say(
    network: Network, postfix: Postfix, gateway: GatewayFactory, names: Unbound
) -> None:
    names.change(listed(CLIENT4, "one.test", ttl=2))
    gateway(options())
    assert greeting(network, postfix, CLIENT4).startswith(b"554 ")
    assert greeting(network, postfix, PUBLIC_CLIENT4).startswith(b"220 ")
    names.change(listed(PUBLIC_CLIENT4, "one.test"))
    time.sleep(2)  # the TTL, and that of the zone for what is not there
    assert greeting(network, postfix, CLIENT4).startswith(b"220 ")
    assert greeting(network, postfix, PUBLIC_CLIENT4).startswith(b"554 ")


def test_many_sessions_share_a_question(
    network: Network, postfix: Postfix, gateway: GatewayFactory, names: Unbound
) -> None:
    gateway(options(workers=1))
    before = names.log.count(f"{reverse(CLIENT4)}.one.test.")
    with ThreadPoolExecutor(20) as pool:
        said = list(pool.map(lambda _: greeting(network, postfix, CLIENT4), range(20)))
    assert all(line.startswith(b"220 ") for line in said)
    assert names.log.count(f"{reverse(CLIENT4)}.one.test.") == before + 1


@pytest.mark.option("timeout_dnsbl")
def test_a_list_that_is_dead_costs_its_timeout_and_nobody_else_anything(
    network: Network, postfix: Postfix, gateway: GatewayFactory, names: Unbound
) -> None:
    names.change(listed(CLIENT6, "dead.test"))
    running = gateway(options(dnsbl="dead.test", workers=1))
    begin = time.monotonic()
    with RawClient(network.client, postfix.ipv4, source=CLIENT4) as waiting:
        wait_until(lambda: " dnsbl " in running.status(), 1, "a session that waits for lists")
        assert greeting(network, postfix, PUBLIC_CLIENT4).startswith(b"220 ")
        assert greeting(network, postfix, CLIENT6).startswith(b"554 ")
        assert time.monotonic() - begin < 1.5
        assert waiting.reply().startswith(b"220 ")
    assert 2 <= time.monotonic() - begin < 3.5
    assert running.wait_log(r"DNSBL:TIMEOUT src=10\.77\.1\.5:\d+, ident=, zone=dead\.test")


def test_a_server_that_is_gone_lets_clients_pass(
    network: Network, postfix: Postfix, gateway: GatewayFactory
) -> None:
    running = gateway(options(dns_servers="127.0.0.1:5399", timeout_dnsbl=1))
    assert greeting(network, postfix, CLIENT4).startswith(b"220 ")
    assert running.wait_log(r"DNSBL:(TIMEOUT|FAILED) src=10\.77\.1\.5:\d+, ident=, zone=one\.test")


@pytest.mark.option("auth_skip", "lock_on")
def test_who_may_authenticate_is_looked_up_when_sending(
    network: Network, postfix: Postfix, gateway: GatewayFactory, names: Unbound
) -> None:
    names.change(listed(CLIENT4, "one.test"))
    running = gateway(options(auth_skip="dnsbl", lock_on="dnsbl"))
    with RawClient(network.client, postfix.ipv4) as client:
        client.begin()
        assert client.ask(b"AUTH PLAIN AGFsaWNlAHNlY3JldA==").startswith(b"235")
        client.envelope()
    assert not list(running.locks.iterdir())
    with RawClient(network.client, postfix.ipv4) as client:
        client.begin()
        refused = client.ask(b"MAIL FROM:<a@b.test>")
        assert refused == TEXT.replace(b"554", b"550 5.7.1") + b"one.test (127.0.0.2)\r\n"
        assert client.ask(b"MAIL FROM:<a@b.test>") == refused.replace(b"550 5.7.1", b"451 4.3.2")
        assert client.ask(b"QUIT").startswith(b"221 ")
    lock = running.locks / CLIENT4
    assert lock.read_text() == "DNSBL one.test (127.0.0.2)\n"
    assert greeting(network, postfix, CLIENT4).startswith(b"554 ")
    with RawClient(network.client, postfix.ipv4, source=PUBLIC_CLIENT4) as client:
        client.begin()
        client.envelope()
