"""Mail per second: smtp-source -> direct, HAProxy or the gateway -> smtp-sink."""

import dataclasses
from statistics import median

from bench.arena import Arena
from bench.load import Sample, Workload
from bench.row import Effort, Row

WORKLOADS = (
    Workload("2 kB mail, kept sessions", 20_000, 2_000, 200, kept=True),
    Workload("2 kB mail, one per connection", 10_000, 2_000, 100, kept=False),
    Workload("1 MB mail", 400, 1_000_000, 4, kept=True),
)
BAR = 1.0  # of HAProxy's messages per second


def measure(arena: Arena, effort: Effort) -> list[Row]:
    """Send each workload through each contender in each round.

    They take turns, and the order moves on from round to round, so that a machine that is busy with something
    else for a while is busy for all of them.
    """
    rows = []
    with arena.haproxy() as haproxy, arena.gateway() as gateway:
        contenders = (arena.direct, haproxy, gateway)
        for workload in WORKLOADS:
            scaled = dataclasses.replace(workload, messages=effort.of(workload.messages, len(arena.clients)))
            samples: dict[str, list[Sample]] = {contender.name: [] for contender in contenders}
            for number in range(effort.rounds):
                first = number % len(contenders)
                for contender in contenders[first:] + contenders[:first]:
                    sample = arena.run(scaled, contender)
                    samples[contender.name].append(sample)
                    effort.tell(f"{workload.name}, {contender.name}: {sample.rate:,.0f} a second")
            rows.append(row(workload.name, samples))
    return rows


def row(name: str, samples: dict[str, list[Sample]]) -> Row:
    """Put the rounds of one workload into a row; what it cost, and the rate without a relay, besides."""
    mine, theirs = samples["gateway"], samples["HAProxy"]
    cost, other = (median(sample.cpu for sample in own) for own in (mine, theirs))
    direct = median(sample.rate for sample in samples["direct"])
    return Row(
        name,
        "mails/s",
        "HAProxy",
        tuple((own.rate, other.rate) for own, other in zip(mine, theirs, strict=True)),
        BAR,
        note=f"CPU {cost:,.0f} µs a mail, HAProxy {other:,.0f}; direct {direct:,.0f} mails/s",
    )
