"""Who is let in: the checks on a new connection, in their order, and the way to its server.

Limits, load and locks are looked at before anything is spent on a client; then the destination is found,
checked and connected to. The connection calls `refusal` and `connect`, and is told the outcome.
"""

import asyncio
import os
import socket
from typing import TYPE_CHECKING

from appliance.proxy import events
from appliance.proxy.lookup import LookupFailure, Route
from appliance.proxy.scoreboard import Counter

if TYPE_CHECKING:
    from appliance.proxy.connection import Connection

_IP_TRANSPARENT = 19
_IP_BIND_ADDRESS_NO_PORT = 24
_IPV6_TRANSPARENT = 75


def refusal(connection: "Connection") -> str | None:
    """Say why a new client is turned away; None when it may stay. Counts it in any case."""
    service, config, board = connection.service, connection.service.config, connection.service.board
    board.add(Counter.REQUESTS)
    sessions = board.opened()
    log, who = service.log, connection.who()
    log.debug("ACCEPT", **who, on=connection.local)
    if config.max_connections and sessions > config.max_connections:
        board.add(Counter.REJECT_OTHER)
        log.warning("REJECT:MAX_CONNECTIONS", **who, sessions=sessions)
        return config.msg_max_reached
    if config.max_load and service.load() > config.max_load:
        board.add(Counter.REJECT_OTHER)
        log.warning("REJECT:LOAD", **who, load=f"{service.load():.2f}")
        return config.msg_system_load
    if config.max_per_host and service.clients.sessions(connection.client.address) > config.max_per_host:
        board.add(Counter.REJECT_HOST)
        log.notice("REJECT:MAX_HOST", **who)
        events.report(connection, "maxhost", "MAX_HOST", "MAX_HOST too many sessions at a time")
        return config.msg_max_per_host
    if connection.locked():
        board.add(Counter.REJECT_LOCK)
        log.notice("LOCK:LOCKED", **who)
        return config.msg_virus_locked
    return None


async def connect(connection: "Connection") -> None:
    """Find the server a client meant and connect to it; the client is told when that fails."""
    service, config = connection.service, connection.service.config
    try:
        route = await service.lookup.find(connection.accepted, connection.client, connection.local)
    except LookupFailure as failure:
        service.board.add(Counter.REJECT_OTHER)
        service.log.err("LOOKUP:FAILED", **connection.who(), why=failure)
        connection.unreachable(f"{config.msg_lookup_failed} ({failure})")
        return
    connection.route = route
    target = route.destination
    if not config.mode.startswith("fixed") and (
        target.address == connection.client.address or service.is_own(target)
    ):
        service.board.add(Counter.REJECT_OTHER)
        service.log.err("REJECT:LOOP", **connection.who(), dst=target)
        connection.refuse(config.msg_loop_avoidance)
        return
    service.log.info("NEW", **connection.who(), dst=target, on=connection.local)
    connection.state = "connect"
    try:
        async with asyncio.timeout(config.timeout_connect or None):
            await connection.open_server(_outgoing(connection, route), target)
    except TimeoutError:
        service.log.notice("CONNECT:TIMEOUT", **connection.who(), dst=target)
        connection.unreachable(f"{config.msg_connect_timeout} ({target})")
    except OSError as error:
        service.log.notice("CONNECT:FAILED", **connection.who(), dst=target, why=error.strerror)
        connection.unreachable(f"{config.msg_cannot_connect} ({target}: {_reason(error)})")


def _reason(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno else str(error)


def _outgoing(connection: "Connection", route: Route) -> socket.socket:
    """Make the socket towards the server, in the client's name where the mode wants that. Raises OSError."""
    six = ":" in route.destination.address
    made = socket.socket(
        socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK
    )
    try:
        source = ""
        if route.as_client:
            source = connection.client.address
            made.setsockopt(
                socket.IPPROTO_IPV6 if six else socket.IPPROTO_IP,
                _IPV6_TRANSPARENT if six else _IP_TRANSPARENT,
                1,
            )
        elif not (outgoing := connection.service.config.outgoing_addr).is_unspecified:
            source = str(outgoing) if (outgoing.version == 6) == six else ""
        if source:
            # The port is chosen at connect, where it need only differ for the same server. The client's own
            # port would collide with the intercepted connection in connection tracking.
            made.setsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
            made.bind((source, 0))
    except OSError:
        made.close()
        raise
    return made
