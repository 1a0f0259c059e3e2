"""Where the benchmark takes place: one lab host with a mail sink, HAProxy and the gateway.

Mail goes smtp-source -> contender -> smtp-sink over the loopback of one network namespace: no wire and no
other load, so what differs between contenders is the contender. All are up the whole time; who has no turn
sleeps.

The kernel steers a client to a gateway worker by its address, so one client would keep one worker busy. As
smtp-source cannot choose its source address, the host's own routing does it: a connection to one of a host's
own addresses comes from that same address. So the load is split among as many smtp-source processes as there
are addresses in `clients`, and each connects to an address of its own, where all contenders listen (they are
bound to every address). The addresses are picked so that each worker owns equally many. All contenders get
the same processes, addresses and sessions; HAProxy spreads connections over its threads by itself.
"""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from types import TracebackType
from typing import Self

from appliance.bpf.steering import worker_of
from lab import image
from lab.clients import smtp_source
from lab.gateway import Gateway
from lab.host import Host
from lab.process import LabError
from lab.run_directory import RunDirectory
from lab.servers import HAProxy, SmtpSink

WORKERS = 2  # of the gateway, and threads of HAProxy
CLIENTS_PER_WORKER = 2
FIRST_CLIENT = IPv4Address("10.77.1.10")
SINK_PORT, HAPROXY_PORT, GATEWAY_PORT = 25, 9198, 9199
TICKS = os.sysconf("SC_CLK_TCK")

# Everything that a session meets without a scanner or a resolver is on: early talk, locks, the header.
# connect_queue is as long as HAProxy's: from a short one the kernel drops clients that come all at once.
OPTIONS: dict[str, str | int | None] = {
    "mode": "fixed",
    "fixed_server_port": SINK_PORT,
    "port": GATEWAY_PORT,
    "workers": WORKERS,
    "log_level": "notice",
    "antivirus_type": "off",
    "antispam_type": "off",
    "earlytalk": "yes",
    "nat_header_type": "generic",
    "max_load": 0,
    "max_per_host": 0,
    "max_connections": 4096,
    "connect_queue": 4096,
}


@dataclass(frozen=True)
class Workload:
    """`messages` of `length` bytes over `sessions` parallel sessions, `kept` for the next message or not."""

    name: str
    messages: int
    length: int
    sessions: int
    kept: bool


@dataclass(frozen=True)
class Sample:
    """One run of one workload: messages per second; the contender's CPU time per message, in microseconds."""

    rate: float
    cpu: float


@dataclass(frozen=True)
class Contender:
    """Something mail can go through: the port where it listens, and its processes."""

    name: str
    port: int
    processes: tuple[int, ...]


class Arena:
    """The host and the contenders, up and warm. `close` leaves nothing behind."""

    def __init__(self) -> None:
        if os.geteuid():
            raise LabError("the benchmark makes namespaces and mounts on the machine: run it as root")
        self._directory = RunDirectory("bench")
        self.host = Host("mail", self._directory.path, image.require())
        self._gateway: Gateway | None = None
        try:
            self.host.ready()
            self._address()
            self.contenders = self._start()
        except BaseException:
            self.close()
            raise

    def _address(self) -> None:
        """Give the host addresses, and ports enough for thousands of connections that have just ended."""
        with self.host.netlink() as netlink:
            netlink.link("add", ifname="eth0", kind="veth", peer={"ifname": "unused"})
        self.host.link_up("eth0")
        self.host.sysctl("net/ipv4/ip_local_port_range", "10000 65535")
        self.host.sysctl("net/ipv4/tcp_tw_reuse", "1")
        self.clients = balanced(FIRST_CLIENT, WORKERS, CLIENTS_PER_WORKER)
        for client in self.clients:
            self.host.add_address(f"{client}/32")  # of a common network the first would speak for all
            with self.host.netlink() as netlink:
                (way,) = netlink.route("get", dst=str(client))
            if way.get("prefsrc") != str(client):
                raise LabError(f"connections to {client} would come from {way.get('prefsrc')}")

    def _start(self) -> tuple[Contender, ...]:
        sink = SmtpSink(self.host)
        server, sink.address = sink.ipv4, "0.0.0.0"
        sink.start()
        haproxy = HAProxy(self.host, (server, SINK_PORT), port=HAPROXY_PORT, threads=WORKERS).start()
        self._gateway = gateway = Gateway(self.host, OPTIONS | {"fixed_server": server}).start()

        assert haproxy.process and gateway.process
        return (
            Contender("direct", SINK_PORT, ()),
            Contender("HAProxy", HAPROXY_PORT, (haproxy.process.pid,)),
            Contender("gateway", GATEWAY_PORT, (gateway.process.pid, *gateway.workers())),
        )

    def run(self, workload: Workload, contender: Contender) -> Sample:
        """Send a workload through a contender; LabError if a single message was not accepted."""
        parts = len(self.clients)
        before = sum(map(cpu_seconds, contender.processes))
        begin = time.monotonic()
        with ThreadPoolExecutor(parts) as pool:
            loads = [
                pool.submit(
                    smtp_source,
                    self.host,
                    str(client),
                    port=contender.port,
                    messages=workload.messages // parts,
                    sessions=max(min(workload.sessions, workload.messages) // parts, 1),
                    length=workload.length,
                    options=("-d",) if workload.kept else (),
                )
                for client in self.clients
            ]
        seconds = time.monotonic() - begin
        messages = sum(load.result().messages for load in loads)
        spent = sum(map(cpu_seconds, contender.processes)) - before
        return Sample(messages / seconds, 1e6 * spent / messages)

    def close(self) -> None:
        """End everything. May be called twice."""
        if self._gateway:
            self._gateway.close()
        self.host.close()
        self._directory.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def balanced(first: IPv4Address, workers: int, each: int) -> list[IPv4Address]:
    """Give the lowest addresses from `first` on of which every worker owns `each`."""
    chosen: list[IPv4Address] = []
    owned = [0] * workers
    while len(chosen) < workers * each:
        worker = worker_of(first, workers)
        if owned[worker] < each:
            owned[worker] += 1
            chosen.append(first)
        first += 1
    return chosen


def cpu_seconds(pid: int) -> float:
    """CPU time, user and system, that a process with all its threads has spent so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS
