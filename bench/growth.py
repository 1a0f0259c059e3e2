"""What lies about: mail with many known clients, locks and trusted networks, next to mail without any.

Two labs with the kernel's rules, the gateway on the router between clients and sink: one as new, the other
with all of that, in the gateway and, as far as it belongs there, in the kernel. They take turns, and who has
no turn is stopped.
"""

import os
import pwd
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial
from ipaddress import IPv4Address
from pathlib import Path

from appliance.config import Config
from appliance.proxy.quota import Limits, Record
from appliance.proxy.records import FILE, Records, row_of
from bench import arena
from bench.arena import FIRST_CLIENT, SINK_PORT, WORKERS, Arena
from bench.load import Workload, balanced, send
from bench.row import Effort, Row, there_and_back
from lab import router
from lab.gateway import USER, Gateway, Options
from lab.kernel import Kernel
from lab.network import Network
from lab.process import wait_until
from lab.servers import SmtpSink

CLIENTS, LOCKS, TRUSTED = 100_000, 50_000, 10_000
WORKLOADS = (
    Workload("2 kB, kept sessions", 10_000, 2_000, 200, kept=True),
    Workload("2 kB, one per connection", 5_000, 2_000, 100, kept=False),
)
BAR = 0.95  # of the mails without
_BATCH = 10_000  # records written at a time
_CALM = 0.05  # seconds of processor time in a second: what a settled gateway may still do

OPTIONS: Options = {
    **{name: value for name, value in arena.OPTIONS.items() if name != "fixed_server_port"},
    "mode": "tproxy",
}


class Site:
    """A lab with a gateway on its router, and sessions from clients of both workers."""

    def __init__(self, name: str, leaving: ExitStack) -> None:
        self.network = network = leaving.enter_context(Network(f"bench-{name}"))
        network.client.sysctl("net/ipv4/ip_local_port_range", "10000 65535")
        network.client.sysctl("net/ipv4/tcp_tw_reuse", "1")
        clients = balanced(FIRST_CLIENT, WORKERS, arena.CLIENTS_PER_WORKER)
        self.servers = [f"198.51.100.{number}" for number, _ in enumerate(clients, 101)]
        sink = SmtpSink(network.mail)
        sink.address = "0.0.0.0"
        for client, server in zip(clients, self.servers, strict=True):
            network.client.add_address(f"{client}/24")
            network.mail.add_address(f"{server}/24")
            with network.client.netlink() as netlink:  # who sends there is this client
                netlink.route("add", dst=f"{server}/32", gateway="10.77.1.1", prefsrc=str(client))
        sink.start()
        self.records = network.directory / "ratelimit"
        self.records.mkdir()
        self.kernel = Kernel(network.router)
        leaving.callback(self.kernel.close)

    def start(self, trusted: Sequence[str] = (), locks: int = 0) -> None:
        """Start the gateway when its rules are in the kernel and its locks in their directory."""
        options: Options = {
            **OPTIONS,
            "ratelimit_path": str(self.records),
            "trusted_clients": ",".join(trusted) or None,
        }
        self.gateway = Gateway(self.network.router, options)
        own(self.records, *self.records.iterdir())
        router.intercept(self.network.router, "tproxy")
        router.release(self.network.router)  # the routes stay, the rules are the appliance's own
        self.kernel.install(self.gateway.options)
        for number in range(locks):
            lock = self.gateway.locks / str(IPv4Address("100.64.0.0") + number)
            lock.write_text("VIRUS Eicar-Test-Signature\n")
            own(lock)
        self.gateway.start()
        wait_until(lambda: len(self.kernel.locked()) == locks, 180, f"{locks} locks in the kernel", pause=2)
        self.settle()

    def settle(self) -> None:
        """Wait until the gateway has nothing more to do."""

        def calm() -> bool:
            before = self.gateway.processor_time()
            time.sleep(1)
            return self.gateway.processor_time() - before < _CALM

        wait_until(calm, 120, "a calm gateway")

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Keep the gateway from doing anything."""
        assert self.gateway.process
        _, *children = self.gateway.processes()
        self.gateway.process.signal(signal.SIGSTOP)
        for pid in children:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            self.gateway.process.signal(signal.SIGCONT)
            for pid in children:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    def seconds(self, workload: Workload) -> float:
        """Send a workload; give the time it took."""
        return send(self.network.client, self.servers, SINK_PORT, workload)


def measure(_: Arena, effort: Effort) -> list[Row]:
    """Fill one of two gateways, and let both work."""
    with ExitStack() as leaving:
        empty, full = Site("empty", leaving), Site("full", leaving)
        empty.start()
        fill(full, effort)
        return [compare(empty, full, workload, effort) for workload in WORKLOADS]


def fill(site: Site, effort: Effort) -> None:
    """Let a gateway know clients and trust networks, and lock others."""
    begin = time.monotonic()
    know(site.records, effort.of(CLIENTS))
    trusted = [f"{IPv4Address('10.128.0.0') + 256 * number}/24" for number in range(effort.of(TRUSTED))]
    site.start(trusted, effort.of(LOCKS))
    effort.tell(f"known clients, trusted networks and locks made in {time.monotonic() - begin:.0f} s")


def know(directory: Path, count: int) -> None:
    """Write the records of so many clients."""
    limits, now = Limits.of(Config()), time.time()
    names = [str(IPv4Address("100.72.0.0") + number) for number in range(count)]
    with Records(directory, create=True) as records:
        for first in range(0, count, _BATCH):
            records.save([row_of(Record(name, limits, now)) for name in names[first : first + _BATCH]])
    assert (directory / FILE).exists()


def own(*paths: Path) -> None:
    """Give files to the gateway's user."""
    account = pwd.getpwnam(USER)
    for path in paths:
        os.chown(path, account.pw_uid, account.pw_gid)


def compare(empty: Site, full: Site, workload: Workload, effort: Effort) -> Row:
    """Let both send the same, in turns."""
    load = replace(workload, messages=effort.of(workload.messages, 4))
    found = []
    for site in (empty, full):
        site.seconds(replace(load, messages=effort.of(load.messages // 10, 4)))  # what loads late, loads now

    def turn(site: Site, other: Site) -> float:
        with other.stopped():
            return site.seconds(load)

    for _ in range(effort.rounds):
        mine, theirs = there_and_back(partial(turn, full, empty), partial(turn, empty, full))
        found.append((2 * load.messages / mine, 2 * load.messages / theirs))
        effort.tell("{}: {:,.0f} a second, {:,.0f} with nothing about".format(workload.name, *found[-1]))
    note = "{:,} known clients, {:,} locks, {:,} trusted networks".format(
        *map(effort.of, (CLIENTS, LOCKS, TRUSTED))
    )
    return Row(f"{workload.name}, much known", "mails/s", "without", tuple(found), BAR, note=note)
