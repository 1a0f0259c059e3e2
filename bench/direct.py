"""Direct sessions, which are opaque after STARTTLS: the relay's CPU time for a GB, and for a session.

HAProxy is told to splice. Clients and server are those of `bench.opaque`.
"""

import sys
from concurrent.futures import ThreadPoolExecutor

from bench import opaque
from bench.arena import Arena
from bench.load import Contender
from bench.row import Effort, Row
from lab.process import LabError

PORT = 26
BULK, SESSIONS, FEW = 1 << 28, 2000, 1000  # bytes from each client; sessions, and the bytes in each
SPLICE = ("option splice-request", "option splice-response")  # with splice-auto it hardly ever does
BAR = 1.0  # times HAProxy's
_GB, _PARALLEL = 1e9, 4


def measure(arena: Arena, effort: Effort) -> list[Row]:
    """Relay much in few sessions, and little in many."""
    bulk = effort.of(BULK)
    sessions = effort.of(SESSIONS, _PARALLEL)
    for_bytes, for_sessions = [], []
    server = arena.host.start([sys.executable, "-m", "bench.opaque", arena.server, str(PORT)], log="opaque")
    server.wait_output("open")
    with (
        arena.haproxy(PORT, options=SPLICE) as haproxy,
        arena.gateway({"fixed_server_port": PORT}) as gateway,
    ):
        for _ in range(effort.rounds):
            mine, theirs = (cost(arena, each, _PARALLEL, bulk) for each in (gateway, haproxy))
            gigabytes = _PARALLEL * bulk / _GB
            for_bytes.append((mine / gigabytes, theirs / gigabytes))
            effort.tell("CPU s a GB: gateway {:.3f}, HAProxy {:.3f}".format(*for_bytes[-1]))
            mine, theirs = (cost(arena, each, sessions, FEW) for each in (gateway, haproxy))
            for_sessions.append((1e6 * mine / sessions, 1e6 * theirs / sessions))
            effort.tell("CPU µs a session: gateway {:.0f}, HAProxy {:.0f}".format(*for_sessions[-1]))
    server.kill()
    return [
        Row("direct session, CPU for a GB", "s", "HAProxy", tuple(for_bytes), BAR, at_most=True),
        Row("direct session, CPU for each", "µs", "HAProxy", tuple(for_sessions), BAR, at_most=True),
    ]


def cost(arena: Arena, contender: Contender, sessions: int, size: int) -> float:
    """Give the CPU seconds that a contender spends on so many sessions with so many bytes each."""

    def client(number: int) -> None:
        address = arena.clients[number % len(arena.clients)]
        opaque.converse(lambda: arena.host.connect((address, contender.port), timeout=30), size)

    before = contender.cpu()
    with ThreadPoolExecutor(_PARALLEL) as pool:
        try:
            list(pool.map(client, range(sessions)))
        except OSError as error:
            raise LabError(f"a direct session through {contender.name}: {error}") from error
    return contender.cpu() - before
