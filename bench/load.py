"""What is sent, from whom, and through what: workloads, the load programs, and the processes between.

The parts of the benchmark call this; hosts and servers are `arena.py`'s or their own.
"""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

from appliance.bpf.steering import worker_of
from lab.clients import smtp_source
from lab.gateway import Gateway
from lab.host import Host
from lab.process import processor_time


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
        return sum(map(processor_time, self.processes))

    def memory(self) -> int:
        """Bytes of memory that its processes occupy; what several share counts once."""
        rollups = (Path(f"/proc/{pid}/smaps_rollup").read_text() for pid in self.processes)
        return 1024 * sum(int(text.partition("\nPss:")[2].split()[0]) for text in rollups)


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
