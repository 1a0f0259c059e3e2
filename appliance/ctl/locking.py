"""The commands locks, lock and unlock: who is shut out, by whom and why, and changing it by hand.

They read and write the lock files, which the gateway and the kernel's mirror follow, so they need no daemon.
"""

import getpass
import ipaddress
import os
import time
from typing import Annotated, Any

import typer

from appliance.config import Config
from appliance.ctl import known
from appliance.ctl.base import Code, CtlError, given, print_json, show_table, table, tell
from appliance.ctl.neighbours import neighbours
from appliance.ctl.times import duration, end, moment, span

commands = typer.Typer()

_TOLD = 20  # clients who are told by name when they are unlocked
_BY_HAND = "ADMIN"  # begins the cause of a lock that was made with this tool
Client = Annotated[
    str, typer.Argument(metavar="ADDR", help="An address, or ADDRESS-IDENT.", show_default=False)
]


@commands.command()
def locks(
    context: typer.Context,
    most: Annotated[int, typer.Option(metavar="NUMBER", min=1, help="How many to show; JSON has all.")] = 500,
) -> None:
    """List who is locked out: why, since when, until when, the connections tried meanwhile, and where it is.

    Of these connections lock_talk a minute reach the gateway to be told why; the kernel drops the others.
    """
    config = given(context).config()
    kernel = known.kernel_locks()
    note = kernel if isinstance(kernel, str) else None
    if given(context).as_json:
        print_json({"locks": _rows(known.locks(config), kernel), "kernel": note})
        return
    files = known.locks(config, latest=most)
    columns = ("CLIENT", "WHY", "BY", "SINCE", "UNTIL", "LEFT#", "TRIED#", "FROM")
    show_table(table(columns, map(_cells, _rows(files, kernel, alone=len(files) < most))))
    if (there := len(known.lock_names(config))) > len(files) == most:
        tell(f"the latest {most} of {there} (--most shows more)")
    if note:
        tell(f"TRIED is unknown: {note}")


def _rows(
    files: list[known.LockFile], kernel: dict[str, Any] | str, *, alone: bool = True
) -> list[dict[str, object]]:
    """Join what the files and the kernel say; those that the kernel has `alone`, for a moment, come last."""
    elements = {} if isinstance(kernel, str) else dict(kernel)
    places = neighbours()
    rows = []
    for file in files:
        element = elements.pop(file.name, None)
        rows.append(
            {
                "client": file.name,
                "why": file.why,
                "by": "exemption" if file.exempt else _author(file.why),
                "since": file.since,
                "until": file.until,
                "tried": element.packets if element else None,
                "in_kernel": None if isinstance(kernel, str) else element is not None,
                "from": places.get(file.name.partition("-")[0]),
            }
        )
    now = time.time()
    for address, element in elements.items() if alone else ():
        until = None if element.remaining is None else now + element.remaining
        rows.append(
            {
                "client": address,
                "why": element.comment,
                "by": "kernel",
                "since": None,
                "until": until,
                "tried": element.packets,
                "in_kernel": True,
                "from": places.get(address),
            }
        )
    return rows


def _author(why: str) -> str:
    if why.startswith(_BY_HAND):
        return "appliance-ctl"
    return "gateway" if why else "hand"


def _cells(row: dict[str, Any]) -> list[object]:
    until, exempt = row["until"], row["by"] == "exemption"
    return [
        row["client"],
        row["why"] or "-",
        row["by"],
        moment(row["since"]) if row["since"] else "-",
        "-" if exempt else moment(until) if until else "for ever",
        span(until - time.time()) if until else "-",
        row["tried"],
        row["from"],
    ]


@commands.command()
def lock(
    context: typer.Context,
    client: Client,
    lasting: Annotated[
        str | None,
        typer.Option("--for", metavar="TIME", help="90s, 30m, 2h, 1d12h, forever; else lock_duration."),
    ] = None,
    why: Annotated[str, typer.Option(metavar="TEXT", help="The cause, for whoever wonders.")] = "",
) -> None:
    """Lock a client out, at once and in the kernel too; it says who did it."""
    config, who = given(context).config(), known.client(client)
    own = duration(lasting) if lasting else None
    _refuse(config, who, given(context).config_path)
    directory = known.lock_directory(config)
    with known.as_owner(config, "lock a client"):
        made = directory.create(str(who.address), who.ident, f"{_BY_HAND} {_me()}: {why}".rstrip(": "), own)
        found = directory.look(who.name)
    if made is None:
        if found:
            raise CtlError(
                f"{who.name} is locked already, {end(found.until)}; unlock it first to lock it anew"
            )
        path = config.outside(config.lock_path) / who.name
        raise CtlError(f"{who.name} is exempt: {path} belongs to another user; remove that file first")
    until = found.until if found else None
    if given(context).as_json:
        print_json({"client": who.name, "until": until, "file": str(made)})
    else:
        tell(f"{who.name} is locked {end(until)}")


def _refuse(config: Config, who: known.Client, file: object) -> None:
    """Say why a client cannot be locked, if so."""
    if entry := known.trusted(config, who.address):
        raise CtlError(
            f"{who.address} is trusted and never locked; take {entry} out of trusted_clients in {file} first"
        )
    if config.lock_duration == 0:
        raise CtlError(f"lock_duration is 0 in {file}: locking is off; set it and reload")
    if (
        who.address.is_unspecified
        or who.address.is_multicast
        or who.address == ipaddress.ip_address("255.255.255.255")
    ):
        raise CtlError(f"{who.address} is not an address of a client", Code.BAD_USAGE)


def _me() -> str:
    return os.environ.get("SUDO_USER") or getpass.getuser()


@commands.command()
def unlock(
    context: typer.Context,
    client: Annotated[
        str, typer.Argument(metavar="[ADDR]", help="An address (with all its idents), or ADDRESS-IDENT.")
    ] = "",
    every: Annotated[bool, typer.Option("--all", help="Everybody.")] = False,
) -> None:
    """Let a client in again, or everybody. Exemptions stay."""
    if bool(client) == every:
        raise CtlError("give a client, or --all", Code.BAD_USAGE)
    config = given(context).config()
    name = "" if every else known.client(client).name
    wanted = [
        lock for lock in known.locks(config, name or None) if every or "-" not in name or lock.name == name
    ]
    directory = known.lock_directory(config, trusting=False)  # theirs would count again one day
    locked = [lock.name for lock in wanted if directory.look(lock.name)]
    if not locked and not every:
        exempt = f": {config.outside(config.lock_path) / name} exempts it" if wanted else ""
        raise CtlError(f"{name} is not locked{exempt} (appliance-ctl locks lists who is)")
    with known.as_owner(config, "unlock clients"):
        for each in locked:
            if found := directory.look(each):
                directory.remove(found)
    if given(context).as_json:
        print_json({"unlocked": locked})
    else:
        who = " ".join(locked) if len(locked) <= _TOLD else f"{len(locked)} clients"
        tell(f"unlocked: {who if locked else 'nobody was locked'}")
