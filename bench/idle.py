"""Sessions that have said EHLO and then say nothing: the memory of each, and what they cost a busy one."""

import asyncio
import resource
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import cast

from bench.arena import SINK_PORT, Arena
from bench.load import Contender, Workload, contender, send
from bench.row import Effort, Row, there_and_back
from lab.namespace import inside

WEIGHED, CROWD = 2000, 9000  # sessions
SPACE = 6.0  # kB for each
BUSY = Workload("busy", 1500, 2000, 1, kept=True)
UNDISTURBED = 0.95  # of the mails of a busy session when there are no others
QUIET_PORT, HALL_PORT = 9197, 27
_AT_ONCE = 250  # sessions that are begun together


def measure(arena: Arena, effort: Effort) -> list[Row]:
    """Weigh sessions of new processes, then let many of them look on."""
    weights = []
    for _ in range(effort.rounds):
        with arena.gateway() as gateway:
            mine = weight(arena, gateway, effort.of(WEIGHED))
        with arena.haproxy() as haproxy:
            theirs = weight(arena, haproxy, effort.of(WEIGHED))
        effort.tell(f"memory of an idle session: gateway {mine:.1f} kB, HAProxy {theirs:.1f} kB")
        weights.append((mine, theirs))
    crowd = effort.of(CROWD)
    return [
        Row(
            *("memory of an idle session", "kB", "HAProxy", tuple(weights), SPACE),
            at_most=True,
            by_ratio=False,
        ),
        Row(
            *(f"a busy session among {crowd:,} idle ones", "mails/s", "without them"),
            tuple(rates(arena, effort, crowd)),
            UNDISTURBED,
        ),
    ]


def weight(arena: Arena, through: Contender, count: int) -> float:
    """Give the memory of a session in kB, without the kernel's, in processes that have seen few mails."""
    warm_up(arena, through)
    before = through.memory()
    with idle(arena, through, count):
        return (through.memory() - before) / count / 1000


def rates(arena: Arena, effort: Effort, count: int) -> Iterator[tuple[float, float]]:
    """Send mail through a gateway with a crowd, and through another without.

    The crowd has another server, as smtp-sink is slow with many sessions; the gateway leads new clients to
    the sink, by a reload, when all of the crowd are there.
    """
    load = replace(BUSY, messages=effort.of(BUSY.messages))
    hall = arena.host.start([sys.executable, "-m", "bench.idle", arena.server, str(HALL_PORT)], log="hall")
    hall.wait_output("open")
    crowded = arena.unstarted_gateway({"fixed_server_port": HALL_PORT}).start()
    with arena.gateway({"port": QUIET_PORT}) as quiet, idle(arena, contender(crowded), count):
        crowded.reload({"fixed_server_port": SINK_PORT})
        both = (contender(crowded), quiet)
        for each in both:
            warm_up(arena, each)
        turns = [partial(send, arena.host, arena.clients[:1], each.port, load) for each in both]
        for _ in range(effort.rounds):
            mine, theirs = (2 * load.messages / seconds for seconds in there_and_back(*turns))
            effort.tell(f"a busy session among {count}: {mine:,.0f} a second, {theirs:,.0f} alone")
            yield mine, theirs
    crowded.close()
    hall.kill()


def warm_up(arena: Arena, through: Contender) -> None:
    """Send a few mails, so that everything that is loaded late is loaded, in each worker."""
    send(arena.host, arena.clients, through.port, Workload("few", 40, 2000, 4, kept=False))


@contextmanager
def idle(arena: Arena, through: Contender, count: int) -> Iterator[None]:
    """Keep so many sessions, equally many of each client."""
    before = allow_files()
    sessions: list[socket.socket] = []
    try:
        targets = ((arena.clients[number % len(arena.clients)], through.port) for number in range(count))
        while some := list(islice(targets, _AT_ONCE)):
            begun = inside(arena.host.namespace, lambda some=some: connected(some))  # type: ignore[misc]
            sessions += begun
            greet(begun)
        yield
    finally:
        for session in sessions:
            session.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def allow_files() -> tuple[int, int]:
    """Let this process open as many files as it may; give the limits before."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return soft, hard


def connected(targets: Sequence[tuple[str, int]]) -> list[socket.socket]:
    """Connect to all of them."""
    return [socket.create_connection(target, timeout=30) for target in targets]


def greet(sessions: Sequence[socket.socket]) -> None:
    """Hear the greeting and say EHLO, in all of them."""
    for session in sessions:
        assert session.recv(512).startswith(b"220 ")
    for session in sessions:
        session.sendall(b"EHLO idle.test\r\n")
    for session in sessions:
        heard = b""
        while b"\r\n250 " not in heard or not heard.endswith(b"\r\n"):
            piece = session.recv(4096)
            assert piece
            heard += piece


class Attendant(asyncio.Protocol):
    """The crowd's server, for one of them: it answers EHLO, and everything, with one reply."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Greet."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.write(b"220 hall.example.test ESMTP\r\n")

    def data_received(self, _: bytes) -> None:
        """Answer."""
        self._transport.write(b"250-hall.example.test\r\n250 HELP\r\n")


async def serve(address: str, port: int) -> None:
    """Be the crowd's server."""
    allow_files()
    server = await asyncio.get_running_loop().create_server(Attendant, address, port, backlog=4096)
    print("open", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], int(sys.argv[2])))
