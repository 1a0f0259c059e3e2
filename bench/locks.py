"""python -m bench.locks: how soon a lock drops, and what a flood of locked clients costs all others.

Everything as in the lab: the gateway on the router with its rules and its lock mirror, first without other
locks, then with 50,000 of them. For the flood 20 locked clients send SYNs at a bounded rate while mail of
others is timed; rounds take turns with rounds in which the same packets are made, but end at the sender,
because making them costs processor time, too, where all hosts share the processors.
"""

import json
import os
import pwd
import select
import socket
import statistics
import struct
import sys
import time
from ipaddress import IPv4Address
from typing import Annotated

import typer

from lab import router
from lab.clients import smtp_source
from lab.gateway import USER, Gateway, Options
from lab.kernel import Kernel, flood, lock
from lab.network import PUBLIC_CLIENT4, Network
from lab.process import LabError, wait_until
from lab.servers import SmtpSink

OPTIONS: Options = {
    "antivirus_type": "off",
    "antispam_type": "off",
    "log_level": "notice",
    "lock_talk": 0,
    "max_per_host": 0,
}
NOWHERE = "192.0.2.1"  # an address to which no packet leaves the client's host
FLOODERS = [f"10.77.1.{number}" for number in range(100, 120)]


def main(
    locks: Annotated[
        int, typer.Option(help="How many locks there are beside the one that is timed.")
    ] = 50_000,
    tries: Annotated[int, typer.Option(min=1, help="How often a lock is made and removed.")] = 30,
    messages: Annotated[int, typer.Option(help="Mails in a round of the flood; 0 for no flood.")] = 2000,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of the flood.")] = 3,
    rate: Annotated[int, typer.Option(help="SYNs a second of all locked clients together.")] = 5000,
) -> None:
    """Print the figures as JSON."""
    try:
        with Network("bench-locks") as network:
            print(json.dumps(measure(network, locks, tries, messages, rounds, rate), indent=2))
    except LabError as error:
        print(f"the lab failed: {error}", file=sys.stderr)
        sys.exit(2)


def measure(
    network: Network, locks: int, tries: int, messages: int, rounds: int, rate: int
) -> dict[str, object]:
    """Measure all of it."""
    sink = SmtpSink(network.mail).start()
    kernel = Kernel(network.router)
    gateway = Gateway(network.router, OPTIONS).start()
    router.intercept(network.router, "tproxy")
    router.release(network.router)  # the routes stay, the rules are the appliance's own
    kernel.install(gateway.options)
    lock(gateway, PUBLIC_CLIENT4)
    kernel.wait_locked(PUBLIC_CLIENT4)  # the mirror has seen the rules
    (gateway.locks / PUBLIC_CLIENT4).unlink()
    kernel.wait_locked()
    found: dict[str, object] = {"one_lock_ms": reaction(network, gateway, sink.address, tries)}
    if messages:
        for source in FLOODERS:
            lock(gateway, source)
        found["flood"] = flooded(network, gateway, sink.address, messages, rounds, rate)
    if locks:
        found["locks"] = locks
        found["until_all_are_in_the_kernel_s"] = round(fill(gateway, kernel, locks), 2)
        time.sleep(2)
        found["one_more_lock_ms"] = reaction(network, gateway, sink.address, tries)
    kernel.close()
    gateway.close()
    return found


def fill(gateway: Gateway, kernel: Kernel, count: int) -> float:
    """Make so many locks; give the seconds from the first file to the last element."""
    account = pwd.getpwnam(USER)
    begin = time.monotonic()
    for number in range(count):
        path = gateway.locks / str(IPv4Address("100.64.0.0") + number)
        path.write_text("VIRUS Eicar-Test-Signature\n")
        os.chown(path, account.pw_uid, account.pw_gid)
    wait_until(
        lambda: len(kernel.locked()) >= count, 120, "all locks in the kernel", 2
    )  # to look takes time, too
    return time.monotonic() - begin


def reaction(network: Network, gateway: Gateway, server: str, tries: int) -> dict[str, float]:
    """Time from a lock's file to the first SYN that is dropped, and from rm to the first that passes.

    In milliseconds, from before the file is touched to the sending of the SYN.
    """
    to_drop, to_passage = [], []
    for _ in range(tries):
        begin = time.monotonic()
        path = lock(gateway, PUBLIC_CLIENT4)
        to_drop.append(first_syn(network, server, answered=False) - begin)
        begin = time.monotonic()
        path.unlink()
        to_passage.append(first_syn(network, server, answered=True) - begin)
    return {
        "to_drop": _milliseconds(statistics.median(to_drop)),
        "to_drop_worst": _milliseconds(max(to_drop)),
        "to_passage": _milliseconds(statistics.median(to_passage)),
        "to_passage_worst": _milliseconds(max(to_passage)),
    }


def first_syn(network: Network, server: str, *, answered: bool) -> float:
    """Send SYNs of the client that is locked and unlocked; give when the first was sent that fared so.

    One that has no answer within 5 ms counts as dropped.
    """
    for _ in range(1000):
        with network.client.open_socket(socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            probe.setblocking(False)
            probe.bind((PUBLIC_CLIENT4, 0))
            begin = time.monotonic()
            probe.connect_ex((server, 25))
            if bool(select.select([], [probe], [], 0.005)[1]) == answered:
                return begin
    raise LabError("the kernel did not follow the lock file")


def flooded(
    network: Network, gateway: Gateway, server: str, messages: int, rounds: int, rate: int
) -> dict[str, float]:
    """Time mail while locked clients flood, against mail while the same packets end at their sender."""
    drop = f"ip daddr {NOWHERE} drop"
    chain = f"chain out {{ type filter hook output priority 0; {drop}; }}\n"
    network.client.run(["nft", "-f", "-"], input=f"table inet nowhere {{ {chain} }}")
    rates: dict[str, list[float]] = {NOWHERE: [], server: []}
    for _ in range(rounds):
        for target, found in rates.items():
            attack = flood(network.client, FLOODERS, target, each=1_000_000, rate=rate)
            time.sleep(0.5)  # until its program has started
            found.append(smtp_source(network.client, server, messages=messages, sessions=10).rate)
            attack.kill()
    before = gateway.processor_time()
    attack = flood(network.client, FLOODERS, server, each=3 * rate // len(FLOODERS), rate=rate)
    attack.wait(20)
    return {
        "syns_a_second": rate,
        "mails_a_second": round(statistics.median(rates[NOWHERE])),
        "mails_a_second_in_flood": round(statistics.median(rates[server])),
        "ratio": round(
            statistics.median(
                there / nowhere for there, nowhere in zip(rates[server], rates[NOWHERE], strict=True)
            ),
            3,
        ),
        "processor_seconds_of_gateway_in_3_s_of_flood_alone": round(gateway.processor_time() - before, 2),
    }


def _milliseconds(seconds: float) -> float:
    return round(1000 * seconds, 1)


if __name__ == "__main__":
    typer.run(main)
