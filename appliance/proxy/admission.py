"""Who is let in: the checks on a new connection, in their order, and the way to its server.

Limits, load and locks are looked at before anything is spent on a client; then the destination is found, and
the checks of the gate CONNECT follow. The connection calls these and does the connecting and the talking.
"""

import asyncio
import errno
import os
import secrets
import socket
from typing import Final

from appliance import process
from appliance.proxy import events
from appliance.proxy.lookup import Endpoint, LookupFailure, Route
from appliance.proxy.scoreboard import Counter
from appliance.proxy.visit import Visit

# Plain numbers, which cost machine code less than members of an enum.
_AF_INET: Final = int(socket.AF_INET)
_AF_INET6: Final = int(socket.AF_INET6)
_STREAM: Final = int(socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
_TCP: Final = int(socket.IPPROTO_TCP)
_NODELAY: Final = int(socket.TCP_NODELAY)
_SOCKET: Final = int(socket.SOL_SOCKET)
_REUSEADDR: Final = int(socket.SO_REUSEADDR)
_IP_BIND_ADDRESS_NO_PORT: Final = 24
_PORTS: Final = range(10_000, 32_768)
_TRIES: Final = 20
_NO_MEMORY: Final = {errno.ENOMEM, errno.ENOBUFS}
_OUR_FAULT: Final = {
    errno.EMFILE,
    errno.ENFILE,
    errno.EADDRINUSE,
    errno.EADDRNOTAVAIL,
}  # nothing was sent at all


class Unreachable(Exception):
    """There is no way to the server; the text tells the client why."""


def refusal(visit: Visit) -> str | None:
    """Say why a new client is turned away; None when it may stay. Counts it in any case."""
    service, config, board = visit.service, visit.service.config, visit.service.board
    board.add(Counter.REQUESTS)
    sessions = board.opened()
    log = service.log
    if log.enabled("debug"):
        log.debug("ACCEPT", **visit.who(), on=visit.local)
    if config.max_connections and sessions > config.max_connections:
        board.add(Counter.REJECT_OTHER)
        log.warning("REJECT:MAX_CONNECTIONS", **visit.who(), sessions=sessions)
        return config.msg_max_reached
    if config.max_load > 0 and service.load() > config.max_load:
        board.add(Counter.REJECT_OTHER)
        log.warning("REJECT:LOAD", **visit.who(), load=f"{service.load():.2f}")
        return config.msg_system_load
    if config.max_per_host and service.clients.sessions(visit.client.address) > config.max_per_host:
        board.add(Counter.REJECT_HOST)
        log.notice("REJECT:MAX_HOST", **visit.who())
        events.report(visit, "maxhost", "MAX_HOST", "MAX_HOST too many sessions at a time")
        return config.msg_max_per_host
    return _refusal_by_lock(visit)


def refusal_of_ident(visit: Visit) -> str | None:
    """Say why the one behind a client's address is turned away, and count the session; None without ident."""
    service, config = visit.service, visit.service.config
    if not visit.ident:
        return None
    clients, address = service.clients, visit.client.address
    clients.opened(address, visit.ident)
    if config.max_per_ident and clients.sessions(address, visit.ident) > config.max_per_ident:
        service.board.add(Counter.REJECT_IDENT)
        service.log.notice("REJECT:MAX_IDENT", **visit.who())
        events.report(visit, "maxident", "MAX_IDENT", "MAX_IDENT too many sessions at a time")
        return config.msg_max_per_ident
    return _refusal_by_lock(visit)


def _refusal_by_lock(visit: Visit) -> str | None:
    if not visit.locked():
        return None
    visit.service.board.add(Counter.REJECT_LOCK)
    visit.service.log.notice("LOCK:LOCKED", **visit.who())
    return visit.service.config.msg_virus_locked


def known_route(visit: Visit, accepted: socket.socket) -> Route | None:
    """Tell where a client meant to go; None when that has to be found out. Raises Unreachable."""
    try:
        return visit.service.lookup.known(accepted, visit.client, visit.local)
    except Exception as error:
        raise _lost(visit, error) from None


async def route(visit: Visit, accepted: socket.socket) -> Route:
    """Find out where a client meant to go. Raises Unreachable."""
    try:
        return await visit.service.lookup.find(accepted, visit.client, visit.local)
    except Exception as error:
        raise _lost(visit, error) from None


def _lost(visit: Visit, error: Exception) -> Unreachable:
    """Make the exception for a lookup that failed."""
    service, config, cause = visit.service, visit.service.config, ""
    if isinstance(error, LookupFailure):
        why, cause = str(error), error.cause
    elif isinstance(error, OSError):
        why = config.msg_lookup_nomem if error.errno in _NO_MEMORY else error.strerror or str(error)
    else:  # a defect, perhaps of another package's mode
        told = {"message": "a lookup broke down", "exception": error}
        asyncio.get_running_loop().call_exception_handler(told)
        why = config.msg_lookup_unknown
    service.board.add(Counter.REJECT_OTHER)
    service.log.err("LOOKUP:FAILED", **visit.who(), why=cause or why)
    return Unreachable(f"{config.msg_lookup_failed} ({why})")


def unreachable(visit: Visit, error: OSError) -> Unreachable:
    """Make the exception for a failed connect; a TimeoutError without errno is that of timeout_connect."""
    config, log, who = visit.service.config, visit.service.log, visit.who()
    if isinstance(error, TimeoutError) and not error.errno:
        log.notice("CONNECT:TIMEOUT", **who, dst=visit.target)
        return Unreachable(f"{config.msg_connect_timeout} ({visit.target})")
    reason = os.strerror(error.errno) if error.errno else str(error)
    log.notice("CONNECT:FAILED", **who, dst=visit.target, why=reason)
    if error.errno in _NO_MEMORY:
        return Unreachable(config.msg_nomem)
    text = config.msg_connect_failed if error.errno in _OUR_FAULT else config.msg_cannot_connect
    return Unreachable(f"{text} ({visit.target}: {reason})")


def outgoing(visit: Visit, route: Route) -> socket.socket:
    """Make the socket towards the server, in the client's name where the mode wants that. Raises OSError."""
    six = ":" in route.destination.address
    made = socket.socket(_AF_INET6 if six else _AF_INET, _STREAM)
    try:
        made.setsockopt(_TCP, _NODELAY, 1)
        if route.as_client:
            made.setsockopt(socket.IPPROTO_IP, socket.IP_TRANSPARENT, 1)  # of IPv6, too
            _bind_as(made, visit.client)
        elif visit.service.outgoing_addr and (":" in visit.service.outgoing_addr) == six:
            if process.LINUX:  # the port is chosen at connect, where it need only differ for the same server
                made.setsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
            made.bind((visit.service.outgoing_addr, 0))
    except OSError:
        made.close()
        raise
    return made


def _bind_as(made: socket.socket, client: Endpoint) -> None:
    """Take a client's address, and a port that it does not use itself, as far as can be known.

    For connection tracking two connections from one port to the same server are one. So the port is below
    those that most systems choose, and never that of the connection in hand.
    """
    for _ in range(_TRIES):
        port = secrets.choice(_PORTS)
        if port != client.port:
            try:
                made.bind((client.address, port))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
            else:
                made.setsockopt(_SOCKET, _REUSEADDR, 1)  # it is in no listener's way
                return
    made.bind((client.address, 0))
