"""The gate on the lab's router, with real clients: drops and fan-out."""

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from ipaddress import IPv4Address, ip_address
from pathlib import Path

import pytest

from appliance.bpf.locks import dropped
from appliance.bpf.pinned import Gate
from appliance.config import Address
from lab.gateway import Options
from lab.host import Host
from lab.network import CLIENT4, CLIENT6, MAIL4, MAIL6, PUBLIC_CLIENT4, Network
from lab.process import wait_until
from tests.lab.conftest import GatewayFactory
from tests.lab.gate import locks_of, standing

pytestmark = pytest.mark.lab

SERVERS = [f"198.51.100.{last}" for last in range(30, 230)]
SUBMISSION = 587
PROBE = """
table inet probe {
    chain arrived {
        type filter hook prerouting priority -400; policy accept;
        iifname "lan" tcp dport 25 tcp flags & (syn|ack) == syn counter
    }
}
"""


@pytest.fixture
def arrived(network: Network) -> Iterator["Arrived"]:
    yield (counter := Arrived(network.router))
    counter.close()


class Arrived:
    """Counts the SYNs to port 25 that come to the stack: the first that nft sees, before connections are."""

    def __init__(self, router: Host) -> None:
        self.router = router
        router.run(["nft", "-f", "-"], input=PROBE)

    def packets(self) -> int:
        told = json.loads(self.router.run(["nft", "-j", "list", "table", "inet", "probe"]).stdout)
        (rule,) = (entry["rule"] for entry in told["nftables"] if "rule" in entry)
        return int(next(part["counter"]["packets"] for part in rule["expr"] if "counter" in part))

    def close(self) -> None:
        self.router.run(["nft", "delete", "table", "inet", "probe"])


def knock(network: Network, source: str, target: str, port: int = 25) -> bool:
    """Begin a connection; tell whether anybody answered, be it with a refusal."""
    try:
        network.client.connect((target, port), source=source, timeout=0.3).close()
    except ConnectionRefusedError:
        return True
    except TimeoutError:
        return False
    return True


def carries_bulk(network: Network) -> bool:
    """Send what comes to the interface in packets of 64 kB, which a program has to be ready for."""
    data = os.urandom(1 << 20) * 8
    received = bytearray()
    with network.mail.listen((MAIL4, 2525)) as listener:

        def receive() -> None:
            connection, _ = listener.accept()
            with connection:
                while part := connection.recv(1 << 16):
                    received.extend(part)

        thread = threading.Thread(target=receive)
        thread.start()
        with network.client.connect((MAIL4, 2525), source=CLIENT4) as sender:
            sender.sendall(data)
        thread.join(20)
    return received == data


@pytest.mark.option("xdp")
@pytest.mark.parametrize("mode", ["native", "generic"])
def test_a_locked_client_does_not_reach_the_stack(network: Network, arrived: Arrived, mode: str) -> None:
    with standing(network.router, {"lock_talk": 0}, mode) as gate:
        assert ("xdpgeneric" in gate.link()) == (mode == "generic")
        assert "name gate" in gate.link()
        assert carries_bulk(network)
        locks = locks_of(gate)
        for source, target in ((CLIENT4, MAIL4), (CLIENT6, MAIL6)):
            locks.add(ip_address(source), None)
            before = arrived.packets()
            assert not knock(network, source, target)
            assert arrived.packets() == before
            assert dropped(gate.pins)[ip_address(source)] >= 1
            locks.remove(ip_address(source))
            assert knock(network, source, target)
            assert arrived.packets() == before + 1
        locks.close()


class StartTlsServers:
    """Mail servers at many addresses of the mail host, where little is said before all is encrypted."""

    def __init__(self, mail: Host) -> None:
        with mail.netlink() as netlink:
            index = netlink.link_lookup(ifname="eth0")[0]
            for server in SERVERS:
                netlink.addr("replace", index=index, address=server, prefixlen=24)
        self._listener = mail.listen(("0.0.0.0", SUBMISSION), backlog=512)
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()
        self.mail = mail
        self.greeted = 0

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except TimeoutError:
                continue
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                connection.settimeout(2)
                for words in (b"220 ready", b"250-here\r\n250 STARTTLS", b"220 go on"):
                    connection.sendall(words + b"\r\n")
                    connection.recv(512)
                self.greeted += 1

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(15)
        with self.mail.netlink() as netlink:
            index = netlink.link_lookup(ifname="eth0")[0]
            for server in SERVERS:
                netlink.addr("del", index=index, address=server, prefixlen=24)


@pytest.fixture(scope="module")
def servers(network: Network) -> Iterator[StartTlsServers]:
    made = StartTlsServers(network.mail)
    yield made
    made.close()


def begin_tls(network: Network, source: str, targets: list[str]) -> None:
    """Speak STARTTLS to each server and go away where the encrypted part would begin."""
    for target in targets:
        with network.client.connect((target, SUBMISSION), source=source) as connection:
            for words in (b"EHLO bot\r\n", b"STARTTLS\r\n", b"\x16\x03\x01"):
                connection.recv(512)
                connection.sendall(words)


def locked(directory: Path) -> list[str]:
    return sorted(entry.name for entry in directory.iterdir())


@pytest.mark.option("lock_on", "fanout_limit", "fanout_period")
@pytest.mark.usefixtures("servers")
def test_a_bot_that_only_speaks_tls_is_locked_and_others_are_not(
    network: Network, gateway: GatewayFactory
) -> None:
    script = network.directory / "told"
    script.write_text(f'#!/bin/sh\necho "$FOUND $SOURCE_IP $LOCK_FILE" >> {script}.out\n')
    script.chmod(0o755)
    told = Path(f"{script}.out")
    told.touch()
    told.chmod(0o666)
    options: Options = {
        "lock_on": "virus,fanout",
        "fanout_limit": 100,
        "fanout_period": 60,
        "lan_interfaces": "lan",
        "trusted_clients": PUBLIC_CLIENT4,
        "lock_talk": 0,
    }
    with standing(network.router, options) as gate:
        running = gateway({**options, "action_script": str(script)})
        begin_tls(network, PUBLIC_CLIENT4, SERVERS)  # the network's own mail server, which is trusted
        begin_tls(network, CLIENT4, SERVERS[:20])  # somebody who writes to friends
        begin_tls(network, CLIENT4, SERVERS[:20])
        time.sleep(1)
        assert locked(running.locks) == []
        with Gate(gate.pins) as counting:
            found = counting.client(IPv4Address(CLIENT4), 60)
            assert found
            assert found.syns == 40
            assert 17 <= found.servers <= 21  # some share a bit by chance
        begun = time.monotonic()
        begin_tls(network, CLIENT4, SERVERS)
        wait_until(lambda: locked(running.locks) == [CLIENT4], 5, "a lock on the bot")
        assert time.monotonic() - begun < 20
        cause = (running.locks / CLIENT4).read_text()
        assert cause.startswith("FANOUT about 1")
        assert "mail servers in 60 s" in cause
        running.wait_log(f"LOCK:CREATED lock=.*/{CLIENT4}, src={CLIENT4}.*FANOUT")
        wait_until(told.read_text, 5, "the action script")
        assert told.read_text() == f"FANOUT {CLIENT4} {running.locks / CLIENT4}\n"
        locks = locks_of(gate)
        wait_until(lambda: IPv4Address(CLIENT4) in dropped(gate.pins), 5, "the lock in the gate")
        assert not knock(network, CLIENT4, MAIL4)
        assert dropped(gate.pins)[IPv4Address(CLIENT4)] >= 1
        (running.locks / CLIENT4).unlink()
        wait_until(lambda: IPv4Address(CLIENT4) not in dropped(gate.pins), 5, "the lock gone from the gate")
        locks.close()


def test_a_gate_that_comes_later_is_used(network: Network, gateway: GatewayFactory) -> None:
    options: Options = {"lock_on": "fanout", "lan_interfaces": "lan", "fanout_limit": 7}
    running = gateway(options)
    running.wait_log("FANOUT:BLIND .*appliance-ctl up")
    lock = running.locks / CLIENT4
    lock.write_text("by hand\n")
    os.chown(lock, running.locks.stat().st_uid, -1)
    for _ in range(2):  # up, down, and another one
        with standing(network.router, options) as gate:
            locks = locks_of(gate)
            wait_until(lambda: IPv4Address(CLIENT4) in dropped(gate.pins), 10, "the lock in the gate")
            locks.close()
            there = running.mirrors()
            with Gate(gate.pins) as found:
                assert found.is_configured(gate.config())
                running.reload({"fanout_limit": 9})
                wait_until(lambda: not found.is_configured(gate.config()), 5, "a new limit")
                running.reload({"fanout_limit": 7})
                wait_until(lambda: found.is_configured(gate.config()), 5, "the old limit")
            time.sleep(0.6)  # two looks at the gate
            assert running.mirrors() == there  # it is the same gate: the locks need not be read anew


def test_fifty_thousand_locks(network: Network) -> None:
    clients: dict[Address, tuple[float | None, str]] = {
        IPv4Address(0x0A000000 + number): (None, "") for number in range(50_000)
    }
    with standing(network.router, {"lock_talk": 0}) as gate:
        locks = locks_of(gate)
        begun = time.monotonic()
        locks.replace(clients)
        took = time.monotonic() - begun
        assert len(dropped(gate.pins)) == 50_000
        locks.add(IPv4Address(CLIENT4), time.time() + 60)
        assert not knock(network, CLIENT4, MAIL4)
        locks.remove(IPv4Address(CLIENT4))
        assert knock(network, CLIENT4, MAIL4)
        begun = time.monotonic()
        locks.replace(clients)
        again = time.monotonic() - begun
        locks.replace({})
        assert dropped(gate.pins) == {}
        locks.close()
    assert took < 3
    assert again < 3
