"""What the benchmark found: a table for people, JSON for programs, a page to keep, and the machine."""

import os
import platform
import re
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from rich.table import Table

from bench import plot
from bench.row import Row
from lab.host import Host

_HEADINGS = ("measured", "gateway", "compared with", "ratio", "bar", "verdict")
_COLOURS = {"pass": "green", "falls short": "bold red"}


def table(rows: Sequence[Row], rounds: int) -> Table:
    """Lay the rows out for a person."""
    made = Table(title=f"the middle one of {rounds} rounds" if rounds > 1 else "one round")
    for heading in _HEADINGS:
        made.add_column(heading, justify="right" if heading in ("gateway", "ratio") else "left")
    for row in rows:
        *texts, verdict = row.texts()
        made.add_row(*texts, f"[{_COLOURS[verdict]}]{verdict}")
    return made


def store(page: Path, rows: Sequence[Row], rounds: int, machine: dict[str, str]) -> None:
    """Write a page and, beside it, its plot. Raises OSError."""
    picture = page.with_suffix(".svg")
    picture.write_text(plot.svg(rows))
    page.write_text(_markdown(rows, rounds, machine, picture.name))


def _markdown(rows: Sequence[Row], rounds: int, machine: dict[str, str], picture: str) -> str:
    out = [
        "# Benchmarks\n",
        f"Written by `make bench`: {rounds} rounds in one run on one machine, of which each row shows the",
        "middle one. [performance.md](performance.md) tells how each row is measured, and why one falls",
        "short.\n",
        "| | |\n|---|---|",
        *(f"| {name} | {value} |" for name, value in machine.items()),
        f"\n| {' | '.join(_HEADINGS)} | besides |",
        "|---" * (len(_HEADINGS) + 1) + "|",
        *(f"| {' | '.join((*row.texts(), row.note))} |" for row in rows),
        f"\n![How far each row comes; right of the line is better than the bar]({picture})",
    ]
    return "\n".join(out) + "\n"


def as_json(rows: Sequence[Row], rounds: int, machine: dict[str, str]) -> dict[str, object]:
    """Give all of it as plain data."""
    found = [
        asdict(row) | {"gateway": row.gateway, "other": row.other, "ratio": row.ratio, "verdict": row.verdict}
        for row in rows
    ]
    return {"machine": machine, "rounds": rounds, "rows": found}


def describe(host: Host) -> dict[str, str]:
    """Say what this machine is and which versions ran."""
    processor = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    haproxy = host.run(["haproxy", "-v"]).stdout.split(" 20")[0].replace("HAProxy version ", "")
    postfix = host.run(["postconf", "-d", "-h", "mail_version"]).stdout.strip()
    clamd = host.run(["clamd", "--config-file=/dev/null", "--version"]).stdout.strip().removeprefix("ClamAV ")
    return {
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cores": f"{len(os.sched_getaffinity(0))} x {processor[1] if processor else 'unknown'}",
        "load before": f"{os.getloadavg()[0]:.2f}",
        "Python": platform.python_version(),
        "uvloop": version("uvloop"),
        "HAProxy": haproxy,
        "smtp-source, smtp-sink": f"Postfix {postfix}",
        "clamd": clamd,
    }
