"""A worker by itself, in the hands of the test instead of the supervisor's, with a mail server and scanners.

For tests of what options make of whole conversations: it is started once and then reconfigured for each test,
in milliseconds. The scanners find what a message says that they should:

    X-Virus: NAME       clamd finds NAME; without a name it fails; `hang` as the name: it never answers
    X-Spam: SCORE       spamd gives this score
"""

import contextlib
import json
import re
import select
import shutil
import socket
import socketserver
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from appliance.proxy.scoreboard import Counter, Scoreboard
from lab.process import wait_until
from tests.lab.scripted import ScriptedServer, Talk


class Inside:
    """A worker in front of `server`, listening at 127.0.0.1; `home` is an empty directory for it alone."""

    def __init__(self, home: Path, **options: str | int) -> None:
        self.home = home
        self.server = ScriptedServer(socket.create_server(("127.0.0.1", 0)))
        self.spool, self.locks = home / "msg", home / "lock"
        self._scanners = [serve(home / "clamd", Clamd), serve(home / "spamd", Spamd)]
        self._base: dict[str, str | int] = {
            "mode": "fixed",
            "fixed_server": "127.0.0.1",
            "fixed_server_port": self.server.address[1],
            "proxy_name": "gw.example.test",
            "spool_path": str(self.spool),
            "lock_path": str(self.locks),
            "antivirus_path": str(home / "clamd"),
            "antispam_path": str(home / "spamd"),
            "max_load": 0,
            "spam_max_load": 0,
            "max_connections": 0,
            "max_per_host": 0,
            **options,
        }
        self._seen = 0
        self.board = Scoreboard.create(1)
        with socket.create_server(("127.0.0.1", 0), backlog=100) as listener:
            self.port: int = listener.getsockname()[1]
            self._start(listener)

    def _start(self, listener: socket.socket) -> None:
        ours, theirs = socket.socketpair()
        descriptors = (theirs.fileno(), listener.fileno(), self.board.fd)
        control, listening, board = map(str, descriptors)
        with theirs, (self.home / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-P", "-m", "appliance.proxy.worker", "--index", "0"),
                    *("--control", control, "--listener", listening, "--scoreboard", board),
                ],
                pass_fds=descriptors,
                stderr=log,
            )
        self.pid = self._process.pid
        self._control = ours
        self._answers = ours.makefile("rb")
        ours.settimeout(20)
        self.tell("start", config=self._fresh({}), stderr=True)
        assert json.loads(self._answers.readline()) == {"is": "ready"}

    def _fresh(self, options: dict[str, str | int]) -> str:
        """Empty the directories and give the text of a configuration."""
        for directory in (self.spool, self.locks):
            shutil.rmtree(directory, ignore_errors=True)
            directory.mkdir()
        self.server.hooks.clear()
        self.server.messages.clear()
        return "".join(f"{name} {value}\n" for name, value in (self._base | options).items())

    def tell(self, do: str, **more: object) -> None:
        """Give the worker an order."""
        self._control.sendall(json.dumps({"do": do, **more}).encode() + b"\n")

    def use(self, **options: str | int) -> "Inside":
        """Begin anew with these options, an empty log and empty directories; sessions that are open go on."""
        self.reload(self._fresh(options))
        self._seen = (self.home / "log").stat().st_size
        return self

    def reload(self, text: str) -> None:
        """Have the worker use a configuration for sessions to come, and wait until it does."""
        self.tell("reload", config=text)
        self.rows()

    def rows(self) -> list[list[object]]:
        """Give the rows of the status file."""
        self.tell("sessions")
        rows: list[list[object]] = json.loads(self._answers.readline())["found"]
        return rows

    def known(self, address: str = "127.0.0.1") -> dict[str, Any]:
        """Give what is known of a client."""
        self.tell("client", address=address)
        found: dict[str, Any] = json.loads(self._answers.readline())["found"]
        return found

    def connect(self, source: str = "127.0.0.1") -> Talk:
        """Connect, with the greeting still to be read."""
        return Talk(socket.create_connection(("127.0.0.1", self.port), 10, (source, 0)))

    def session(self, source: str = "127.0.0.1") -> Talk:
        """Connect, hear the greeting, say EHLO."""
        return self.connect(source).greet()

    def send(self, body: str, source: str = "127.0.0.1") -> str:
        """Send a mail in a session of its own; give the answer to it."""
        with self.session(source) as client:
            return client.begin().finish(body)

    @property
    def log(self) -> list[str]:
        """All that was logged since `use`, without the program's name."""
        with (self.home / "log").open("rb") as file:
            file.seek(self._seen)
            return [line.partition("]: ")[2] for line in file.read().decode().splitlines()]

    def wait_log(self, words: str) -> str:
        """Wait for a line with these words; give it."""
        found: list[str] = []

        def there() -> bool:
            found[:] = [line for line in self.log if words in line]
            return bool(found)

        wait_until(there, 5, words)
        return found[0]

    def locked(self) -> list[str]:
        """Name the locks."""
        return sorted(path.name for path in self.locks.iterdir())

    def copies(self) -> list[Path]:
        """Name the copies of messages."""
        return sorted(self.spool.iterdir())

    def idle(self) -> None:
        """Wait until there is no session."""
        wait_until(lambda: self.board.total(Counter.SESSIONS) == 0, 5, "the end of all sessions")

    def abandon(self, *, unread: bool) -> int:
        """Vanish as a supervisor that is killed, with an answer unread or not; give how the worker ends."""
        if unread:
            self.tell("sessions")
            assert select.select([self._control], [], [], 5)[0]
        for ours in (self._answers, self._control):
            ours.close()
        return self._process.wait(10)

    def close(self) -> None:
        """End the worker and look whether it found itself at fault."""
        try:
            if self._process.poll() is None:
                with contextlib.suppress(BrokenPipeError):  # told before, it ends just now
                    self.tell("stop")
            assert self._process.wait(10) == 0
        finally:
            self._process.kill()
            self._process.wait()
            for closing in (self._answers, self._control, self.server):
                closing.close()
            for scanner in self._scanners:
                scanner.shutdown()
                scanner.server_close()
        assert "BUG" not in (self.home / "log").read_text()


def serve(path: Path, handler: Callable[..., socketserver.BaseRequestHandler]) -> socketserver.BaseServer:
    server = socketserver.ThreadingUnixStreamServer(str(path), handler)
    server.daemon_threads = True
    server.block_on_close = False
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    return server


class Clamd(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        command = b""
        while not command.endswith((b"\0", b"\n")):
            command += self.rfile.read(1)
        if path := re.search(rb"SCAN (.+)", command[:-1]):
            message = Path(path[1].decode()).read_bytes()
        else:
            message = b""
            while size := int.from_bytes(self.rfile.read(4)):
                message += self.rfile.read(size)
        found = re.search(rb"^X-Virus: ?(.*?)\r$", message, re.MULTILINE)
        if found and found[1] == b"hang":
            self.rfile.read(1)
        answer = b"OK" if not found else found[1] + b" FOUND" if found[1] else b"no memory ERROR"
        with contextlib.suppress(OSError):
            self.wfile.write(b"message: " + answer + command[-1:])


class Spamd(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        message = b""
        while piece := self.request.recv(65536):
            message += piece
        found = re.search(rb"^X-Spam: (.*?)\r$", message, re.MULTILINE)
        score = found[1] if found else b"0"
        head = b"SPAMD/1.1 0 EX_OK\r\nContent-length: 0\r\nSpam: False ; "
        with contextlib.suppress(OSError):
            self.request.sendall(head + score + b" / 5.0\r\n\r\n")
