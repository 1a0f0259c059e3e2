"""Locks in the kernel: from a file in the lock directory to packets that are dropped, and back.

The gateway with its lock mirror and the rules that it is installed with, on the lab's router.
"""

import os
import pwd
import select
import socket
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lab import router
from lab.gateway import USER, Gateway, Options
from lab.host import Host
from lab.kernel import Kernel, flood, lock
from lab.network import CLIENT4, CLIENT6, PUBLIC_CLIENT4, PUBLIC_CLIENT6, Network
from lab.process import wait_until
from tests.lab.conftest import GatewayFactory
from tests.lab.scripted import ScriptedServer, Talk

pytestmark = pytest.mark.lab

NET_ADMIN = 1 << 12
CLIENTS = (CLIENT4, CLIENT6, PUBLIC_CLIENT4, PUBLIC_CLIENT6)
SERVER6 = "2001:db8:25::48"


@pytest.fixture
def server6(network: Network) -> Iterator[ScriptedServer]:
    network.mail.add_address(f"{SERVER6}/64")
    server = ScriptedServer(network.mail.listen((SERVER6, 25)))
    yield server
    server.close()


@pytest.fixture
def appliance(
    network: Network, gateway: GatewayFactory, kernel: Kernel
) -> Callable[[Options | None], Gateway]:
    """Start a gateway with its rules in the kernel: appliance({"lock_talk": 3})."""

    def start(options: Options | None = None) -> Gateway:
        running = gateway({"lock_talk": 0, **(options or {})})
        router.release(network.router)  # of what the lab would do; its routes stay
        kernel.install(running.options)
        return running

    return start


def segments(network: Network) -> int:
    """How many TCP segments the sockets of the router were given."""
    names, values = (
        line.split()
        for line in Path(f"/proc/{network.router.pid}/net/snmp").read_text().splitlines()
        if line.startswith("Tcp:")
    )
    return int(dict(zip(names, values, strict=True))["InSegs"])


def requests(gateway: Gateway) -> str:
    return next(line for line in gateway.status().splitlines() if line.startswith("Requests"))


def begin_connecting(host: Host, source: str, server: str) -> socket.socket:
    made = host.open_socket(socket.AF_INET6 if ":" in source else socket.AF_INET)
    made.setblocking(False)
    made.bind((source, 0))
    made.connect_ex((server, 25))
    return made


def connected(tries: list[socket.socket], seconds: float) -> list[socket.socket]:
    """Wait that long for connections; give those that came about."""
    end, made = time.monotonic() + seconds, []
    left = list(tries)
    while left and (rest := end - time.monotonic()) > 0:
        _, ready, _ = select.select([], left, [], rest)
        made += [each for each in ready if each.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0]
        left = [each for each in left if each not in ready]
    return made


Appliance = Callable[[Options | None], Gateway]


@pytest.mark.parametrize("mode", ["tproxy", "netfilter", "tproxy,netfilter"])
def test_a_locked_clients_packets_do_not_reach_the_routers_sockets(
    network: Network,
    server: ScriptedServer,
    server6: ScriptedServer,
    appliance: Appliance,
    kernel: Kernel,
    mode: str,
) -> None:
    running = appliance({"mode": mode})
    places = {client: (server6 if ":" in client else server).address[0] for client in CLIENTS}
    for client, place in places.items():
        with Talk(network.client.connect((place, 25), source=client)) as talk:
            talk.greet()
        lock(running, client)
    kernel.wait_locked(*CLIENTS)
    quiet(network)
    before, asked = segments(network), requests(running)
    tries = [begin_connecting(network.client, client, place) for client, place in places.items()]
    assert connected(tries, 1.3) == []
    for each in tries:
        each.close()
    assert segments(network) == before
    assert requests(running) == asked
    for client, element in kernel.locked().items():
        assert element.packets == 2, client  # one SYN, and once more after a second
        assert element.bytes > 80
    for client in CLIENTS:
        (running.locks / client).unlink()
    kernel.wait_locked()
    for client, place in places.items():
        with Talk(network.client.connect((place, 25), source=client)) as talk:
            talk.greet()


def quiet(network: Network) -> None:
    """Wait for the last segments of connections that are over."""
    seen = [-1]

    def same() -> bool:
        seen.append(segments(network))
        return seen[-1] == seen[-2]

    wait_until(same, 5, "no more segments", 0.15)


def test_from_file_to_drop_and_from_rm_to_passage_it_takes_less_than_50_ms(
    appliance: Appliance, kernel: Kernel
) -> None:
    running = appliance(None)
    to_drop, to_passage = [], []
    for _ in range(9):
        begin = time.monotonic()
        path = lock(running, CLIENT4)
        kernel.wait_locked(CLIENT4)
        to_drop.append(time.monotonic() - begin)
        begin = time.monotonic()
        path.unlink()
        kernel.wait_locked()
        to_passage.append(time.monotonic() - begin)
    assert statistics.median(to_drop) < 0.05
    assert statistics.median(to_passage) < 0.05


@pytest.mark.option("lock_talk", "msg_virus_locked")
@pytest.mark.parametrize("client", [CLIENT4, PUBLIC_CLIENT6])
def test_as_many_connections_a_minute_as_lock_talk_says_are_told_why(
    network: Network,
    server: ScriptedServer,
    server6: ScriptedServer,
    appliance: Appliance,
    kernel: Kernel,
    client: str,
) -> None:
    words = "your computer is locked out; see http://help.example.test/"
    running = appliance({"lock_talk": 3, "msg_virus_locked": words})
    lock(running, client)
    kernel.wait_locked(client)
    place = SERVER6 if ":" in client else server.address[0]
    tries = [begin_connecting(network.client, client, place) for _ in range(10)]
    told = connected(tries, 0.8)
    assert len(told) == 3
    for each in told:
        assert Talk(each).rest() == f"554 gw.example.test {words}\r\n".encode()
    for each in tries:
        each.close()
    assert kernel.locked()[client].packets >= 7
    assert not server.talks
    assert not server6.talks


@pytest.mark.option("lock_talk")
def test_a_session_of_a_client_that_is_locked_ends_at_its_next_end_of_message(
    network: Network, server: ScriptedServer, appliance: Appliance, kernel: Kernel
) -> None:
    running = appliance({"msg_virus_locked": "locked out"})
    with Talk(network.client.connect(server.address, source=CLIENT4)) as talk:
        assert talk.greet().begin().finish().startswith("250")
        talk.begin()
        lock(running, CLIENT4)
        kernel.wait_locked(CLIENT4)
        assert talk.finish() == "451 4.4.0 locked out"
        assert talk.rest() == b""
    assert kernel.locked()[CLIENT4].packets == 0
    assert len(server.messages) == 1


@pytest.mark.option("trusted_clients")
def test_a_trusted_client_is_not_locked(
    network: Network, server: ScriptedServer, appliance: Appliance, kernel: Kernel
) -> None:
    running = appliance({"trusted_clients": "10.77.1.0/24"})
    lock(running, CLIENT4)
    lock(running, CLIENT6)
    kernel.wait_locked(CLIENT6)
    kernel.nft(f"add element inet appliance locked4 {{ {CLIENT4} }}")  # not even by hand
    before = requests(running)
    with Talk(network.client.connect(server.address, source=CLIENT4)) as talk:
        talk.greet()
    assert requests(running) == before
    kernel.wait_locked(CLIENT6)


def test_locks_survive_flushed_sets_and_restarts(appliance: Appliance, kernel: Kernel) -> None:
    running = appliance(None)
    lock(running, CLIENT4)
    gone = lock(running, CLIENT6)
    kernel.wait_locked(CLIENT4, CLIENT6)
    kernel.nft("flush set inet appliance locked4")
    kernel.wait_locked(CLIENT4, CLIENT6)
    kernel.install(running.options)
    kernel.wait_locked(CLIENT4, CLIENT6)
    left = kernel.locked()[CLIENT4].remaining
    kernel.nft(
        f"delete element inet appliance locked4 {{ {CLIENT4} }}\n"
        f"add element inet appliance locked4 {{ {CLIENT4} counter packets 7 bytes 420 timeout {left}s "
        'comment "VIRUS Eicar" }'
    )
    assert running.terminate() == 0
    assert set(kernel.locked()) == {CLIENT4, CLIENT6}  # while no gateway runs
    gone.unlink()
    lock(running, PUBLIC_CLIENT4, "SPAM")
    running.start()
    kernel.wait_locked(CLIENT4, PUBLIC_CLIENT4)
    assert kernel.locked()[CLIENT4].packets == 7
    assert kernel.locked()[PUBLIC_CLIENT4].comment == "SPAM"


def test_a_mirror_that_is_killed_is_started_again(appliance: Appliance, kernel: Kernel) -> None:
    running = appliance(None)
    lock(running, CLIENT4)
    kernel.wait_locked(CLIENT4)
    (pid,) = running.mirrors()
    os.kill(pid, 9)
    running.wait_log("LOCK:KERNEL why=the mirror ended")
    lock(running, CLIENT6)
    wait_until(lambda: set(kernel.locked()) == {CLIENT4, CLIENT6}, 10, "another mirror")
    running.reload({"lock_duration": 0})
    kernel.wait_locked()


@pytest.mark.parametrize("mode", [0o000, 0o400, 0o600])
def test_locks_stay_while_their_directory_cannot_be_read(
    appliance: Appliance, kernel: Kernel, mode: int
) -> None:
    """As after a chmod -R gone wrong: neither a mirror that runs nor one that starts lets anybody in."""
    running = appliance(None)
    gone = lock(running, CLIENT4)
    lock(running, CLIENT6)
    kernel.wait_locked(CLIENT4, CLIENT6)
    permissions = running.locks.stat().st_mode
    running.locks.chmod(mode)
    gone.unlink()
    running.wait_log(r"LOCK:KERNEL why=.*Permission denied: .*locks stay")
    (pid,) = running.mirrors()
    os.kill(pid, 9)
    running.wait_log(r"(?s)LOCK:KERNEL why=the mirror ended.*LOCK:KERNEL why=.*Permission denied")
    time.sleep(1.2)
    assert set(kernel.locked()) == {CLIENT4, CLIENT6}
    running.locks.chmod(permissions)
    kernel.wait_locked(CLIENT6)
    assert running.log.count("locks stay") == 2  # each mirror says so once


def test_the_mirror_may_change_rules_and_nothing_else(appliance: Appliance, kernel: Kernel) -> None:
    running = appliance(None)
    lock(running, CLIENT4)
    kernel.wait_locked(CLIENT4)
    (pid,) = running.mirrors()
    account = pwd.getpwnam(USER)
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    facts = {name: value.split() for name, _, value in (line.partition(":") for line in lines)}
    assert set(facts["Uid"]) == {str(account.pw_uid)}
    assert set(facts["Gid"]) == {str(account.pw_gid)}
    assert facts["NoNewPrivs"] == ["1"]
    held = {name: int(facts[name][0], 16) for name in ("CapPrm", "CapEff", "CapInh", "CapBnd", "CapAmb")}
    assert held == {"CapPrm": NET_ADMIN, "CapEff": NET_ADMIN, "CapInh": 0, "CapBnd": 0, "CapAmb": 0}
    running.close()
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), 5, "the mirror's end with its supervisor")


@pytest.mark.option("chroot_path", "lock_path")
def test_locks_in_a_chroot_are_mirrored(network: Network, appliance: Appliance, kernel: Kernel) -> None:
    root = network.directory / "locks-root"
    account = pwd.getpwnam(USER)
    for directory in (root, root / "msg", root / "lock"):
        directory.mkdir()
        os.chown(directory, account.pw_uid, account.pw_gid)
    running = appliance({"chroot_path": str(root), "spool_path": "/msg", "lock_path": "/lock"})
    running.locks = root / "lock"
    lock(running, CLIENT4)
    kernel.wait_locked(CLIENT4)


def test_a_flood_of_locked_clients_costs_the_gateway_nothing(
    network: Network, server: ScriptedServer, appliance: Appliance, kernel: Kernel
) -> None:
    running = appliance(None)
    sources = [f"10.77.1.{number}" for number in range(100, 120)]
    for source in sources:
        lock(running, source)
    kernel.wait_locked(*sources)
    quiet(network)
    time.sleep(0.5)
    before, reached, asked = running.processor_time(), segments(network), requests(running)
    assert flood(network.client, sources, server.address[0], each=500).wait(10) == 0
    assert {kernel.locked()[source].packets for source in sources} == {500}
    assert segments(network) == reached
    assert running.processor_time() - before <= 0.1  # what it does when nothing happens
    assert requests(running) == asked
    with Talk(network.client.connect(server.address, source=CLIENT4)) as talk:
        assert talk.greet().begin().finish().startswith("250")
