"""The kernel's choice of a listener against `worker_of`, on real sockets of the loopback interface."""

import selectors
import socket
import subprocess
import sys
from collections import Counter
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TYPE_CHECKING

import pytest

from appliance.bpf.steering import attach, worker_of

if TYPE_CHECKING:
    from collections.abc import Callable


def group(family: socket.AddressFamily, count: int) -> list[socket.socket]:
    listeners = []
    port = 0
    for _ in range(count):
        listener = socket.socket(family)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind(("::" if family == socket.AF_INET6 else "0.0.0.0", port))
        listener.listen(64)
        port = listener.getsockname()[1]
        listeners.append(listener)
    attach(listeners[0], count)
    return listeners


def chosen(listeners: list[socket.socket], source: str, target: str) -> tuple[int, str]:
    """Connect from source to target; give the index of the listener that got it and the address it saw."""
    port = listeners[0].getsockname()[1]
    selector = selectors.DefaultSelector()
    for index, listener in enumerate(listeners):
        selector.register(listener, selectors.EVENT_READ, index)
    with selector, socket.create_connection((target, port), 5, (source, 0)):
        ((key, _),) = selector.select(5)
        accepted, peer = listeners[key.data].accept()
        accepted.close()
        return key.data, peer[0]


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_ipv4_clients_go_where_worker_of_says(family: socket.AddressFamily, count: int) -> None:
    listeners = group(family, count)
    seen = Counter[int]()
    for last in range(1, 41):
        source = f"127.0.{last * 7 % 13}.{last}"
        index, peer = chosen(listeners, source, "127.0.0.1")
        assert index == worker_of(ip_address(source), count) == worker_of(ip_address(peer), count)
        assert index == chosen(listeners, source, "127.0.0.9")[0]
        seen[index] += 1
    assert len(seen) == count
    for listener in listeners:
        listener.close()


def test_an_ipv6_client_goes_where_worker_of_says() -> None:
    if not socket.has_dualstack_ipv6():
        pytest.skip("this host has no IPv6")
    for count in (2, 3, 7):
        listeners = group(socket.AF_INET6, count)
        index, peer = chosen(listeners, "::1", "::1")
        assert index == worker_of(ip_address(peer), count)
        for listener in listeners:
            listener.close()


def test_a_network_of_64_bits_has_one_worker() -> None:
    prefix = int(IPv6Address("2001:db8:1:2::"))
    assert len({worker_of(IPv6Address(prefix + n * 0x1234567), 16) for n in range(1000)}) == 1


@pytest.mark.parametrize("count", [2, 3, 8])
@pytest.mark.parametrize(
    "kind", ["hosts of one network", "networks of 8", "prefixes of 64", "prefixes of 48"]
)
def test_clients_are_spread_evenly(kind: str, count: int) -> None:
    kinds: dict[str, Callable[[int], IPv4Address | IPv6Address]] = {
        "hosts of one network": lambda n: IPv4Address(0x0A000000 + n),
        "networks of 8": lambda n: IPv4Address(0x0A000000 + 8 * n),
        "prefixes of 64": lambda n: IPv6Address((0x20010DB800010000 + n) << 64),
        "prefixes of 48": lambda n: IPv6Address((0x20010DB800000000 + (n << 16)) << 64),
    }
    made = kinds[kind]
    clients = 4000
    load = Counter(worker_of(made(n), count) for n in range(clients))
    assert max(load.values()) < 1.15 * clients / count
    assert min(load.values()) > 0.85 * clients / count


@pytest.mark.lab
def test_ipv6_clients_of_many_networks_go_where_worker_of_says() -> None:
    program = """
import socket, subprocess
from ipaddress import ip_address
from appliance.bpf.steering import worker_of
from tests.bpf.test_steering import chosen, group
sources = [f"2001:db8:{n * 37 % 251:x}:{n:x}::{n % 3 + 1}" for n in range(1, 60)]
batch = ["link set lo up", *(f"addr add {source}/128 dev lo nodad" for source in sources)]
subprocess.run(["ip", "-batch", "-"], input="\\n".join(batch), text=True, check=True)
for count in (2, 5):
    listeners = group(socket.AF_INET6, count)
    found = [chosen(listeners, source, "::1") for source in sources]
    assert [peer for _, peer in found] == sources
    assert [index for index, _ in found] == [worker_of(ip_address(source), count) for source in sources]
    assert {index for index, _ in found} == set(range(count))
print("agreed")
"""
    done = subprocess.run(["unshare", "--net", sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "agreed\n", done.stderr
