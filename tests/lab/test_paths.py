"""What routers on the way say of packets (ICMP) reaches the gateway, in whose name they may have been sent.

Beyond the lab's client and mail server there is a further host each, behind a link that takes smaller packets
than its ends know of: path MTU discovery (RFC 1191, RFC 8201) has to find out, with the router's own address
in place of the client's, too.
"""

import itertools
import time
from collections.abc import Iterator

import pytest

from lab import router
from lab.gateway import Gateway
from lab.host import Host
from lab.network import CLIENT4, CLIENT6, MAIL4, MAIL6, Network
from tests.lab.scripted import ScriptedServer, Talk

pytestmark = pytest.mark.lab

MODES = ("tproxy", "netfilter", "tproxy,netfilter")
MTU = 1300
MASQUERADE = """
    table inet lab {
        chain hide {
            type nat hook postrouting priority srcnat; oifname wan masquerade
        }
    }
"""
MUCH = b"much\r\n" * 100_000
# Public addresses, so that mode tproxy,netfilter goes on in the client's name.
INNER4, INNER6 = "203.0.114.5", "2001:db8:78::5"
OUTER4, OUTER6 = "192.0.2.25", "2001:db8:2::25"
NOWHERE4, NOWHERE6 = "192.0.3.25", "2001:db8:3::25"


class Narrow(Network):
    """inner -- client -- router -- mail -- outer, with narrow links at both ends."""

    NAMES = ("client", "router", "mail", "inner", "outer")

    def _wire(self) -> None:
        super()._wire()
        self.inner, self.outer = self.hosts[3:]
        self._narrow(self.client, ("203.0.114.1", "2001:db8:78::1"), self.inner, (INNER4, INNER6))
        self._narrow(self.mail, ("192.0.2.1", "2001:db8:2::1"), self.outer, (OUTER4, OUTER6))
        for network, by in (("203.0.114.0/24", CLIENT4), ("2001:db8:78::/64", CLIENT6)):
            self._route(self.router, network, by)
        for network, by in (("192.0.0.0/16", MAIL4), ("2001:db8::/45", MAIL6)):
            self._route(self.router, network, by)
        for network in ("192.0.3.0/24", "2001:db8:3::/64"):
            self.mail.run(["ip", "route", "add", "prohibit", network])

    def _narrow(self, hop: Host, gateways: tuple[str, ...], end: Host, addresses: tuple[str, ...]) -> None:
        """Join a host behind another one; it does not know that the link is narrow."""
        for name in ("net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"):
            hop.sysctl(name, "1")
        prefixes = ("24", "64")
        near, far = (
            tuple("/".join(each) for each in zip(those, prefixes, strict=True))
            for those in (gateways, addresses)
        )
        self.join(hop, "narrow", near, end, "eth0", far)
        hop.run(["ip", "link", "set", "narrow", "mtu", str(MTU)])
        for gateway in gateways:
            words = ["via", gateway, "mtu", "lock", str(MTU), "advmss", "1400"]
            end.run(["ip", "route", "add", "default", *words])

    @staticmethod
    def _route(host: Host, network: str, gateway: str) -> None:
        host.run(["ip", "route", "add", network, "via", gateway])


@pytest.fixture(scope="module")
def narrow() -> Iterator[Narrow]:
    with Narrow("narrow") as network:
        yield network


@pytest.fixture(scope="module")
def server(narrow: Narrow) -> Iterator[ScriptedServer]:
    made = ScriptedServer(narrow.outer.listen(("::", 25)))
    yield made
    made.close()


@pytest.fixture(params=itertools.product(MODES, ("", MASQUERADE)))
def gateway(narrow: Narrow, request: pytest.FixtureRequest) -> Iterator[Gateway]:
    mode, rules = request.param
    made = Gateway(narrow.router, {"mode": mode, "timeout_connect": 20}).start()
    router.install(narrow.router, made.file.read_text())
    narrow.router.run(["nft", "-f", "-"], input=rules)
    yield made
    router.release(narrow.router)
    made.close()


def forget_paths(network: Narrow) -> None:
    """Forget what earlier connections have found out."""
    for host in network.hosts:
        for version in ("-4", "-6"):
            host.run(["ip", version, "route", "flush", "cache"])


@pytest.mark.usefixtures("gateway")
@pytest.mark.parametrize(("source", "target"), [(INNER4, OUTER4), (INNER6, OUTER6)])
def test_a_message_passes_a_narrow_path_to_the_server(
    narrow: Narrow, server: ScriptedServer, source: str, target: str
) -> None:
    forget_paths(narrow)
    with Talk(narrow.inner.connect((target, 25), source=source)) as client:
        client.greet().begin()
        client.send(b"Subject: narrow\r\n\r\n" + MUCH)
        assert client.finish("").startswith("250")
    assert len(server.messages[-1]) > len(MUCH)
    server.forget()


@pytest.mark.usefixtures("gateway")
@pytest.mark.parametrize(("source", "target"), [(INNER4, OUTER4), (INNER6, OUTER6)])
def test_a_direct_session_passes_a_narrow_path_to_the_client(
    narrow: Narrow, server: ScriptedServer, source: str, target: str
) -> None:
    def starttls(talk: Talk) -> None:
        talk.say("220 go ahead")
        assert talk.line() == "now"
        talk.send(MUCH)
        raise EOFError

    forget_paths(narrow)
    server.hooks["STAR"] = starttls
    with Talk(narrow.inner.connect((target, 25), source=source)) as client:
        assert client.greet().ask("STARTTLS").startswith("220")
        client.say("now")
        assert client.rest() == MUCH
    server.forget()


@pytest.mark.parametrize(("source", "target"), [(INNER4, NOWHERE4), (INNER6, NOWHERE6)])
def test_a_server_that_cannot_be_reached_is_told_at_once(
    narrow: Narrow, gateway: Gateway, source: str, target: str
) -> None:
    begin = time.monotonic()
    with Talk(narrow.inner.connect((target, 25), source=source)) as client:
        client.reply()
    assert time.monotonic() - begin < 10  # the kernel may hear of its first SYN while it still sends it
    gateway.wait_log(r"CONNECT:FAILED .* why=(No route to host|Permission denied)")
