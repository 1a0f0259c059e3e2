"""Scripted ends of a conversation: a client, a mail server and a virus scanner that do what a test wants.

They are for what real programs never do: ending at a certain point, staying mute, talking rubbish. Used by
the tests beside this. Real servers are in `lab.servers`.
"""

import contextlib
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Self

from lab.gateway import Gateway
from lab.host import Host
from lab.process import LabError, wait_until

SENDER, RECIPIENT = "<sender@client.test>", "<alice@example.test>"
BODY = "Subject: scripted\r\n\r\nSee you at noon.\r\n"


class Talk:
    """A conversation over a connected socket, line by line; each wait ends with the socket's timeout."""

    def __init__(self, connection: socket.socket) -> None:
        connection.settimeout(15)
        self.socket = connection
        self._file = connection.makefile("rb")

    def say(self, *lines: str) -> None:
        """Send lines."""
        self.send("".join(f"{line}\r\n" for line in lines).encode())

    def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        self.socket.sendall(data)

    def line(self) -> str:
        """Read one line, without its end; EOFError when there is none any more."""
        line = self._file.readline(1 << 21)
        if not line.endswith(b"\n"):
            raise EOFError(line)
        return line.decode("latin-1").rstrip("\r\n")

    def reply(self) -> str:
        """Read one reply; give its last line."""
        while (line := self.line())[3:4] == "-":
            pass
        return line

    def ask(self, command: str) -> str:
        """Send a command; give the last line of its reply."""
        self.say(command)
        return self.reply()

    def greet(self) -> Self:
        """Wait for the greeting and send EHLO."""
        assert self.reply().startswith("220")
        assert self.ask("EHLO client.test").startswith("250")
        return self

    def begin(self) -> Self:
        """Begin a message, up to its 354."""
        assert self.ask(f"MAIL FROM:{SENDER}").startswith("250")
        assert self.ask(f"RCPT TO:{RECIPIENT}").startswith("250")
        assert self.ask("DATA").startswith("354")
        return self

    def finish(self, body: str = BODY) -> str:
        """Send a message's content, or the rest of it, and its end; give the answer."""
        self.send(body.encode() + b".\r\n")
        return self.reply()

    def rest(self) -> bytes:
        """Read to the end of the connection; TimeoutError when it does not come."""
        data = b""
        with contextlib.suppress(ConnectionResetError):
            while piece := self._file.read1(65536):
                data += piece
        return data

    def close(self) -> None:
        """Close the connection."""
        self._file.close()
        self.socket.close()

    def reset(self) -> None:
        """Close it as a host does whose program was killed: by a reset."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


Hook = Callable[[Talk], object]


class ScriptedServer:
    """A mail server on a listening socket, which takes every message unless a hook says otherwise.

    `hooks` are called with the conversation at these points: connect (nothing said yet), each verb (heard,
    not answered), body (some of the message is there), end (all of it is there, nothing answered). A hook
    that returns something true has done what the server would do at this point; EOFError ends the
    conversation. `messages` are those whose end has come, `unfinished` the conversations whose message was
    cut off, `talks` those under way.
    """

    def __init__(self, listener: socket.socket) -> None:
        self.address: tuple[str, int] = listener.getsockname()[:2]
        self.hooks: dict[str, Hook] = {}
        self.messages: list[str] = []
        self.unfinished: set[Talk] = set()
        self.talks: set[Talk] = set()
        self._listener = listener
        listener.settimeout(None)
        Thread(target=self._accept, name=f"server {self.address}", daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # the listener was shut down
            while True:
                connection, _ = self._listener.accept()
                talk = Talk(connection)
                self.talks.add(talk)
                Thread(target=self._attend, args=[talk], daemon=True).start()

    def _attend(self, talk: Talk) -> None:
        try:
            with talk, contextlib.suppress(OSError, EOFError):
                self._serve(talk)
        finally:
            self.talks.discard(talk)

    def _serve(self, talk: Talk) -> None:
        if not self._reach("connect", talk):
            talk.say("220 mail.example.test ESMTP")
        while True:
            verb = talk.line()[:4].upper()
            if self._reach(verb, talk):
                continue
            if verb == "EHLO":
                talk.say("250-mail.example.test", "250-PIPELINING", "250 ENHANCEDSTATUSCODES")
            elif verb == "DATA":
                talk.say("354 go on")
                self._message(talk)
            elif verb == "QUIT":
                talk.say("221 2.0.0 bye")
                return
            else:
                talk.say("250 2.0.0 ok")

    def _message(self, talk: Talk) -> None:
        lines: list[str] = []
        self.unfinished.add(talk)
        while (line := talk.line()) != ".":
            lines.append(line)
            if line.startswith("Subject:"):
                self._reach("body", talk)
        self.unfinished.discard(talk)
        self.messages.append("\r\n".join(lines))
        if not self._reach("end", talk):
            talk.say("250 2.0.0 taken")

    def _reach(self, point: str, talk: Talk) -> bool:
        hook = self.hooks.get(point)
        return bool(hook and hook(talk))

    def forget(self) -> None:
        """Become the server that takes every message again, once everybody has left."""
        wait_until(lambda: not self.talks, 10, "the end of all conversations with the server")
        self.hooks.clear()
        self.messages.clear()
        self.unfinished.clear()

    def close(self) -> None:
        """Accept no more."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


def mute(talk: Talk) -> None:
    """Say nothing until the other side has closed."""
    talk.socket.settimeout(60)
    talk.rest()
    raise EOFError


class ScriptedScanner:
    """A clamd at a UNIX socket that answers PING, and never answers a scan; `scans` are under way."""

    def __init__(self, path: Path) -> None:
        self.scans: set[socket.socket] = set()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        path.chmod(0o666)
        self._listener.listen()
        Thread(target=self._accept, name=f"scanner {path}", daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                Thread(target=self._attend, args=[connection], daemon=True).start()

    def _attend(self, connection: socket.socket) -> None:
        with connection:
            if b"PING" in connection.recv(100):
                connection.sendall(b"PONG\n")
                return
            self.scans.add(connection)
            with contextlib.suppress(OSError):
                while connection.recv(65536):
                    pass
            self.scans.discard(connection)

    def close(self) -> None:
        """Accept no more."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


def server_on(host: Host, number: int = 40) -> ScriptedServer:
    """Start a scripted server on port 25 of an address of its own on the lab's mail host."""
    address = f"198.51.100.{number}"
    host.add_address(f"{address}/24")
    return ScriptedServer(host.listen((address, 25)))


def sessions(status: str) -> list[str]:
    """Give the rows of the sessions in a status file."""
    return status.partition("\nslot pid ")[2].splitlines()[1:]


def descriptors(pid: int) -> int:
    """Count the open files of a process."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


class Quiet:
    """What an idle gateway holds, to compare with after a storm. Made when it is idle and has worked once."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._files = {pid: descriptors(pid) for pid in gateway.workers()}

    def restored(self, timeout: float = 8) -> None:
        """Wait until there is no session, no open file too many and no message's copy; LabError otherwise."""
        left: list[str] = []

        def idle() -> bool:
            left[:] = self._left()
            return not left

        try:
            wait_until(idle, timeout, "an idle gateway", 0.05)
        except LabError as error:
            raise LabError(f"{error}; left are {left}") from None

    def _left(self) -> list[str]:
        status = self._gateway.status()
        count = status.partition("Children:")[2].split("/")[0].strip()
        return [
            *(f"files of {pid}" for pid, before in self._files.items() if descriptors(pid) > before),
            *([f"{count} sessions"] if count != "0" else []),
            *sessions(status),
            *map(str, self._gateway.spool.iterdir()),
        ]
