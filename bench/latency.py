"""What a relay adds to the time of a command and its reply, in one session that is alone.

The server answers RSET, and so does no relay by itself. Blocks of round trips take turns, direct, through
HAProxy and through the gateway, in sessions that last; the time without a relay is taken off.

The first of a block finds the processors' caches full of what the others have used. Blocks are so long that
these are less than one in a hundred, and what they take is told besides.
"""

import socket
import time
from contextlib import ExitStack
from statistics import median, quantiles

from bench.arena import Arena
from bench.row import Effort, Row

TRIPS, BLOCK = 10_000, 250  # of each in a round; and in a row before the next has its turn
BAR = 1.5  # times what HAProxy adds


def measure(arena: Arena, effort: Effort) -> list[Row]:
    """Time round trips."""
    added: tuple[list[tuple[float, float]], ...] = ([], [])
    bases: tuple[list[float], ...] = ([], [])
    firsts: tuple[list[float], ...] = ([], [], [])
    with arena.haproxy() as haproxy, arena.gateway() as gateway, ExitStack() as leaving:
        contenders = (arena.direct, haproxy, gateway)
        sessions = [leaving.enter_context(greeted(arena, each.port)) for each in contenders]
        for _ in range(effort.rounds):
            times: list[list[float]] = [[], [], []]
            for _ in range(effort.of(TRIPS // BLOCK)):
                for session, own in zip(sessions, times, strict=True):
                    own += trips(session, BLOCK)
            for own, first in zip(times, firsts, strict=True):
                first += own[::BLOCK]
            direct, through_haproxy, through_gateway = map(middle_and_last, times)
            effort.tell(f"RSET, median and p99 in µs: {direct=} {through_haproxy=} {through_gateway=}")
            for kind, found in enumerate(added):
                base = direct[kind]
                bases[kind].append(base)
                found.append((through_gateway[kind] - base, through_haproxy[kind] - base))
    base, of_haproxy, of_gateway = map(median, firsts)
    names = ("added latency, median", "added latency, 99th percentile")
    more = ("", f"; to the first of a block {of_gateway - base:,.0f}, HAProxy {of_haproxy - base:,.0f}")
    return [
        Row(
            *(name, "µs", "HAProxy", tuple(found), BAR),
            at_most=True,
            note=f"added to {median(base):,.0f} µs without a relay{besides}",
        )
        for name, found, base, besides in zip(names, added, bases, more, strict=True)
    ]


def greeted(arena: Arena, port: int) -> socket.socket:
    """Begin a session."""
    session = arena.host.connect((str(arena.clients[0]), port))
    session.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    assert session.recv(512).startswith(b"220 ")
    session.sendall(b"EHLO latency.test\r\n")
    while not session.recv(4096).split(b"\r\n")[-2].startswith(b"250 "):
        pass
    return session


def trips(session: socket.socket, count: int) -> list[float]:
    """Time so many commands, in microseconds each."""
    found = []
    for _ in range(count):
        begin = time.perf_counter()
        session.sendall(b"RSET\r\n")
        answer = session.recv(512)
        found.append(1e6 * (time.perf_counter() - begin))
        assert answer.startswith(b"250 ")
    return found


def middle_and_last(times: list[float]) -> tuple[float, float]:
    """Give the median and the 99th percentile."""
    return round(median(times), 1), round(quantiles(times, n=100)[98], 1)
