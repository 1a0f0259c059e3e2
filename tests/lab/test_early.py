"""2: a client that speaks before it was greeted, however long the server takes to greet or to be reached."""

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from lab.gateway import Gateway, Options
from lab.network import Network

pytestmark = pytest.mark.lab
SERVER, LISTENER = ("127.0.0.1", 2525), ("127.0.0.1", 9199)


class SlowServer(threading.Thread):
    """Greets each client only after a while, and keeps what it is told."""

    def __init__(self, listener: socket.socket) -> None:
        super().__init__(daemon=True)
        self._listener = listener
        self.heard: list[bytes] = []
        self.start()

    def run(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with client:
                time.sleep(0.3)
                client.sendall(b"220 slow.example.test ESMTP\r\n")
                self.heard.append(client.recv(1000))


@pytest.fixture
def server(network: Network) -> Iterator[SlowServer]:
    with network.router.listen(SERVER) as listener:
        yield SlowServer(listener)
        listener.shutdown(socket.SHUT_RDWR)


def fixed(network: Network, **options: str | int) -> Gateway:
    here: Options = {
        "mode": "fixed",
        "fixed_server": SERVER[0],
        "fixed_server_port": SERVER[1],
        "lock_on": "never",
    }
    return Gateway(network.router, {**here, **options}).start()


def everything(client: socket.socket) -> bytes:
    with client:
        client.settimeout(5)
        said = b""
        while piece := client.recv(4096):
            said += piece
        return said


@pytest.mark.option("earlytalk", "msg_earlytalker")
def test_an_early_talker_is_told_so_and_heard_by_nobody(network: Network, server: SlowServer) -> None:
    gateway = fixed(network)
    try:
        client = network.router.connect(LISTENER)
        client.sendall(b"EHLO early.example.test\r\n")
        assert everything(client).startswith(b"554 gw.example.test ")
        assert gateway.wait_log("EARLYTALK")
        assert "BUG" not in gateway.log
        assert "0/0/0/0/0/1" in gateway.status()
        time.sleep(0.5)
        assert server.heard == [b""]
    finally:
        gateway.close()


def test_a_patient_client_is_served(network: Network, server: SlowServer) -> None:
    gateway = fixed(network)
    try:
        client = network.router.connect(LISTENER)
        assert client.recv(1000) == b"220 slow.example.test ESMTP\r\n"
        client.sendall(b"EHLO patient.example.test\r\n")
        everything(client)
        assert server.heard == [b"EHLO patient.example.test\r\n"]
    finally:
        gateway.close()


@pytest.mark.option("earlytalk")
def test_what_was_said_early_is_kept_where_that_is_allowed(network: Network, server: SlowServer) -> None:
    gateway = fixed(network, earlytalk="no")
    try:
        client = network.router.connect(LISTENER)
        client.sendall(b"EHLO hasty.example.test\r\n")
        client.shutdown(socket.SHUT_WR)
        assert everything(client) == b"220 slow.example.test ESMTP\r\n"
        assert server.heard == [b"EHLO hasty.example.test\r\n"]
    finally:
        gateway.close()


@pytest.mark.option("lock_on")
def test_the_event_locks(network: Network, server: SlowServer) -> None:  # noqa: ARG001
    gateway = fixed(network, lock_on="earlytalk")
    try:
        client = network.router.connect(LISTENER)
        client.sendall(b"QUIT\r\n")
        assert b"554" in everything(client)
        assert (gateway.locks / "127.0.0.1").exists()
        assert everything(network.router.connect(LISTENER)).startswith(b"554 ")
    finally:
        gateway.close()
