"""Listeners that outlive the gateway: what systemd has to keep, and what the next gateway makes of it."""

import array
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.process import wait_until
from tests.ports import free_port
from tests.supervisor.program import GREETING, PROGRAM, Gateway, talks

pytestmark = pytest.mark.lab


class Keeper:
    """As much of systemd as keeps descriptors for a service and hands them to its next process."""

    def __init__(self, home: Path) -> None:
        self.kept: dict[str, int] = {}
        self.path = str(home / "notify")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.path)
        self._ready = threading.Semaphore(0)
        self._thread = threading.Thread(target=self._hear)
        self._thread.start()

    def _hear(self) -> None:
        while True:
            words, ancillary, _, _ = self._socket.recvmsg(4096, 4096)
            told = dict(line.split("=", 1) for line in words.decode().splitlines())
            descriptors = array.array("i")
            for _, _, data in ancillary:
                descriptors.frombytes(data)
            if told.get("FDSTORE"):
                self.kept[told["FDNAME"]] = descriptors.pop()
            if told.get("FDSTOREREMOVE"):
                os.close(self.kept.pop(told["FDNAME"]))
            for descriptor in descriptors:  # a barrier's
                os.close(descriptor)
            if told.get("READY"):
                self._ready.release()
            if told.get("END"):
                return

    def start(self, gateway: Gateway) -> subprocess.Popen[str]:
        """Start the gateway as systemd starts a service, and return when it is ready."""
        names, descriptors = list(self.kept), list(self.kept.values())
        moves = " ".join(f"{3 + index}<&{fd}-" for index, fd in enumerate(descriptors))
        enter = f"exec env LISTEN_PID=$$ {PROGRAM} -f {gateway.file} {moves}"
        environment = {"NOTIFY_SOCKET": self.path}
        if names:
            environment |= {"LISTEN_FDS": str(len(names)), "LISTEN_FDNAMES": ":".join(names)}
        with (gateway.home / "log").open("w") as log:
            process = subprocess.Popen(
                ["bash", "-c", enter],
                stderr=log,
                text=True,
                pass_fds=descriptors,
                env=os.environ | environment,
            )
        assert self._ready.acquire(timeout=10), (gateway.home / "log").read_text()
        gateway.process = process
        return process

    def close(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"END=1", self.path)
        self._thread.join()
        self._socket.close()
        for descriptor in self.kept.values():
            os.close(descriptor)


@pytest.fixture
def keeper(gateway: Gateway) -> Iterator[Keeper]:
    made = Keeper(gateway.home)
    yield made
    gateway.end()
    made.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_clients_wait_for_the_next_gateway(gateway: Gateway, keeper: Keeper, number: int) -> None:
    first = keeper.start(gateway)
    assert sorted(keeper.kept) == [
        f"plain-127.0.0.1-{gateway.port}-worker-{index}-of-2" for index in range(2)
    ]
    gateway.session().close()
    first.send_signal(number)
    first.wait(10)
    waiting = [gateway.connect(f"127.0.0.{index}") for index in range(1, 9)]
    keeper.start(gateway)
    for client in waiting:
        assert client.recv(1000) == GREETING
        assert talks(client)
        client.close()
    assert len(keeper.kept) == 2


def test_who_comes_while_it_drains_waits_for_nobody(gateway: Gateway, keeper: Keeper) -> None:
    gateway.write(control_socket=str(gateway.home / "control"))
    first = keeper.start(gateway)
    client = gateway.session()
    tool = [PROGRAM.replace("smtp-gated", "appliance-ctl"), "--config", str(gateway.file), "drain"]
    assert subprocess.run(tool, check=False, timeout=20).returncode == 0
    wait_until(lambda: not keeper.kept, 5, "systemd keeps nothing")
    with pytest.raises(ConnectionRefusedError):
        gateway.connect()
    assert talks(client)
    client.close()
    assert first.wait(10) == 0


@pytest.mark.parametrize("change", ["workers", "port"])
def test_listeners_of_another_configuration_are_let_go(
    gateway: Gateway,
    keeper: Keeper,
    change: str,
) -> None:
    first = keeper.start(gateway)
    first.terminate()
    first.wait(10)
    old = set(keeper.kept)
    if change == "workers":
        gateway.write(workers="3")
    else:
        gateway.port = free_port()
        gateway.write(port=str(gateway.port))
    keeper.start(gateway)
    assert len(keeper.kept) == int(gateway.options["workers"])
    assert not old & set(keeper.kept)
    with gateway.session() as client:
        assert talks(client)


def test_descriptors_meant_for_another_process_are_left_alone(gateway: Gateway, keeper: Keeper) -> None:
    os.environ["LISTEN_PID"], os.environ["LISTEN_FDS"] = str(os.getpid()), "1"
    try:
        gateway.start()
        assert talks(gateway.session())
    finally:
        del os.environ["LISTEN_PID"], os.environ["LISTEN_FDS"]
    assert not keeper.kept
