"""The command top: the gateway at a glance, again and again, until q is pressed.

It asks the gateway no more often than every half second, and for no more than fits on the screen.
"""

import math
import os
import select
import sys
import termios
import time
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from appliance.ctl.ask import ask
from appliance.ctl.base import Code, Context, CtlError, clean, given, least_width, print_json
from appliance.ctl.gateway import COLUMNS, busiest, client_table
from appliance.ctl.times import span

commands = typer.Typer()

_RATES = {"requests": "connections", "messages": "messages", "viruses": "viruses", "spams": "spams"}
_HEAD = 7  # lines above the clients, with the table's own


@commands.command()
def top(
    context: typer.Context,
    every: Annotated[
        float, typer.Option(metavar="SECONDS", min=0.5, max=3600, help="Between two looks.")
    ] = 2.0,
    by: Annotated[str, typer.Option(metavar="COLUMN", help=f"One of {', '.join(COLUMNS)}.")] = COLUMNS[0],
) -> None:
    """Show sessions, rates, refusals and the busiest clients, live; q ends it. With --json: once."""
    if math.isnan(every):  # no less than the least, and no more than the most
        raise typer.BadParameter("--every: nan is no number of seconds")
    if given(context).as_json:
        print_json(_look(given(context), by, 20))
        return
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise CtlError("top needs a terminal; --json prints once what it would show", Code.BAD_USAGE)
    screen = Console(highlight=False, markup=False, emoji=False)
    before = _look(given(context), by, 1)  # whoever cannot look is told before the screen is taken
    with _keys(), Live(console=screen, screen=True, auto_refresh=False) as live:
        while True:
            now = _look(given(context), by, max(1, screen.height - _HEAD))
            live.update(_picture(before, now, by, screen.width), refresh=True)
            before = now
            if _pressed_q(every):
                return


def _look(context: Context, by: str, most: int) -> dict[str, Any]:
    return {"status": ask(context, "status"), "clients": busiest(context, by, min(most, 1000))["rows"]}


def _picture(before: dict[str, Any], now: dict[str, Any], by: str, width: int) -> Group:
    status, old = now["status"], before["status"]
    count = status["counters"]
    elapsed = max(status["now"] - old["now"], 0.001)
    rates = ", ".join(
        f"{max(0, count[name] - old['counters'][name]) / elapsed:.1f} {words}"
        for name, words in _RATES.items()
    )
    refused = sum(number for name, number in count.items() if name.startswith("reject_"))
    workers = " ".join(f"{worker['index']}:{worker['sessions']}" for worker in status["workers"])
    scanners = " ".join(
        f"{name} {'DOWN' if trouble else 'up'}" for name, _, trouble in status["scanners"] or ()
    )
    state = "DRAINING" if status["ending"] else "up"
    lines = [
        f"gateway {state} for {span(status['now'] - status['started'])}, {time.strftime('%X')} (q quits)",
        f"sessions {count['sessions']} ({status['most_sessions']} at most), in workers {workers}",
        f"a second {rates}",
        f"refused {refused} in all, {count['reject_lock']} of them locked   scanners {scanners or '-'}",
        f"clients by {by}, in the last one to two hours",
    ]
    return Group(
        *(Text(clean(line), no_wrap=True, overflow="ellipsis") for line in lines),
        _clients(now["clients"], by, width),
    )


def _clients(rows: list[dict[str, Any]], by: str, width: int) -> Table:
    """Make the table of clients without the last columns that have no room; the one in question stays."""
    made = client_table(rows)
    while least_width(made) > width and len(made.columns) > 2:
        last = str(made.columns[-1].header)
        del made.columns[-2 if last == by.upper() else -1]
    return made


@contextmanager
def _keys() -> Iterator[None]:
    """Get keys as they are pressed, without showing them."""
    terminal = sys.stdin.fileno()
    kept = termios.tcgetattr(terminal)
    try:
        tty.setcbreak(terminal)
        yield
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, kept)


def _pressed_q(seconds: float) -> bool:
    """Wait so long; tell at once when it is time to go. A terminal that is gone counts as q."""
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        if select.select([sys.stdin], [], [], left)[0]:
            keys = os.read(sys.stdin.fileno(), 64)
            if not keys or b"q" in keys.lower():
                return True
    return False
