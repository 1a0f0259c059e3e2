"""Scanners that misbehave: scripted servers answer rubbish, too much, too slowly, partly or never."""

import asyncio
import contextlib
import gc
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
import uvloop

from appliance.config.network import SocketAddress
from appliance.proxy import scanners
from appliance.proxy.scanners import Finding, Scanner, State, antispam, antivirus
from appliance.proxy.spool import Spool
from appliance.proxy.streams import current_turn

T = TypeVar("T")
Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

CLEAN = Finding(State.CLEAN)
KINDS = ("clamd-path", "clamd-fd", "clamd-stream", "mksd", "spamassassin")


def run(work: Coroutine[Any, Any, T]) -> T:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


def make(kind: str, address: SocketAddress, timeout: float = 5) -> Scanner:
    name, _, transfer = kind.partition("-")
    scanner = (
        antispam(name, address, timeout, 5.0)
        if name == "spamassassin"
        else antivirus(name, address, timeout, transfer)
    )
    assert scanner
    return scanner


@pytest.fixture
def address(tmp_path: Path) -> SocketAddress:
    return SocketAddress(tmp_path / "socket")


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    spool = Spool(tmp_path, "1700000000.7", 0o600, 50_000_000, named=True)
    spool.write(b"Subject: test\r\n\r\nbody\r\n")
    yield spool
    spool.close()


@contextlib.asynccontextmanager
async def server(address: SocketAddress, script: Script) -> AsyncIterator[None]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            await script(reader, writer)
        writer.close()

    assert address.path
    address.path.unlink(missing_ok=True)
    async with await asyncio.start_unix_server(serve, address.path):
        yield


def says(answer: bytes) -> Script:
    """Read the command, give this answer, close."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(65536)
        writer.write(answer)
        await writer.drain()

    return script


def scan(kind: str, address: SocketAddress, spool: Spool, script: Script, timeout: float = 5) -> Finding:
    async def work() -> Finding:
        async with server(address, script):
            return await make(kind, address, timeout).scan(spool)

    return run(work())


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (b"/a/b: OK\n", CLEAN),
        (b"/a: b/c: OK\n", CLEAN),
        (b"/a: b/c: Win.Test.X-1 FOUND\n", Finding(State.FOUND, "Win.Test.X-1")),
        (b"stream: Eicar(44d886:68) FOUND\n", Finding(State.FOUND, "Eicar(44d886:68)")),
        (b"s: \x1b[2J\xff\r\0x FOUND\n", Finding(State.FOUND, "?[2J???x")),
        (b"s: " + b"v" * 2000 + b" FOUND\n", Finding(State.FOUND, "v" * 128)),
    ],
)
def test_clamd_answers(address: SocketAddress, spool: Spool, answer: bytes, expected: Finding) -> None:
    assert scan("clamd-path", address, spool, says(answer)) == expected


@pytest.mark.parametrize(
    "answer",
    [
        b"",  # closed without a word is not clean
        b"\n",
        b" \n",
        b"OK\n",
        b"NOT OK\n",
        b"/a/b: OK",  # cut off
        b"/a/b: Win.Test FOU",
        b"/a/b: Win.Test FOUND",
        b"/a/b: FOUND\n",
        b"/a/b: OK\n/a/b: Win.Test FOUND\n",
        b"UNKNOWN COMMAND\n",
        b"/a/b: lstat() failed: No such file or directory. ERROR\n",
        b"\xff\xfe\n",
        b"x" * 100_000 + b"\n",
        b"x" * 4090 + b": OK\n" * 2,
    ],
)
@pytest.mark.parametrize("kind", ["clamd-path", "clamd-fd", "clamd-stream"])
def test_clamd_says_nothing_that_counts(
    address: SocketAddress, spool: Spool, kind: str, answer: bytes
) -> None:
    finding = scan(kind, address, spool, says(answer))
    assert finding.state is State.FAILED
    assert finding.detail.isprintable()
    assert 0 < len(finding.detail) <= 256


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (b"OK /a/b\n", CLEAN),
        (b"CLN /a/b\n", CLEAN),
        (b"DEL /a/b\n", CLEAN),
        (b"VIR Worm.X /a/b\r\n", Finding(State.FOUND, "Worm.X")),
        (b"VIR \x07bell\n", Finding(State.FOUND, "?bell")),
        (b"VIR\n", Finding(State.FOUND, "")),
        (b"VIR " + b"v" * 2000 + b"\n", Finding(State.FOUND, "v" * 128)),
    ],
)
@pytest.mark.option("antivirus_type")
def test_mksd_answers(address: SocketAddress, spool: Spool, answer: bytes, expected: Finding) -> None:
    assert scan("mksd", address, spool, says(answer)) == expected


@pytest.mark.parametrize(
    "answer", [b"", b"\n", b"OK", b"OKAY\n", b"VI", b"ERR no licence\n", b"\xff\n", b"OK" * 9000 + b"\n"]
)
def test_mksd_says_nothing_that_counts(address: SocketAddress, spool: Spool, answer: bytes) -> None:
    assert scan("mksd", address, spool, says(answer)).state is State.FAILED


def test_mksd_is_told_the_absolute_path(address: SocketAddress, spool: Spool) -> None:
    heard: list[bytes] = []

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.readline())
        writer.write(b"OK\n")

    assert scan("mksd", address, spool, script) == CLEAN
    assert heard == [b"S" + bytes(spool.path or Path()) + b"\n"]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (b"SPAMD/1.1 0 EX_OK\r\nSpam: False ; 4.9 / 1.0\r\n\r\n", Finding(State.CLEAN, score=4.9)),
        (b"SPAMD/1.1 0 EX_OK\r\nSpam: False ; 5.0 / 9.0\r\n\r\n", Finding(State.FOUND, score=5.0)),
        (b"SPAMD/1.1 0 EX_OK\r\nSpam: True ; -1.5 / 5.0\r\n\r\n", Finding(State.CLEAN, score=-1.5)),
    ],
)
def test_spamd_answers(address: SocketAddress, spool: Spool, answer: bytes, expected: Finding) -> None:
    assert scan("spamassassin", address, spool, says(answer)) == expected


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\r\n",
        b"SPAMD/1.1 0 EX_OK\r\n\r\n",
        b"SPAMD/1.1 0 EX_OK\r\nSpam: False ; nan / 5.0\r\n\r\n",
        b"SPAMD/1.1 0 EX_OK\r\nSpam: True ; inf / 5.0\r\n\r\n",
        b"SPAMD/1.1 0 EX_OK\r\nSpam: maybe\r\n\r\n",
        b"SPAMD/1.1 0 EX_OK\r\nSpam: False ; 1",
        b"SPAMD/1.1 0 EX_OK\r\nSp\xe4m: False ; 1.0 / 5.0\r\n\r\n",
        b"SPAMD/1.1 0 EX_OK\r\nSpam: \xff\xfe\r\n\r\n",
        b"SPAMD/1.1 0 EX_OK\r\nContent-length: 99999999\r\nSpam: False ; 1.0 / 5.0\r\n\r\n",
        b"SPAMD/1.1 0 EX_OK\r\nContent-length: -1\r\nSpam: False ; 1.0 / 5.0\r\n\r\n",
        b"SPAMD/1.1 75 EX_TEMPFAIL\r\nSpam: False ; 1.0 / 5.0\r\n\r\n",
        b"SPAMD/1.1 4711 WHAT\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"SPAMD/1.1 0 EX_OK\r\n" + b"a: b\r\n" * 100_000,
    ],
)
def test_spamd_says_nothing_that_counts(address: SocketAddress, spool: Spool, answer: bytes) -> None:
    finding = scan("spamassassin", address, spool, says(answer))
    assert finding.state is State.FAILED
    assert finding.detail.isprintable()
    assert 0 < len(finding.detail) <= 256


async def hangs(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Take the command and never answer, until the client has gone."""
    while await reader.read(65536):
        pass
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(20):
            while not writer.is_closing():
                writer.write(b"")
                await asyncio.sleep(0.05)


async def trickles(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send a byte now and then, each in time, the whole never."""
    for _byte in range(200):
        writer.write(b"S")
        await writer.drain()
        await asyncio.sleep(0.1)


async def reads_nothing(_: asyncio.StreamReader, __: asyncio.StreamWriter) -> None:
    """Let the message pile up in the socket."""
    await asyncio.sleep(20)


@pytest.mark.parametrize("script", [hangs, trickles, reads_nothing])
@pytest.mark.parametrize("kind", KINDS)
def test_no_scan_takes_longer_than_its_timeout(
    address: SocketAddress, spool: Spool, kind: str, script: Script
) -> None:
    spool.write(b"z" * 20_000_000)

    async def work() -> tuple[Finding, float]:
        async with server(address, script):
            begun = time.monotonic()
            finding = await make(kind, address, 0.4).scan(spool)
            return finding, time.monotonic() - begun

    finding, took = run(work())
    assert finding.state is State.TIMEOUT
    assert "0.4 s" in finding.detail
    assert 0.35 < took < 1.5


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("kind", KINDS)
def test_cancelled_scans_leave_nothing_behind(address: SocketAddress, spool: Spool, kind: str) -> None:
    async def work() -> tuple[int, int]:
        async with server(address, reads_nothing):
            scanner = make(kind, address, 30)
            current_turn()  # a file of its own; those of closed loops go
            gc.collect()
            before = descriptors()
            tasks = [asyncio.create_task(scanner.scan(spool)) for _ in range(scanners.CONCURRENT * 3)]
            await asyncio.sleep(0.3)
            during = descriptors()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            assert all(task.cancelled() for task in tasks)
            spool.close()
            await asyncio.sleep(0.3)
            # The server's own ends stay open in this process until its scripts have slept.
            return during - before, descriptors() - before

    during, after = run(work())
    assert during >= scanners.CONCURRENT * 2
    assert after <= scanners.CONCURRENT


@pytest.mark.parametrize("kind", KINDS)
def test_a_scanner_that_hangs_keeps_only_so_many_waiting(
    address: SocketAddress, spool: Spool, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scanners, "_WAITING", 20)

    async def work() -> list[Finding]:
        async with server(address, reads_nothing):
            scanner = make(kind, address, 0.5)
            return await asyncio.gather(*(scanner.scan(spool) for _ in range(25)))

    states = [finding.state for finding in run(work())]
    assert states.count(State.TIMEOUT) == 20
    assert states.count(State.FAILED) == 5


def full_queue(address: SocketAddress, stack: contextlib.ExitStack) -> socket.socket:
    """Listen without accepting, with as many connections waiting as there is room for."""
    listener = stack.enter_context(socket.socket(socket.AF_UNIX))
    listener.bind(str(address.path))
    listener.listen(0)
    for _ in range(3):
        client = stack.enter_context(socket.socket(socket.AF_UNIX))
        client.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            client.connect(str(address.path))
    return listener


@pytest.mark.parametrize("kind", KINDS)
def test_a_full_queue_of_connections_is_waited_for(address: SocketAddress, spool: Spool, kind: str) -> None:
    answers = {
        "mksd": b"OK\n",
        "spamassassin": b"SPAMD/1.1 0 EX_OK\r\nSpam: False ; 0.0 / 5.0\r\n\r\n",
    }

    async def work() -> Finding:
        with contextlib.ExitStack() as stack:
            listener = full_queue(address, stack)
            task = asyncio.create_task(make(kind, address).scan(spool))
            await asyncio.sleep(0.3)
            assert not task.done()
            listener.setblocking(False)
            loop = asyncio.get_running_loop()
            while not task.done():
                taken, _ = await loop.sock_accept(listener)
                stack.enter_context(taken)
                await asyncio.sleep(0.2)  # for a command that may come
                with contextlib.suppress(BlockingIOError):
                    if taken.recv(65536):
                        taken.send(answers.get(kind, b"x: OK\n"))
                taken.shutdown(socket.SHUT_RDWR)
                await asyncio.sleep(0.2)
            return task.result()

    assert run(work()) == CLEAN


@pytest.mark.parametrize("kind", KINDS)
def test_a_scan_that_waits_in_a_full_queue_can_be_cancelled(
    address: SocketAddress, spool: Spool, kind: str
) -> None:
    async def work() -> None:
        with contextlib.ExitStack() as stack:
            full_queue(address, stack)
            current_turn()
            gc.collect()
            left = []
            for _ in range(3):
                task = asyncio.create_task(make(kind, address, 30).scan(spool))
                await asyncio.sleep(0.2)
                assert not task.done()
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                await asyncio.sleep(0.1)
                left.append(descriptors())
            assert len(set(left)) == 1

    run(work())


@pytest.mark.parametrize("kind", KINDS)
def test_nobody_there_is_told_with_the_option_to_correct(
    address: SocketAddress, spool: Spool, kind: str
) -> None:
    scanner = make(kind, address)
    assert run(scanner.scan(spool)).state is State.FAILED
    problem = run(scanner.probe())
    assert problem
    assert str(address) in problem
    assert scanner.option in problem


@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_that_is_gone_is_a_failed_scan(address: SocketAddress, spool: Spool, kind: str) -> None:
    spool.close()
    assert scan(kind, address, spool, says(b"x: OK\n")).state is State.FAILED


def test_off_is_no_scanner(address: SocketAddress) -> None:
    assert antivirus("off", address, 1, "fd") is None
    assert antispam("off", address, 1, 5.0) is None


def test_libraries_write_nothing_to_stderr(tmp_path: Path) -> None:
    program = f"""
import asyncio, os
from pathlib import Path
from appliance.config.network import SocketAddress
from appliance.proxy.scanners import antispam, antivirus
from appliance.proxy.spool import Spool
from appliance.proxy.streams import current_turn
spool = Spool(Path({str(tmp_path)!r}), "1.1", 0o600, 1000, True)
nowhere = SocketAddress(Path({str(tmp_path / "nowhere")!r}))
for scanner in antispam("spamassassin", nowhere, 1, 5.0), antivirus("clamd", nowhere, 1, "fd"):
    print(asyncio.run(scanner.scan(spool)).state.name, asyncio.run(scanner.probe()) is not None)
spool.close()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["FAILED", "True"] * 2
    assert done.stderr == ""
    assert list(tmp_path.iterdir()) == []


THREADLESS = """
import asyncio, os, resource, socket, uvloop
from pathlib import Path
from appliance.config.network import SocketAddress
from appliance.proxy.scanners import antispam
from appliance.proxy.spool import Spool

async def work():
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    await asyncio.start_server(answer, sock=listener)
    copy = Spool(Path("/"), "none", 0o600, 1000, named=False)
    for host in ("127.0.0.1", "localhost"):
        print(await antispam("spamassassin", SocketAddress(None, host, port), 5, 5.0).scan(copy))

async def answer(reader, writer):
    await reader.read()
    writer.write(b"SPAMD/1.1 0 EX_OK\\r\\nSpam: False ; 1 / 5\\r\\n\\r\\n")
    writer.close()

antispam("spamassassin", SocketAddress(None, "127.0.0.1", 0), 5, 5.0)
if os.geteuid() == 0:
    os.setuid(65534)  # the limit does not hold for root
resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
    runner.run(work())
"""


def test_a_limit_of_threads_costs_a_scan_and_not_the_worker() -> None:
    """TasksMax= of the unit is reached, by scripts or whoever: libuv would abort the process."""
    ran = subprocess.run([sys.executable, "-c", THREADLESS], capture_output=True, text=True, timeout=30)
    by_address, by_name = ran.stdout.splitlines() or [ran.stderr, ""]
    assert "State.CLEAN" in by_address
    assert "State.FAILED" in by_name
    assert "can't start new thread" in by_name
