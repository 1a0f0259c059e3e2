"""Who talks much: tallies of one to two periods, in bounded memory."""

import sys

import pytest

from appliance.proxy import talkers
from appliance.proxy.clients import Clients
from appliance.proxy.talkers import PERIOD, Talkers


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_what_was_done_is_told_and_forgotten_after_two_periods() -> None:
    clock = Clock()
    made = Talkers(clock)
    made.of("a").connections += 3
    clock.now += PERIOD + 1
    made.of("a").connections += 1
    made.of("b").mails += 2
    assert made.known("a").row() == [4, 0, 0, 0]
    assert made.busiest(0, 10) == [("a", [4, 0, 0, 0]), ("b", [0, 2, 0, 0])]
    assert made.busiest(1, 1) == [("b", [0, 2, 0, 0])]
    clock.now += PERIOD + 1
    assert made.known("a").row() == [1, 0, 0, 0]
    clock.now += 3 * PERIOD
    assert made.known("a").row() == [0, 0, 0, 0]
    assert made.busiest(0, 10) == []


@pytest.mark.parametrize("servers", [0, 1, 5, 20, 200, 1000])
def test_destinations_are_told_to_a_few_percent(servers: int) -> None:
    tally = Talkers().of("a")
    for number in range(servers):
        for _ in range(2):
            tally.went_to(f"198.51.{number // 256}.{number % 256}")
    assert tally.destinations() == pytest.approx(servers, rel=0.15, abs=1)


def test_a_client_of_all_servers_has_a_number_still() -> None:
    tally = Talkers().of("a")
    for number in range(50_000):
        tally.went_to(str(number))
    assert tally.destinations() > 10_000


def test_very_many_clients_take_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(talkers, "ROOM", 50)
    made = Talkers()
    for number in range(1000):
        tally = made.of(f"client {number}")
        tally.connections += 1
        tally.went_to("192.0.2.1")
    assert len(made.busiest(0, 10_000)) <= 100
    assert made.known("client 999").row() == [1, 0, 0, 1]
    assert sys.getsizeof(tally.bits) < 400


def test_connections_are_counted_once_however_the_client_is_called() -> None:
    clients = Clients()
    clients.opened("192.0.2.7")
    clients.opened("192.0.2.7", "alice")
    assert clients.talkers.known("192.0.2.7").connections == 1
