"""python -m bench.profile: what the time of a mail goes to in the gateway's workers, and in HAProxy.

For each workload of `bench.mail` and `bench.scans`: the CPU time of a mail, undisturbed; its shares in
kernel, interpreter and libraries, and the functions that lead outside the kernel, by perf, which asks a
thousand times a second where the processor is; and the system calls, counted by strace, under which
everything is slower. Needs perf and strace.
"""

import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import typer
from rich.console import Console
from rich.table import Table

from bench import scans
from bench.arena import Arena
from bench.load import Contender, Workload
from bench.mail import WORKLOADS
from lab.process import LabError

_FUNCTIONS, _CALLS = 12, 12  # that are shown
_TRACED = 0.5  # of the mail, under strace
_KINDS = (
    (re.compile(r"\[kernel.*|\[vdso\]|\[.*\]"), "kernel"),
    (re.compile(r"python3.*"), "interpreter"),
    (re.compile(r".*__mypyc.*|.*mypyc.*"), "compiled hot path"),
    (re.compile(r"loop\.cpython.*"), "uvloop"),
    (re.compile(r"libc[.-].*"), "libc"),
    (re.compile(r"haproxy"), "haproxy"),
)


def main(share: float = 0.3) -> None:
    """Print the profile of each workload; SHARE is the part of the mail to send."""
    try:
        with Arena() as arena:
            with arena.haproxy() as haproxy, arena.gateway() as gateway:
                workers = replace(gateway, processes=gateway.processes[1:])
                for workload in WORKLOADS:
                    count = max(round(workload.messages * share), len(arena.clients))
                    show(arena, replace(workload, messages=count), (workers, haproxy))
            clamd = scans.start_clamd(arena)
            for transfer in scans.TRANSFERS:
                with arena.gateway(scans.options(clamd, transfer)) as scanning:
                    workers = replace(scanning, processes=scanning.processes[1:])
                    show(arena, scans.workload(arena, transfer, scans.SCANS), (workers,))
    except LabError as error:
        print(f"the lab failed: {error}", file=sys.stderr)
        sys.exit(2)


def show(arena: Arena, workload: Workload, contenders: Sequence[Contender]) -> None:
    """Profile one workload."""
    out = Console(width=None if sys.stdout.isatty() else 110, highlight=False)
    few = replace(workload, messages=max(round(workload.messages * _TRACED), len(arena.clients)))
    for contender in contenders:
        arena.run(few, contender)
        cost = arena.run(workload, contender).cpu
        shares, functions = sampled(arena, workload, contender)
        made = Table(title=f"{workload.name}, {contender.name}: {cost:,.0f} µs of CPU time a mail")
        for heading in ("time in", "µs", "%", "function", "%", "system call", "a mail"):
            made.add_column(heading, justify="right" if heading in ("µs", "%", "a mail") else "left")
        times = [(name, f"{cost * part / 100:,.0f}", f"{part:.0f}") for name, part in shares]
        leading = [(name[:34], f"{part:.1f}") for name, part in functions[:_FUNCTIONS]]
        calls = [(name, f"{count:.2f}") for name, count in traced(arena, few, contender)[:_CALLS]]
        for number in range(max(len(times), len(leading), len(calls))):
            parts = ((times, 3), (leading, 2), (calls, 2))
            cells = [
                cell
                for rows, width in parts
                for cell in (rows[number] if number < len(rows) else ("",) * width)
            ]
            made.add_row(*cells)
        out.print(made)


def sampled(
    arena: Arena, workload: Workload, contender: Contender
) -> tuple[list[tuple[str, float]], list[tuple[str, float]]]:
    """Give the shares of the CPU time, in percent, by kind of code and by function, the largest first."""
    with tempfile.TemporaryDirectory() as name:
        data = Path(name) / "perf.data"
        record = ["perf", "record", "-q", "-N", "-e", "cpu-clock", "-F", "997", "-o", str(data)]
        observed(arena, workload, contender, record)
        kinds: dict[str, float] = {}
        for part, library in report(data, "dso"):
            kind = next((kind for pattern, kind in _KINDS if pattern.fullmatch(library)), "others")
            kinds[kind] = kinds.get(kind, 0.0) + part
        found = [(name.partition("[.] ")[2], part) for part, name in report(data, "symbol")]
        functions = [(name, part) for name, part in found if name]  # the kernel's are too many and too small
    return sorted(kinds.items(), key=lambda each: -each[1]), functions


def report(data: Path, key: str) -> list[tuple[float, str]]:
    """Have perf sum up by a key."""
    command = ["perf", "report", "-q", "-i", str(data), "--stdio", "--sort", key, "-t", "\t"]
    text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    found = re.findall(r"^ *([\d.]+)% *\t(\S[^\t\n]*?) *(?:\t.*)?$", text, re.MULTILINE)
    return [(float(part), name) for part, name in found]


def traced(arena: Arena, workload: Workload, contender: Contender) -> list[tuple[str, float]]:
    """Give the system calls of a mail, the most frequent first."""
    with tempfile.NamedTemporaryFile("r") as counts:
        observed(arena, workload, contender, ["strace", "-c", "-f", "-o", counts.name])
        lines = counts.read().splitlines()[2:-2]
    parts = len(arena.clients)
    messages = workload.messages // parts * parts
    calls = [(fields[-1], int(fields[3]) / messages) for fields in map(str.split, lines)]
    return sorted(calls, key=lambda each: -each[1])


def observed(arena: Arena, workload: Workload, contender: Contender, observer: Sequence[str]) -> None:
    """Run a workload while another program looks at all of a contender's processes."""
    if observer[0] == "perf":
        targets = ["-p", ",".join(map(str, contender.processes))]
    else:
        targets = [word for pid in contender.processes for word in ("-p", str(pid))]
    with subprocess.Popen([*observer, *targets], stderr=subprocess.PIPE, text=True) as program:
        try:
            program.wait(0.5)
        except subprocess.TimeoutExpired:
            arena.run(workload, contender)
            program.send_signal(signal.SIGINT)
        else:
            raise LabError(f"{observer[0]} ended: {program.stderr and program.stderr.read()}")
        program.wait(30)


if __name__ == "__main__":
    typer.run(main)
