"""What a worker tells of its clients when the supervisor asks, for an administrator or the status file.

The worker calls `answer`. Nothing here changes anything: what would happen to a client's next connection is
worked out from the same facts as in `admission.py`, in the same order, but nothing is counted. What rate
limits say about it is for whoever asks to judge.
"""

import asyncio
import os
import time
from collections.abc import Iterable

from appliance.proxy.connection import Connection
from appliance.proxy.locks import Lock, read_lock
from appliance.proxy.scoreboard import Counter
from appliance.proxy.service import Service

Order = dict[str, object]


async def answer(order: Order, service: Service, connections: Iterable[Connection]) -> object:
    """Give the answer to sessions, clients (with `by` and `most`), client (with `address`) or scanners.

    A question for the pulse only asks whether there is one.
    """
    match order["do"]:
        case "pulse":
            return True
        case "sessions":
            return [connection.row() for connection in connections]
        case "clients":
            talkers, column, most = service.clients.talkers, int(str(order["by"])), int(str(order["most"]))
            return [
                [client, service.clients.sessions(client), *row]
                for client, row in talkers.busiest(column, most)
            ]
        case "client":
            return _client(str(order["address"]), service, connections)
    return await ask_scanners(service)


def _client(address: str, service: Service, connections: Iterable[Connection]) -> dict[str, object]:
    record = service.clients.ledger.known(address) if service.config.ratelimit_period > 0 else None
    return {
        "pid": os.getpid(),
        "open": service.clients.sessions(address),
        "sessions": [connection.row() for connection in connections if connection.address == address],
        "tally": service.clients.talkers.known(address).row(),
        "limits": record and record.facts(),
        "refusal": _refusal(address, service),
    }


def _refusal(address: str, service: Service) -> list[str] | None:
    """Why a connection would be turned away now: the option or fact, why, and what the client would hear."""
    config = service.config
    total, own = service.board.total(Counter.SESSIONS), service.clients.sessions(address)
    if config.max_connections and total >= config.max_connections:
        return ["max_connections", f"{total} of {config.max_connections} are open", config.msg_max_reached]
    if config.max_load > 0 and (load := service.load()) > config.max_load:
        return ["max_load", f"the load is {load:.2f}, {config.max_load:g} allowed", config.msg_system_load]
    if config.max_per_host and own >= config.max_per_host:
        return ["max_per_host", f"it has {own} of {config.max_per_host} open", config.msg_max_per_host]
    if lock := service.locks.find(address):
        return ["lock", _of_lock(lock), config.msg_virus_locked]
    return None


def _of_lock(lock: Lock) -> str:
    until = "for ever" if lock.until is None else f"for {lock.until - time.time():.0f} s more"
    return f"{read_lock(lock.path)[0] or 'no cause given'}, {until}"


async def ask_scanners(service: Service) -> list[list[str]]:
    """Name, address and trouble of each scanner; the last is empty for one that is there."""
    config = service.config
    used = [
        (name, scanner)
        for name, scanner in ((config.antivirus_type, service.virus), (config.antispam_type, service.spam))
        if scanner
    ]
    troubles = await asyncio.gather(*(scanner.probe() for _, scanner in used))
    return [
        [name, str(scanner.address), trouble or ""]
        for (name, scanner), trouble in zip(used, troubles, strict=True)
    ]
