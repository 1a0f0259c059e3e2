"""What the benchmark found: medians, a table for people, JSON for programs, and the machine it ran on."""

import os
import platform
import re
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from rich.table import Table

from bench.arena import Sample, Workload
from lab.host import Host

BAR = 0.7  # of HAProxy's messages per second; a workload in which the gateway does less falls short

Samples = dict[str, list[Sample]]  # by contender, one for each round


@dataclass(frozen=True)
class Line:
    """One contender in one workload. Ratios are medians of what each round, which shares its noise, gave."""

    workload: str
    contender: str
    rate: float
    to_direct: float
    to_haproxy: float
    cpu: float
    spread: tuple[float, float]  # slowest and fastest round, in messages per second

    @property
    def verdict(self) -> str:
        """Whether the gateway reaches the bar; nothing for the others."""
        if self.contender != "gateway":
            return ""
        return "pass" if self.to_haproxy >= BAR else "falls short"


def lines(workload: Workload, samples: Samples) -> list[Line]:
    """Reduce the rounds of one workload to a line for each contender."""
    return [
        Line(
            workload.name,
            contender,
            statistics.median(sample.rate for sample in own),
            _ratio(own, samples["direct"]),
            _ratio(own, samples["HAProxy"]),
            statistics.median(sample.cpu for sample in own),
            (min(sample.rate for sample in own), max(sample.rate for sample in own)),
        )
        for contender, own in samples.items()
    ]


def _ratio(own: Sequence[Sample], other: Sequence[Sample]) -> float:
    return statistics.median(mine.rate / theirs.rate for mine, theirs in zip(own, other, strict=True))


def table(found: Sequence[Line], rounds: int) -> Table:
    """Lay the lines out for a person."""
    made = Table("workload", "through", title=f"median of {rounds} round{'s' * (rounds > 1)}")
    for heading in ("messages/s", "slowest .. fastest", "of HAProxy", "of direct", "CPU µs/message"):
        made.add_column(heading, justify="right")
    made.add_column(f"bar {BAR}")
    colours = {"pass": "[green]", "falls short": "[bold red]", "": ""}
    for line in found:
        first = line.contender == "direct"
        if first and made.row_count:
            made.add_section()
        made.add_row(
            line.workload if first else "",
            line.contender,
            f"{line.rate:,.0f}",
            f"{line.spread[0]:,.0f} .. {line.spread[1]:,.0f}",
            "" if first else f"{line.to_haproxy:.2f}",
            f"{line.to_direct:.2f}",
            "" if first else f"{line.cpu:,.0f}",
            f"{colours[line.verdict]}{line.verdict}",
        )
    return made


def markdown(found: Sequence[Line], rounds: int, machine: dict[str, str]) -> str:
    """Lay everything out as a page to keep: what was measured, where, and what came out."""
    out = [
        "# Benchmarks\n",
        "Messages per second from smtp-source through each contender to smtp-sink, in one run on one",
        f"machine; medians of {rounds} rounds. Scanning is off; header, early talk and locks are on; the log",
        "is at notice. HAProxy relays TCP without looking, with as many threads as the gateway has workers.",
        "Written by `make bench`; `python -m bench --help` tells more.\n",
        "| | |\n|---|---|",
        *(f"| {name} | {value} |" for name, value in machine.items()),
        "\n| workload | through | messages/s | of HAProxy | of direct | CPU us/message | bar |",
        "|---|---|---|---|---|---|---|",
    ]
    for line in found:
        rate, cpu = f"{line.rate:,.0f}", f"{line.cpu:,.0f}"
        ratios = f"{line.to_haproxy:.2f} | {line.to_direct:.2f}"
        out.append(f"| {line.workload} | {line.contender} | {rate} | {ratios} | {cpu} | {line.verdict} |")
    return "\n".join(out) + "\n"


def as_json(found: Sequence[Line], rounds: int, machine: dict[str, str]) -> dict[str, object]:
    """Give all of it as plain data; rates in messages per second, CPU time in microseconds per message."""
    rows = [asdict(line) | {"verdict": line.verdict} for line in found]
    return {"machine": machine, "rounds": rounds, "bar": BAR, "results": rows}


def describe(host: Host) -> dict[str, str]:
    """Say what this machine is and which versions ran."""
    processor = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    haproxy = host.run(["haproxy", "-v"]).stdout.split(" 20")[0].replace("HAProxy version ", "")
    postfix = host.run(["postconf", "-d", "-h", "mail_version"]).stdout.strip()
    return {
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cores": f"{len(os.sched_getaffinity(0))} x {processor[1] if processor else 'unknown'}",
        "load before": f"{os.getloadavg()[0]:.2f}",
        "Python": platform.python_version(),
        "uvloop": version("uvloop"),
        "HAProxy": haproxy,
        "smtp-source, smtp-sink": f"Postfix {postfix}",
    }
