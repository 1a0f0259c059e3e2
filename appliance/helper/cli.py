"""The command `appliance-helper`: what it is told, what it gives up, and its life until SIGTERM.

Sockets are bound first, then every right but CAP_NET_ADMIN is given up for good, and then the first byte is
read from the network.
"""

import asyncio
import errno
import os
import signal
import socket
import sys
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from appliance import process
from appliance.commandline import plain
from appliance.config.network import IP, Net
from appliance.config.option import Kind, UInt
from appliance.helper.gateways import Gateways
from appliance.helper.idents import Addresses, Command, IdentError, Idents, Names
from appliance.helper.service import Service, tcp_socket, udp_socket
from appliance.log import LEVELS, Log
from appliance.notify import notify
from appliance.origin import Address
from appliance.privileges import PrivilegeError, drop

FAILED = 1
_TARGETS = ("syslog", "journal", "stderr")
_SECRET_MAX = 100  # bytes of the file it stands in
T = TypeVar("T")

# A pretty traceback would show local variables, and one is the secret.
app = plain("-h", "--help", add_completion=False, pretty_exceptions_enable=False)


@app.command()
def appliance_helper(
    gateway: Annotated[
        list[str], typer.Option(metavar="NETWORK", help="A gateway that may ask, or a network of them.")
    ],
    listen: Annotated[
        list[str] | None, typer.Option(metavar="ADDRESS", help="Where to listen; everywhere if not given.")
    ] = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="The gateways' remote_port.")] = 114,
    udp: Annotated[bool, typer.Option(help="Answer datagrams (mode remote-udp).")] = True,
    tcp: Annotated[
        bool, typer.Option(help="Answer lines over TCP (mode remote), which has no secret.")
    ] = True,
    secret_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Has the gateways' remote_udp_secret; 0 if not given.")
    ] = None,
    names: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Has lines ADDRESS NAME; read again on SIGHUP.")
    ] = None,
    command: Annotated[
        Path | None,
        typer.Option(
            metavar="PROGRAM",
            help="Prints a client's name; run with the client's address and port, and the server's.",
        ),
    ] = None,
    rate: Annotated[
        int, typer.Option(min=1, max=1_000_000, help="Questions a second that each --gateway may ask.")
    ] = 500,
    user: Annotated[
        str | None, typer.Option(metavar="USER", help="Whom to become; nobody if started by root.")
    ] = None,
    log_level: Annotated[str, typer.Option(metavar="LEVEL", help=" ".join(LEVELS))] = "info",
    log_target: Annotated[str, typer.Option(metavar="TARGET", help="syslog, journal or stderr.")] = "syslog",
) -> None:
    """Tell mail gateways elsewhere where the connections that this router sends them were meant to go.

    Stays in the foreground until SIGTERM.
    """
    gateways = Gateways([_read("--gateway", Net(), each) for each in gateway], rate)
    addresses = [_read("--listen", IP(), each) for each in listen or []]
    secret = _secret(secret_file) if secret_file else 0
    if command and names:
        raise typer.BadParameter("one of --names and --command names the clients, not both")
    if command and not command.is_absolute():
        raise typer.BadParameter("--command: give the absolute path of the program")
    if log_level not in LEVELS or log_target not in _TARGETS:
        targets = " ".join(_TARGETS)
        raise typer.BadParameter(f"--log-level is one of {' '.join(LEVELS)}, --log-target of {targets}")
    log = Log(log_level, "daemon", stderr=False, target=log_target, program="appliance-helper")
    try:
        datagrams = _bound(udp_socket, addresses, port) if udp else []
        streams = _bound(tcp_socket, addresses, port) if tcp else []
        _give_up_rights(user)
        idents = Names(names) if names else Command(command, log) if command else Addresses()
        service = Service(gateways, secret, idents, log)
        asyncio.run(_serve(service, idents, log, datagrams, streams))
    except (PrivilegeError, IdentError, OSError) as error:
        print(f"appliance-helper: {error}", file=sys.stderr)
        log.crit("HELPER:FAILED", why=error)
        raise typer.Exit(FAILED) from None


def _bound(
    make: Callable[[Address, int], socket.socket], addresses: list[Address], port: int
) -> list[socket.socket]:
    """Listen at each address; without any everywhere, also where the kernel has no IPv6. Raises OSError."""
    try:
        return [make(address, port) for address in addresses or [IPv6Address(0)]]
    except OSError as error:
        if not addresses and error.errno == errno.EAFNOSUPPORT:
            return [make(IPv4Address(0), port)]
        raise OSError(
            error.errno, f"port {port} at {' '.join(map(str, addresses)) or '::'}: {error.strerror}"
        ) from None


def _give_up_rights(user: str | None) -> None:
    """Keep CAP_NET_ADMIN alone, as another user if there is one to become. Raises PrivilegeError."""
    if not process.capabilities()[1] >> process.CAP_NET_ADMIN & 1:
        raise PrivilegeError(
            "CAP_NET_ADMIN is missing, without which the kernel tells nothing; start as root"
        )
    become = user if user is not None else "nobody" if os.geteuid() == 0 else ""
    drop(become, "", 1 << process.CAP_NET_ADMIN)


async def _serve(
    service: Service, idents: Idents, log: Log, datagrams: list[socket.socket], streams: list[socket.socket]
) -> None:
    """Answer until SIGTERM or SIGINT. Raises OSError if connection tracking cannot be asked."""
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    loop.set_exception_handler(log.unhandled)

    def reload() -> None:
        try:
            idents.reload()
            log.notice("RELOAD:DONE")
        except IdentError as error:
            log.err("RELOAD:REFUSED the names stay as they were", why=error)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    loop.add_signal_handler(signal.SIGHUP, reload)
    await service.probe()
    await service.listen(datagrams, streams)
    log.notice("START", udp=len(datagrams), tcp=len(streams))
    notify("READY=1")
    await ended.wait()
    notify("STOPPING=1")
    log.notice("STOP")


def _read(option: str, kind: Kind[T], text: str) -> T:
    """Read a value as configuration files are read; raises BadParameter."""
    try:
        return kind.read(text)
    except ValueError as error:
        raise typer.BadParameter(f"{option}: {error}; allowed is {kind.allowed}") from None


def _secret(path: Path) -> int:
    """Read the number in a file that root can read; raises BadParameter."""
    try:
        with path.open("rb") as file:
            text = file.read(_SECRET_MAX).decode("utf-8", "replace").strip()
    except OSError as error:
        raise typer.BadParameter(f"--secret-file {path}: {error.strerror}") from None
    return _read(f"--secret-file {path}", UInt(0, 2**32 - 1), text)


def main() -> None:
    """Run the command; its exit codes are 0, 1 for a failure and 2 for wrong usage."""
    app(prog_name="appliance-helper")


if __name__ == "__main__":
    main()
