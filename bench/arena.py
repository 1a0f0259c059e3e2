"""Where the benchmark takes place: one lab host with a mail sink, and HAProxy and the gateway when wanted.

Mail goes smtp-source -> contender -> smtp-sink over the loopback of one network namespace: no wire and no
other load, so what differs between contenders is the contender. Who has no turn sleeps.

The kernel steers a client to a gateway worker by its address, so one client would keep one worker busy. As
smtp-source cannot choose its source address, the host's own routing does it: a connection to one of a host's
own addresses comes from that same address. So the load is split among as many smtp-source processes as there
are addresses in `clients`, and each connects to an address of its own, where all contenders listen (they are
bound to every address). The addresses are picked so that each worker owns equally many. All contenders get
the same processes, addresses and sessions; HAProxy spreads connections over its threads by itself.
"""

import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from types import TracebackType
from typing import Self

from appliance.bpf.steering import worker_of
from lab import image
from lab.clients import smtp_source
from lab.gateway import Gateway, Options
from lab.host import Host
from lab.process import LabError
from lab.run_directory import RunDirectory
from lab.servers import HAProxy, SmtpSink

WORKERS = 2  # of the gateway, and threads of HAProxy
CLIENTS_PER_WORKER = 2
FIRST_CLIENT = IPv4Address("10.77.1.10")
SESSIONS = 12_000  # at once, that a contender or the sink has to bear
SINK_PORT, HAPROXY_PORT, GATEWAY_PORT = 25, 9198, 9199
TICKS = os.sysconf("SC_CLK_TCK")

# Everything that a session meets without a scanner or a resolver is on: early talk, locks, the header.
# connect_queue is as long as HAProxy's: from a short one the kernel drops clients that come all at once.
OPTIONS: Options = {
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
    "max_connections": SESSIONS,
    "connect_queue": 4096,
}


@dataclass(frozen=True)
class Workload:
    """`messages` of `length` bytes over `sessions` parallel sessions, `kept` for the next message or not.

    Length 0 is for options of smtp-source that say what is sent.
    """

    name: str
    messages: int
    length: int
    sessions: int
    kept: bool
    options: tuple[str, ...] = ()


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

    def cpu(self) -> float:
        """CPU time, user and system, that its processes with all their threads have spent so far."""
        return sum(map(cpu_seconds, self.processes))

    def memory(self) -> int:
        """Bytes of memory that its processes occupy; what several share counts once."""
        rollups = (Path(f"/proc/{pid}/smaps_rollup").read_text() for pid in self.processes)
        return 1024 * sum(int(text.partition("\nPss:")[2].split()[0]) for text in rollups)


class Arena:
    """The host with addresses and the sink, up and warm. `close` leaves nothing behind."""

    def __init__(self) -> None:
        if os.geteuid():
            raise LabError("the benchmark makes namespaces and mounts on the machine: run it as root")
        self._directory = RunDirectory("bench")
        self.host = Host("mail", self._directory.path, image.require())
        try:
            self.host.ready()
            self._address()
            sink = SmtpSink(self.host, sessions=SESSIONS)
            self.server, sink.address = sink.ipv4, "0.0.0.0"
            sink.start()
        except BaseException:
            self.close()
            raise
        self.direct = Contender("direct", SINK_PORT, ())

    def _address(self) -> None:
        """Give the host addresses, and ports enough for thousands of connections that have just ended."""
        with self.host.netlink() as netlink:
            netlink.link("add", ifname="eth0", kind="veth", peer={"ifname": "unused"})
        self.host.link_up("eth0")
        self.host.sysctl("net/ipv4/ip_local_port_range", "10000 65535")
        self.host.sysctl("net/ipv4/tcp_tw_reuse", "1")
        self.clients = [str(client) for client in balanced(FIRST_CLIENT, WORKERS, CLIENTS_PER_WORKER)]
        for client in self.clients:
            self.host.add_address(f"{client}/32")  # of a common network the first would speak for all
            with self.host.netlink() as netlink:
                (way,) = netlink.route("get", dst=client)
            if way.get("prefsrc") != client:
                raise LabError(f"connections to {client} would come from {way.get('prefsrc')}")

    @contextmanager
    def haproxy(self, server_port: int = SINK_PORT, *, options: tuple[str, ...] = ()) -> Iterator[Contender]:
        """Run HAProxy before a port of the host; `options` are lines of its section `defaults`."""
        server = (self.server, server_port)
        relay = HAProxy(self.host, server, port=HAPROXY_PORT, threads=WORKERS, options=options).start()
        assert relay.process
        try:
            yield Contender("HAProxy", HAPROXY_PORT, (relay.process.pid,))
        finally:
            relay.stop()

    @contextmanager
    def gateway(self, options: Options | None = None) -> Iterator[Contender]:
        """Run the gateway with these options besides the usual ones."""
        gateway = self.unstarted_gateway(options)
        try:
            yield contender(gateway.start())
        finally:
            gateway.close()

    def unstarted_gateway(self, options: Options | None = None) -> Gateway:
        """Give a gateway that has yet to be started, and closed in the end."""
        return Gateway(self.host, OPTIONS | {"fixed_server": self.server} | (options or {}))

    def run(self, workload: Workload, through: Contender) -> Sample:
        """Send a workload through a contender; LabError if a single message was not accepted."""
        before = through.cpu()
        seconds = send(self.host, self.clients, through.port, workload)
        parts = len(self.clients)
        messages = workload.messages // parts * parts
        return Sample(messages / seconds, 1e6 * (through.cpu() - before) / messages)

    def close(self) -> None:
        """End everything. May be called twice."""
        self.host.close()
        self._directory.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def contender(gateway: Gateway) -> Contender:
    """Give a running gateway as something mail can go through."""
    assert gateway.process
    port = int(gateway.options["port"] or 0)
    return Contender("gateway", port, (gateway.process.pid, *gateway.workers()))


def send(host: Host, servers: Sequence[str], port: int, workload: Workload) -> float:
    """Send a workload, an equal part to each address; give the seconds it took.

    LabError if a single message was not accepted.
    """
    parts = len(servers)
    begin = time.monotonic()
    with ThreadPoolExecutor(parts) as pool:
        loads = [
            pool.submit(
                smtp_source,
                host,
                server,
                port=port,
                messages=workload.messages // parts,
                sessions=max(min(workload.sessions, workload.messages) // parts, 1),
                length=workload.length,
                options=(("-d",) if workload.kept else ()) + workload.options,
            )
            for server in servers
        ]
    for load in loads:
        load.result()
    return time.monotonic() - begin


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
