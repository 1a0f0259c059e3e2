"""python -m bench: run the workloads through all contenders, round by round, and print the table.

Contenders take turns within a round, and the order moves on from round to round, so that a machine that is
busy with something else for a while is busy for all of them. Exit status 1 if the gateway falls short of the
bar, 2 if nothing could be measured.
"""

import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from bench import report
from bench.arena import Arena, Workload
from lab.image import ImageError
from lab.process import LabError

WORKLOADS = (
    Workload("2 kB, kept sessions", 20_000, 2_000, 200, kept=True),
    Workload("2 kB, one per connection", 10_000, 2_000, 100, kept=False),
    Workload("1 MB", 400, 1_000_000, 4, kept=True),
)
QUICK = 0.1  # the part of the mail that --quick sends


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    rounds: Annotated[int, typer.Option(min=1, help="How often everything is measured; medians count.")] = 3,
    quick: Annotated[bool, typer.Option(help=f"One round with {QUICK:.0%} of the mail.")] = False,
    share: Annotated[float, typer.Option(min=0.0, max=1.0, help="The part of the mail to send.")] = 1.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of the table.")] = False,
    store: Annotated[Path | None, typer.Option(help="Also write the results to this file.")] = None,
) -> None:
    """Measure messages per second: smtp-source -> direct, HAProxy or the gateway -> smtp-sink."""
    if quick:
        rounds, share = 1, share * QUICK
    progress = Console(stderr=True)
    begin = time.monotonic()
    try:
        with Arena() as arena:
            machine = report.describe(arena.host)
            workloads = [scaled(workload, share, len(arena.clients)) for workload in WORKLOADS]
            found = [line for workload in workloads for line in measure(arena, workload, rounds, progress)]
    except (LabError, ImageError) as error:
        progress.print(f"the lab failed: {error}", style="red", markup=False)
        sys.exit(2)
    if store:
        store.write_text(report.markdown(found, rounds, machine))
    if as_json:
        print(json.dumps(report.as_json(found, rounds, machine), indent=2))
    else:
        out = Console(width=None if sys.stdout.isatty() else 132, highlight=False)
        for name, value in machine.items():
            out.print(f"{name:>23}: {value}", markup=False)
        out.print(report.table(found, rounds))
        out.print(f"{time.monotonic() - begin:.0f} s")
    sys.exit(any(line.verdict == "falls short" for line in found))


def scaled(workload: Workload, share: float, parts: int) -> Workload:
    """Give the workload with a share of its messages, but one for each smtp-source process at least."""
    return dataclasses.replace(workload, messages=max(round(workload.messages * share), parts))


def measure(arena: Arena, workload: Workload, rounds: int, progress: Console) -> list[report.Line]:
    """Send one workload through every contender in each round."""
    samples: report.Samples = {contender.name: [] for contender in arena.contenders}
    for number in range(rounds):
        first = number % len(arena.contenders)
        for contender in arena.contenders[first:] + arena.contenders[:first]:
            sample = arena.run(workload, contender)
            samples[contender.name].append(sample)
            progress.print(
                f"round {number + 1}, {workload.name}, {contender.name}: {sample.rate:,.0f} messages/s"
            )
    return report.lines(workload, samples)


if __name__ == "__main__":
    app()
