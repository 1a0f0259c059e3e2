"""Scans a second: mail through the gateway with clamd, next to a client that does nothing but ask this clamd.

Both have as many sessions as scans at once, and the same message, one as people send them: text, HTML and a
ZIP archive. clamd knows one signature and remembers no message, so each is taken apart and searched.

Besides stands the ratio that the bare client itself reaches while as many mails go through HAProxy: that of
a gateway that would spend on a mail what HAProxy does, and on its scan what the bare client does.
"""

import io
import os
import random
import socket
import struct
import time
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from email.message import EmailMessage
from email.policy import SMTP
from functools import partial
from statistics import median

from bench.arena import Arena
from bench.load import Contender, Workload
from bench.row import Effort, Row
from lab.gateway import Options
from lab.process import LabError
from lab.servers import Clamd

TRANSFERS = ("stream", "fd")
SCANS, PARALLEL = 1000, 8
BAR = 0.95  # of the scans a second of the bare client
_LETTERS = "etaoin shrdlu cmfwyp"


def measure(arena: Arena, effort: Effort) -> list[Row]:
    """Scan by each way of transfer."""
    clamd = start_clamd(arena)
    with os.fdopen(os.memfd_create("message"), "wb") as copy, arena.haproxy() as haproxy:
        copy.write(mail())
        copy.flush()
        ways = (
            partial(by_stream, str(clamd.socket), mail()),
            partial(by_descriptor, str(clamd.socket), copy.fileno()),
        )
        rows = []
        for transfer, bare in zip(TRANSFERS, ways, strict=True):
            load = workload(arena, transfer, effort.of(SCANS, PARALLEL))
            with arena.gateway(options(clamd, transfer)) as gateway:
                rows.append(compare(arena, effort, load, (gateway, haproxy), bare, clamd))
    clamd.stop()
    return rows


def compare(
    arena: Arena,
    effort: Effort,
    load: Workload,
    relays: tuple[Contender, Contender],
    bare: Callable[[], None],
    clamd: Clamd,
) -> Row:
    """Measure one way; what a scan cost, and what the bare client reaches beside mail, stand besides."""
    gateway, haproxy = relays
    assert clamd.process
    scanner = Contender("clamd", 0, (clamd.process.pid,))
    count = load.messages
    found, cost, left = [], [], []
    for _ in range(effort.rounds):
        before = scanner.cpu()
        sample = arena.run(load, gateway)
        between = scanner.cpu()
        rate = bare_rate(bare, count)
        cost.append((sample.cpu, between - before, scanner.cpu() - between))
        with ThreadPoolExecutor(1) as other:
            sent = other.submit(arena.run, load, haproxy)
            left.append(bare_rate(bare, count) / rate)
            sent.result()
        found.append((sample.rate, rate))
        told = "{}: {:.0f} scans a second, bare {:.0f}, of which {:.2f} are left beside mail"
        effort.tell(told.format(load.name, *found[-1], left[-1]))
    mine, of_clamd, for_bare = (median(each) for each in zip(*cost, strict=True))
    note = (
        f"CPU {mine:,.0f} µs a mail, of clamd {1e6 * of_clamd / count:,.0f}, "
        f"for the bare client {1e6 * for_bare / count:,.0f}; "
        f"a bare client beside as much mail through HAProxy: {median(left):.2f}"
    )
    return Row(load.name, "scans/s", "bare client", tuple(found), BAR, note=note)


def start_clamd(arena: Arena) -> Clamd:
    """Start a clamd that remembers no message."""
    return Clamd(arena.host, options={"DisableCache": "yes"}).start()


def options(clamd: Clamd, transfer: str) -> Options:
    """Give the gateway's options for it."""
    return {
        "antivirus_type": "clamd",
        "antivirus_path": str(clamd.socket),
        "antivirus_transfer": transfer,
    }


def workload(arena: Arena, transfer: str, count: int) -> Workload:
    """Give a workload of so many messages to scan."""
    file = arena.host.run_directory / "message"
    file.write_bytes(mail().replace(b"\r\n", b"\n"))  # smtp-source ends its lines, and adds dots
    name = f"clamd by {transfer}, {PARALLEL} at once"
    return Workload(name, count, 0, PARALLEL, kept=True, options=("-F", str(file)))


def mail() -> bytes:
    """Make a message of some 28 kB, always the same."""
    chance = random.Random(5321)
    text = "\n".join("".join(chance.choices(_LETTERS, k=70)) for _ in range(50))
    message = EmailMessage(policy=SMTP)
    message["From"], message["To"], message["Subject"] = "sender@client.test", "alice@example.test", "report"
    message.set_content(text)
    paragraphs = "".join(f"<p>{line}</p>\n" for line in text.splitlines())
    message.add_alternative(f"<html><body>\n{paragraphs}</body></html>\n", subtype="html")
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr(zipfile.ZipInfo("report.txt"), "".join(chance.choices(_LETTERS, k=14_000)))
    message.add_attachment(archive.getvalue(), maintype="application", subtype="zip", filename="report.zip")
    for number, part in enumerate(each for each in message.walk() if each.is_multipart()):
        part.set_boundary(f"part-{number}")
    return bytes(message)


def bare_rate(scan: Callable[[], None], count: int) -> float:
    """Scan so often; give the scans a second."""
    begin = time.monotonic()
    with ThreadPoolExecutor(PARALLEL) as pool:
        for job in [pool.submit(scan) for _ in range(count)]:
            job.result()
    return count / (time.monotonic() - begin)


def by_stream(path: str, message: bytes) -> None:
    """Have clamd scan what it is sent."""
    with socket.socket(socket.AF_UNIX) as clamd:
        clamd.connect(path)
        length = struct.pack("!I", len(message))
        clamd.sendall(b"".join((b"nINSTREAM\n", length, message, bytes(4))))
        _expect_clean(clamd)


def by_descriptor(path: str, file: int) -> None:
    """Have clamd scan an open file."""
    with socket.socket(socket.AF_UNIX) as clamd:
        clamd.connect(path)
        clamd.sendall(b"nFILDES\n")
        socket.send_fds(clamd, [b"\0"], [file])
        _expect_clean(clamd)


def _expect_clean(clamd: socket.socket) -> None:
    answer = clamd.recv(512)
    if not answer.endswith(b": OK\n"):
        raise LabError(f"clamd answered {answer!r}")
