"""The program of the gate on single packets, given to it by the kernel as if they had come in at the LAN.

The router's routes are real, so what is meant for the router itself is known to it.
"""

import os
import socket
import time
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance.bpf import layout, maps
from appliance.bpf.locks import GateLocks, dropped
from appliance.bpf.maps import Map
from appliance.bpf.pinned import Gate
from appliance.config import parse
from appliance.log import Log
from lab.namespace import inside
from lab.network import ROUTER4, ROUTER6, Network
from tests.bpf import packets
from tests.bpf.packets import (
    ACK,
    CLIENT4,
    CLIENT6,
    IPV4,
    IPV6,
    SERVER4,
    SERVER6,
    SYN,
    VLAN,
    address,
    extension,
    frame,
    ipv4,
    ipv6,
    syn,
    tcp,
)
from tests.bpf.trial import DROP, PASS, tried
from tests.lab.gate import RouterGate, standing

pytestmark = pytest.mark.lab

TRUSTED = (
    "trusted_clients 203.0.113.0/24,2001:db8:77::/64\ntrusted_servers 198.51.100.77,2001:db8:25:7::/64\n"
)


@pytest.fixture(scope="module")
def up(network: Network) -> Iterator[RouterGate]:
    with standing(network.router) as up:
        yield up


@pytest.fixture(scope="module")
def gate(up: RouterGate) -> Iterator[Gate]:
    with Gate(up.pins) as gate:
        yield gate


class Judge:
    """Give it a packet as the LAN would; get the gate's verdict. `pins` has its maps."""

    def __init__(self, network: Network, pins: Path) -> None:
        self.namespace, self.pins = network.router.namespace, pins
        self.program = maps.get(pins / "gate")
        self.index = inside(self.namespace, lambda: socket.if_nametoindex("lan"))

    def __call__(self, packet: bytes) -> int:
        return inside(self.namespace, lambda: tried(self.program, packet, self.index))


@pytest.fixture(scope="module")
def judge(network: Network, up: RouterGate) -> Iterator[Judge]:
    judge = Judge(network, up.pins)
    yield judge
    os.close(judge.program)


@pytest.fixture
def locks(up: RouterGate, gate: Gate) -> Iterator[GateLocks]:
    locks = GateLocks(Log("crit", "mail", stderr=False), up.pins)
    gate.configure(parse(f"mode tproxy\nlock_talk 0\n{TRUSTED}"))
    yield locks
    locks.replace({})
    locks.close()


@pytest.fixture
def locked(locks: GateLocks) -> GateLocks:
    for client in (CLIENT4, CLIENT6, "203.0.113.9", "2001:db8:77::9"):
        locks.add(ip_address(client), None)
    return locks


DROPPED = {
    "IPv4": syn(),
    "IPv6": syn(CLIENT6, SERVER6),
    "VLAN": frame(ipv4(tcp()), IPV4, VLAN),
    "VLAN of a service provider": frame(ipv6(tcp()), IPV6, packets.SERVICE_VLAN, VLAN),
    "padded to the least an Ethernet has": syn() + bytes(6),
    "IP options": frame(ipv4(tcp(), options=bytes([1] * 40)), IPV4),
    "TCP options": frame(ipv4(tcp(options=bytes(40))), IPV4),
    "data with the SYN": frame(ipv4(tcp() + b"EHLO"), IPV4),
    "SYN and FIN": frame(ipv4(tcp(flags=SYN | packets.FIN)), IPV4),
    "may not be fragmented": frame(ipv4(tcp(), fragment=0x4000), IPV4),
    "hop by hop": frame(ipv6(tcp(), following=0, before=extension(6)), IPV6),
    "six extensions": frame(ipv6(tcp(), following=0, before=extension(60) * 5 + extension(6)), IPV6),
    "a long extension": frame(ipv6(tcp(), following=60, before=extension(6, 20)), IPV6),
    "source route": frame(ipv6(tcp(), following=43, before=extension(6, 2)), IPV6),
}
PASSED = {
    "nothing but addresses": bytes(14),
    "another port": syn(port=80),
    "a port that is counted but not taken": syn(port=587),
    "part of a connection": frame(ipv4(tcp(flags=ACK)), IPV4),
    "answer to a SYN": frame(ipv4(tcp(flags=SYN | ACK)), IPV4),
    "reset": frame(ipv4(tcp(flags=packets.RST)), IPV4),
    "another client": syn("10.77.1.67"),
    "another client, IPv6": syn("fd77:1::67", SERVER6),
    "UDP": frame(ipv4(tcp(), protocol=packets.UDP), IPV4),
    "first fragment": frame(ipv4(tcp(), fragment=0x2000), IPV4),
    "last fragment": frame(ipv4(tcp(), fragment=3), IPV4),
    "fragment, IPv6": frame(ipv6(tcp(), following=44, before=extension(6)), IPV6),
    "seven extensions": frame(ipv6(tcp(), following=0, before=extension(60) * 6 + extension(6)), IPV6),
    "three VLANs": frame(ipv4(tcp()), IPV4, VLAN, VLAN, VLAN),
    "shorter by its own word": frame(ipv4(tcp(), length=39), IPV4),
    "no IP header": frame(b"\x40" + ipv4(tcp())[1:], IPV4),
    "another version than IPv6": frame(b"\x50" + ipv6(tcp())[1:], IPV6),
    "IPv6 where IPv4 is promised": frame(ipv6(tcp()), IPV4),
    "an extension beyond the end": frame(ipv6(tcp(), following=60, before=extension(6, 255)[:16]), IPV6),
    "an IPv4 client in an IPv6 header": syn(f"::ffff:{CLIENT4}", SERVER6),
    "a trusted client": syn("203.0.113.9"),
    "a trusted client, IPv6": syn("2001:db8:77::9", SERVER6),
    "a trusted server": syn(CLIENT4, "198.51.100.77"),
    "a trusted server, IPv6": syn(CLIENT6, "2001:db8:25:7::1"),
    "the router itself": syn(CLIENT4, ROUTER4),
    "the router itself, IPv6": syn(CLIENT6, ROUTER6),
    "another address of the router": syn(CLIENT4, "198.51.100.1"),
}


@pytest.mark.parametrize("name", DROPPED)
@pytest.mark.option("intercept_ports")
@pytest.mark.usefixtures("locked")
def test_what_begins_a_locked_clients_connection_is_dropped(name: str, judge: Judge) -> None:
    assert judge(DROPPED[name]) == DROP
    assert sum(dropped(judge.pins).values()) == 1


@pytest.mark.parametrize("name", PASSED)
@pytest.mark.option("trusted_servers", "trusted_clients")
@pytest.mark.usefixtures("locked")
def test_everything_else_passes(name: str, judge: Judge) -> None:
    assert judge(PASSED[name]) == PASS
    assert sum(dropped(judge.pins).values()) == 0


@pytest.mark.parametrize("name", ["IPv4", "VLAN of a service provider", "six extensions", "IP options"])
@pytest.mark.usefixtures("locked")
def test_a_packet_cut_off_anywhere_passes(name: str, judge: Judge) -> None:
    whole = DROPPED[name]
    for length in range(14, len(whole)):  # the kernel gives no program less than an Ethernet header
        assert judge(whole[:length]) == PASS, length
    assert judge(whole) == DROP


@pytest.mark.usefixtures("locks")
def test_what_passes_without_locks(judge: Judge) -> None:
    assert {judge(packet) for packet in DROPPED.values()} == {PASS}


@given(data=st.data())
@settings(
    max_examples=400,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)
@pytest.mark.usefixtures("locked")
def test_garbage_is_judged_as_the_second_opinion_has_it(data: st.DataObject, judge: Judge) -> None:
    """Packets with bytes changed, cut off, and with more behind them."""
    base = bytearray(data.draw(st.sampled_from([*DROPPED.values(), *PASSED.values()])))
    for _ in range(data.draw(st.integers(0, 3))):
        base[data.draw(st.integers(12, len(base) - 1))] = data.draw(st.integers(0, 255))
    packet = bytes(base)[: data.draw(st.integers(14, len(base)))] + data.draw(st.binary(max_size=60))
    verdict, found = judge(packet), packets.read_syn(packet)
    if found in ((CLIENT4, SERVER4, 25), (CLIENT6, SERVER6, 25)):
        assert verdict == DROP
    elif found is None or found[0] not in (CLIENT4, CLIENT6) or found[2] != 25:
        assert verdict == PASS  # whether there is a way to another server is for the router's routes to say


@given(packet=st.binary(min_size=14, max_size=1500))
@settings(
    max_examples=200,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)
@pytest.mark.usefixtures("locked")
def test_noise_passes(packet: bytes, judge: Judge) -> None:
    assert judge(packet) == PASS


def test_a_lock_ends_with_its_deadline(judge: Judge, locks: GateLocks) -> None:
    locks.add(ip_address(CLIENT4), time.time() + 0.2)
    assert judge(syn()) == DROP
    locks.add(ip_address(CLIENT4), time.time() - 1)
    assert judge(syn()) == PASS
    locks.add(ip_address(CLIENT4), time.time() + 3600)
    assert judge(syn()) == DROP
    assert dropped(judge.pins) == {ip_address(CLIENT4): 2}  # kept while the end was changed
    locks.remove(ip_address(CLIENT4))
    assert judge(syn()) == PASS


@pytest.mark.option("lock_talk")
def test_a_locked_client_may_come_a_few_times_a_minute_to_be_told(
    gate: Gate, judge: Judge, locks: GateLocks
) -> None:
    gate.configure(parse("mode tproxy\nlock_talk 3\n"))
    locks.add(ip_address(CLIENT4), None)
    locks.add(ip_address(CLIENT6), None)
    assert [judge(syn()) for _ in range(6)] == [PASS] * 3 + [DROP] * 3
    assert judge(syn(CLIENT6, SERVER6)) == PASS  # each has minutes of its own
    with Map.open(judge.pins / "locks") as raw:
        key = layout.pack_address(ip_address(CLIENT4))
        value = raw.lookup(key)
        assert value
        minute = int.from_bytes(value[8:16], "little") - 60_000_000_000
        raw.update(key, value[:8] + minute.to_bytes(8, "little") + value[16:])
    assert [judge(syn()) for _ in range(4)] == [PASS] * 3 + [DROP]


def test_a_client_is_counted(judge: Judge, gate: Gate, locks: GateLocks) -> None:
    client = "10.77.1.80"
    for number in range(5):
        judge(syn(client, address(number % 2), 465))
    locks.add(ip_address(client), None)
    for _ in range(3):
        judge(syn(client))
    found = gate.client(ip_address(client), 3600)
    assert found
    assert (found.syns, found.dropped) == (8, 3)
    assert found.servers in (1, 2)  # two share a bit by chance, once in a thousand runs
    assert found.seen == pytest.approx(time.time(), abs=30)
    assert [each.syns for each in gate.clients(3600) if each.address == found.address] == [8]
    assert gate.client(ip_address("203.0.113.9"), 3600) is None  # trusted


def report_after(judge: Judge, gate: Gate, client: str, servers: int, *ports: int) -> list[tuple[str, int]]:
    """Send a client to so many servers; give whom the gate reports."""
    for number in range(servers):
        judge(syn(client, address(number), ports[number % len(ports)]))
    return [(str(suspect), count) for suspect, count in gate.suspects()]


def watch(gate: Gate, limit: int, period: int = 3600) -> None:
    gate.configure(
        parse(f"mode tproxy\nlock_on fanout\nfanout_limit {limit}\nfanout_period {period}\n{TRUSTED}")
    )
    assert list(gate.suspects()) == []


@pytest.mark.option("fanout_limit", "lock_on")
@pytest.mark.usefixtures("locks")
def test_a_client_of_many_servers_is_reported_and_counted_anew(judge: Judge, gate: Gate) -> None:
    watch(gate, 100)
    ((client, count),) = report_after(judge, gate, "10.77.1.90", 200, 587, 465, 25)
    assert client == "10.77.1.90"
    assert 100 < count <= 115
    found = gate.client(ip_address(client), 3600)
    assert found
    assert found.servers <= 115  # of the 100 or so that came after the report; both are estimates
    assert report_after(judge, gate, "10.77.1.91", 20, 587, 465, 25) == []
    assert report_after(judge, gate, "203.0.113.8", 200, 587, 465, 25) == []  # trusted
    assert report_after(judge, gate, "10.77.1.92", 200, 80, 993, 2525) == []  # no mail
    for _ in range(300):
        judge(syn("10.77.1.93", SERVER4))
    assert list(gate.suspects()) == []


@pytest.mark.usefixtures("locks")
def test_nobody_is_reported_unless_that_is_wanted(judge: Judge, gate: Gate) -> None:
    gate.configure(parse("mode tproxy\nfanout_limit 10\n"))
    assert report_after(judge, gate, "10.77.1.94", 100, 25) == []
    found = gate.client(ip_address("10.77.1.94"), 3600)
    assert found
    assert found.servers == pytest.approx(100, rel=0.1)


class Watched:
    """A client whose servers are counted, and whose past can be made older than it is."""

    def __init__(self, judge: Judge, gate: Gate, address: str) -> None:
        self.judge, self.gate, self.address = judge, gate, address

    def visit(self, servers: range, port: int = 25) -> None:
        for number in servers:
            self.judge(syn(self.address, address(number), port))

    def age(self, seconds: int) -> None:
        key = layout.pack_address(ip_address(self.address))
        with Map.open(self.judge.pins / "clients") as raw:
            value = raw.lookup(key)
            assert value
            turned = int.from_bytes(value[24:32], "little") - seconds * 1_000_000_000
            raw.update(key, value[:24] + turned.to_bytes(8, "little") + value[32:])

    def servers(self) -> int:
        found = self.gate.client(ip_address(self.address), 1000)
        assert found
        return found.servers


@pytest.fixture
def watched(judge: Judge, gate: Gate, locks: GateLocks) -> Watched:  # noqa: ARG001
    """A client under fanout_period 1000, never seen before."""
    watch(gate, 50, 1000)
    serial = sum(1 for _ in gate.clients(1000))
    return Watched(judge, gate, f"10.77.9.{serial}")


@pytest.mark.option("fanout_period")
def test_servers_are_forgotten_after_the_period(watched: Watched) -> None:
    watched.visit(range(40))
    watched.age(1001)
    assert watched.servers() == 0
    watched.visit(range(5000, 5001))
    assert watched.servers() == 1
    watched.visit(range(40))  # they count again, as if they had never been met
    assert 37 <= watched.servers() <= 43


def test_servers_of_the_first_half_count_once_in_the_second(watched: Watched) -> None:
    watched.visit(range(40))
    watched.age(501)
    watched.visit(range(40))
    assert 36 <= watched.servers() <= 42
    assert list(watched.gate.suspects()) == []
    watched.visit(range(40, 60))
    assert [str(client) for client, _ in watched.gate.suspects()] == [watched.address]


def test_no_count_covers_more_than_the_period(watched: Watched) -> None:
    watched.visit(range(40))
    watched.age(900)
    watched.visit(range(41, 42))
    watched.age(200)  # the first ones were met 1100 s ago
    watched.visit(range(42, 43))
    assert watched.servers() <= 2


def test_a_port_that_is_taken_but_no_mail_is_not_counted(watched: Watched, gate: Gate) -> None:
    gate.configure(parse("mode tproxy\nintercept_ports 25,2525"))
    watched.visit(range(20), 2525)
    assert watched.servers() == 0


def test_a_header_that_is_too_short_is_not_read(gate: Gate, judge: Judge) -> None:
    """Two words long it would have its checksum for a port, and what follows the addresses for flags."""
    packet = bytearray(ipv4(tcp(), "10.77.1.99"))
    packet[0], packet[10:12], packet[21] = 0x42, (25).to_bytes(2), SYN
    assert judge(frame(bytes(packet), IPV4)) == PASS
    assert gate.client(ip_address("10.77.1.99"), 3600) is None


@pytest.mark.parametrize("count", [1, 50, 400, 2000])
@pytest.mark.usefixtures("locks")
def test_the_estimate_is_close(count: int, judge: Judge, gate: Gate) -> None:
    client = f"10.77.2.{count % 251}"
    for number in range(count):
        judge(syn(client, address(number)))
    found = gate.client(ip_address(client), 3600)
    assert found
    assert found.servers == pytest.approx(count, rel=0.12, abs=0.5)


def test_many_clients_do_not_fill_the_memory(up: RouterGate) -> None:
    with Map.open(up.pins / "clients") as raw:
        assert raw.capacity * (raw.value_size + 64) < 16 << 20
        names = [(0x2001 << 112 | number << 32).to_bytes(16) for number in range(2 * raw.capacity)]
        raw.update_all([(name, bytes(raw.value_size)) for name in names])
        left = [name for name, _ in raw.items()]
        assert raw.capacity // 2 < len(left) <= raw.capacity
        for name in left:
            raw.delete(name)
