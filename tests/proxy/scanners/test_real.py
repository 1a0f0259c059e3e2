"""clamd and spamd as Debian ships them: every way to hand over a message, both kinds of socket, restarts."""

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
import uvloop

from appliance.config.network import SocketAddress
from appliance.proxy.scanners import Finding, Scanner, State, antispam, antivirus
from appliance.proxy.spool import Spool
from lab.network import Network
from lab.samples import EICAR, GTUBE
from lab.servers import Clamd, Spamd

pytestmark = pytest.mark.lab

T = TypeVar("T")
Copy = Callable[[bytes, bool], Spool]

HEAD = b"From: a@example.test\r\nTo: b@example.test\r\nSubject: test\r\n\r\n"
CLEAN = HEAD + b"Nothing to see.\r\n"
VIRUS = HEAD + EICAR.encode() + b"\r\n"
SPAM = HEAD + GTUBE.encode()  # without a newline, for which spamd would wait
VIRUS_FOUND = Finding(State.FOUND, name="Eicar-Test-Signature.UNOFFICIAL")


def run(work: Coroutine[Any, Any, T]) -> T:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    with contextlib.closing(Network("scanners")) as network:
        yield network


@pytest.fixture(scope="module")
def clamd(network: Network) -> Iterator[Clamd]:
    server = Clamd(network.mail, options={"StreamMaxLength": "3M"}).start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def spamd(network: Network) -> Iterator[Spamd]:
    server = Spamd(network.mail).start()
    yield server
    server.stop()


@pytest.fixture
def copy(network: Network) -> Iterator[Copy]:
    """Make copies in a spool directory that the servers see under the same path."""
    directory = network.directory / "spool"
    directory.mkdir(exist_ok=True)
    directory.chmod(0o755)
    names = (f"{int(time.time())}.{number}" for number in itertools.count())
    made: list[Spool] = []

    def make(message: bytes, named: bool) -> Spool:
        made.append(Spool(directory, next(names), 0o644, 100_000_000, named))
        made[-1].header(b"X-Proxy-Spool-Info: src=192.0.2.1:1\r\n")
        made[-1].write(message)
        return made[-1]

    yield make
    for spool in made:
        spool.close()
    assert list(directory.iterdir()) == []


def clamav(clamd: Clamd, transfer: str, timeout: float = 20) -> Scanner:
    scanner = antivirus("clamd", SocketAddress(clamd.socket), timeout, transfer)
    assert scanner
    return scanner


def spamassassin(spamd: Spamd, threshold: float = 900, timeout: float = 60) -> Scanner:
    scanner = antispam("spamassassin", SocketAddress(spamd.socket), timeout, threshold)
    assert scanner
    return scanner


@pytest.mark.parametrize("transfer", ["path", "fd", "stream"])
@pytest.mark.option("antivirus_type", "antivirus_transfer")
def test_clamd_tells_clean_from_infected(clamd: Clamd, copy: Copy, transfer: str) -> None:
    scanner = clamav(clamd, transfer)
    assert run(scanner.probe()) is None
    assert run(scanner.scan(copy(CLEAN, scanner.needs_path))) == Finding(State.CLEAN)
    assert run(scanner.scan(copy(VIRUS, scanner.needs_path))) == VIRUS_FOUND
    assert run(scanner.scan(copy(b"", scanner.needs_path))) == Finding(State.CLEAN)


@pytest.mark.parametrize("transfer", ["path", "fd", "stream"])
def test_clamd_sees_the_end_of_a_big_message(clamd: Clamd, copy: Copy, transfer: str) -> None:
    scanner = clamav(clamd, transfer)
    big = HEAD + b"0123456789abcdef\r\n" * 150_000 + VIRUS
    assert run(scanner.scan(copy(big, scanner.needs_path))) == VIRUS_FOUND


def test_many_scans_at_once_all_get_their_own_answer(clamd: Clamd, copy: Copy) -> None:
    scanner = clamav(clamd, "fd")
    copies = [copy(VIRUS if number % 3 else CLEAN, False) for number in range(60)]

    async def scan_all() -> list[Finding]:
        return await asyncio.gather(*(scanner.scan(copies[number % 60]) for number in range(600)))

    findings = run(scan_all())
    assert findings == [VIRUS_FOUND if number % 60 % 3 else Finding(State.CLEAN) for number in range(600)]


def test_a_message_too_long_for_clamd_is_told_with_the_remedy(clamd: Clamd, copy: Copy) -> None:
    finding = run(clamav(clamd, "stream").scan(copy(HEAD + b"x" * 30_000_000, False)))
    assert finding.state is State.FAILED
    assert "raise StreamMaxLength" in finding.detail


def test_a_path_clamd_cannot_find_is_told_with_the_remedy(clamd: Clamd, copy: Copy) -> None:
    spool = copy(CLEAN, True)
    assert spool.path
    spool.path.unlink()
    finding = run(clamav(clamd, "path").scan(spool))
    assert finding.state is State.FAILED
    assert "let clamd's user read spool_path (its group, spool_perm; AppArmor)" in finding.detail


def test_clamd_that_was_started_again_is_simply_there(clamd: Clamd, copy: Copy) -> None:
    scanner = clamav(clamd, "fd")
    assert run(scanner.scan(copy(VIRUS, False))) == VIRUS_FOUND
    clamd.stop()
    assert run(scanner.scan(copy(VIRUS, False))).state is State.FAILED
    problem = run(scanner.probe())
    assert problem and str(clamd.socket) in problem and "antivirus_path" in problem
    clamd.start()
    assert run(scanner.scan(copy(VIRUS, False))) == VIRUS_FOUND


def test_a_stopped_clamd_times_out_and_then_serves_again(clamd: Clamd, copy: Copy) -> None:
    scanner = clamav(clamd, "stream", timeout=0.5)
    big = copy(HEAD + b"y" * 2_900_000, False)

    async def scan_all() -> set[State]:
        return {finding.state for finding in await asyncio.gather(*(scanner.scan(big) for _ in range(40)))}

    clamd.pause()
    begun = time.monotonic()
    try:
        assert run(scan_all()) == {State.TIMEOUT}
        assert time.monotonic() - begun < 2
    finally:
        clamd.resume()
    assert run(scanner.scan(copy(VIRUS, False))) == VIRUS_FOUND


@pytest.mark.option("antispam_type", "spam_threshold")
def test_spamd_gives_the_score_and_the_threshold_is_ours(spamd: Spamd, copy: Copy) -> None:
    assert run(spamassassin(spamd).probe()) is None
    found = run(spamassassin(spamd).scan(copy(SPAM, False)))
    assert found.state is State.FOUND
    assert found.score > 900
    assert run(spamassassin(spamd, threshold=5000).scan(copy(SPAM, False))) == Finding(
        State.CLEAN, score=found.score
    )
    clean = run(spamassassin(spamd).scan(copy(CLEAN, False)))
    assert clean.state is State.CLEAN
    assert clean.score < 20


def test_spamd_takes_a_message_that_does_not_fit_into_a_socket(spamd: Spamd, copy: Copy) -> None:
    spool = copy(SPAM + b"\r\n0123456789" * 100_000, False)
    assert run(spamassassin(spamd).scan(spool)).state is State.FOUND
    assert f"{spool.length} bytes" in spamd.log


def test_spamd_that_was_started_again_is_simply_there(spamd: Spamd, copy: Copy) -> None:
    scanner = spamassassin(spamd)
    spamd.stop()
    assert run(scanner.scan(copy(SPAM, False))).state is State.FAILED
    problem = run(scanner.probe())
    assert problem and str(spamd.socket) in problem and "antispam_path" in problem
    spamd.start()
    assert run(scanner.scan(copy(SPAM, False))).state is State.FOUND


@contextlib.asynccontextmanager
async def over_tcp(socket: Path, host: str) -> AsyncIterator[SocketAddress]:
    """Let a server of the lab, whose network is its own, be reached at a TCP port of this one's loopback."""

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.write_eof()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back, forth = await asyncio.open_unix_connection(socket)
        await asyncio.gather(pass_on(reader, forth), pass_on(back, writer), return_exceptions=True)
        forth.close()
        writer.close()

    async with await asyncio.start_server(serve, host, 0) as server:
        yield SocketAddress(None, host, server.sockets[0].getsockname()[1])


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("transfer", ["path", "fd", "stream"])
@pytest.mark.option("antivirus_path")
def test_clamd_over_tcp(clamd: Clamd, copy: Copy, transfer: str, host: str) -> None:
    async def scan() -> tuple[str | None, Finding, Finding]:
        async with over_tcp(clamd.socket, host) as address:
            scanner = antivirus("clamd", address, 20, transfer)
            assert scanner
            clean, virus = copy(CLEAN, scanner.needs_path), copy(VIRUS, scanner.needs_path)
            return await scanner.probe(), await scanner.scan(clean), await scanner.scan(virus)

    assert run(scan()) == (None, Finding(State.CLEAN), VIRUS_FOUND)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
@pytest.mark.option("antispam_path")
def test_spamd_over_tcp(spamd: Spamd, copy: Copy, host: str) -> None:
    async def scan() -> tuple[str | None, Finding]:
        async with over_tcp(spamd.socket, host) as address:
            scanner = antispam("spamassassin", address, 60, 900)
            assert scanner
            return await scanner.probe(), await scanner.scan(copy(SPAM, False))

    problem, finding = run(scan())
    assert problem is None
    assert finding.state is State.FOUND
