"""Relays on real sockets: two peers, of which one may be slow or done, and who is listened to meanwhile."""

import asyncio
import socket
from contextlib import suppress

import pytest
import uvloop

from appliance.proxy.relay import Relay
from appliance.proxy.session import Gate, Verdict
from appliance.proxy.streams import Turn
from tests.proxy.test_streams import Pairs, pairs, read  # noqa: F401


class Plain(Relay):
    """A relay without a session: it says nothing by itself."""

    def __init__(self, loop: asyncio.AbstractEventLoop, client: socket.socket) -> None:
        super().__init__(loop, Turn(loop), client, 0)
        self.hung_up = asyncio.Event()

    def client_said(self, data: bytes) -> None:
        self.to_server(data)

    def server_said(self, data: bytes) -> None:
        self.to_client(data)

    def client_hung_up(self) -> None:
        self.hung_up.set()

    def server_hung_up(self) -> None: ...
    def server_reached(self) -> None: ...
    def server_missed(self, error: OSError) -> None: ...
    def client_left(self) -> None: ...
    def end(self, by: str) -> None: ...
    def finish(self, by: str) -> None: ...
    def close_client(self) -> None: ...
    def direct(self) -> None: ...
    def drop_message(self) -> None: ...
    def finish_message(self) -> None: ...
    def taken_over(self, reason: str) -> None: ...

    def backlog(self) -> int:
        return 0

    def ask(self, gate: Gate, subject: bytes) -> Verdict | None: ...

    def begin_message(self) -> bytes:
        return b""

    def spool(self, data: bytes) -> Verdict | None: ...


@pytest.fixture
def loop() -> asyncio.AbstractEventLoop:
    return uvloop.new_event_loop()


def made(loop: asyncio.AbstractEventLoop, pairs: Pairs) -> tuple[Plain, socket.socket, socket.socket]:  # noqa: F811
    """Give a relay that listens, its client and its server."""
    (one, client), (other, server) = pairs(), pairs()
    relay = Plain(loop, one)
    relay.meet(other)
    relay._listen()
    return relay, client, server


def test_a_server_that_is_parted_from_keeps_nobody_waiting(
    loop: asyncio.AbstractEventLoop,
    pairs: Pairs,  # noqa: F811
) -> None:
    relay, client, _ = made(loop, pairs)
    client.setblocking(False)

    async def work() -> None:
        async with asyncio.timeout(10):
            while not relay._client.paused:
                with suppress(BlockingIOError):
                    client.send(bytes(100_000))
                await asyncio.sleep(0)
        relay.close_server()
        assert not relay._client.paused

    loop.run_until_complete(work())
    loop.close()


def test_a_client_that_is_done_before_the_session_is_direct_is_so_for_the_server(
    loop: asyncio.AbstractEventLoop,
    pairs: Pairs,  # noqa: F811
) -> None:
    relay, client, server = made(loop, pairs)

    async def work() -> None:
        client.shutdown(socket.SHUT_WR)
        async with asyncio.timeout(5):
            await relay.hung_up.wait()
            relay.relay_directly()
            server.setblocking(False)
            assert await asyncio.get_running_loop().sock_recv(server, 100) == b""
            server.setblocking(True)
            server.sendall(b"last words")
            server.shutdown(socket.SHUT_WR)
            assert await read(client, 100) == b"last words"

    loop.run_until_complete(work())
    loop.close()
