"""A gateway and a scripted mail server on the loopback interface, whose 16 million addresses are clients.

For rules that need no network: every test gets a gateway of its own, in mode fixed, within half a second.
"""

import contextlib
import re
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

from tests.lab.scripted import Hook, ScriptedServer, Talk
from tests.supervisor.program import Gateway, gateway_before, wait_until

NAME = "gw.example.test"


class Scene:
    """A running gateway in front of `server`; clients are made with `client` and closed in the end."""

    def __init__(self, gateway: Gateway, server: ScriptedServer, leaving: contextlib.ExitStack) -> None:
        self.gateway, self.server, self._leaving = gateway, server, leaving
        self.locks = gateway.home / "lock"

    def client(self, source: str = "127.0.0.2") -> Talk:
        """Connect from an address."""
        return self._leaving.enter_context(Talk(self.gateway.connect(source)))

    def greeted(self, source: str = "127.0.0.2") -> Talk:
        """Connect from an address, wait for the greeting and say EHLO."""
        return self.client(source).greet()

    def told(self, source: str = "127.0.0.2") -> str:
        """Give all that a client hears who only connects, and is turned away."""
        return self.client(source).rest().decode()

    @property
    def log(self) -> str:
        """All that was logged."""
        return (self.gateway.home / "log").read_text()

    def wait_log(self, words: str) -> None:
        """Wait until something is logged."""
        self.gateway.wait_log(words)

    def lock(self, source: str) -> str:
        """Give the cause of a client's lock; empty when it is not locked."""
        with contextlib.suppress(FileNotFoundError):
            return (self.locks / source).read_text().rstrip("\n")
        return ""

    def status(self, line: str) -> list[str]:
        """Give the fields of a line of the status file."""
        state = Path(self.gateway.options["statefile"])
        state.unlink(missing_ok=True)
        self.gateway.signal(signal.SIGUSR1)
        wait_until(state.exists)
        return state.read_text().partition(f"{line}:")[2].split("\n")[0].strip().split("/")


@contextlib.contextmanager
def scene(hooks: dict[str, Hook] | None = None, /, **options: object) -> Iterator[Scene]:
    """Start a gateway with these options, its server following `hooks`; no option may let it crash."""
    with contextlib.ExitStack() as leaving:
        server = ScriptedServer(socket.create_server(("127.0.0.1", 0), backlog=1024))
        leaving.callback(server.close)
        server.hooks.update(hooks or {})
        gateway = leaving.enter_context(gateway_before(server.address[1]))
        defaults = {"proxy_name": NAME, "spam_max_load": 0, "max_per_host": 1000, "max_connections": 4000}
        gateway.write(**{option: str(value) for option, value in (defaults | options).items()})
        gateway.start()
        found = Scene(gateway, server, leaving)
        yield found
        assert re.findall(r".*(?:BUG|WORKER:CRASHED) .*", found.log) == []


def offers(*extensions: str) -> Hook:
    """Make a server's EHLO that offers these extensions."""

    def ehlo(talk: Talk) -> bool:
        talk.say(*(f"250-{extension}" for extension in ("mail.example.test", *extensions)), "250 HELP")
        return True

    return ehlo


def says(line: str) -> Hook:
    """Make a server's answer."""

    def answer(talk: Talk) -> bool:
        talk.say(line)
        return True

    return answer
