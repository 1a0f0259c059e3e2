"""Streams and turns on real sockets, with epoll and with what other systems have in its place."""

import asyncio
import errno
import os
import random
import socket
import struct
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from functools import partial
from unittest.mock import Mock

import pytest
import uvloop

from appliance.proxy import readiness, splice, streams
from appliance.proxy.streams import BACKLOG, Stream, Turn
from tests.proxy.recorder import Recorder

MUCH = 3_000_000


@pytest.fixture(params=[readiness.Poll, readiness.Ready], autouse=True, ids=["epoll", "selectors"])
def poll(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "Poll", request.param)


@pytest.fixture
def pairs() -> Iterator[Callable[[], tuple[socket.socket, socket.socket]]]:
    """Connections over TCP: the gateway's end, which does not block, and the peer's."""
    made: list[socket.socket] = []

    def pair() -> tuple[socket.socket, socket.socket]:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            peer = socket.create_connection(listener.getsockname(), 5)
            ours = listener.accept()[0]
        ours.setblocking(False)
        peer.setblocking(True)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 100_000)
        made.extend((ours, peer))
        return ours, peer

    yield pair
    for each in made:
        each.close()


Pairs = Callable[[], tuple[socket.socket, socket.socket]]


def run(work: Callable[[Turn], Awaitable[None]]) -> None:
    async def within() -> None:
        await work(Turn(asyncio.get_running_loop()))

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(within())


def met(turn: Turn, pairs: Pairs) -> tuple[Recorder, Stream, socket.socket]:
    """Make a connection: who is told of it, the gateway's stream, and the peer's end."""
    ours, peer = pairs()
    owner = Recorder()
    return owner, Stream(turn, ours, owner, BACKLOG), peer


def reset(peer: socket.socket) -> None:
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()


async def read(peer: socket.socket, count: int) -> bytes:
    peer.setblocking(False)
    data = b""
    async with asyncio.timeout(5):
        while len(data) < count and (piece := await asyncio.get_running_loop().sock_recv(peer, 1 << 20)):
            data += piece
    return data


@pytest.mark.parametrize("over", [-1, 0, 1])
@pytest.mark.parametrize("near", [streams._LITTLE, 2 * streams._LITTLE, streams._SOME, 5000, 100_000])
def test_what_is_said_is_heard_whole_however_much_room_there_was(pairs: Pairs, near: int, over: int) -> None:
    data = random.Random(near).randbytes(near + over)

    async def work(turn: Turn) -> None:
        owner, _, peer = met(turn, pairs)
        for times in range(1, 4):  # the room for the next time follows from the last
            peer.sendall(data)
            await owner.wait(partial(owner.has_heard, times * data))
        peer.shutdown(socket.SHUT_WR)
        await owner.wait(lambda: owner.of("heard")[-1:] == [b""])
        assert owner.has_heard(3 * data)

    run(work)


def test_a_little_more_than_there_is_room_for_is_heard_in_the_same_turn(pairs: Pairs) -> None:
    async def work(turn: Turn) -> None:
        owner, _, peer = met(turn, pairs)
        data = bytes(streams._LITTLE) + b"x"
        peer.sendall(data)
        await owner.until("heard")
        assert owner.of("heard") == [data[:-1], b"x"]

    run(work)


def test_all_are_heard_before_anything_is_said_and_it_is_said_as_one(pairs: Pairs) -> None:
    def answer(stream: Stream, data: bytes) -> None:
        stream.say(b"to ")
        stream.say(data)
        with pytest.raises(BlockingIOError):
            peers[1].recv(100, socket.MSG_DONTWAIT)

    peers = []

    async def work(turn: Turn) -> None:
        owner = Recorder(answer)
        for name in (b"one", b"two"):
            ours, peer = pairs()
            peers.append(peer)
            Stream(turn, ours, owner, BACKLOG)
            peer.send(name)
        await owner.until("heard", 2)
        assert {peer.recv(100) for peer in peers} == {b"to one", b"to two"}
        assert not owner.of("broken")

    run(work)


def test_a_slow_peer_is_full_and_takes_all_in_the_end(pairs: Pairs) -> None:
    async def work(turn: Turn) -> None:
        owner, stream, peer = met(turn, pairs)
        data = os.urandom(MUCH)
        for at in range(0, MUCH, 100_000):
            stream.say(data[at : at + 100_000])
            await asyncio.sleep(0)
        await owner.until("filled")
        stream.close()
        stream.say(b"nothing more")
        assert stream.waiting > BACKLOG
        assert await read(peer, MUCH + 1) == data
        await owner.until("parted")
        told = ["filled", "lingers", "filled", "parted"]
        assert owner.told == list(zip(told, (True, True, False, type(None)), strict=True))

    run(work)


def test_words_of_any_size_arrive_in_order_however_the_peer_takes_them(pairs: Pairs) -> None:
    chance = random.Random(5321)

    async def work(turn: Turn) -> None:
        _, stream, peer = met(turn, pairs)
        said, taken = bytearray(), bytearray()
        while len(said) < MUCH or stream.waiting <= BACKLOG:
            words = chance.randbytes(chance.choice((0, 1, 7, 2000, 20_000)))
            stream.say(words)
            said += words
            if chance.random() < 0.3:
                await asyncio.sleep(0)
            if len(said) < MUCH and chance.random() < 0.02 and len(said) > len(taken) + stream.waiting:
                taken += await read(peer, 1)
        for _ in range(3000):  # more pieces than one system call takes
            stream.say(b"x")
            said += b"x"
        taken += await read(peer, len(said) - len(taken))
        assert taken == said
        assert stream.waiting == 0

    run(work)


def test_what_a_peer_has_taken_is_forgotten_though_it_never_catches_up(pairs: Pairs) -> None:
    async def work(turn: Turn) -> None:
        _, stream, peer = met(turn, pairs)
        peer.setblocking(False)
        while stream.waiting <= BACKLOG:
            stream.say(bytes(10_000))
            await asyncio.sleep(0)
        taken = 0
        while taken < MUCH:
            stream.say(bytes(500))
            await asyncio.sleep(0)
            if stream.waiting > BACKLOG:
                with suppress(BlockingIOError):
                    taken += len(peer.recv(2000))
            assert sum(map(len, stream._words)) <= stream.waiting + 2 * BACKLOG

    run(work)


@pytest.mark.parametrize("part", [Stream.close, Stream.shut], ids=["close", "shut"])
def test_the_end_comes_with_the_last_words(pairs: Pairs, part: Callable[[Stream], None]) -> None:
    async def work(turn: Turn) -> None:
        _, stream, peer = met(turn, pairs)
        before = segments(peer)
        stream.say(b"221 bye\r\n")
        part(stream)
        assert await read(peer, 100) == b"221 bye\r\n"
        assert segments(peer) == before + 1

    run(work)


def test_last_words_arrive_over_what_was_not_read(pairs: Pairs) -> None:
    async def work(turn: Turn) -> None:
        owner, stream, peer = met(turn, pairs)
        stream.pause()
        await asyncio.to_thread(peer.sendall, b"unread" * 1000)
        stream.say(b"421 enough\r\n")
        stream.close()
        await owner.until("parted")
        assert await read(peer, 12) == b"421 enough\r\n"

    run(work)


def segments(peer: socket.socket) -> int:
    """Give the number of segments that have come from the gateway (tcpi_segs_in, linux/tcp.h)."""
    told = peer.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 144)
    return int(struct.unpack_from("I", told, 140)[0])


def test_what_is_large_comes_whole_and_in_portions(pairs: Pairs) -> None:
    async def work(turn: Turn) -> None:
        owner, _, peer = met(turn, pairs)
        data = os.urandom(MUCH)
        await asyncio.to_thread(peer.sendall, data)
        peer.shutdown(socket.SHUT_WR)
        await owner.wait(lambda: b"" in owner.of("heard"))
        heard = [piece for piece in owner.of("heard") if isinstance(piece, bytes)]
        assert b"".join(heard) == data
        assert max(map(len, heard)) <= 262144

    run(work)


def test_a_pause_holds_back_and_an_end_is_told_once(pairs: Pairs) -> None:
    async def work(turn: Turn) -> None:
        owner, stream, peer = met(turn, pairs)
        stream.pause()
        peer.send(b"words")
        peer.shutdown(socket.SHUT_WR)
        await asyncio.sleep(0.05)
        assert not owner.told
        stream.resume()
        await owner.until("heard", 2)
        stream.say(b"answer")
        stream.shut()
        assert await read(peer, 100) == b"answer"
        await asyncio.sleep(0.05)
        stream.close()
        await owner.until("parted")
        assert owner.told == [("heard", b"words"), ("heard", b""), ("parted", type(None))]

    run(work)


def test_no_byte_is_missed_however_often_reading_stops_and_goes_on(pairs: Pairs) -> None:
    draw = random.Random(5)
    near = (1, 30, streams._LITTLE, 2 * streams._LITTLE, streams._SOME, 70_000)

    async def work(turn: Turn) -> None:
        owner, stream, peer = met(turn, pairs)
        owner.answer = lambda stream, _: stream.pause() if draw.random() < 0.7 else None
        sent = b""
        for _ in range(300):
            data = draw.randbytes(max(draw.choice(near) + draw.choice((-1, 0, 1)), 1))
            sent += data
            peer.sendall(data)
            for _ in range(draw.randrange(3)):
                await asyncio.sleep(0)
                stream.resume()
                if draw.random() < 0.3:
                    stream.pause()
        peer.shutdown(socket.SHUT_WR)
        owner.answer = None
        stream.resume()
        await owner.wait(lambda: owner.of("heard")[-1:] == [b""])
        assert owner.has_heard(sent)

    run(work)


def test_what_comes_behind_an_urgent_byte_is_heard(pairs: Pairs) -> None:
    async def work(turn: Turn) -> None:
        owner, stream, peer = met(turn, pairs)
        stream.pause()
        for _ in range(3):
            peer.sendall(b"NOOP\r\n")
            peer.send(b"!", socket.MSG_OOB)
        peer.sendall(b"QUIT\r\n")
        await asyncio.sleep(0.05)
        stream.resume()
        await owner.wait(lambda: b"".join(map(bytes, owner.of("heard"))).endswith(b"QUIT\r\n"))  # type: ignore[arg-type]

    run(work)


@pytest.mark.parametrize("busy", [False, True], ids=["silent", "sent to"])
@pytest.mark.parametrize("paused", [False, True], ids=["read", "paused"])
def test_a_reset_is_an_error_however_it_is_met(pairs: Pairs, busy: bool, paused: bool) -> None:
    async def work(turn: Turn) -> None:
        owner, stream, peer = met(turn, pairs)
        if paused:
            stream.pause()
        reset(peer)
        for _ in range(3):
            if busy:
                stream.say(b"x" * 1000)
            await asyncio.sleep(0.02)
        if paused and not busy:
            assert not owner.told
            stream.resume()
        await owner.until("parted")
        (how,) = owner.of("parted")
        assert isinstance(how, type)
        assert issubclass(how, ConnectionError)
        assert not owner.of("heard")

    run(work)


def test_last_words_are_heard_though_nothing_can_be_said(pairs: Pairs) -> None:
    async def work(turn: Turn) -> None:
        owner, stream, peer = met(turn, pairs)
        stream.pause()
        peer.send(b"421 bye\r\n")
        peer.shutdown(socket.SHUT_WR)
        stream.resume()
        stream.say(b"x" * 1000)
        with suppress(ConnectionError):
            await asyncio.sleep(0.02)
        reset(peer)
        stream.say(b"x" * 1000)
        await owner.until("heard")
        assert owner.told[0] == ("heard", b"421 bye\r\n")

    run(work)


def test_a_defect_costs_nobody_else_anything(pairs: Pairs) -> None:
    def answer(stream: Stream, data: bytes) -> None:
        if data == b"bad":
            raise ValueError("a bug")
        stream.say(data)

    async def work(turn: Turn) -> None:
        owner, peers = Recorder(answer), []
        for name in (b"bad", b"good", b"bad", b"good"):
            ours, peer = pairs()
            peers.append(peer)
            Stream(turn, ours, owner, BACKLOG)
            peer.send(name)
        await owner.until("heard", 4)
        assert owner.of("broken") == ["a bug", "a bug"]
        assert [peers[1].recv(100), peers[3].recv(100)] == [b"good", b"good"]

    run(work)


@pytest.mark.skipif(not hasattr(os, "splice"), reason="this system has no splice(2)")
@pytest.mark.parametrize("files", [True, False], ids=["by a pipe", "no file for a pipe"])
def test_carried_bytes_arrive_behind_what_was_said(
    pairs: Pairs, monkeypatch: pytest.MonkeyPatch, files: bool
) -> None:
    if not files:
        monkeypatch.setattr(splice, "_pipe", Mock(side_effect=OSError(errno.ENFILE, "no more files")))

    async def work(turn: Turn) -> None:
        (source, speaker), (target, listener) = pairs(), pairs()
        owner = Recorder()
        here, there = (Stream(turn, each, owner, BACKLOG) for each in (source, target))
        there.say(b"first ")
        here.carry_to(there)
        data = os.urandom(MUCH)
        sending = asyncio.to_thread(speaker.sendall, data)
        told, _ = await asyncio.gather(read(listener, MUCH + 6), sending)
        assert told == b"first " + data
        speaker.shutdown(socket.SHUT_WR)
        await owner.until("heard")
        counts = [count for count in owner.of("carried") if isinstance(count, int)]
        assert sum(counts) == MUCH
        assert owner.of("heard") == [b""]

    run(work)


def test_an_end_that_is_there_is_heard_in_the_turn_of_the_last_words(pairs: Pairs) -> None:
    order: list[bytes] = []

    def note(_stream: Stream, data: bytes) -> None:
        order.append(data)
        asyncio.get_running_loop().call_soon(order.append, b"after that turn")

    async def work(turn: Turn) -> None:
        ours, peer = pairs()
        owner = Recorder(note)
        peer.send(b"221 bye")
        peer.shutdown(socket.SHUT_WR)
        Stream(turn, ours, owner, BACKLOG)
        await owner.until("heard", 2)

    run(work)
    told_of_ends = vars(streams)["Poll"] is not readiness.Ready
    assert order[:2] == [b"221 bye", b"" if told_of_ends else b"after that turn"]
