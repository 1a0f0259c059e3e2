"""The kernel's rules under real connections: who comes to the gateway, passes by, is dropped or refused."""

import re
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from lab import router
from lab.clients import swaks
from lab.namespace import inside
from lab.network import (
    CLIENT4,
    CLIENT6,
    MAIL4,
    MAIL6,
    PUBLIC_CLIENT4,
    PUBLIC_CLIENT6,
    ROUTER4,
    ROUTER6,
    Network,
)
from lab.process import wait_until
from lab.servers import Postfix
from tests.lab.conftest import GatewayFactory
from tests.lab.stand_in import (
    BOTH,
    GATEWAY,
    MODES,
    PATHS,
    REDIRECT,
    REFUSED,
    SERVER,
    SERVER4,
    SILENT,
    TPROXY,
    Answering,
    Scene,
    echo,
    listener,
    servers,
)

pytestmark = pytest.mark.lab


@pytest.fixture
def scene(network: Network) -> Iterator[Scene]:
    made = Scene(network)
    made.listen()
    yield made
    made.close()


@pytest.mark.option("lan_interfaces", "mode")
@pytest.mark.parametrize("mode", MODES)
def test_a_mail_passes_and_the_server_sees_who_sent_it(
    network: Network, postfix: Postfix, gateway: GatewayFactory, mode: str
) -> None:
    """By redirection the gateway's own address is seen, as that of a router which translates."""
    gateway({"mode": mode, "lan_interfaces": "lan", "xdp": "off"})
    for number, (source, server) in enumerate(
        ((PUBLIC_CLIENT4, postfix.ipv4), (PUBLIC_CLIENT6, postfix.ipv6))
    ):
        sent = swaks(network.client, server, source=source, subject=f"rules {mode} {number}")
        assert sent.accepted, sent.transcript
        message = postfix.mailbox("alice").wait(f"rules {mode} {number}").decode()
        assert "X-NAT-Received:" in message
        assert (f"{source}])" in message) == (mode != REDIRECT)
    told = network.router.run(["nft", "list", "counter", "inet", "appliance", "intercepted"]).stdout
    assert "packets 2 " in told


@pytest.mark.option("intercept_ports")
@pytest.mark.parametrize("mode", MODES)
def test_mail_of_the_lan_comes_to_the_gateway_and_nothing_else(scene: Scene, mode: str) -> None:
    scene.install(mode)
    for path in PATHS:
        assert scene.reach(*path) == GATEWAY
        assert scene.reach(*path, port=587) == SERVER
    assert scene.count("intercepted") == len(PATHS)
    scene.install(mode, intercept_ports="587,465")
    for path in PATHS:
        assert scene.reach(*path) == SERVER
        assert scene.reach(*path, port=587) == GATEWAY


@pytest.mark.parametrize("mode", MODES)
def test_the_listener_answers_nobody_who_was_not_intercepted(scene: Scene, mode: str) -> None:
    scene.install(mode)
    mail, client = scene.network.mail, scene.network.client
    for address in (ROUTER4, ROUTER6, "203.0.113.1", "198.51.100.1", "2001:db8:25::1"):
        family6 = ":" in address
        assert scene.reach(CLIENT6 if family6 else CLIENT4, address, 9199, client) == REFUSED
        assert scene.reach(MAIL6 if family6 else MAIL4, address, 9199, mail) == REFUSED
    assert scene.count("kept_out") == 10
    # mail that does not come from the LAN
    assert scene.reach(MAIL4, PUBLIC_CLIENT4, 25, mail) == REFUSED
    for address in ("127.0.0.1", "::1", ROUTER4, ROUTER6):
        assert scene.reach(address, address, 9199, scene.network.router) == GATEWAY


@pytest.mark.option("port")
@pytest.mark.parametrize("mode", MODES)
def test_the_listeners_port_of_others_is_theirs(scene: Scene, mode: str) -> None:
    """In both directions through the router, while the listener is bound to any address."""
    scene.install(mode)
    client, mail = scene.network.client, scene.network.mail
    others = [Answering(listener(host, 9199), SERVER) for host in (client, mail)]
    try:
        for source, target in PATHS:
            with client.connect((target, 9199), source=source, timeout=3) as connection:
                assert echo(connection, b"hello") == b"server\nhello"
        for source, target in ((MAIL4, PUBLIC_CLIENT4), (MAIL6, PUBLIC_CLIENT6)):
            with mail.connect((target, 9199), source=source, timeout=3) as connection:
                assert echo(connection, b"hello") == b"server\nhello"
        assert scene.count("kept_out") == 0
    finally:
        for other in others:
            other.close()


def test_in_fixed_mode_the_listener_is_for_everybody(scene: Scene) -> None:
    scene.install("fixed", fixed_server=SERVER4)
    assert scene.reach(CLIENT4, ROUTER4, 9199) == GATEWAY
    assert scene.reach(MAIL4, "198.51.100.1", 9199, scene.network.mail) == GATEWAY
    assert scene.reach(CLIENT4, SERVER4) == SERVER
    scene.nft("add", "element", "inet", "appliance", "locked4", "{", CLIENT4, "}")
    scene.install("fixed", fixed_server=SERVER4, lock_talk=0)
    assert scene.reach(CLIENT4, ROUTER4, 9199) == SILENT
    assert scene.reach(MAIL4, "198.51.100.1", 9199, scene.network.mail) == GATEWAY


@pytest.mark.option("trusted_clients", "trusted_servers")
@pytest.mark.parametrize("mode", MODES)
def test_trusted_ones_pass_by(scene: Scene, mode: str) -> None:
    scene.install(mode, trusted_clients=f"10.77.1.4-10.77.1.6,{PUBLIC_CLIENT6}")
    assert [scene.reach(*path) for path in PATHS] == [SERVER, GATEWAY, GATEWAY, SERVER]
    scene.install(mode, trusted_clients="10.77.1.6-10.77.1.9", trusted_servers="2001:db8:25::/64")
    assert [scene.reach(*path) for path in PATHS] == [GATEWAY, SERVER, GATEWAY, SERVER]
    assert scene.count("trusted") > 0


@pytest.mark.parametrize("mode", MODES)
def test_the_routers_own_port_25_is_left_alone(scene: Scene, mode: str) -> None:
    own = Answering(listener(scene.network.router, 25), "own")
    try:
        scene.install(mode, on_failure="closed")
        for source, address in ((CLIENT4, ROUTER4), (CLIENT6, ROUTER6), (CLIENT4, "198.51.100.1")):
            assert scene.reach(source, address) == "own"
        assert scene.reach(MAIL4, "198.51.100.1", 25, scene.network.mail) == "own"
        assert [scene.reach(*path) for path in PATHS] == [GATEWAY] * 4
    finally:
        own.close()


@pytest.mark.option("lan_interfaces")
@pytest.mark.parametrize("mode", [TPROXY, REDIRECT])
def test_several_interfaces(scene: Scene, mode: str) -> None:
    """A second LAN, by the name of a VLAN."""
    network = scene.network
    peer = {"ifname": "eth0.5", "net_ns_pid": network.client.pid}
    with network.router.netlink() as netlink:
        netlink.link("add", ifname="lan.5", kind="veth", peer=peer)
    try:
        for host, name, address in (
            (network.router, "lan.5", "10.77.5.1/24"),
            (network.client, "eth0.5", "10.77.5.5/24"),
        ):
            host.link_up(name)
            host.add_address(address, name)
        network.client.run(["ip", "rule", "add", "from", "10.77.5.5", "lookup", "5"])
        network.client.run(["ip", "route", "add", "default", "via", "10.77.5.1", "table", "5"])
        scene.install(mode, lan_interfaces="lan")
        assert scene.reach("10.77.5.5", SERVER4) == SERVER
        scene.install(mode, lan_interfaces="lan,lan.5")
        assert scene.reach("10.77.5.5", SERVER4) == GATEWAY
        assert scene.reach(CLIENT4, SERVER4) == GATEWAY
        scene.install(mode, lan_interfaces="lan.5")
        assert scene.reach(CLIENT4, SERVER4) == SERVER
    finally:
        network.client.run(["ip", "rule", "del", "from", "10.77.5.5", "lookup", "5"], check=False)
        network.router.run(["ip", "link", "delete", "lan.5"])


@pytest.mark.option("on_failure")
@pytest.mark.parametrize("mode", MODES)
def test_when_no_gateway_listens_mail_passes_or_is_refused_at_once(scene: Scene, mode: str) -> None:
    for fate, on_failure in ((SERVER, "open"), (REFUSED, "closed")):
        scene.install(mode, on_failure=on_failure)
        assert [scene.reach(*path) for path in PATHS] == [GATEWAY] * 4
        scene.kill()
        begin = time.monotonic()
        assert [scene.reach(*path) for path in PATHS] == [fate] * 4
        assert time.monotonic() - begin < 0.5
        scene.listen()
        assert [scene.reach(*path) for path in PATHS] == [GATEWAY] * 4


@pytest.mark.parametrize("mode", MODES)
def test_a_gateway_that_is_killed(network: Network, gateway: GatewayFactory, mode: str) -> None:
    """The same with the real one, workers and all."""
    with ExitStack() as stack:
        for server in servers(network):
            stack.callback(server.close)
        running = gateway({"mode": mode, "lan_interfaces": "lan", "xdp": "off"})
        assert running.process
        running.close()
        wait_until(lambda: not network.router.listening(9199), 5, "the listener's end")
        with network.client.connect((SERVER4, 25)) as connection:
            assert connection.recv(10) == b"server\n"


@pytest.mark.parametrize("mode", MODES)
def test_what_passed_by_goes_on_when_the_gateway_comes_back(scene: Scene, mode: str) -> None:
    scene.install(mode)
    scene.kill()
    with ExitStack() as stack:
        passing = [
            stack.enter_context(scene.network.client.connect((target, 25), source=source))
            for source, target in PATHS
        ]
        scene.listen()
        scene.install(mode, on_failure="closed", fwmark=3)
        for connection in passing:
            assert echo(connection, b"still here") == b"server\nstill here"


@contextmanager
def traffic(scene: Scene, source: str, target: str) -> Iterator[list[str]]:
    """Connect again and again; what is yielded fills with who answered."""
    answers: list[str] = []
    ended = threading.Event()

    def connect() -> None:
        while not ended.is_set():
            answers.append(scene.reach(source, target))

    thread = threading.Thread(target=connect)
    thread.start()
    try:
        yield answers
    finally:
        ended.set()
        thread.join()


@pytest.mark.option("fwmark", "route_table")
@pytest.mark.parametrize("mode", MODES)
def test_a_changed_configuration_loses_no_connection(scene: Scene, mode: str) -> None:
    """Those that are held go on; each new one comes to the gateway, whichever rules it meets."""
    changes: list[dict[str, object]] = [
        {"trusted_clients": "10.9.0.0/16", "lock_talk": 0},
        {"fwmark": 77, "route_table": 770},
        {"intercept_ports": "25,587", "on_failure": "closed"},
        {"lan_interfaces": "lan,wan", "trusted_servers": "192.0.2.1-192.0.2.77"},
    ]
    scene.install(mode)
    with ExitStack() as stack:
        held = [
            stack.enter_context(scene.network.client.connect((target, 25), source=source))
            for source, target in PATHS
        ]
        busy = [stack.enter_context(traffic(scene, *path)) for path in PATHS]
        for change in (changes * 3)[:10]:
            scene.install(mode, **change)
            for connection in held:
                echo(connection, b"x")
            deadline, before = time.monotonic() + 10, [len(answers) for answers in busy]
            while any(len(now) < then + 4 for now, then in zip(busy, before, strict=True)):
                assert time.monotonic() < deadline
                time.sleep(0.01)
    assert {answer for answers in busy for answer in answers} == {GATEWAY}


@pytest.mark.option("lock_talk")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("source", "target"), PATHS[1:3])
def test_a_locked_client_is_dropped_before_the_router_has_a_socket(
    scene: Scene, mode: str, source: str, target: str
) -> None:
    scene.install(mode, lock_talk=3)
    address = f"locked{6 if ':' in source else 4}"
    with scene.network.client.connect((target, 25), source=source) as held:
        scene.nft("add", "element", "inet", "appliance", address, "{", source, 'comment "VIRUS Eicar"', "}")
        before = scene.count("intercepted")
        assert [scene.reach(source, target) for _ in range(4)] == [GATEWAY] * 3 + [SILENT]
        assert scene.count("intercepted") == before + 3
        assert echo(held, b"on") == b"gateway\non"  # what is held ends when the gateway says so
    scene.install(mode, lock_talk=0)
    before, dropped = scene.count("intercepted"), scene.count("dropped_locked")
    assert scene.reach(source, target) == SILENT
    assert (scene.count("intercepted"), scene.count("dropped_locked") > dropped) == (before, True)
    listed = scene.nft("list", "set", "inet", "appliance", address)
    assert re.search(rf'{source} counter packets [1-9]\d* .*comment "VIRUS Eicar"', listed)
    assert scene.reach(source, target, 587) == SERVER  # other ports are nobody's business
    scene.install(mode, lock_talk=0, trusted_clients=source)
    assert scene.reach(source, target) == SERVER
    scene.install(mode, lock_talk=0)
    scene.nft("delete", "element", "inet", "appliance", address, "{", source, "}")
    assert scene.reach(source, target) == GATEWAY


SYSCTLS = (
    ("net/ipv4/conf/all/rp_filter", "1"),
    ("net/ipv4/conf/all/src_valid_mark", "1"),
    ("net/ipv4/tcp_fwmark_accept", "1"),
    ("net/ipv4/fwmark_reflect", "1"),
    ("net/ipv6/fwmark_reflect", "1"),
    ("net/ipv4/ip_early_demux", "0"),
    ("net/ipv4/tcp_syncookies", "2"),
    ("net/ipv4/ip_forward", "0"),
    ("net/ipv6/conf/all/forwarding", "0"),
)


@pytest.mark.parametrize("mode", MODES)
def test_interception_works_whatever_the_sysctls_say(scene: Scene, mode: str) -> None:
    """One after the other, and all of them at once."""
    scene.install(mode)
    host = scene.network.router
    found = {name: host.run(["cat", f"/proc/sys/{name}"]).stdout.strip() for name, _ in SYSCTLS}
    try:
        for name, value in SYSCTLS:
            host.sysctl(name, value)
            assert [scene.reach(*path) for path in PATHS[1:3]] == [GATEWAY] * 2, name
            host.sysctl(name, found[name])
        for name, value in SYSCTLS:
            host.sysctl(name, value)
        assert [scene.reach(*path) for path in PATHS] == [GATEWAY] * 4
    finally:
        for name, value in found.items():
            host.sysctl(name, value)


@pytest.mark.parametrize("mode", [TPROXY, BOTH])
@pytest.mark.parametrize("mark", ["ct mark", "meta mark or 0x100"])
def test_marks_that_others_set_do_not_lead_mail_away(
    network: Network, postfix: Postfix, gateway: GatewayFactory, mode: str, mark: str
) -> None:
    """As a router with two providers has them, whose firewall comes before us: ours is set after theirs."""
    rule = f"chain pre {{ type filter hook prerouting priority mangle; meta mark set {mark}; }}\n"
    network.router.run(["nft", "-f", "-"], input=f"table inet providers {{ {rule} }}")
    try:
        gateway({"mode": mode})
        for source, server in ((PUBLIC_CLIENT4, postfix.ipv4), (PUBLIC_CLIENT6, postfix.ipv6)):
            with network.client.connect((server, 25), source=source, timeout=3) as connection:
                assert connection.recv(1000).startswith(b"220 ")
        told = network.router.run(["nft", "list", "counter", "inet", "appliance", "intercepted"]).stdout
        assert "packets 2 " in told
    finally:
        network.router.run(["nft", "delete", "table", "inet", "providers"])


@pytest.mark.parametrize("priority", ["pref 100", ""])
def test_other_routing_rules_do_not_lead_the_marked_away(scene: Scene, priority: str) -> None:
    """As a router with two providers has them; without a priority the kernel puts them before ours."""
    scene.install(TPROXY)

    def run(words: str) -> None:
        scene.network.router.run(words.split())

    run(f"ip rule add {priority} from 10.77.1.0/24 lookup 50")
    run("ip route add default via 198.51.100.25 table 50")
    try:
        scene.install(TPROXY)
        assert scene.reach(CLIENT4, SERVER4) == GATEWAY
        config = "mode tproxy\nbind_address ::\nlan_interfaces lan\n"
        assert (
            inside(scene.network.router.namespace, router.installer(scene.network.router, config).check) == []
        )
    finally:
        run("ip rule del from 10.77.1.0/24 lookup 50")
        run("ip route flush table 50")
