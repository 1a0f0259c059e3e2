"""Sessions that have said EHLO and then say nothing: the memory of each, and what they cost a busy one."""

import resource
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice

from bench.arena import Arena, Contender, Workload, send
from bench.row import Effort, Row
from lab.namespace import inside

WEIGHED, CROWD = 2000, 9000  # sessions
SPACE = 6.0  # kB for each
BUSY = Workload("busy", 3000, 2000, 1, kept=True)
UNDISTURBED = 0.95  # of the mails of a busy session when there are no others
QUIET_PORT = 9197
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


def weight(arena: Arena, contender: Contender, count: int) -> float:
    """Give the memory of a session in kB, without the kernel's, in processes that have seen few mails."""
    warm_up(arena, contender)
    before = contender.memory()
    with idle(arena, contender, count):
        return (contender.memory() - before) / count / 1000


def rates(arena: Arena, effort: Effort, count: int) -> Iterator[tuple[float, float]]:
    """Send mail through a gateway with a crowd, and through another without; both before the same server."""
    messages = effort.of(BUSY.messages)
    load = Workload(BUSY.name, messages, BUSY.length, BUSY.sessions, BUSY.kept)
    with arena.gateway() as crowded, arena.gateway({"port": QUIET_PORT}) as quiet:
        for each in (crowded, quiet):
            warm_up(arena, each)
        with idle(arena, crowded, count):
            for number in range(effort.rounds):
                found = [0.0, 0.0]
                for turn in (number % 2, 1 - number % 2):  # the order moves on
                    port = (crowded, quiet)[turn].port
                    found[turn] = messages / send(arena.host, arena.clients[:1], port, load)
                effort.tell(f"a busy session among {count}: {found[0]:,.0f} a second, {found[1]:,.0f} alone")
                yield found[0], found[1]


def warm_up(arena: Arena, contender: Contender) -> None:
    """Send a few mails, so that everything that is loaded late is loaded, in each worker."""
    send(arena.host, arena.clients, contender.port, Workload("few", 40, 2000, 4, kept=False))


@contextmanager
def idle(arena: Arena, contender: Contender, count: int) -> Iterator[None]:
    """Keep so many sessions, equally many of each client."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    sessions: list[socket.socket] = []
    try:
        targets = ((arena.clients[number % len(arena.clients)], contender.port) for number in range(count))
        while some := list(islice(targets, _AT_ONCE)):
            begun = inside(arena.host.namespace, lambda some=some: connected(some))  # type: ignore[misc]
            sessions += begun
            greet(begun)
        yield
    finally:
        for session in sessions:
            session.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


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
