"""The structures of the gate as Python has them, against themselves and arithmetic."""

import math
import time
from ipaddress import ip_address, ip_network

import pytest

from appliance.bpf import layout

PERIOD = 10  # seconds: every machine has been up for some of these


@pytest.mark.parametrize("text", ["10.0.0.7", "2001:db8::7", "::", "::1"])
def test_an_address_comes_back(text: str) -> None:
    assert layout.unpack_address(layout.pack_address(ip_address(text))) == ip_address(text)


def test_an_address_has_one_key_however_it_is_written() -> None:
    assert layout.pack_address(ip_address("::ffff:10.0.0.7")) == layout.pack_address(ip_address("10.0.0.7"))


def test_a_network_counts_its_bits_in_the_long_address() -> None:
    assert layout.pack_network(ip_network("10.0.0.0/8"))[:4] == (104).to_bytes(4, "little")
    assert layout.pack_network(ip_network("2001:db8::/32"))[:4] == (32).to_bytes(4, "little")


def test_settings_come_back() -> None:
    packed = layout.Settings(frozenset({25, 65535}), 10, 100, PERIOD).pack(7, 9)
    assert layout.unpack_source(packed) == (7, 9)
    bits = int.from_bytes(packed[-8192:], "little")
    assert [port for port in range(65536) if bits >> port & 1] == [25, 65535]


@pytest.mark.parametrize("limit", [*range(1, 60), 100, 300, 1000, 3000])
def test_whoever_keeps_to_the_limit_has_the_bits_for_it(limit: int) -> None:
    expected = layout.BITS * (1 - (1 - 1 / layout.BITS) ** limit)
    allowed = layout.bits_allowed(limit)
    assert expected - 1 <= allowed <= limit
    assert allowed < layout.BITS
    assert layout.servers(allowed) <= 1.3 * limit + 1


def test_no_limit_allows_no_bits() -> None:
    assert layout.bits_allowed(0) == 0


@pytest.mark.parametrize("count", [0, 1, 20, 200, 1000, 3000])
def test_bits_are_turned_into_servers(count: int) -> None:
    bits = round(layout.BITS * (1 - math.exp(-count / layout.BITS)))
    assert abs(layout.servers(bits) - count) <= 1 + count // 100


def test_a_lock_keeps_its_counts_and_has_another_end() -> None:
    old = layout.pack_lock(5)[:-8] + (77).to_bytes(8, "little")
    assert layout.unpack_lock(layout.pack_lock(9, old)) == (9, 77)


def test_an_endless_lock_has_no_deadline_and_any_other_has_one() -> None:
    assert layout.deadline_of(None) == 0
    assert layout.deadline_of(1.0) > 0
    assert layout.unpack_lock(layout.pack_lock(layout.deadline_of(1e18)))[0] == layout.deadline_of(1e15)
    hour = layout.deadline_of(time.time() + 3600) - layout.now()
    assert hour == pytest.approx(3600e9, abs=1e9)


@pytest.mark.parametrize(("halves", "servers"), [(0.1, 10), (1.1, 4), (2.1, 0), (9.0, 0)])
def test_a_sketch_ages(halves: float, servers: int) -> None:
    turned = layout.now() - int(halves * PERIOD * 1e9 / 2)
    value = layout._CLIENT.pack(3, 1, layout.now(), turned, 10, 4) + bytes(256)
    found = layout.unpack_client(layout.pack_address(ip_address("10.0.0.7")), value, PERIOD)
    assert (found.syns, found.dropped, found.servers) == (3, 1, servers)
    assert found.seen == pytest.approx(time.time(), abs=5)
