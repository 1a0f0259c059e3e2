"""Large mail, slow peers and crowds: a worker's memory stays within bounds and other mail passes.

SLOW=1 .venv/bin/pytest -m lab tests/lab/test_memory.py -k slow_server   sends 200 MB at 1 MB/s, in 200 s.
"""

import contextlib
import os
import re
import resource
import selectors
import socket
import sys
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest

from appliance.bpf.steering import worker_of
from lab.clients import swaks
from lab.gateway import Gateway, Options
from lab.namespace import inside
from lab.network import CLIENT4, Network
from lab.process import wait_until
from lab.servers import Clamd, Postfix
from tests.lab.conftest import GatewayFactory
from tests.lab.scripted import ScriptedServer, Talk, server_on

pytestmark = [pytest.mark.lab, pytest.mark.timeout(400)]

MB = 1_000_000
BOUND = 20 * MB  # by which a worker may grow
LINES = (b"x" * 98 + b"\r\n") * 10_000  # one MB of message


@pytest.fixture
def server(network: Network) -> Iterator[ScriptedServer]:
    server = server_on(network.mail, 42)
    yield server
    server.close()


def resident(pid: int, what: str = "VmRSS") -> int:
    """Give the memory of a process in bytes, now (VmRSS) or at its peak (VmHWM)."""
    found = re.search(rf"^{what}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found
    return int(found[1]) * 1024


class Growth:
    """The memory of the worker that serves a client, from when this is made."""

    def __init__(self, gateway: Gateway, client: str = CLIENT4) -> None:
        mine = f"--index\0{worker_of(ip_address(client), 2)}\0"
        workers = gateway.workers()
        self._pid = next(pid for pid in workers if mine in Path(f"/proc/{pid}/cmdline").read_text())
        Path(f"/proc/{self._pid}/clear_refs").write_text("5")  # the peak becomes what there is now
        self._before = resident(self._pid)

    def peak(self) -> int:
        """Give the most it ever had more than in the beginning."""
        return resident(self._pid, "VmHWM") - self._before


def taking(rate: Callable[[int], float]) -> Callable[[Talk], bool]:
    """Make a hook for DATA that reads a message without keeping it, `rate(bytes so far)` bytes a second."""

    def hook(talk: Talk) -> bool:
        talk.say("354 go on")
        size, end, due = 0, b"", time.monotonic()
        while end != b"\r\n.\r\n":
            piece = talk.socket.recv(65536)
            if not piece:
                raise EOFError
            size += len(piece)
            end = (end + piece)[-5:]
            due = max(due + len(piece) / rate(size), time.monotonic() - 0.1)
            time.sleep(max(due - time.monotonic(), 0))
        talk.say(f"250 2.0.0 took {size}")
        return True

    return hook


def post(client: Talk, megabytes: int) -> int:
    """Send a message; give how many bytes the server took."""
    client.greet().begin()
    for _ in range(megabytes):
        client.send(LINES)
    client.socket.settimeout(300)
    answer = client.finish("")
    assert answer.startswith("250 2.0.0 took"), answer
    return int(answer.split()[-1])


def start(gateway: GatewayFactory, clamd: Clamd | None, **options: str | int) -> Gateway:
    scanning: Options = {"antivirus_type": "clamd", "antivirus_path": str(clamd.socket)} if clamd else {}
    return gateway({"scan_max_size": 10 * MB, "log_level": "info", **scanning, **options})


@pytest.fixture(params=["scanning", "not scanning"])
def scanner(request: pytest.FixtureRequest, clamd: Clamd) -> Clamd | None:
    return clamd if request.param == "scanning" else None


def dial(network: Network, server: ScriptedServer) -> Talk:
    return Talk(network.client.connect(server.address, source=CLIENT4))


def test_a_large_mail(
    network: Network, server: ScriptedServer, gateway: GatewayFactory, scanner: Clamd | None
) -> None:
    running = start(gateway, scanner)
    server.hooks["DATA"] = taking(lambda _: 1e12)
    with dial(network, server) as client:
        post(client, 1)
    growth = Growth(running)
    begin = time.monotonic()
    with dial(network, server) as client:
        assert post(client, 200) > 200 * MB
    seconds = time.monotonic() - begin
    print(f"200 MB at {200 / seconds:.0f} MB/s, the worker grew by {growth.peak() / MB:.1f} MB")
    assert growth.peak() < BOUND
    assert ("SCAN:SKIPPED" in running.log) == (scanner is not None)


def test_a_large_mail_to_a_slow_server(
    network: Network, server: ScriptedServer, gateway: GatewayFactory, clamd: Clamd
) -> None:
    running = start(gateway, clamd)
    slow = 200 * MB if os.environ.get("SLOW") else 6 * MB  # bytes that the server takes slowly
    server.hooks["DATA"] = taking(lambda size: MB if size < slow else 1e12)
    growth = Growth(running)
    with dial(network, server) as client:
        assert post(client, 200) > 200 * MB
    print(f"the worker grew by {growth.peak() / MB:.1f} MB")
    assert growth.peak() < BOUND


def test_a_client_that_does_not_read_replies(
    network: Network, server: ScriptedServer, gateway: GatewayFactory
) -> None:
    reply = "214-" + "\r\n214-".join(["x" * 90] * 10_000) + "\r\n214 end"

    def help_at_length(talk: Talk) -> bool:
        with contextlib.suppress(TimeoutError):
            talk.say(reply)
        return True

    running = start(gateway, None)
    server.hooks["HELP"] = help_at_length
    growth = Growth(running)
    with dial(network, server) as client:
        client.greet()
        client.say(*["HELP"] * 100)  # 100 MB of replies
        time.sleep(3)
        print(f"the worker grew by {growth.peak() / MB:.1f} MB")
        assert growth.peak() < BOUND
        for _ in range(100):
            assert client.reply() == "214 end"
        assert client.ask("NOOP").startswith("250")
    assert growth.peak() < BOUND


CROWD = 10_000
CROWDED = [f"10.77.1.{number}" for number in range(200, 220)]


class Crowd:
    """Connections that say nothing, from twenty addresses, and a mute server that holds the other ends."""

    def __init__(self, network: Network, port: tuple[str, int]) -> None:
        for address in CROWDED:
            network.client.add_address(f"{address}/24")
        self.members = inside(
            network.client.namespace, lambda: [self._connect(port, n) for n in range(CROWD)]
        )

    @staticmethod
    def _connect(target: tuple[str, int], number: int) -> socket.socket:
        member = socket.socket()
        member.bind((CROWDED[number % len(CROWDED)], 0))
        member.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            member.connect(target)
        return member

    def heard(self, seconds: float) -> list[bytes]:
        """Give what each has been told, once all were told something or the time is over."""
        told = [b""] * CROWD
        deadline = time.monotonic() + seconds
        with selectors.EpollSelector() as selector:
            for number, member in enumerate(self.members):
                selector.register(member, selectors.EVENT_READ, number)
            while selector.get_map() and (left := deadline - time.monotonic()) > 0:
                for key, _ in selector.select(left):
                    selector.unregister(key.fileobj)
                    with contextlib.suppress(OSError):
                        told[key.data] = self.members[key.data].recv(1000)
        return told

    def leave(self) -> None:
        for member in self.members:
            member.close()


HALL = ("198.51.100.44", 25)
HALL_PROGRAM = f"""
import asyncio, resource

async def greet(reader, writer):
    writer.write(b"220 hall.example.test ESMTP\\r\\n")
    await reader.read()
    writer.close()

async def serve():
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    server = await asyncio.start_server(greet, *{HALL}, backlog=4096)
    print("open", flush=True)
    await server.serve_forever()

asyncio.run(serve())
"""


@pytest.fixture(scope="module")
def hall(network: Network) -> Iterator[tuple[str, int]]:
    """The address of a server that greets any number of clients and then says nothing."""
    _, hard = before = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < CROWD + 3 * CROWD // 4:  # the worker with more of the clients has two for each
        pytest.skip(f"the kernel allows {hard} open files here (RLIMIT_NOFILE), too few for a crowd")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    network.mail.add_address(f"{HALL[0]}/24")
    program = network.mail.start([sys.executable, "-c", HALL_PROGRAM], log="hall")
    program.wait_output("open")
    yield HALL
    program.kill()
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_silent_crowd_does_not_stop_a_mail(
    network: Network, postfix: Postfix, hall: tuple[str, int], gateway: GatewayFactory
) -> None:
    limits = {"max_connections": 12_000, "max_per_host": 1000, "connect_queue": 4096}
    running = start(gateway, None, **limits)
    pids = running.workers()
    before = sum(resident(pid) for pid in pids)
    begin = time.monotonic()
    crowd = Crowd(network, hall)
    try:
        told = crowd.heard(30)
        seconds = time.monotonic() - begin
        each = (sum(resident(pid) for pid in pids) - before) / CROWD
        print(f"{CROWD} sessions in {seconds:.1f} s, {each / 1000:.1f} kB each")
        assert all(line.startswith(b"220 hall") for line in told)
        sent = swaks(network.client, postfix.ipv4, subject="through the crowd")
        assert sent.accepted, sent.transcript
        assert each < 40_000
    finally:
        crowd.leave()
    wait_until(lambda: "Children:      0/" in running.status(), 20, "an empty gateway", 0.2)


@pytest.mark.parametrize(
    ("limits", "counted"),
    [
        ({"max_connections": 500, "max_per_host": 400}, 6),
        ({"max_connections": 12_000, "max_per_host": 10}, 0),
    ],
    ids=["max_connections", "max_per_host"],
)
def test_a_crowd_beyond_the_limits_is_refused(
    network: Network,
    postfix: Postfix,
    hall: tuple[str, int],
    gateway: GatewayFactory,
    limits: dict[str, str | int],
    counted: int,
) -> None:
    running = start(gateway, None, lock_on="never", connect_queue=4096, **limits)
    crowd = Crowd(network, hall)
    try:
        told = crowd.heard(30)
        admitted = sum(line.startswith(b"220") for line in told)
        assert admitted == min(int(limits["max_connections"]), len(CROWDED) * int(limits["max_per_host"]))
        assert sum(line.startswith(b"554 gw.example.test ") for line in told) == CROWD - admitted
        rejects = running.status().partition("Rejects:")[2].split()[0].split("/")
        assert int(rejects[counted]) == CROWD - admitted
        if counted:  # somebody has to leave first
            for number, line in enumerate(told):
                if line.startswith(b"220"):
                    crowd.members[number].close()
                    break
            wait_until(lambda: "Children:      499/" in running.status(), 5, "a free place", 0.2)
        sent = swaks(network.client, postfix.ipv4, subject="beside the crowd")
        assert sent.accepted, sent.transcript
    finally:
        crowd.leave()
