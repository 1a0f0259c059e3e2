"""The mail clients of the lab, with what they did in a form that tests can ask: swaks, msmtp, smtp-source.

Called by tests, demo and benchmarks. For a dialogue of one's own, `Host.connect` gives a socket.
"""

import re
import time
from dataclasses import dataclass

from lab.host import Host
from lab.process import LabError

SENDER, RECIPIENT = "sender@client.test", "alice@example.test"
REPLY = re.compile(r"^<(?:~|-|\*\*|~\*|~~) +(\d{3}[ -].*)$", re.MULTILINE)  # also inside TLS


@dataclass(frozen=True)
class Dialogue:
    """What swaks did: its exit status, all it printed, and the server's reply lines in order."""

    status: int
    transcript: str
    replies: tuple[str, ...]

    @property
    def accepted(self) -> bool:
        """Tell whether the mail, or what else was asked for, was accepted by the server."""
        return self.status == 0

    @property
    def refusal(self) -> str:
        """The first reply line with a code of 400 or more, or nothing."""
        return next((reply for reply in self.replies if reply[0] in "45"), "")


def swaks(
    host: Host,
    server: str,
    *options: str,
    body: str = "Hello.",
    subject: str = "test",
    source: str | None = None,
    recipient: str = RECIPIENT,
    sender: str = SENDER,
    timeout: float = 60,
) -> Dialogue:
    """Send one mail from `host` to port 25 of `server` with swaks; `options` are more of its arguments."""
    command = [
        "swaks",
        "--server",
        server,
        "--from",
        sender,
        "--to",
        recipient,
        "--timeout",
        f"{timeout:.0f}s",
    ]
    command += ["--helo", f"{host.name}.test", "--header", f"Subject: {subject}", "--body", body]
    if source:
        command += ["--local-interface", source]
    result = host.run([*command, *options], timeout=timeout + 10, check=False)
    transcript = result.stdout + result.stderr
    return Dialogue(result.returncode, transcript, tuple(REPLY.findall(transcript)))


def msmtp(
    host: Host,
    server: str,
    message: str | bytes,
    *options: str,
    recipient: str = RECIPIENT,
    sender: str = SENDER,
    timeout: float = 60,
) -> tuple[int, str]:
    """Send a message as it is with msmtp; give its exit status (0, or one of sysexits.h) and what it said."""
    command = ["msmtp", f"--host={server}", f"--from={sender}", "--port=25", "--file=/dev/null", "--debug"]
    result = host.run([*command, *options, "--", recipient], input=message, timeout=timeout, check=False)
    return result.returncode, result.stdout + result.stderr


@dataclass(frozen=True)
class Load:
    """What smtp-source did: mails sent and the seconds it took."""

    messages: int
    seconds: float

    @property
    def rate(self) -> float:
        """Mails per second."""
        return self.messages / self.seconds


def smtp_source(
    host: Host,
    server: str,
    *,
    messages: int,
    sessions: int = 1,
    length: int = 4096,
    port: int = 25,
    options: tuple[str, ...] = (),
    recipient: str = RECIPIENT,
    timeout: float = 120,
) -> Load:
    """Send many mails of `length` bytes over `sessions` parallel sessions; LabError if any was not accepted.

    smtp-source opens a new connection for each mail unless `options` has -d. Length 0 is for options that say
    what is sent (-F).
    """
    command = ["prlimit", "--nofile=8192", "smtp-source", "-m", str(messages), "-s", str(sessions)]
    command += ["-l", str(length)] if length else []
    command += ["-f", SENDER, "-t", recipient, "-M", f"{host.name}.test", *options]
    begin = time.monotonic()
    result = host.run([*command, f"inet:[{server}]:{port}"], timeout=timeout, check=False)
    seconds = time.monotonic() - begin
    # It exits 0 even when the server refused a command and it gave up on it, but never silently.
    if result.returncode or result.stderr:
        raise LabError(f"smtp-source exited with {result.returncode}: {result.stderr[-2000:]}")
    return Load(messages, seconds)
