"""Mail per second: smtp-source -> direct, HAProxy or the gateway -> smtp-sink."""

from collections import defaultdict
from dataclasses import replace
from functools import partial
from statistics import median

from bench.arena import Arena
from bench.load import Contender, Workload
from bench.row import Effort, Row, there_and_back

WORKLOADS = (
    Workload("2 kB mail, kept sessions", 20_000, 2_000, 200, kept=True),
    Workload("2 kB mail, one per connection", 10_000, 2_000, 100, kept=False),
    Workload("1 MB mail", 400, 1_000_000, 4, kept=True),
)
BAR = 1.0  # of HAProxy's messages per second


def measure(arena: Arena, effort: Effort) -> list[Row]:
    """Send each workload through both in each round, there and back, and past them in the end.

    HAProxy is a tenth slower in its first seconds of mail after somebody else's. So who comes next to whom
    must be the same for both, and mail without a relay waits until they are done.
    """
    with arena.haproxy() as haproxy, arena.gateway() as gateway:
        return [compare(arena, effort, workload, (gateway, haproxy)) for workload in WORKLOADS]


def compare(arena: Arena, effort: Effort, workload: Workload, both: tuple[Contender, Contender]) -> Row:
    """Measure one workload; what a mail cost, and the rate without a relay, stand besides."""
    load = replace(workload, messages=effort.of(workload.messages, len(arena.clients)))
    costs: dict[str, list[float]] = defaultdict(list)

    def rate(through: Contender) -> float:
        sample = arena.run(load, through)
        costs[through.name].append(sample.cpu)
        effort.tell(f"{workload.name}, {through.name}: {sample.rate:,.0f} a second")
        return sample.rate

    turns = [partial(rate, each) for each in both]
    found = []
    for _ in range(effort.rounds):
        mine, theirs = there_and_back(*turns)
        found.append((mine / 2, theirs / 2))
    direct = median(rate(arena.direct) for _ in range(effort.rounds))
    cost, other = (median(costs[each.name]) for each in both)
    note = f"CPU {cost:,.0f} µs a mail, HAProxy {other:,.0f}; direct {direct:,.0f} mails/s"
    return Row(workload.name, "mails/s", "HAProxy", tuple(found), BAR, note=note)
