"""What fails around the gateway: workers, scanners, disks, directories. Mail goes on or is refused."""

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path

import pytest

from appliance.bpf.steering import worker_of
from lab.clients import smtp_source, swaks
from lab.gateway import Gateway, Options
from lab.network import CLIENT4, ROUTER4, Network
from lab.process import wait_until
from lab.samples import EICAR
from lab.servers import Clamd, Postfix
from tests.lab.conftest import GatewayFactory
from tests.lab.scripted import BODY, Quiet, ScriptedScanner, ScriptedServer, Talk, server_on

pytestmark = pytest.mark.lab

LINE = "a line of some length that fills the disk\r\n"
BIG = BODY + LINE * 5000
HUGE = BODY + LINE * (34_000_000 // len(LINE))  # more than copies may take of a worker's memory


@pytest.fixture
def server(network: Network) -> Iterator[ScriptedServer]:
    server = server_on(network.mail)
    yield server
    server.close()


@pytest.fixture(scope="module")
def sources(network: Network) -> tuple[list[str], list[str]]:
    """Eight client addresses for each of two workers."""
    found: tuple[list[str], list[str]] = ([], [])
    for number in range(100, 200):
        address = f"10.77.1.{number}"
        mine = found[worker_of(ip_address(address), 2)]
        if len(mine) < 8:
            network.client.add_address(f"{address}/24")
            mine.append(address)
    return found


def worker(gateway: Gateway, index: int) -> int:
    """Give the process number of the worker with this index."""
    wanted = f"--index\0{index}\0"
    return next(pid for pid in gateway.workers() if wanted in Path(f"/proc/{pid}/cmdline").read_text())


def dial(network: Network, server: ScriptedServer, source: str = CLIENT4) -> Talk:
    return Talk(network.client.connect(server.address, source=source))


def half_sent(network: Network, server: ScriptedServer, sources: list[str]) -> list[Talk]:
    """Bring sessions into the middle of a message, three of each client."""
    talks = [dial(network, server, source).greet().begin() for source in sources * 3]
    for talk in talks:
        talk.send(BODY.encode())
    return talks


def test_a_killed_worker_takes_only_its_own_sessions_along(
    network: Network, server: ScriptedServer, sources: tuple[list[str], list[str]], gateway: GatewayFactory
) -> None:
    running = gateway(None)
    staying = worker_of(ip_address(CLIENT4), 2)  # where the load comes from
    dying = 1 - staying
    kept, lost = (half_sent(network, server, sources[index]) for index in (staying, dying))
    with ThreadPoolExecutor() as pool:
        load = pool.submit(smtp_source, network.client, server.address[0], messages=600, sessions=5)
        wait_until(lambda: len(server.messages) > 50, 10, "load")
        os.kill(worker(running, dying), signal.SIGKILL)
        with dial(network, server, sources[dying][0]) as again:
            assert again.greet().begin().finish().startswith("250")
        assert all(talk.finish("The rest.\r\n").startswith("250") for talk in kept)
        assert all(talk.rest() == b"" for talk in lost)
        assert load.result().messages == 600  # each accepted
    for talk in kept + lost:
        talk.close()
    assert "Children:      0/" in running.status()
    assert running.status().partition("Children:")[2].split()[0].split("/")[2:] == ["1", "0"]
    assert len(server.unfinished) == len(lost)


def test_a_killed_worker_is_back_within_a_second(
    network: Network, server: ScriptedServer, gateway: GatewayFactory
) -> None:
    running = gateway(None)
    mine = worker(running, worker_of(ip_address(CLIENT4), 2))
    time.sleep(1)  # one that lived shorter might wait before it starts again
    begin = time.monotonic()
    os.kill(mine, signal.SIGKILL)
    with dial(network, server) as client:
        client.greet()
    seconds = time.monotonic() - begin
    print(f"served again after {seconds:.2f} s")
    assert seconds < 1


def test_termination_lets_sessions_end_and_takes_no_more(
    network: Network, server: ScriptedServer, sources: tuple[list[str], list[str]], gateway: GatewayFactory
) -> None:
    running = gateway(None)
    talks = [talk for each in sources for talk in half_sent(network, server, each)]
    assert running.process
    running.process.signal(signal.SIGTERM)
    running.wait_log("STOP: no more")
    wait_until(lambda: not network.router.listening(9199), 2, "no listener")
    with pytest.raises(ConnectionRefusedError):
        network.client.connect((ROUTER4, 9199))
    for talk in talks:
        assert talk.finish("The rest.\r\n").startswith("250")
    assert running.process.running()
    for talk in talks:
        assert talk.begin().finish().startswith("250")  # a session's next mail is no new session
        assert talk.ask("QUIT").startswith("221")
        assert talk.rest() == b""
        talk.close()
    assert running.process.wait(3) == 0
    assert len(server.messages) == 2 * len(talks)


def test_a_second_termination_ends_at_once(
    network: Network, server: ScriptedServer, sources: tuple[list[str], list[str]], gateway: GatewayFactory
) -> None:
    running = gateway(None)
    talks = [talk for each in sources for talk in half_sent(network, server, each)]
    assert running.process
    running.process.signal(signal.SIGTERM)
    running.wait_log("STOP: no more")
    begin = time.monotonic()
    running.process.signal(signal.SIGTERM)
    assert running.process.wait(5) == 0
    assert time.monotonic() - begin < 2
    assert all(talk.rest() == b"" for talk in talks)
    wait_until(lambda: not server.talks, 2, "the server's connections closed")
    assert server.messages == []
    assert running.log.count("by=admin") == len(talks)


@pytest.mark.parametrize(("ignore", "code"), [("no", "550"), ("yes", "250")])
@pytest.mark.option("ignore_errors", "timeout_scanner")
def test_a_dead_clamd_and_its_return(
    network: Network, server: ScriptedServer, gateway: GatewayFactory, ignore: str, code: str
) -> None:
    clamd = Clamd(network.router, name="mortal-clamd").start()
    running = gateway(scanned(clamd.socket) | {"ignore_errors": ignore})
    quiet = Quiet(running)
    assert clamd.process
    clamd.process.kill()
    begin = time.monotonic()
    with dial(network, server) as client:
        assert client.greet().begin().finish().startswith(code)
    assert time.monotonic() - begin < 2 + 1
    assert "SCAN:FAILED" in running.log
    clamd.start()
    with dial(network, server) as client:
        assert client.greet().begin().finish().startswith("250")
    assert "SCAN:CLEAN" in running.log
    assert len(server.messages) == 1 + (ignore == "yes")
    quiet.restored()
    clamd.stop()


@pytest.mark.parametrize(("ignore", "code"), [("no", "550"), ("yes", "250")])
def test_a_clamd_that_never_answers(
    network: Network, server: ScriptedServer, gateway: GatewayFactory, ignore: str, code: str
) -> None:
    path = network.directory / "mute-clamd"
    scanner = ScriptedScanner(path)
    running = gateway(scanned(path) | {"ignore_errors": ignore, "timeout_scanner": 2})
    quiet = Quiet(running)
    begin = time.monotonic()
    clients = [dial(network, server).greet().begin() for _ in range(40)]  # more than are scanned at a time
    for client in clients:
        client.send(BODY.encode() + b".\r\n")
    for client in clients:
        assert client.reply().startswith(code)
        client.close()
    assert 2 <= time.monotonic() - begin < 4
    assert running.log.count("SCAN:TIMEOUT") == 40
    assert len(server.messages) == 40 * (ignore == "yes")
    wait_until(lambda: not scanner.scans, 2, "no scan")
    quiet.restored()
    scanner.close()
    path.unlink()


def scanned(path: Path) -> Options:
    """Options for scanning with a clamd, without traces."""
    return {
        "antivirus_type": "clamd",
        "antivirus_path": str(path),
        "spool_leave_on": "never",
        "lock_on": "never",
    }


@contextmanager
def tiny_disk(network: Network, size: str) -> Iterator[Path]:
    """A file system of the router's for message copies, which fills up soon; gives its path there."""
    path = network.directory / "tiny"
    path.mkdir(exist_ok=True)
    network.router.run(["mount", "-t", "tmpfs", "-o", f"mode=0777,size={size}", "tiny", path])
    yield path
    network.router.run(["umount", "-l", path])


def fill(disk: Path) -> None:
    with (disk / "filler").open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
        while True:
            file.write(bytes(4096))


@pytest.mark.parametrize(("transfer", "body"), [("path", BIG), ("stream", HUGE)], ids=["named", "unnamed"])
@pytest.mark.parametrize(("ignore", "code"), [("no", "451"), ("yes", "250")])
@pytest.mark.option("ignore_errors")
def test_a_disk_that_fills_up_within_a_message(
    network: Network,
    server: ScriptedServer,
    clamd: Clamd,
    gateway: GatewayFactory,
    ignore: str,
    code: str,
    transfer: str,
    body: str,
) -> None:
    with tiny_disk(network, "64k") as path:
        options: Options = {"spool_path": str(path), "ignore_errors": ignore, "antivirus_transfer": transfer}
        running = gateway(scanned(clamd.socket) | options | {"scan_max_size": 50_000_000})
        quiet = Quiet(running)
        with dial(network, server) as client:
            client.greet().begin()
            assert client.finish(body).startswith(code)
            assert client.ask("NOOP").startswith("250")
        with dial(network, server) as client:
            assert client.greet().begin().finish().startswith("250")
        quiet.restored()
        assert list((network.router.root / path.relative_to("/")).iterdir()) == []
        assert len(server.messages) == 1 + (ignore == "yes")
        assert len(server.unfinished) == (ignore == "no")
        assert running.log.count("SPOOL:FAILED") == 1
        assert running.log.count("SCAN:CLEAN") == 1


@pytest.mark.parametrize(("ignore", "code"), [("no", "451"), ("yes", "250")])
@pytest.mark.parametrize("body", [f"Subject: virus\r\n\r\n{EICAR}\r\n", ""], ids=["virus", "empty"])
def test_a_disk_that_is_full_already(
    network: Network,
    server: ScriptedServer,
    clamd: Clamd,
    gateway: GatewayFactory,
    ignore: str,
    code: str,
    body: str,
) -> None:
    """Nothing may pass unscanned because not even the copy's first line could be written."""
    with tiny_disk(network, "64k") as path:
        fill(network.router.root / path.relative_to("/"))
        options: Options = {"spool_path": str(path), "ignore_errors": ignore, "antivirus_transfer": "path"}
        running = gateway(scanned(clamd.socket) | options)
        with dial(network, server) as client:
            client.greet()
            for command in ("MAIL FROM:<a@client.test>", "RCPT TO:<b@example.test>"):
                assert client.ask(command).startswith("250")
            answer = client.ask("DATA")
            if answer.startswith("354"):
                answer = client.finish(body)
            assert answer.startswith(code)
        wait_until(lambda: not server.talks, 2, "the server's connection closed")
        assert len(server.messages) == (ignore == "yes")
        assert running.log.count("SPOOL:FAILED") == 1


def remove(directory: Path) -> None:
    directory.rename(directory.with_suffix(".away"))


def forbid(directory: Path) -> None:
    os.chown(directory, 0, 0)


@pytest.mark.parametrize("spoil", [remove, forbid])
@pytest.mark.parametrize(("ignore", "code"), [("no", "451"), ("yes", "354")])
def test_a_spool_directory_that_cannot_be_used(
    network: Network,
    server: ScriptedServer,
    clamd: Clamd,
    gateway: GatewayFactory,
    spoil: Callable[[Path], None],
    ignore: str,
    code: str,
) -> None:
    running = gateway(scanned(clamd.socket) | {"ignore_errors": ignore, "antivirus_transfer": "path"})
    spoil(running.spool)
    with dial(network, server) as client:
        client.greet()
        assert client.ask("MAIL FROM:<a@client.test>").startswith("250")
        assert client.ask("RCPT TO:<b@example.test>").startswith("250")
        assert client.ask("DATA").startswith(code)
        if ignore == "yes":
            assert client.finish().startswith("250")
        else:
            assert client.ask("MAIL FROM:<a@client.test>").startswith("451")
    assert len(server.messages) == (ignore == "yes")
    assert "SPOOL:FAILED" in running.log


@pytest.mark.parametrize("transfer", ["stream", "fd"])
def test_what_is_scanned_from_memory_needs_no_disk(
    network: Network, server: ScriptedServer, clamd: Clamd, gateway: GatewayFactory, transfer: str
) -> None:
    running = gateway(scanned(clamd.socket) | {"antivirus_transfer": transfer, "spool_leave_on": "virus"})
    remove(running.spool)
    before = written(running)
    with dial(network, server) as client:
        assert client.greet().begin().finish(BIG).startswith("250")
    assert "SPOOL:FAILED" not in running.log
    assert written(running) - before < len(BIG)  # the log is a file, too
    with dial(network, server) as client:
        assert client.greet().begin().finish(f"Subject: virus\r\n\r\n{EICAR}\r\n").startswith("550")
    assert running.log.count("SPOOL:FAILED") == 1  # the one that shall be kept
    assert len(server.messages) == 1


def written(gateway: Gateway) -> int:
    """Give the bytes that the workers have written to files so far."""
    counts = (Path(f"/proc/{pid}/io").read_text() for pid in gateway.workers())
    return sum(int(text.partition("\nwrite_bytes: ")[2].partition("\n")[0]) for text in counts)


def test_a_virus_is_refused_though_its_sender_cannot_be_locked(
    network: Network, postfix: Postfix, clamd: Clamd, gateway: GatewayFactory
) -> None:
    running = gateway(scanned(clamd.socket) | {"lock_on": "virus"})
    os.chown(running.locks, 0, 0)
    sent = swaks(network.client, postfix.ipv4, body=EICAR)
    assert sent.refusal.startswith("550")
    assert "LOCK:FAILED" in running.log
    sent = swaks(network.client, postfix.ipv4, subject="after the virus")
    assert sent.accepted, sent.transcript
    assert "BUG" not in running.log
    assert list(running.locks.iterdir()) == []


def test_clients_that_vanish_before_they_are_accepted_leave_nothing(
    network: Network, server: ScriptedServer, gateway: GatewayFactory
) -> None:
    running = gateway({"connect_queue": 1000})
    quiet = Quiet(running)
    for _ in range(200):
        dial(network, server).reset()
    quiet.restored(3)
    assert "BUG" not in running.log


def test_a_server_that_cannot_be_reached(network: Network, gateway: GatewayFactory) -> None:
    network.mail.add_address("198.51.100.43/24")
    gateway({"timeout_connect": 2})
    listener = network.mail.open_socket(socket.AF_INET)  # bound, and refusing
    listener.bind(("198.51.100.43", 25))
    for address in ("198.51.100.43", "198.51.100.99"):  # the latter nobody has
        begin = time.monotonic()
        with Talk(network.client.connect((address, 25))) as client:
            assert client.reply().startswith("220 gw.example.test")
            assert client.ask("MAIL FROM:<a@client.test>").startswith("451")
        assert time.monotonic() - begin < 4
    listener.close()


def test_a_client_that_speaks_while_its_server_is_sought_is_heard_later(
    network: Network, gateway: GatewayFactory
) -> None:
    running = gateway({"timeout_connect": 1})
    with Talk(network.client.connect(("198.51.100.99", 25))) as client:  # nobody has that address
        client.say("EHLO client.test", "MAIL FROM:<a@client.test>", "QUIT")
        client.socket.shutdown(socket.SHUT_WR)
        assert [client.reply()[:3] for _ in range(4)] == ["220", "250", "451", "221"]
        assert client.rest() == b""
    assert "BUG" not in running.log
