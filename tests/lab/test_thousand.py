"""A thousand clients, each with one fault or none, and hostile peers: each gets its due, and nobody else."""

import asyncio
import contextlib
import itertools
import os
import random
import re
import resource
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from lab.samples import EICAR, GTUBE
from lab.servers import Clamd, Spamd
from tests.lab.loopback import Scene, says, scene
from tests.lab.scripted import BODY, Talk
from tests.supervisor.program import wait_until

pytestmark = pytest.mark.lab

CLIENTS = 1000
AT_ONCE = 120


@dataclass
class Fault:
    """What a client does, line by line, with the begin of each reply; and the first words of its lock.

    `before` looks after the client's lock file.
    """

    steps: list[tuple[str, str]]
    lock: str = ""
    mails: int = 0
    sessions: int = 1
    patient: bool = True
    before: Callable[[Scene, str], object] = field(default=lambda _scene, _source: None)


EHLO = ("EHLO mail.client.test\r\n", "250 ")
ENVELOPE = [
    EHLO,
    ("MAIL FROM:<sender@client.test>\r\n", "250 "),
    ("RCPT TO:<alice@example.test>\r\n", "250 "),
    ("DATA\r\n", "354 "),
]
LEAVE = [("RSET\r\n", "250 "), ("QUIT\r\n", "221 ")]
TAKEN = [("MAIL FROM:<sender@client.test>\r\n", "451 4.3.2 "), *LEAVE]


def mail(content: str, answer: str, then: list[tuple[str, str]]) -> list[tuple[str, str]]:
    return [*ENVELOPE, (f"{content}.\r\n", answer), *then]


def locked(gate: Scene, source: str) -> None:
    path = gate.locks / source
    path.write_text("by hand\n")
    os.chown(path, 65534, 65534)


def exempt(gate: Scene, source: str) -> None:
    (gate.locks / source).write_text("never\n")


FAULTS = {
    "none": Fault(mail(BODY, "250 ", LEAVE), mails=1),
    "virus": Fault(mail(f"Subject: v\r\n\r\n{EICAR}\r\n", "550 5.7.1 ", TAKEN), "VIRUS Eicar-Test-Signature"),
    "spam": Fault(mail(f"Subject: s\r\n\r\n{GTUBE}\r\n", "550 5.7.1 ", TAKEN), "SPAM 1"),
    "earlytalk": Fault([("EHLO early.test\r\n", "554 ")], "EARLYTALK spoke", patient=False),
    "helo": Fault([("EHLO localhost\r\n", "550 "), *LEAVE], "REGEX_HELO regex_reject_helo"),
    "sender": Fault([EHLO, ("MAIL FROM:<bad@x.test>\r\n", "550 5.7.1 "), *LEAVE], "REGEX_MAIL_FROM "),
    "recipient": Fault(
        [*ENVELOPE[:2], ("RCPT TO:<a@elsewhere.test>\r\n", "550 5.7.1 "), *LEAVE], "REGEX_RCPT_TO "
    ),
    "sessions": Fault([], "MAX_HOST too many", sessions=3),
    "locked": Fault([("", "554 ")], "by hand", before=locked, patient=False),
    "exempt": Fault(mail(f"Subject: v\r\n\r\n{EICAR}\r\n", "550 5.7.1 ", TAKEN), "never", before=exempt),
    "size": Fault(mail("Subject: l\r\n\r\n" + "l" * 70_000 + "\r\n", "552 5.3.4 ", TAKEN)),
    "smuggling": Fault(mail("Subject: l\r\n\r\nx\n.\nMAIL FROM:<x@y.test>\r\n", "550 5.5.2 ", TAKEN)),
    "long line": Fault([("EHLO " + "l" * 3000 + "\r\n", "500 "), *mail(BODY, "250 ", LEAVE)], mails=1),
    "no authentication": Fault(
        [EHLO, ("AUTH PLAIN AGEAYg==\r\n", "535 "), *mail(BODY, "250 ", LEAVE)], mails=1
    ),
    "pipeline": Fault(
        [EHLO, ("NOOP\r\n" * 15 + "VRFY x\r\n", "250 "), *[("", "250 ")] * 14, ("", "503 "), *LEAVE]
    ),
}


def take_time(talk: Talk) -> None:
    """Greet late enough for early talkers, and bear with the queue before the spam scanner."""
    time.sleep(0.1)
    talk.socket.settimeout(120)


@pytest.fixture(scope="module")
def gate(clamd: Clamd, spamd: Spamd) -> Iterator[Scene]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
    options = {
        "antivirus_type": "clamd",
        "antivirus_path": clamd.socket,
        "antivirus_transfer": "fd",
        "antispam_type": "spamassassin",
        "antispam_path": spamd.socket,
        "spam_max_size": 100_000,
        "timeout_spam": 120,
        "size_limit": 65_536,
        "max_per_host": 2,
        "pipeline_size": 16,
        "connect_queue": 1024,
        "regex_reject_helo": "^localhost$",
        "regex_reject_mail_from": "^bad@",
        "regex_enforce_rcpt_to": "@example.test$",
        "log_level": "info",
    }
    hooks = {"connect": take_time, "AUTH": says("535 5.7.8 wrong")}
    with scene(hooks, **options) as found:
        yield found
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class Client:
    """A client that says what it has to and compares what it hears."""

    def __init__(self, port: int, source: str) -> None:
        self.port, self.source = port, source

    async def connect(self) -> None:
        self._reader, self._writer = await asyncio.open_connection(
            "127.0.0.1", self.port, local_addr=(self.source, 0), limit=1 << 21
        )

    async def expect(self, begin: str) -> None:
        line = b"250-"
        while line[3:4] == b"-":
            line = await asyncio.wait_for(self._reader.readline(), 60)
        assert line.decode().startswith(begin), f"{self.source}: {line!r} instead of {begin}"

    async def play(self, fault: Fault) -> None:
        await self.connect()
        if fault.patient:
            await self.expect("220 ")
        for said, heard in fault.steps:
            self._writer.write(said.encode())
            await self.expect(heard)

    async def leave(self) -> None:
        self._writer.close()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()


async def visit(port: int, source: str, fault: Fault, turns: asyncio.Semaphore) -> None:
    async with turns:
        clients = [Client(port, source) for _ in range(fault.sessions)]
        if fault.sessions == 1:
            await clients[0].play(fault)
        else:
            *few, last = clients
            for client in few:
                await client.connect()
                await client.expect("220 ")
            await last.connect()
            await last.expect("554 ")
        for client in clients:
            await client.leave()


@pytest.mark.option(
    "lock_on", "lock_path", "max_per_host", "size_limit", "pipeline_size", "bare_newline", "earlytalk"
)
def test_each_of_a_thousand_gets_its_due(gate: Scene) -> None:
    cast = [
        (f"127.7.{n // 250}.{n % 250 + 1}", name) for n, name in zip(range(CLIENTS), itertools.cycle(FAULTS))
    ]
    random.Random(7).shuffle(cast)
    for source, name in cast:
        FAULTS[name].before(gate, source)

    async def all_at_once() -> list[BaseException | None]:
        turns = asyncio.Semaphore(AT_ONCE)
        visits = [visit(gate.gateway.port, source, FAULTS[name], turns) for source, name in cast]
        return await asyncio.gather(*visits, return_exceptions=True)

    wrong = [
        f"{source} ({name}): {error!r}"
        for (source, name), error in zip(cast, asyncio.run(all_at_once()), strict=True)
        if error
    ]
    assert wrong == []
    due = {source: FAULTS[name].lock for source, name in cast if FAULTS[name].lock}
    locks = {path.name: path.read_text() for path in gate.locks.iterdir()}
    assert sorted(locks) == sorted(due)
    assert [source for source, cause in due.items() if not locks[source].startswith(cause)] == []
    count = Counter(name for _, name in cast)
    assert len(gate.server.messages) == sum(fault.mails * count[name] for name, fault in FAULTS.items())
    wait_until(lambda: gate.status("Children")[0] == "0")
    found = [int(number) for number in gate.status("Found")]
    regex = count["helo"] + count["sender"] + count["recipient"]
    assert found == [count["virus"] + count["exempt"], count["spam"], 0, 0, regex, count["earlytalk"]]
    rejects = [int(number) for number in gate.status("Rejects")]
    assert rejects[:3] == [count["sessions"], 0, count["locked"]]
    assert int(gate.status("Errors")[0]) == count["pipeline"]


HOSTILE: dict[str, tuple[bytes, bytes]] = {
    # what is sent behind the greeting, and all that is answered
    "a name of 100 kB": (b"EHLO " + b"x" * 100_000 + b"\r\nQUIT\r\n", rb"500 .*\r\n221 .*\r\n"),
    "a sender of 1 MB": (b"MAIL FROM:<" + b"\xff" * 1_000_000 + b">\r\nQUIT\r\n", rb"500 .*\r\n221 .*\r\n"),
    "1 MB without a line": (b"\xfe" * 1_000_000, rb"500 .*\r\n"),
    "10,000 recipients": (
        b"MAIL FROM:<a@b.test>\r\n" + b"RCPT TO:<a@example.test>\r\n" * 10_000,
        rb"(250 .*\r\n)*503 .*\r\n(503 .*\r\n){10}554 .*\r\n",
    ),
    "a million commands": (b"NOOP\r\n" * 1_000_000, rb"(250 .*\r\n)*503 .*\r\n(250 .*\r\n){10}554 .*\r\n"),
    "a million empty lines": (b"\r\n" * 1_000_000, rb"(250 .*\r\n)*503 .*\r\n(502 .*\r\n){10}554 .*\r\n"),
    "a chunk of more than there is": (b"BDAT 9999999999999999999999\r\nQUIT\r\n", rb"501 .*\r\n221 .*\r\n"),
}


def attack(gate: Scene, source: str, data: bytes) -> bytes:
    """Say something without listening, then hear what there is to hear; a reset counts as an end."""
    client = gate.client(source)
    assert client.reply().startswith("220 ")
    heard = b""
    client.socket.setblocking(False)
    sent, ended = 0, False
    begin = time.monotonic()
    while not ended and time.monotonic() - begin < 15:
        try:
            if sent < len(data):
                sent += client.socket.send(data[sent : sent + 65536])
                if sent == len(data):
                    client.socket.shutdown(socket.SHUT_WR)
        except BlockingIOError:
            time.sleep(0.001)
        except OSError:
            sent = len(data)
        try:
            piece = client.socket.recv(65536)
            heard += piece
            ended = not piece
        except BlockingIOError:
            time.sleep(0.001)
        except OSError:
            ended = True
    assert ended, heard[-200:]
    client.close()
    return heard


def resident(gate: Scene) -> int:
    """Bytes of memory that the workers occupy."""
    statuses = [Path(f"/proc/{pid}/status").read_text() for pid in gate.gateway.workers()]
    return 1024 * sum(int(status.partition("VmRSS:")[2].split()[0]) for status in statuses)


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_clients_come_to_a_clean_end(gate: Scene, what: str) -> None:
    data, answers = HOSTILE[what]
    for number in range(3):
        heard = attack(gate, f"127.8.0.{number + 1}", data)
        assert re.fullmatch(answers, heard), heard[-300:]
    wait_until(lambda: gate.status("Children")[0] == "0")


@pytest.mark.parametrize(
    "line", [b"250 " + b"x" * 1_000_000 + b"\r\n", b"250-x\r\n" * 150_000, b"\0" * 1_000_000]
)
def test_hostile_servers_are_left(gate: Scene, line: bytes) -> None:
    def say(talk: Talk) -> bool:
        talk.send(line)
        raise EOFError

    gate.server.hooks["HELP"] = say
    client = gate.greeted("127.8.1.1")
    client.say("HELP")
    heard = client.rest()
    assert all(len(said) <= 4098 for said in heard.split(b"\n"))
    wait_until(lambda: gate.status("Children")[0] == "0")


def test_no_memory_is_lost_over_hostile_peers(gate: Scene) -> None:
    def storm() -> None:
        for number, (data, _) in enumerate(HOSTILE.values()):
            attack(gate, f"127.9.0.{number + 1}", data)

    storm()
    before = resident(gate)
    for _ in range(3):
        storm()
    assert resident(gate) - before < 3_000_000
