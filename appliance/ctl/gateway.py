"""The commands status, sessions, clients, reload and drain: what the gateway does, and telling it.

All but status need a daemon; status says so, and shows what the kernel and the files know.
"""

import time
from collections.abc import Iterable
from typing import Annotated, Any

import typer
from rich.table import Table

from appliance.ctl import known
from appliance.ctl.ask import ask
from appliance.ctl.base import (
    Code,
    Context,
    CtlError,
    given,
    print_json,
    show_table,
    table,
    tell,
    tell_of,
)
from appliance.ctl.times import moment, size, span
from appliance.nft.names import INTERCEPTED
from appliance.supervisor.requests import TALLIES

commands = typer.Typer()

COLUMNS = (*TALLIES, "syns", "dropped", "servers")  # the last three are the gate's


@commands.command()
def status(context: typer.Context) -> int:
    """Show the gateway, its workers, the kernel and the scanners on one screen; exit code 4: none runs."""
    found, code = facts(given(context))
    if given(context).as_json:
        print_json(found)
    else:
        show(found, down=code is Code.DOWN)
    return code


def facts(context: Context) -> tuple[dict[str, Any], Code]:
    """Collect what there is to know without a client in mind; the code says whether the gateway answers."""
    config = context.config()
    gateway, why, code = None, None, Code.DONE
    try:
        gateway = ask(context, "status")
    except CtlError as error:
        why, code = str(error), error.code
    kernel = known.kernel_locks()
    try:
        files = len(known.lock_names(config))
    except CtlError:
        files = None
    counters = known.kernel_counters()
    found = {
        "gateway": gateway,
        "why_not": why,
        "locks": {"files": files, "path": str(config.outside(config.lock_path))},
        "kernel": {
            "locked": None if isinstance(kernel, str) else len(kernel),
            "dropped": known.dropped(counters),
            "intercepted": counters.get(INTERCEPTED),
            "why_not": kernel if isinstance(kernel, str) else None,
            "led_past": known.led_past(config, kernel),
            "gate": known.gate_interfaces(),
        },
        "file": str(context.config_path),
        "on_failure": config.on_failure,
    }
    return found, code


def show(found: dict[str, Any], *, down: bool) -> None:
    """Print the facts for people; the gateway is `down`, or else up or cannot be asked."""
    gateway, kernel = found["gateway"], found["kernel"]
    lines: list[tuple[str, str]] = []
    if gateway:
        lines += _gateway_lines(gateway)
    elif not down:
        lines.append(("gateway", f"unknown: {found['why_not']}"))
    else:
        passes = "mail passes by" if found["on_failure"] == "open" else "mail is refused"
        lines += [("gateway", f"DOWN: {found['why_not']}"), ("", f"while it is, {passes} (on_failure)")]
    files = "unknown, try as root" if found["locks"]["files"] is None else found["locks"]["files"]
    lines.append(("locks", f"{files} in {found['locks']['path']}"))
    if kernel["led_past"]:
        lines.append(("kernel", f"MAIL PASSES BY: {kernel['why_not']}"))
    elif kernel["why_not"]:
        lines.append(("kernel", f"unknown: {kernel['why_not']}"))
    else:
        locked = f"{kernel['locked']} locked, {kernel['dropped']} of their connections dropped"
        lines.append(("kernel", f"rules are up, {kernel['intercepted']} connections intercepted; {locked}"))
    if kernel["gate"]:
        watched = ", ".join(f"{name} ({mode})" for name, mode in kernel["gate"].items())
        lines.append(("gate", f"on {watched}"))
    for label, text in lines:
        tell_of(label, text)
    if gateway:
        show_table(table(("WORKER#", "PID#", "SERVING", "SESSIONS#"), _worker_rows(gateway)))


def _gateway_lines(gateway: dict[str, Any]) -> list[tuple[str, str]]:
    count, now = gateway["counters"], gateway["now"]
    state = ", DRAINING: no more connections are accepted" if gateway["ending"] else ""
    lines = [
        (
            "gateway",
            f"up for {span(now - gateway['started'])}{state}, version {gateway['version']},"
            f" process {gateway['pid']}, mode {gateway['mode']}, {gateway['listening']}",
        ),
        ("", f"{gateway['file']}, read {moment(gateway['reloaded'])}"),
        (
            "sessions",
            f"{count['sessions']} open, {gateway['most_sessions']} at most, {count['requests']} in all,"
            f" {count['direct']} of them direct",
        ),
        (
            "mail",
            f"{count['messages']} messages let through,"
            f" {count['viruses']} viruses and {count['spams']} spams found",
        ),
        ("refused", ", ".join(f"{count[name]} {words}" for name, words in _REFUSALS.items())),
    ]
    if gateway["crashed"]:
        lines.append(
            ("crashes", f"{gateway['crashed']} workers ended unasked and were replaced: see the log")
        )
    scanners = gateway["scanners"]
    if scanners is None:
        lines.append(("scanners", "unknown: the worker that was asked does not answer"))
    elif not scanners:
        lines.append(("scanners", "none is used"))
    for name, address, trouble in scanners or ():
        lines.append(("scanners", f"{name} at {address}: {trouble or 'there'}"))
    return lines


_REFUSALS = {
    "reject_lock": "locked",
    "reject_host": "by max_per_host",
    "reject_ident": "by max_per_ident",
    "reject_dnsbl": "by DNSBL",
    "reject_rate": "by connection rate",
    "reject_ratelimit": "by other rate limits",
    "reject_other": "for other reasons",
}


def _worker_rows(gateway: dict[str, Any]) -> list[list[object]]:
    return [
        [worker["index"], worker["pid"], span(worker["serving"]), worker["sessions"]]
        for worker in gateway["workers"]
    ]


@commands.command()
def sessions(context: typer.Context) -> None:
    """List the open sessions: who, to where, in which state, how much."""
    found = ask(given(context), "sessions")
    if given(context).as_json:
        rows = [dict(zip(found["columns"], row, strict=False)) for row in found["rows"]]
        print_json({"sessions": rows, "total": found["total"], "silent_workers": found["silent"]})
        return
    show_table(session_table(found["rows"]))
    if found["total"] > len(found["rows"]):
        tell(f"{len(found['rows'])} of {found['total']}")
    _tell_silent(found["silent"])


def session_table(rows: Iterable[list[Any]]) -> Table:
    """Make the table of sessions from their rows, each with the process of its worker first."""
    columns = ("PID#", "SLOT#", "STATE", "FLAGS", "AGE#", "CLIENT", "SERVER", "MAILS#", "SENT#", "BACK#")
    return table((*columns, "KBIT/S#", "IDENT"), map(_session_cells, rows))


def _session_cells(row: list[Any]) -> list[object]:
    row = [*row, *[None] * 12][:12]  # whatever the worker has sent
    pid, slot, state, flags, since, source, target, mails, sent, back, rate, ident = row
    age = span(time.time() - since) if isinstance(since, int | float) else "-"
    sizes = [size(number) if isinstance(number, int | float) else "-" for number in (sent, back)]
    return [pid, slot, state, flags, age, source, target, mails, *sizes, rate, ident]


def _tell_silent(silent: list[object]) -> None:
    for pid in silent:
        tell(f"worker {pid} does not answer: what it has is missing above")


@commands.command()
def clients(
    context: typer.Context,
    by: Annotated[str, typer.Option(metavar="COLUMN", help=f"One of {', '.join(COLUMNS)}.")] = TALLIES[0],
    most: Annotated[int, typer.Option(metavar="NUMBER", min=1, max=1000, help="How many to show.")] = 20,
) -> int:
    """List who talks most: connections, mails, refusals and mail servers of the last one to two hours.

    Beside them what the gate counted: SYNs to mail ports, those it dropped, and about how many servers they
    were for in the last fanout_period, encrypted or not. While no gateway runs these are all there is, and
    the exit code is 4.
    """
    found = busiest(given(context), by, most)
    if found["why_not"] and not found["rows"]:
        raise CtlError(found["why_not"], Code.DOWN)
    if given(context).as_json:
        print_json({"clients": found["rows"], "silent_workers": found["silent"], "why_not": found["why_not"]})
    else:
        show_table(client_table(found["rows"]))
        _tell_silent(found["silent"])
        if found["why_not"]:
            tell(f"the gateway's counts are missing: {found['why_not']}")
    return Code.DOWN if found["why_not"] else Code.DONE


def busiest(context: Context, by: str, most: int) -> dict[str, Any]:
    """Put together what the gateway and the gate counted; rows are objects, the first has the most."""
    if by not in COLUMNS:
        raise CtlError(f"there is no column {by}: choose one of {', '.join(COLUMNS)}", Code.BAD_USAGE)
    told: dict[str, Any] = {"columns": [], "rows": [], "silent": []}
    why = None
    try:
        told = ask(context, "clients", by=by if by in TALLIES else TALLIES[0], most=most)
    except CtlError as error:
        if error.code is not Code.DOWN:
            raise
        why = str(error)
    empty = dict.fromkeys(("client", "open", *COLUMNS))
    rows = {row[0]: empty | dict(zip(told["columns"], row, strict=False)) for row in told["rows"]}
    for address, seen in known.gate_clients(context.config()).items():
        row = rows.setdefault(address, empty | {"client": address})
        row |= {"syns": seen.syns, "dropped": seen.dropped, "servers": seen.servers}
    ordered = sorted(rows.values(), key=lambda row: -(row[by] or 0))
    return {"rows": ordered[:most], "silent": told["silent"], "why_not": why}


def client_table(rows: list[dict[str, Any]]) -> Table:
    """Make the table of the top clients; columns in which nothing is known are left out."""
    named = {"client": "CLIENT", "open": "OPEN#", **{name: f"{name.upper()}#" for name in COLUMNS}}
    shown = [name for name in named if name == "client" or any(row[name] is not None for row in rows)]
    return table([named[name] for name in shown], ([row[name] for name in shown] for row in rows))


@commands.command()
def reload(context: typer.Context) -> None:
    """Have the gateway read its file again, wait until every worker has, and tell what is wrong with it."""
    found = ask(given(context), "reload")
    if given(context).as_json:
        print_json(found)
    else:
        for line in found["warnings"]:
            tell(f"warning: {line}")
    if found["problems"]:
        problems = "\n".join(map(str, found["problems"]))
        raise CtlError(f"{problems}\nthe gateway goes on with what it had", Code.BAD_CONFIGURATION)
    if found["silent"]:
        pids = " ".join(map(str, found["silent"]))
        raise CtlError(f"worker {pids} has not answered; it may still be at it: see appliance-ctl status")
    if not given(context).as_json:
        tell("reloaded")


@commands.command()
def drain(context: typer.Context) -> None:
    """End the gateway gently: no more connections, and no process after the last session."""
    left = ask(given(context), "drain")["sessions"]
    if given(context).as_json:
        print_json({"sessions": left})
    else:
        tell(f"draining: {left} sessions are open; the gateway ends with the last of them")
