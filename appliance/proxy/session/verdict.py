"""What the session asks, what it is answered, and what it does to the world.

The session core knows nothing of sockets, files or time. It calls an `Effects` object; the worker supplies a
real one, the tests a recording one. Everything here is plain data, used by the session, the checks and the
worker alike.
"""

import enum
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Final

from mypy_extensions import mypyc_attr


class Gate(enum.IntEnum):
    """Places on a mail's road at which checks may stand, in the order a mail meets them.

    Each is a bit of its own; a set of gates is a plain number, which is tested several times for each mail. A
    gate that nobody watches (`Settings.gates`) is never asked. The REPLY gates are asked after a server's
    reply and must be answered at once; at every other gate the answer may come later, through
    `Session.resume`.
    """

    CONNECT = 1 << 0  # before there is a server, and a session to ask; subject: empty
    EARLY = 1 << 1  # bytes before the greeting; subject: those bytes
    HELO = 1 << 2  # subject: the name the client gave
    MAIL = 1 << 3  # subject: the reverse-path, without its angle brackets
    RCPT = 1 << 4  # subject: the forward-path
    DATA = 1 << 5  # before DATA or the first BDAT; subject: empty
    END = 1 << 6  # the message is whole, its end withheld; subject: empty
    REPLY_MAIL = 1 << 7  # subject of all three: the code as three digits, a blank, what it answers
    REPLY_RCPT = 1 << 8
    REPLY_AUTH = 1 << 9


class Action(enum.Enum):
    """What a verdict makes of the session."""

    PASS = enum.auto()
    REFUSE = enum.auto()  # answer for the server, which never sees the command; the session goes on
    TAKEOVER = enum.auto()  # answer, drop the server, play server until the client leaves
    HANGUP = enum.auto()  # answer, close both sides
    DIRECT = enum.auto()  # after a reply only: stop looking, relay both ways from here on


@dataclass(frozen=True, slots=True)
class Verdict:
    """A check's answer: an action and, unless it passes, the reply for the client.

    `enhanced` is the RFC 3463 code, written only to clients whose server offered ENHANCEDSTATUSCODES.
    `reason` is the text for later MAIL commands of a taken-over session; the reply's own text when empty.
    """

    action: Action
    code: int = 0
    enhanced: str = ""
    text: str = ""
    reason: str = ""


PASS: Final = Verdict(Action.PASS)
BARE_LINE_END: Final = Verdict(Action.TAKEOVER, 550, "5.5.2", "Lines of a message must end in CRLF")


@mypyc_attr(allow_interpreted_subclasses=True)  # where it is machine code: the tests' are not
class Effects(ABC):
    """What a session may do to the world, called in the order in which it must become visible."""

    @abstractmethod
    def to_client(self, data: bytes) -> None:
        """Send to the client."""

    @abstractmethod
    def to_server(self, data: bytes) -> None:
        """Send to the server."""

    @abstractmethod
    def ask(self, gate: Gate, subject: bytes) -> Verdict | None:
        """Ask the checks of a gate; None when the answer will come through `Session.resume`."""

    @abstractmethod
    def begin_message(self) -> bytes:
        """A message begins: give the header lines to insert, each with its CRLF, or nothing."""

    @abstractmethod
    def spool(self, data: bytes) -> Verdict | None:
        """Copy a piece of message for the scanners; a verdict when that failed and must end the message."""

    @abstractmethod
    def drop_message(self) -> None:
        """The message under way will never be finished: forget its copy."""

    @abstractmethod
    def finish_message(self) -> None:
        """The end of the message was released to the server."""

    @abstractmethod
    def direct(self) -> None:
        """From here on the worker relays both ways by itself; the session is not called any more."""

    @abstractmethod
    def taken_over(self, reason: str) -> None:
        """The session plays server from here on: timeout_session runs."""

    @abstractmethod
    def close_server(self) -> None:
        """Close the connection to the server once everything sent has left."""

    @abstractmethod
    def close_client(self) -> None:
        """Close the connection to the client once everything sent has left."""


@dataclass(frozen=True, slots=True)
class Texts:
    """The message texts of the configuration (msg_*) that the session itself speaks."""

    hello: str
    sign_off: str
    proto_error: str
    unimpl_command: str
    transaction_failed: str
    session_timeout: str
    pipeline_full: str
    size_limit: str
    fixed_xclient_fail: str


@dataclass(frozen=True, slots=True)
class Settings:
    """What a session needs of the configuration; built once for each reload and shared by its sessions."""

    proxy_name: str
    texts: Texts
    gates: int = 0
    pipeline_size: int = 128
    on_takeover_cmds: int = 10
    size_limit: int = 0
    bare_newline: str = "reject"
    forbid_starttls: bool = False
    mask_xclient: bool = False
    spool: bool = False
