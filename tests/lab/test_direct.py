"""Direct sessions, which nobody looks at: each byte arrives, both ways, and each end is the other side's."""

import contextlib
import hashlib
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.lab.loopback import Scene, scene
from tests.lab.scripted import Talk, descriptors
from tests.supervisor.program import wait_until

pytestmark = pytest.mark.lab

MUCH = 60_000_000
Part = Callable[[Talk], object]


@contextlib.contextmanager
def direct(*parts: Part) -> Iterator[tuple[Scene, list[Talk]]]:
    """Give as many clients after STARTTLS as servers have parts to play, in the order in which they came."""
    left = list(parts)

    def starttls(talk: Talk) -> None:
        talk.say("220 go on")
        talk.socket.recv(1)  # from here on nobody reads lines
        left.pop(0)(talk)
        raise EOFError

    with scene({"STAR": starttls}, workers=1) as gate:
        clients = [gate.greeted() for _ in parts]
        for client in clients:
            assert client.ask("STARTTLS") == "220 go on"
            client.send(b"!")
        yield gate, clients


def heard(peer: socket.socket, pause: float = 0) -> tuple[int, str]:
    """Hear a peer to its end: how much that was, and what."""
    count, digest = 0, hashlib.sha256()
    while piece := peer.recv(1 << 20):
        count += len(piece)
        digest.update(piece)
        time.sleep(pause)
    return count, digest.hexdigest()


def tell(peer: socket.socket, data: bytes) -> tuple[int, str]:
    """Say it all and no more; give what the other side should hear."""
    peer.sendall(data)
    peer.shutdown(socket.SHUT_WR)
    return len(data), hashlib.sha256(data).hexdigest()


def memory(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


@pytest.mark.parametrize("pause", [0, 0.01])
def test_much_arrives_both_ways_whoever_is_slow(pause: float) -> None:
    forth, back = os.urandom(MUCH), os.urandom(MUCH)
    told: list[tuple[int, str]] = []

    def answer(talk: Talk) -> None:
        with ThreadPoolExecutor(2) as pool:
            saying = pool.submit(tell, talk.socket, back)
            told.append(heard(talk.socket, pause))
            told.append(saying.result())

    with direct(answer) as (gate, (client,)), ThreadPoolExecutor(2) as pool:
        (worker,) = gate.gateway.workers()
        before = memory(worker)
        saying = pool.submit(tell, client.socket, forth)
        listening = pool.submit(heard, client.socket, pause)
        most = 0
        while not (saying.done() and listening.done()):
            most = max(most, memory(worker) - before)
            time.sleep(0.05)
        wait_until(lambda: len(told) == 2)
        assert [saying.result(), listening.result()] == told
        assert most < 20_000_000
        gate.wait_log("CLOSE:DIRECT ")
        told_bytes = re.findall(r"CLOSE:DIRECT .*rcv=(\d+)/(\d+)", gate.log)
        assert [(int(one) // MUCH, int(two) // MUCH) for one, two in told_bytes] == [(1, 1)]


def test_who_has_said_all_still_hears_all() -> None:
    data = os.urandom(MUCH)

    with direct(lambda talk: tell(talk.socket, data)) as (_, (client,)):
        client.socket.shutdown(socket.SHUT_WR)
        time.sleep(0.5)  # much waits for it by now
        assert heard(client.socket) == (MUCH, hashlib.sha256(data).hexdigest())


def test_little_after_much_is_not_kept_back() -> None:
    def echo(talk: Talk) -> None:
        while piece := talk.socket.recv(1 << 20):
            talk.send(piece)

    with direct(echo) as (_, (client,)):
        for size in (1, 1_000_000, 1, 7, 3_000_000, 100):
            data = os.urandom(size)
            threading.Thread(target=client.send, args=[data]).start()
            answer = b""
            while len(answer) < size:
                answer += client.socket.recv(1 << 20)
            assert answer == data


def feed(talk: Talk) -> None:
    while True:
        talk.send(bytes(1 << 20))


@pytest.mark.parametrize("much", [False, True], ids=["little", "much"])
@pytest.mark.parametrize("leave", [Talk.reset, Talk.close])
def test_the_servers_end_is_the_clients(much: bool, leave: Part) -> None:
    def part(talk: Talk) -> None:
        if much:
            talk.socket.recv(1 << 24)
            talk.send(bytes(1 << 22))
        leave(talk)

    with direct(part) as (gate, (client,)):
        if much:
            client.send(bytes(1 << 18))
        client.rest()
        client.close()
        gate.wait_log("CLOSE:DIRECT ")


@pytest.mark.parametrize("leave", [Talk.reset, Talk.close])
def test_the_clients_end_is_the_servers_and_no_file_stays_open(leave: Part) -> None:
    def ended(gate: Scene, client: Talk, left: int) -> int:
        for _ in range(20):
            client.socket.recv(1 << 20)
        leave(client)
        wait_until(lambda: len(gate.server.talks) == left)
        wait_until(lambda: gate.log.count("CLOSE:DIRECT ") == 3 - left)
        return descriptors(gate.gateway.workers()[0])

    with direct(feed, feed, feed) as (gate, (one, two, three)):
        open_files = [ended(gate, client, left) for client, left in ((one, 2), (two, 1), (three, 0))]
        assert open_files[0] - open_files[1] == open_files[1] - open_files[2] == 2
