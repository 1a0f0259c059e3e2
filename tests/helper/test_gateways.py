"""Who may ask how often, and how much strangers can make the helper write."""

import time
from ipaddress import ip_address, ip_network

import pytest

from appliance.helper.gateways import Complaints, Gateways
from appliance.log import Log

GATEWAY, OTHER, STRANGER = (ip_address(f"192.0.2.{number}") for number in (9, 17, 30))


def test_networks_are_told_apart() -> None:
    gateways = Gateways([ip_network("192.0.2.9/32"), ip_network("192.0.2.16/29")], 1)
    assert gateways.find(STRANGER) is gateways.find(ip_address("2001:db8::1")) is None
    first, second = gateways.find(GATEWAY), gateways.find(OTHER)
    assert first
    assert second
    assert [gateways.spend(first), gateways.spend(first)] == [True, False]
    assert [gateways.spend(second), gateways.spend(second)] == [True, False]


def test_a_gateway_may_ask_so_many_times_a_second() -> None:
    gateways = Gateways([ip_network("192.0.2.9/32")], 50)
    network = gateways.find(GATEWAY)
    assert network
    assert sum(gateways.spend(network) for _ in range(500)) in (50, 51)
    begin = time.monotonic()
    time.sleep(0.2)
    passed = time.monotonic() - begin
    assert sum(gateways.spend(network) for _ in range(500)) == pytest.approx(50 * min(passed, 1), abs=2)
    time.sleep(1.2)
    assert sum(gateways.spend(network) for _ in range(500)) in (50, 51)


def test_complaints_are_counted_and_few(capfd: pytest.CaptureFixture[str]) -> None:
    complaints = Complaints(Log("debug", "daemon", stderr=True, path="/nonexistent"))
    for _ in range(1000):
        complaints.warn("HELPER:REFUSED not a gateway", STRANGER)
        complaints.warn("HELPER:REFUSED wrong secret", GATEWAY)
    lines = capfd.readouterr().err.splitlines()
    assert [line.partition("]: ")[2] for line in lines] == [
        "warning: HELPER:REFUSED not a gateway src=192.0.2.30, times=1",
        "warning: HELPER:REFUSED wrong secret src=192.0.2.9, times=1",
    ]
    time.sleep(1)
    complaints.warn("HELPER:REFUSED not a gateway", STRANGER)
    assert "times=1000" in capfd.readouterr().err
