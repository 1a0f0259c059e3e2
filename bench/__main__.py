"""python -m bench: measure everything, round by round, and print the table.

Exit status 1 if a row falls short of its bar, 2 if something could not be measured.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from bench import direct, growth, idle, latency, life, mail, report, scans
from bench.arena import Arena
from bench.row import Effort, Row
from lab.image import ImageError
from lab.process import LabError

PARTS: dict[str, Callable[[Arena, Effort], list[Row]]] = {
    "mail": mail.measure,
    "latency": latency.measure,
    "idle": idle.measure,
    "scans": scans.measure,
    "direct": direct.measure,
    "growth": growth.measure,
    "life": life.measure,
}
QUICK = 0.1  # the part of the work that --quick does


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    only: Annotated[
        list[str] | None, typer.Option(help=f"A part to measure; all are {', '.join(PARTS)}.")
    ] = None,
    rounds: Annotated[
        int, typer.Option(min=1, help="How often everything is measured; the middle one counts.")
    ] = 3,
    quick: Annotated[bool, typer.Option(help=f"One round with {QUICK:.0%} of the work.")] = False,
    share: Annotated[float, typer.Option(min=0.0, max=1.0, help="The part of the work to do.")] = 1.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of the table.")] = False,
    store: Annotated[
        Path | None, typer.Option(help="Also write the results to this file, and a plot beside it.")
    ] = None,
) -> None:
    """Measure the gateway, next to HAProxy where both do the same, against the bars it has to reach."""
    if unknown := set(only or ()) - set(PARTS):
        raise typer.BadParameter(f"no such part: {', '.join(unknown)}")
    if quick:
        rounds, share = 1, share * QUICK
    progress = Console(stderr=True, highlight=False)
    effort = Effort(rounds, share, lambda words: progress.print(words, markup=False))
    begin = time.monotonic()
    try:
        with Arena() as arena:
            machine = report.describe(arena.host) | {"rounds": f"{rounds}, each with {share:.0%} of the work"}
            rows = [row for name in only or PARTS for row in PARTS[name](arena, effort)]
    except (LabError, ImageError) as error:
        progress.print(f"the lab failed: {error}", style="red", markup=False)
        sys.exit(2)
    if as_json:
        print(json.dumps(report.as_json(rows, rounds, machine), indent=2))
    else:
        out = Console(width=None if sys.stdout.isatty() else 150, highlight=False)
        for name, value in machine.items():
            out.print(f"{name:>23}: {value}", markup=False)
        out.print(report.table(rows, rounds))
        for row in rows:
            if row.note:
                out.print(f"{row.name}: {row.note}", markup=False)
        out.print(f"{time.monotonic() - begin:.0f} s")
    if store:
        report.store(store, rows, rounds, machine)
    sys.exit(any(not row.passes for row in rows))


if __name__ == "__main__":
    app()
