"""Metrics: what the page says, and that its server bears with anybody."""

import asyncio
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from appliance.config import Config, SocketAddress
from appliance.log import Log
from appliance.proxy.scoreboard import Counter, Scoreboard
from appliance.supervisor import http, metrics
from appliance.supervisor.http import MetricsServer
from tests.ports import free_port
from tests.supervisor.served import Served


def facts(lock_path: Path, **more: object) -> metrics.Facts:
    given: dict[str, object] = {
        "config": Config({"lock_path": lock_path}),
        "board": Scoreboard.create(2),
        "workers": 2,
        "crashed": 1,
        "started": 1000.0,
        "reloaded": 2000.0,
        "ending": False,
        "scanners": [["clamd", "/run/clamd", ""], ["spamassassin", "127.0.0.1:783", "refused"]],
    }
    return metrics.Facts(**(given | more))  # type: ignore[arg-type]


def samples(page: bytes) -> dict[tuple[str, str], float]:
    return {
        (sample.name, ",".join(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(page.decode())
        for sample in family.samples
    }


def test_the_page_tells_what_the_scoreboard_has(tmp_path: Path) -> None:
    for name in ("192.0.2.1", "2001:db8::1", ".192.0.2.2.1.1.1"):
        (tmp_path / name).touch()
    made = facts(tmp_path)
    for number, counter in enumerate(Counter):
        made.board.add(counter, number + 1)
    found = samples(metrics.page(made))
    assert found["appliance_refused_total", "lock"] == Counter.REJECT_LOCK + 1
    assert found["appliance_found_total", "virus"] == Counter.VIRUSES + 1
    assert found["appliance_messages_total", ""] == Counter.MESSAGES + 1
    assert (found["appliance_sessions", "0"], found["appliance_sessions", "1"]) == (1, 0)
    assert found["appliance_locks", ""] == 2
    assert (found["appliance_scanner_up", "clamd"], found["appliance_scanner_up", "spamassassin"]) == (1, 0)
    assert found["appliance_worker_crashes_total", ""] == 1
    names = {name for name, _ in found}
    assert names == {measure.full_name for measure in metrics.METRICS}


def test_what_cannot_be_known_is_left_out(tmp_path: Path) -> None:
    found = samples(metrics.page(facts(tmp_path / "missing", scanners=None)))
    assert not {"appliance_locks", "appliance_scanner_up"} & {name for name, _ in found}


def test_names_are_such_that_prometheus_takes_them() -> None:
    names = [measure.full_name for measure in metrics.METRICS]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"appliance_[a-z_]+", name) for name in names)


class ServedMetrics(Served):
    """The server, with a page of the test's."""

    def __init__(self) -> None:
        self.port = free_port()
        self.page = b"x 1\n"
        address = SocketAddress(None, "localhost", self.port)
        super().__init__(MetricsServer(address, self._page, Log("debug", "mail", stderr=True)))

    async def _page(self) -> bytes:
        return self.page

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), 10)

    def say(self, words: bytes) -> bytes:
        with self.connect() as client:
            client.sendall(words)
            return heard(client)


def heard(client: socket.socket) -> bytes:
    answer = b""
    try:
        while piece := client.recv(65536):
            answer += piece
    except ConnectionResetError:
        pass
    return answer


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[ServedMetrics]:
    monkeypatch.setattr(http, "_ASKED_WITHIN", 0.3)
    monkeypatch.setattr(http, "_ANSWERED_WITHIN", 0.3)
    made = ServedMetrics()
    yield made
    made.close()


GET = b"GET /metrics HTTP/1.1\r\nHost: gw\r\n\r\n"


@pytest.mark.option("metrics_listen")
def test_the_page_is_served(served: ServedMetrics) -> None:
    head, _, body = served.say(GET).partition(b"\r\n\r\n")
    assert body == b"x 1\n"
    assert head.startswith(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n")
    assert served.say(b"HEAD /metrics?x=1 HTTP/1.0\r\n\r\n").endswith(
        b"Content-Length: 4\r\nConnection: close\r\n\r\n"
    )
    assert served.say(b"GET / HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 404 ")
    assert served.say(b"POST /metrics HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 405 ")


def test_whoever_speaks_something_else_or_is_slow_is_cut_off(served: ServedMetrics) -> None:
    served.page = b"x" * 8_000_000
    deaf = served.connect()
    deaf.sendall(GET)
    silent = served.connect()
    served.page = b"x 1\n"
    assert served.say(b"x" * 20_000) == b""
    assert served.say(b"\r\n\r\n").startswith(b"HTTP/1.1 405 ")
    began = time.monotonic()
    assert served.say(GET).endswith(b"x 1\n")
    assert time.monotonic() - began < 0.3
    assert heard(silent) == b""
    time.sleep(0.5)
    assert len(heard(deaf)) < 8_000_000
    for client in (deaf, silent):
        client.close()


def test_a_crowd_is_turned_away(served: ServedMetrics) -> None:
    crowd = [served.connect() for _ in range(100)]
    assert all(
        heard(client) == b"" for client in crowd
    )  # the last at once, the first when their time is over
    for client in crowd:
        client.close()
    assert served.say(GET).endswith(b"x 1\n")


def test_a_port_that_is_taken_costs_the_metrics_alone(
    served: ServedMetrics, capfd: pytest.CaptureFixture[str]
) -> None:
    async def try_it(address: SocketAddress) -> None:
        server = MetricsServer(address, lambda: asyncio.sleep(0, b""), Log("debug", "mail", stderr=True))
        await server.open()
        server.close()

    for address in (
        SocketAddress(None, "127.0.0.1", served.port),
        SocketAddress(Path("/run/x")),
        SocketAddress(None, "nowhere.invalid", 9),
    ):
        asyncio.run(try_it(address))
        assert f"metrics_listen {address}: " in capfd.readouterr().err
