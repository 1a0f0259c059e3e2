"""A gateway in mode pf: its workers open the device while they may, and ask it when they may not any more."""

import contextlib
import os
import signal
import socketserver
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from socket import create_connection, create_server

import pytest

PROGRAM = Path(sys.executable).with_name("smtp-gated")
GREETING = b"220 the one that was meant\r\n"


class Server(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        self.wfile.write(GREETING)
        self.rfile.read()


@pytest.fixture
def server() -> Iterator[int]:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Server) as running:
        running.daemon_threads = True
        running.block_on_close = False
        threading.Thread(target=running.serve_forever, args=(0.05,), daemon=True).start()
        yield running.server_address[1]
        running.shutdown()


@pytest.fixture
def home() -> Iterator[Path]:
    """A directory that everybody may enter."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


class Gateway:
    def __init__(self, home: Path, server: int) -> None:
        with create_server(("127.0.0.1", 0)) as probe:
            self.port: int = probe.getsockname()[1]
        self.log, self.device = home / "log", home / "pf"
        self.device.touch(0o600)
        distribution = home / "site" / "pf_here-1.dist-info"
        distribution.mkdir(parents=True)
        (distribution / "METADATA").write_text("Metadata-Version: 2.1\nName: pf-here\nVersion: 1\n")
        (distribution / "entry_points.txt").write_text("[appliance.lookup]\npf = pf_here:PfHere\n")
        here = Path(__file__).parent
        path = os.pathsep.join(map(str, (home / "site", here, here.parent)))
        self.environment = os.environ | {"PYTHONPATH": path, "PF_HERE": str(self.device)}
        self.environment["PF_LEADS_TO"] = str(server)
        options = {"mode": "pf", "bind_address": "127.0.0.1", "port": self.port, "workers": 1, "max_load": 0}
        options |= {"pidfile": home / "pid", "statefile": home / "state", "control_socket": home / "control"}
        options |= {"spool_path": home / "spool", "lock_path": home / "lock", "log_target": "stderr"}
        if os.geteuid() == 0:
            options["set_user"] = "nobody"
        self.file = home / "gate.conf"
        self.file.write_text("".join(f"{name} {value}\n" for name, value in options.items()))

    def start(self) -> subprocess.Popen[bytes]:
        with self.log.open("wb") as log:
            return subprocess.Popen([PROGRAM, "-f", self.file], env=self.environment, stderr=log)

    def wait_log(self, words: str) -> None:
        deadline = time.monotonic() + 20
        while words not in self.log.read_text():
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.02)

    def greeting(self) -> bytes:
        with create_connection(("127.0.0.1", self.port), 10, ("127.0.0.2", 0)) as client:
            return client.recv(100)


@pytest.fixture
def gateway(home: Path, server: int) -> Gateway:
    return Gateway(home, server)


@contextlib.contextmanager
def running(gateway: Gateway) -> Iterator[subprocess.Popen[bytes]]:
    process = gateway.start()
    try:
        gateway.wait_log("START ")
        yield process
    finally:
        process.terminate()
        process.wait(10)


def test_the_device_outlives_privileges_and_reloads(gateway: Gateway) -> None:
    with running(gateway) as process:
        assert gateway.greeting() == GREETING
        gateway.device.unlink()
        process.send_signal(signal.SIGHUP)
        gateway.wait_log("RELOAD:DONE")
        assert gateway.greeting() == GREETING


def test_a_device_that_is_not_there_keeps_the_gateway_from_starting(gateway: Gateway) -> None:
    gateway.device.unlink()
    assert gateway.start().wait(30) == 1
    assert (
        f"a worker did not start: {gateway.device}: No such file or directory; is it"
        in gateway.log.read_text()
    )
