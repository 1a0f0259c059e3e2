"""What the lab's servers share: a directory in the run, addresses, start until ready, stop, log, mailboxes.

The other modules of this package derive from `Server`. A mail server has addresses of its own on its host,
198.51.100.N and 2001:db8:25::N on the mail host, so that several run side by side on port 25. One on the
client host, at 10.77.1.N, is a company's mail server that sends outward.
"""

import contextlib
import os
import signal
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Self

from lab.host import Host
from lab.process import LabError, Process, wait_until

USERS = (
    "alice",
    "bob",
)  # have a mailbox on every mail server, and on Postfix and OpenSMTPD the password "secret"
DOMAIN = "example.test"
PASSWORD = "secret"
MAILBOX_OWNER = 61021  # alice's number on all hosts
PREFIXES = {"mail": ("198.51.100.", "2001:db8:25::"), "client": ("10.77.1.", "fd77:1::")}


class Server(ABC):
    """A program that serves on a host; it serves when `start` returns."""

    ready_within = 15.0  # seconds

    def __init__(self, host: Host, name: str):
        self.host = host
        self.name = name
        self.directory = host.run_directory / name
        self.directory.mkdir(mode=0o755, exist_ok=True)
        self.log_file = self.directory / "log"
        self.process: Process | None = None

    @abstractmethod
    def argv(self) -> list[str | Path]:
        """Write the configuration and give the command that runs the server in the foreground."""

    @abstractmethod
    def serving(self) -> bool:
        """Tell whether the server answers now."""

    def begin(self) -> Self:
        """Start without waiting, so that several servers can start at once; `ready` must follow."""
        self.process = self.host.start(self.argv(), log=self.log_file)
        return self

    def ready(self) -> Self:
        """Wait until the server serves; raise LabError with the end of its log if it does not."""
        process = self.process
        assert process
        try:
            wait_until(
                lambda: self.serving() or not process.running(),
                self.ready_within,
                f"{self.name} serving",
                0.02,
            )
        except LabError as error:
            raise LabError(f"{error}\n{process.tail()}") from None
        if not process.running():
            raise LabError(f"{self.name} ended at its start:\n{process.tail()}")
        return self

    def start(self) -> Self:
        """Start and wait until the server serves."""
        return self.begin().ready()

    def stop(self) -> None:
        """End the server. Nothing happens if it is not running."""
        if self.process:
            self.process.terminate()
            self.process = None

    def pause(self) -> None:
        """Freeze the main process until `resume`: the kernel takes connections, nobody answers."""
        if self.process:
            self.process.signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused server go on."""
        if self.process:
            self.process.signal(signal.SIGCONT)

    @property
    def log(self) -> str:
        """All that was logged since the first start."""
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""

    def wait_log(self, text: str, timeout: float = 10) -> str:
        """Wait until `text` is in the log; give the log."""
        wait_until(lambda: text in self.log, timeout, f"{text!r} in the log of {self.name}")
        return self.log


class Mailbox:
    """A Maildir: each delivered message is one file in new/."""

    def __init__(self, path: Path):
        self.path = path

    def messages(self) -> list[bytes]:
        """Give the delivered messages, oldest first."""
        with contextlib.suppress(FileNotFoundError):
            files = sorted((self.path / "new").iterdir(), key=lambda file: file.stat().st_mtime_ns)
            return [file.read_bytes() for file in files]
        return []

    def find(self, text: str) -> list[bytes]:
        """Give the messages that contain `text` (one in its Subject, say)."""
        return [message for message in self.messages() if text.encode() in message]

    def wait(self, text: str, timeout: float = 10) -> bytes:
        """Wait for a message that contains `text`; give the first."""
        wait_until(lambda: self.find(text), timeout, f"{text!r} in mailbox {self.path.name}", 0.02)
        return self.find(text)[0]

    def clear(self) -> None:
        """Remove all delivered messages."""
        with contextlib.suppress(FileNotFoundError):
            for file in (self.path / "new").iterdir():
                file.unlink()


class MailServer(Server):
    """A server that takes mail on port 25 of addresses of its own."""

    def __init__(self, host: Host, name: str, number: int):
        super().__init__(host, name)
        self.ipv4, self.ipv6 = (f"{prefix}{number}" for prefix in PREFIXES[host.name])
        for address in (f"{self.ipv4}/24", f"{self.ipv6}/64"):
            host.add_address(address)
        self.mail = self.directory / "mail"
        self.mail.mkdir(mode=0o755, exist_ok=True)
        os.chown(self.mail, MAILBOX_OWNER, MAILBOX_OWNER)

    def serving(self) -> bool:
        """Tell whether both addresses greet."""
        return self.greets(self.ipv4) and self.greets(self.ipv6)

    def greets(self, address: str) -> bool:
        """Tell whether a connection to port 25 of the address is answered with 220."""
        with contextlib.suppress(OSError), self.host.connect((address, 25), timeout=2) as connection:
            return connection.recv(512).startswith(b"220")
        return False

    def mailbox(self, user: str) -> Mailbox:
        """Give the mailbox of alice or bob."""
        return Mailbox(self.mail / user)

    def clear(self) -> None:
        """Empty all mailboxes."""
        for user in USERS:
            self.mailbox(user).clear()
