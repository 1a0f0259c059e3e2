"""The gateway as a program on the loopback interface, and as much of a mail server as it needs.

Used by the tests of its life, here and in tests/lab.
"""

import contextlib
import os
import signal
import socket
import socketserver
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from appliance.supervisor.pidfile import holder
from tests.ports import free_port

PROGRAM = str(Path(sys.executable).with_name("smtp-gated"))
GREETING = b"220 mail.example.test ESMTP\r\n"


class Server(socketserver.StreamRequestHandler):
    """As much of a mail server as a session needs to stay open."""

    def handle(self) -> None:
        self.wfile.write(GREETING)
        while line := self.rfile.readline():
            self.wfile.write(b"221 Bye\r\n" if line.startswith(b"QUIT") else b"250 OK\r\n")


def wait_until(true: Callable[[], object], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def command_line(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:  # it ended meanwhile
        return ""


class Gateway:
    """A gateway with its configuration file and directories, and a log to read."""

    def __init__(self, home: Path, server: int) -> None:
        self.port = free_port()
        self.home = home
        self.file = home / "conf"
        self.process: subprocess.Popen[str] | None = None
        self.options = {
            "mode": "fixed",
            "fixed_server": "127.0.0.1",
            "fixed_server_port": str(server),
            "bind_address": "127.0.0.1",
            "port": str(self.port),
            "workers": "2",
            "max_load": "0",
            "log_level": "debug",
            "pidfile": f"{home}/run/pid",
            "statefile": f"{home}/run/state",
            "control_socket": f"{home}/run/control",
            "spool_path": f"{home}/msg",
            "lock_path": f"{home}/lock",
        }
        if os.geteuid() == 0:
            self.options["set_user"] = "nobody"
        self.write()

    def write(self, **options: str) -> None:
        self.options |= options
        self.file.write_text("".join(f"{name} {value}\n" for name, value in self.options.items()))

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([PROGRAM, *arguments, self.file], capture_output=True, text=True, timeout=30)

    def start(self) -> None:
        """In the foreground, with the log in a file."""
        with (self.home / "log").open("w") as log:
            self.process = subprocess.Popen([PROGRAM, "-f", self.file], stderr=log, text=True)
        self.wait_log("START ")

    def wait_log(self, words: str) -> None:
        wait_until(lambda: words in (self.home / "log").read_text())

    def pid(self) -> int | None:
        return holder(Path(self.options["pidfile"]))

    def workers(self) -> list[int]:
        return self._children("appliance.proxy.worker")

    def mirrors(self) -> list[int]:
        """Give the process number of the lock mirror, none where there can be none."""
        return self._children("appliance.supervisor.mirror")

    def _children(self, module: str) -> list[int]:
        children = Path(f"/proc/{self.pid()}/task/{self.pid()}/children").read_text()
        return [int(pid) for pid in children.split() if module in command_line(pid)]

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid() or 0, number)

    def connect(self, source: str = "127.0.0.1") -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), 10, (source, 0))

    def session(self, source: str = "127.0.0.1") -> socket.socket:
        client = self.connect(source)
        assert client.recv(1000) == GREETING
        return client

    def end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            if pid := self.pid():
                os.kill(pid, signal.SIGKILL)
        if self.process:
            self.process.wait(10)


@contextlib.contextmanager
def gateway_before(server: int) -> Iterator[Gateway]:
    """Give a gateway that is not started yet, in a directory that all users may enter; both go in the end."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        made = Gateway(Path(name), server)
        try:
            yield made
        finally:
            made.end()


def name_of(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


def ended(pid: int) -> bool:
    try:
        return ") Z " in Path(f"/proc/{pid}/stat").read_text()  # init may take its time to bury it
    except FileNotFoundError:
        return True


def talks(client: socket.socket) -> bool:
    client.sendall(b"NOOP\r\n")
    return client.recv(1000) == b"250 OK\r\n"
